"""Makes the golden numbers of stages/core/model/tests/golden.rs from transformers' own models.

    pip install torch==2.11.0 transformers==5.23.0 safetensors
    python tests/golden/make_models.py            # writes tests/golden/model_*.safetensors
    python tests/golden/make_models.py NAME...    # some of them

Everything is computed in f64. transformers computes some parts in f32 whatever the model's type
(RMSNorm's variance, the rotary tables, GPT-Neo's attention) and the loss in f32; here they are computed in
f64, so that a comparison at 1e-9 means something, and the script asserts that the unpatched model agrees to
1e-5. Each file holds, as tensors:

    param/NAME     weights at the start                    ids, valid     a batch padded on the left
    logits         (token) or scores (scalar), all places  loss           mean over predicted tokens
    grad/NAME      gradients of the loss                   step10/NAME    weights after ten steps of
    config         config.json, as UTF-8 bytes                            AdamW on that batch
    cached         (dynamic scaling) logits of the first row, decoded token by token with a cache
"""

import contextlib
import copy
import importlib
import json
import math
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

OUT = Path(__file__).parent
VOCAB, PAD = 37, 1  # odd on purpose
ADAMW = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)


def precise_norm(self, x):
    variance = x.pow(2).mean(-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


class Double:
    """torch, in which float32 is float64."""

    float32 = float = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def rotary_width(config):
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))


def precise_frequencies(config, length):
    """The frequencies and the factor of the tables for a row of `length` tokens, in f64."""
    rope = config.rope_parameters
    width = rotary_width(config)
    if rope["rope_type"] == "default":
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        return 1.0 / rope["rope_theta"] ** exponents, 1.0
    module = importlib.import_module("transformers.modeling_rope_utils")
    original = module.torch
    module.torch = Double()
    try:
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, seq_len=length)
    finally:
        module.torch = original


def precise_rotary(self, x, position_ids):
    rows = [precise_frequencies(self.config, row.max().item() + 1) for row in position_ids]
    frequencies, factor = torch.stack([row[0] for row in rows]), rows[0][1]
    angles = position_ids[..., None].to(x.dtype) * frequencies[:, None]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


@contextlib.contextmanager
def precise(module):
    """Every norm, rotary table and cast to f32 of a model's module in f64."""
    patches = [("torch", module.torch, Double())]
    for name in dir(module):
        cls = getattr(module, name)
        if isinstance(cls, type) and name.endswith("RMSNorm"):
            patches.append((name, cls.forward, precise_norm))
        if isinstance(cls, type) and name.endswith("RotaryEmbedding"):
            patches.append((name, cls.forward, precise_rotary))

    def put(index):
        for patch in patches:
            if patch[0] == "torch":
                module.torch = patch[index]
            else:
                getattr(module, patch[0]).forward = patch[index]

    put(2)
    try:
        yield
    finally:
        put(1)


COMMON = dict(vocab_size=VOCAB, num_labels=1, pad_token_id=PAD, bos_token_id=0, eos_token_id=0)
GPT = dict(
    COMMON, n_positions=12, n_embd=12, n_layer=2, n_head=3, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
WIDTHS = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4)
LLAMA = dict(
    COMMON, **WIDTHS, intermediate_size=20, num_key_value_heads=2, max_position_embeddings=12,
    rms_norm_eps=1e-5,
)


def rope(**more):
    return {"rope_type": "default", "rope_theta": 500.0} | more


YARN = rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)
DYNAMIC = rope(rope_type="dynamic", factor=2.0)
LINEAR = rope(rope_type="linear", factor=2.5)
LLAMA3 = rope(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
NEO = dict(
    COMMON, max_position_embeddings=12, hidden_size=12, num_layers=3, num_heads=3, window_size=4,
    attention_types=[[["global", "local", "local"], 1]], intermediate_size=20,
)
NEOX = dict(
    COMMON, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
    max_position_embeddings=12,
)
OPT = dict(
    COMMON, **WIDTHS, ffn_dim=20, max_position_embeddings=12, dropout=0.0, word_embed_proj_dim=16
)
FALCON = dict(COMMON, **WIDTHS, max_position_embeddings=12)
NEW = dict(new_decoder_architecture=True, num_kv_heads=2)

# name: (model, class, configuration)
MODELS = {
    "gpt1": ("openai", "OpenAIGPTLMHeadModel", GPT),
    "gpt1_scalar": ("openai", "OpenAIGPTForSequenceClassification", GPT),
    "gpt2_tied": ("gpt2", "GPT2LMHeadModel", GPT),
    "gpt2_untied": ("gpt2", "GPT2LMHeadModel", GPT | dict(tie_word_embeddings=False)),
    "gpt2_scalar": ("gpt2", "GPT2ForSequenceClassification", GPT),
    "gpt_neo": ("gpt_neo", "GPTNeoForCausalLM", NEO),
    "gpt_neo_scalar": ("gpt_neo", "GPTNeoForSequenceClassification", NEO),
    "gpt_neox": ("gpt_neox", "GPTNeoXForCausalLM", NEOX),
    "gpt_neox_sequential": (
        "gpt_neox", "GPTNeoXForCausalLM", NEOX | dict(use_parallel_residual=False, rotary_pct=1.0)
    ),
    "gpt_neox_scalar": ("gpt_neox", "GPTNeoXForSequenceClassification", NEOX),
    "opt": ("opt", "OPTForCausalLM", OPT),
    "opt_350m": ("opt", "OPTForCausalLM", OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=8)),
    "opt_scalar": ("opt", "OPTForSequenceClassification", OPT),
    "llama_tied": ("llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=rope(), tie_word_embeddings=True)),
    "llama_untied": ("llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=rope())),
    "llama_biased": (
        "llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=LLAMA3, attention_bias=True, mlp_bias=True)
    ),
    "llama_yarn": ("llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=YARN, head_dim=6)),
    "llama_scalar": ("llama", "LlamaForSequenceClassification", LLAMA | dict(rope_parameters=rope())),
    "mistral": ("mistral", "MistralForCausalLM", LLAMA | dict(sliding_window=4)),
    "mistral_scalar": ("mistral", "MistralForSequenceClassification", LLAMA | dict(sliding_window=None)),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", LLAMA | dict(tie_word_embeddings=True)),
    "qwen2_sliding": (
        "qwen2", "Qwen2ForCausalLM", LLAMA | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
    ),
    "qwen2_scalar": ("qwen2", "Qwen2ForSequenceClassification", LLAMA),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", LLAMA | dict(head_dim=6)),
    "qwen3_scalar": ("qwen3", "Qwen3ForSequenceClassification", LLAMA | dict(head_dim=4)),
    "falcon": ("falcon", "FalconForCausalLM", FALCON),
    "falcon_alibi": (
        "falcon", "FalconForCausalLM",
        FALCON | dict(alibi=True, multi_query=False, parallel_attn=False, bias=True),
    ),
    "falcon_new": ("falcon", "FalconForCausalLM", FALCON | NEW | dict(tie_word_embeddings=False)),
    "falcon_scalar": ("falcon", "FalconForSequenceClassification", FALCON | NEW),
    "glm": ("glm", "GlmForCausalLM", LLAMA | dict(head_dim=8)),
    "glm_scalar": ("glm", "GlmForSequenceClassification", LLAMA | dict(head_dim=8, attention_bias=False)),
    "llama_dynamic": (
        "llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=DYNAMIC, max_position_embeddings=5, head_dim=6)
    ),
    "llama_linear": ("llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=LINEAR)),
}


def configuration(module, settings):
    """The configuration of a class's module, from a dictionary."""
    name = next(name for name in dir(module) if name.endswith("Config") and name != "PreTrainedConfig")
    return getattr(module, name)(**settings)


def batch(generator):
    """Three rows of 9, 6 and 3 real tokens, padded on the left to 9."""
    ids = torch.randint(2, VOCAB, (3, 9), generator=generator)
    valid = torch.ones(3, 9, dtype=torch.bool)
    valid[1, :3] = False
    valid[2, :6] = False
    return ids.masked_fill(~valid, PAD), valid


def forward(model, ids, valid):
    positions = (valid.long().cumsum(1) - 1).clamp_min(0)
    inner = dict(input_ids=ids, attention_mask=valid.long(), position_ids=positions)
    if hasattr(model, "score"):
        trunk = getattr(model, model.base_model_prefix)
        return model.score(trunk(**inner).last_hidden_state).squeeze(-1)
    return model(**inner).logits


def alone(model, ids, valid):
    """Each row in a fresh model: a dynamic base would be that of the longest row that was there before."""
    rows = [forward(copy.deepcopy(model), ids[i:i + 1], valid[i:i + 1]) for i in range(len(ids))]
    return torch.cat(rows)


def decode(model, ids):
    """Logits of one row, a token at a time."""
    cache, steps = transformers.DynamicCache(), []
    for i in range(ids.shape[1]):
        steps.append(model(input_ids=ids[:, i:i + 1], past_key_values=cache).logits)
    return torch.cat(steps, 1)


def loss_of(out, ids, valid):
    """Token: mean negative log-likelihood of real tokens after a real token. Scalar: of the last
    token's score, a fixed smooth function."""
    if out.dim() == 2:
        return torch.nn.functional.softplus(-out[:, -1]).mean()
    logprobs = out[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    mask = valid[:, :-1] & valid[:, 1:]
    return -logprobs[mask].mean()


def randomise(model, generator):
    """Weights far from their start, biases and norms too, so that nothing is hidden by a 0 or 1."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            centre = 1.0 if p.dim() == 1 and "weight" in name else 0.0
            values = centre + 0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float32)
            p.copy_(values)  # f32 values, so that the f32 test starts from the same numbers


def stored(name, family):
    """The name in files, which is another than in memory for one tensor."""
    return name.replace("lm_head", "embed_out") if family == "gpt_neox" else name


def golden(name, seed):
    family, cls, settings = MODELS[name]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    generator = torch.Generator().manual_seed(seed)
    config = configuration(module, settings)
    config._attn_implementation = "eager" if family in ("openai", "gpt_neo") else "sdpa"  # Llama's eager softmax is in f32
    model = getattr(transformers, cls)(config).double().eval()
    randomise(model, generator)
    ids, valid = batch(generator)
    with torch.no_grad():
        plain = alone(model, ids, valid)
        plain_cached = decode(copy.deepcopy(model), ids[:1]) if "dynamic" in name else None
    with precise(module):
        out = forward(model, ids, valid)
        gap = (plain - out.detach())[valid].abs().max().item()
        assert gap < 1e-5, f"{name}: {gap}"
        cached = {}
        if plain_cached is not None:
            with torch.no_grad():
                cached = dict(cached=decode(model, ids[:1]))
            assert (plain_cached - cached["cached"]).abs().max().item() < 1e-5, name
        loss = loss_of(out, ids, valid)
        loss.backward()
        params = {stored(k, family): p for k, p in model.named_parameters()}
        tensors = {f"param/{k}": p.detach().float() for k, p in params.items()}
        assert all(torch.equal(tensors[f"param/{k}"].double(), p) for k, p in params.items())
        tensors |= {f"grad/{k}": p.grad.clone() for k, p in params.items()}
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        for _ in range(10):
            optimizer.zero_grad()
            loss_of(forward(model, ids, valid), ids, valid).backward()
            optimizer.step()
    tensors |= {f"step10/{k}": p.detach().float() for k, p in params.items()}
    text = json.dumps(config.to_diff_dict() | {"architectures": [cls]}).encode()
    tensors |= cached | dict(ids=ids, valid=valid, out=out.detach(), loss=loss.detach().reshape(1),
                    config=torch.tensor(list(text), dtype=torch.uint8))
    path = OUT / f"model_{name}.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    print(f"{path.name}: {path.stat().st_size} bytes, gap {gap:.1e}, loss {loss.item():.6f}")


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(MODELS)
    for seed, name in enumerate(MODELS):
        if name in chosen:
            golden(name, seed)
