"""Makes the golden numbers of stages/core/model/tests/lora.rs from peft's own adapters.

    pip install torch==2.11.0 transformers==5.23.0 peft==0.21.2 safetensors
    python tests/golden/make_lora.py              # writes tests/golden/lora_*.safetensors

The models and the batch are those of make_models.py, in f64. Each file holds, as tensors:

    param/NAME     frozen weights                          adapter/NAME   adapters as peft stores them
    config         config.json, as UTF-8 bytes             adapter_config adapter_config.json
    ids, valid     a batch padded on the left              out            logits or scores, all places
    loss           mean over predicted tokens              grad/NAME      gradients of what is trained
    step3/NAME     adapters after three steps of AdamW     merged/NAME    weights of merge_and_unload
"""

import importlib
import json
import tempfile
from pathlib import Path

import torch
import transformers
from make_models import ADAMW, MODELS, OUT, batch, configuration, forward, loss_of, precise, randomise
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

# name: (model of make_models.py, settings)
ADAPTERS = {
    "llama": ("llama_untied", dict(r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True)),
    "gpt2": ("gpt2_tied", dict(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj"])),
    "gpt_neox": ("gpt_neox", dict(r=2, lora_alpha=3, target_modules="all-linear")),
    "falcon": ("falcon", dict(r=2, lora_alpha=4, target_modules=["query_key_value", "dense"])),
    "glm": ("glm", dict(r=2, lora_alpha=2, target_modules="all-linear")),
    "llama_scalar": ("llama_scalar", dict(r=2, lora_alpha=4, target_modules="all-linear", task_type="SEQ_CLS")),
}


def fill(model, generator):
    """A far from its start, and B, whose start is zero; f32 values."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float32))


def stored(adapted):
    """The files of `save_pretrained`."""
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        # Written in an order that changes from run to run.
        config["target_modules"] = sorted(config["target_modules"])
        return load_file(Path(folder) / "adapter_model.safetensors"), config


def name_of(name):
    """A trained parameter's name in files."""
    return name.replace(".default", "").replace("modules_to_save.", "")


def text(value):
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def golden(name, seed):
    base, settings = ADAPTERS[name]
    family, cls, model_settings = MODELS[base]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    generator = torch.Generator().manual_seed(seed)
    config = configuration(module, model_settings)
    config._attn_implementation = "sdpa"
    model = getattr(transformers, cls)(config).double().eval()
    randomise(model, generator)
    rename = (lambda n: n.replace("lm_head", "embed_out")) if family == "gpt_neox" else (lambda n: n)
    tensors = {f"param/{rename(k)}": p.detach().float() for k, p in model.named_parameters()}
    ids, valid = batch(generator)
    with torch.no_grad(), precise(module):
        without = forward(model, ids, valid)
    adapted = get_peft_model(model, LoraConfig(**dict(task_type="CAUSAL_LM") | settings)).eval()
    fill(adapted, generator)
    adapter, adapter_config = stored(adapted)
    trained = {name_of(k): p for k, p in adapted.named_parameters() if p.requires_grad}
    assert trained.keys() == adapter.keys() and all(p.dtype == torch.float64 for p in trained.values())
    tensors |= {f"adapter/{k}": t.float() for k, t in adapter.items()}
    with precise(module):
        out = forward(model, ids, valid)
        assert (out - without)[valid].abs().max() > 1e-2, "the adapters change something"
        loss = loss_of(out, ids, valid)
        loss.backward()
        tensors |= {f"grad/{k}": p.grad.clone() for k, p in trained.items()}
        optimizer = torch.optim.AdamW(trained.values(), **ADAMW)
        start = {k: p.detach().clone() for k, p in trained.items()}
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(forward(model, ids, valid), ids, valid).backward()
            optimizer.step()
    tensors |= {f"step3/{k}": p.detach().clone() for k, p in trained.items()}
    with torch.no_grad():
        for k, p in trained.items():
            p.copy_(start[k])
    places = [k for k, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)]
    merged = dict(adapted.merge_and_unload().named_parameters())
    tensors |= {f"merged/{k}.weight": merged[f"{k}.weight"].detach() for k in places}
    tensors |= dict(
        ids=ids, valid=valid, out=out.detach(), loss=loss.detach().reshape(1),
        config=text(config.to_diff_dict() | {"architectures": [cls]}), adapter_config=text(adapter_config),
    )
    path = OUT / f"lora_{name}.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    print(f"{path.name}: {path.stat().st_size} bytes, {len(places)} matrices, loss {loss.item():.6f}")


if __name__ == "__main__":
    for seed, name in enumerate(ADAPTERS):
        golden(name, seed)
