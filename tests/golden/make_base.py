"""The demo's base model trained by plain PyTorch and transformers for the same time: what `rlhf`'s is
compared with in experiments/demo/results/base.json.

The prototype's shape (the demo's, with tied embeddings), and the demo's tokenizer, training rows, batch
and context; an eager loop with fused AdamW, peak learning rate 2e-3, 50 steps of warm-up, then linear
to a tenth by the clock. Both are measured on the same held-out rows.

    rlhf run experiments/demo/pipeline.toml --until pretrain
    python3 tests/golden/make_base.py runs/demo SECONDS > experiments/demo/results/base.json

SECONDS is the time that `rlhf` spent in the stage's training steps. Needs torch 2.11, transformers and
pyarrow, and two idle cores.
"""

import glob
import json
import math
import sys
import time

import pyarrow.parquet as parquet
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB, WIDTH, LAYERS, HEADS, MLP, CONTEXT, BATCH = 2048, 192, 4, 3, 512, 128, 32
NUM_HELDOUT = 256


def rows(path):
    table = parquet.read_table(path)
    tokens = torch.tensor(table["tokens"].to_pylist())
    return tokens, torch.tensor(table["bytes"].to_pylist())


def bits_per_byte(model, tokens, num_bytes):
    model.eval()
    with torch.no_grad():
        nats = [model(input_ids=x, labels=x).loss.item() * x[:, 1:].numel() for x in tokens.split(32)]
    model.train()
    return sum(nats) / math.log(2) / num_bytes.sum().item()


def last(path, key):
    lines = [json.loads(line) for line in open(path)]
    return [line[key] for line in lines if key in line][-1]


def main(run, seconds):
    caches = sorted(glob.glob(f"{run}/pretrain/cache/tokens-*.parquet"), key=lambda p: len(parquet.read_table(p)))
    (heldout, heldout_bytes), (train, _) = rows(caches[0]), rows(caches[-1])
    heldout, heldout_bytes = heldout[:NUM_HELDOUT], heldout_bytes[:NUM_HELDOUT]
    torch.manual_seed(0)
    shape = dict(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS)
    heads = dict(num_attention_heads=HEADS, num_key_value_heads=HEADS)
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, max_position_embeddings=256, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), fused=True, weight_decay=0.0)
    started, step = time.time(), 0
    while (elapsed := time.time() - started) < seconds:
        batch = train[torch.randint(0, len(train), (BATCH,))]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * max(0.1, 1 - elapsed / seconds)
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    ours = last(f"{run}/pretrain/metrics.jsonl", "loss/heldout_bits_per_byte")
    theirs = bits_per_byte(model, heldout, heldout_bytes)
    result = {
        "seconds": seconds,
        "heldout_rows": NUM_HELDOUT,
        "rlhf": {"bits_per_byte": ours, "steps": last(f"{run}/pretrain/metrics.jsonl", "step")},
        "pytorch": {"bits_per_byte": theirs, "steps": step, "torch": torch.__version__},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
