"""Compares `rlhf` with transformers and peft, live: every family, random weights, three shapes each.

    make parity                                   # in an environment of its own
    python tests/parity/parity.py [FAMILY...]

For each model, written by transformers (as safetensors or as `pytorch_model.bin`): `rlhf score` gives its log-probabilities (rewards) within 1e-4 in f32,
`rlhf generate --greedy` its greedy tokens, the folder that `rlhf model convert` writes opens in transformers
with the same logits, and a training step's gradients (stages/core/model/examples/gradients.rs) are the same:
per tensor, ||a-b|| <= 1e-4 x max(||b||, 0.05 x the largest norm).

Adapters, on the first shape of each family: those that peft writes, `rlhf score --adapter` and `rlhf model merge`
read; those that `rlhf run` trains in two steps, peft reads, with the logits of the merged `final/`.
"""

import inspect
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

transformers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

ROOT = Path(__file__).parents[2]
RLHF = ROOT / "target/release/rlhf"
GRADIENTS = ROOT / "target/release/examples/gradients"
BOUND = 1e-4
GRADIENT_BOUND, GRADIENT_FLOOR = 1e-4, 0.05
LENGTHS = [11, 1, 7, 4]
NEW_TOKENS = 6


def sizes(layers, heads, head_dim, vocab, kv_heads):
    return dict(layers=layers, heads=heads, width=heads * head_dim, head_dim=head_dim, vocab=vocab, kv=kv_heads)


# Odd counts of heads and odd vocabularies among them.
SHAPES = [sizes(2, 4, 8, 61, 2), sizes(3, 3, 16, 127, 3), sizes(1, 5, 12, 257, 1)]
POSITIONS = 32


def gpt(s):
    return dict(n_layer=s["layers"], n_head=s["heads"], n_embd=s["width"], n_positions=POSITIONS)


def common(s, **more):
    return dict(
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"], hidden_size=s["width"],
        max_position_embeddings=POSITIONS,
    ) | more


def llama(s, **more):
    return common(s, num_key_value_heads=s["kv"], intermediate_size=2 * s["width"] + 4) | more


YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=8)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
DYNAMIC = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)
LINEAR = dict(rope_type="linear", rope_theta=1e4, factor=2.0)

# family: (class prefix, class of the language model, one configuration a shape, and more of the first ones)
FAMILIES = {
    "gpt1": ("OpenAIGPT", "OpenAIGPTLMHeadModel", [lambda s: gpt(s)] * 3),
    "gpt2": ("GPT2", "GPT2LMHeadModel", [
        gpt,
        lambda s: gpt(s) | dict(n_inner=20, activation_function="gelu"),
        lambda s: gpt(s) | dict(tie_word_embeddings=False),
    ]),
    "gpt_neo": ("GPTNeo", "GPTNeoForCausalLM", [
        lambda s: dict(
            num_layers=s["layers"], num_heads=s["heads"], hidden_size=s["width"], window_size=3,
            max_position_embeddings=POSITIONS, attention_types=[[(["global", "local"] * 3)[:s["layers"]], 1]],
        )
    ] * 3),
    "gpt_neox": ("GPTNeoX", "GPTNeoXForCausalLM", [
        lambda s: common(s, intermediate_size=40),
        lambda s: common(s, intermediate_size=40, use_parallel_residual=False, rotary_pct=1.0),
        lambda s: common(s, intermediate_size=40, attention_bias=False, rotary_pct=0.5),
    ]),
    "opt": ("OPT", "OPTForCausalLM", [
        lambda s: common(s, ffn_dim=40),
        lambda s: common(s, ffn_dim=40, word_embed_proj_dim=20, do_layer_norm_before=False),
        lambda s: common(s, ffn_dim=40, enable_bias=False),
    ]),
    "llama": ("Llama", "LlamaForCausalLM", [
        lambda s: llama(s, rope_parameters=LLAMA3),
        lambda s: llama(s, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, rope_parameters=LINEAR),
        lambda s: llama(s, head_dim=10, rope_parameters=YARN),
        lambda s: llama(s, rope_parameters=DYNAMIC, max_position_embeddings=8),
    ]),
    "mistral": ("Mistral", "MistralForCausalLM", [
        lambda s: llama(s, sliding_window=4), lambda s: llama(s, sliding_window=None),
        lambda s: llama(s, sliding_window=5, head_dim=6),
    ]),
    "qwen2": ("Qwen2", "Qwen2ForCausalLM", [
        lambda s: llama(s, tie_word_embeddings=True), llama,
        lambda s: llama(s, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ]),
    "qwen3": ("Qwen3", "Qwen3ForCausalLM", [
        lambda s: llama(s, head_dim=16), lambda s: llama(s, head_dim=8, attention_bias=True),
        lambda s: llama(s, head_dim=8, use_sliding_window=True, sliding_window=4, max_window_layers=0),
    ]),
    "falcon": ("Falcon", "FalconForCausalLM", [
        common,
        lambda s: common(s, alibi=True, multi_query=False, parallel_attn=False, bias=True),
        lambda s: common(s, new_decoder_architecture=True, num_kv_heads=s["kv"], tie_word_embeddings=False),
    ]),
    "glm": ("Glm", "GlmForCausalLM", [
        lambda s: llama(s, head_dim=s["head_dim"]),
        lambda s: llama(s, head_dim=s["head_dim"], attention_bias=False),
        lambda s: llama(s, head_dim=8, tie_word_embeddings=True),
    ]),
}


def build(prefix, cls, settings, vocab, seed):
    special = dict(vocab_size=vocab, num_labels=1, bos_token_id=0, eos_token_id=0, pad_token_id=1)
    config = getattr(transformers, prefix + "Config")(**settings | special)
    torch.manual_seed(seed)
    model = getattr(transformers, cls)(config).eval()
    with torch.no_grad():  # far from the start, so that nothing is hidden by a 0 or 1
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def save(model, vocab, folder, index):
    """As safetensors, as `torch.save` writes it now, or as it did before 1.6."""
    model.save_pretrained(folder)
    if index > 0:
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=index == 1)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w2"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w1").save_pretrained(folder)


def rlhf(*args):
    done = subprocess.run([RLHF, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"rlhf {' '.join(map(str, args))}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(vocab, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def write_rows(rows, path):
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))


def logits(model, row):
    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits[0]


def gap_of_scores(model, rows, scored, scalar):
    """The largest difference of log-probabilities or rewards."""
    gaps = []
    for row, ours in zip(rows, scored):
        theirs = logits(model, row)
        if scalar:
            gaps.append(abs(theirs.item() - ours["reward"]))
            continue
        steps = theirs.log_softmax(-1)[:-1].gather(-1, torch.tensor(row[1:])[:, None]).flatten()
        gaps += (steps - torch.tensor(ours["logprobs"])).abs().tolist()
    return max(gaps, default=0.0)


def greedy(model, row):
    """With a cache where the class has one: under dynamic scaling, cached keys keep their angles."""
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        row = list(row)
        for _ in range(NEW_TOKENS):
            row.append(logits(model, row)[-1].argmax().item())
        return row[-NEW_TOKENS:]
    cache, new, made = transformers.DynamicCache(), row, []
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            step = model(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True)
            new = [step.logits[0, -1].argmax().item()]
            made += new
    return made


PIPELINE = """
name = "adapters"

[stages.sft]
kind = "sft"
model = "path:model"
data = "demonstrations.jsonl"
context = 16
batch = 4
steps = 2
optimizer = {{ lr = 0.05 }}
lora = {{ r = 3, target_modules = {targets} }}
"""


def trained_here(folder, rows, targets):
    """The adapters of `rlhf run` on the model in `folder`, and the model that they were merged into."""
    with (folder / "demonstrations.jsonl").open("w") as out:
        for i in range(80):  # a twentieth is held out
            content = " ".join(f"w{t}" for t in rows[0][:3]) if i % 2 else f"w{rows[0][3 + i % 5]}"
            messages = [dict(role="user", content=f"w{2 + i % 50}"), dict(role="assistant", content=content)]
            out.write(json.dumps(dict(id=str(i), messages=messages)) + "\n")
    config = folder / "pipeline.toml"
    config.write_text(PIPELINE.format(targets=json.dumps(targets)))
    rlhf("run", config, "--run-dir", folder / "run", "--device", "cpu")
    return folder / "run/sft/final"


def check_adapters(family, folder):
    prefix, cls, settings = FAMILIES[family]
    shape = SHAPES[0]
    model = build(prefix, cls, settings[0](shape), shape["vocab"], 0)
    there, adapter, data = folder / "model", folder / "adapter", folder / "rows.jsonl"
    save(model, shape["vocab"], there, 0)
    rows = rows_of(shape["vocab"], 0)
    write_rows(rows, data)
    final = trained_here(folder, rows, "all-linear" if len(family) % 2 else ["q", "output", "down"])
    problems = []
    with warnings.catch_warnings(record=True) as caught:  # keys that are missing or too many are warned of
        warnings.simplefilter("always")
        ours = PeftModel.from_pretrained(getattr(transformers, cls).from_pretrained(there), final / "adapter").eval()
    problems += [str(w.message) for w in caught if "adapter keys" in str(w.message)]
    merged = getattr(transformers, cls).from_pretrained(final).eval()
    apart = max((logits(ours, row) - logits(merged, row)).abs().max().item() for row in rows)
    moved = max((logits(ours, row) - logits(model, row)).abs().max().item() for row in rows)
    if apart > 1e-5 * max(1.0, moved) or moved < 1e-3:
        problems.append(f"peft reads our adapter {apart:.1e} away from final/, which moved by {moved:.1e}")

    theirs = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in theirs.eval().named_parameters():
            if "lora_B" in name:
                p.add_(0.1 * torch.randn_like(p))
    theirs.save_pretrained(adapter)
    scored = rlhf("score", "--model", there, "--adapter", adapter, "--data", data)
    gap = gap_of_scores(theirs, rows, scored, False)
    if gap > BOUND:
        problems.append(f"scores under peft's adapter differ by {gap:.1e}")
    rlhf("model", "merge", "--model", there, "--adapter", adapter, "--out", folder / "merged")
    again = getattr(transformers, cls).from_pretrained(folder / "merged").eval()
    apart = max((logits(theirs, row) - logits(again, row)).abs().max().item() for row in rows)
    if apart > 1e-5:
        problems.append(f"the merged folder's logits differ by {apart:.1e}")
    return gap, problems


def gap_of_gradients(model, rows, scalar, there, folder):
    """The largest difference of a tensor's gradients, in units of its norm."""
    (folder / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subprocess.run([GRADIENTS, there, folder / "ids.jsonl", folder / "grads.safetensors"], check=True)
    ours = load_file(folder / "grads.safetensors")
    model.zero_grad()
    for row in rows:
        out = model(input_ids=torch.tensor([row])).logits[0]
        if scalar:
            out.sum().backward()
        elif len(row) > 1:
            (-out.log_softmax(-1)[:-1].gather(-1, torch.tensor(row[1:])[:, None]).sum()).backward()
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if model.config.model_type == "gpt_neox" and not scalar:  # stored under another name than it has in memory
        theirs["embed_out.weight"] = theirs.pop("lm_head.weight")
    assert ours.keys() == theirs.keys(), f"{ours.keys() ^ theirs.keys()}"
    largest = max(grad.norm() for grad in theirs.values())
    gaps = ((ours[name] - grad).norm() / max(grad.norm(), GRADIENT_FLOOR * largest) for name, grad in theirs.items())
    return max(gaps).item()


def check(family, index, scalar, folder):
    prefix, cls, settings = FAMILIES[family]
    shape = SHAPES[index % len(SHAPES)]
    cls = prefix + "ForSequenceClassification" if scalar else cls
    model = build(prefix, cls, settings[index](shape), shape["vocab"], index)
    there, data, back = folder / "model", folder / "rows.jsonl", folder / "converted"
    save(model, shape["vocab"], there, index)
    rows = rows_of(shape["vocab"], index)
    write_rows(rows, data)
    # Rows alone, in pairs and in threes: a batch may have no row of two tokens.
    scored = rlhf("score", "--model", there, "--data", data, "--batch", index + 1)
    gap = gap_of_scores(model, rows, scored, scalar)
    problems = [] if gap <= BOUND else [f"scores differ by {gap:.1e}"]
    if not scalar:
        more = ["--greedy", "--ignore-eos", "--max-new-tokens", NEW_TOKENS]
        ours = [line["output_ids"] for line in rlhf("generate", "--model", there, "--data", data, *more)]
        if ours != [greedy(model, row) for row in rows]:
            problems.append("greedy tokens differ")
    apart = gap_of_gradients(model, rows, scalar, there, folder)
    if apart > GRADIENT_BOUND:
        problems.append(f"gradients differ by {apart:.1e}")
    rlhf("model", "convert", "--model", there, "--out", back, "--shard-size", "20KB")
    again = getattr(transformers, cls).from_pretrained(back).eval()
    pairs = zip(model.state_dict().items(), again.state_dict().items(), strict=True)
    if not all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs):
        problems.append("the converted folder holds other weights")
    apart = max((logits(model, row) - logits(again, row)).abs().max().item() for row in rows)
    if apart > 1e-5:  # equal weights at another place in memory may be summed in another order
        problems.append(f"the converted folder's logits differ by {apart:.1e}")
    return gap, problems


def main(chosen):
    failed = 0

    def report(words, run):
        nonlocal failed
        with tempfile.TemporaryDirectory() as folder:
            gap, problems = run(Path(folder))
        failed += bool(problems)
        print(f"{words}  gap {gap:.1e}  {'; '.join(problems) or 'equal'}", flush=True)

    for family in chosen or FAMILIES:
        for index in range(len(FAMILIES[family][2])):
            for scalar in (False, True):
                head = "scalar" if scalar else "token"
                report(f"{family:10} shape {index} {head:6}", lambda folder: check(family, index, scalar, folder))
        report(f"{family:10} adapters      ", lambda folder: check_adapters(family, folder))
    if failed:
        raise SystemExit(f"{failed} models differ")


if __name__ == "__main__":
    main(sys.argv[1:])
