"""SmolLM2-135M-Instruct, converted from GGUF by rlhf and opened by transformers as it is: the same token ids,
log-probabilities within 1e-4 (f32) and the same greedy reply. `make smollm2` makes the folder; then, after
`make parity`: .parity/bin/python tests/parity/smollm2.py
"""

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
RLHF = ROOT / "target/release/rlhf"
MODEL = ROOT / "experiments/smollm2/data/model"
TEXT = ROOT / "experiments/smollm2/text.jsonl"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def ours(command, data, *further):
    out = subprocess.run(
        [RLHF, command, "--model", MODEL, "--data", data, "--device", "cpu", *further],
        check=True, capture_output=True, text=True,
    ).stdout
    return [json.loads(line) for line in out.splitlines()]


def main():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = [json.loads(line)["text"] for line in TEXT.read_text().splitlines()]
    gap, total, tokens = 0.0, 0.0, 0
    for text, row in zip(texts, ours("score", TEXT, "--batch", "4"), strict=True):
        assert tokenizer(text)["input_ids"] == row["input_ids"], text
        ids_bt = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logprobs_tv = model(ids_bt).logits[0, :-1].log_softmax(-1)
        expected = logprobs_tv.gather(1, ids_bt[0, 1:, None])[:, 0]
        gap = max(gap, (expected - torch.tensor(row["logprobs"])).abs().max().item())
        total, tokens = total - sum(row["logprobs"]), tokens + len(row["logprobs"])
    print(f"{tokens} tokens, {total / tokens:.4f} nats a token; log-probabilities within {gap:.1e}")
    assert gap < 1e-4

    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as data:
        data.write(json.dumps({"messages": QUESTION}))
        data.flush()
        reply = ours("generate", data.name, "--greedy", "--max-new-tokens", "24")[0]
    prompt = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    made = model.generate(**prompt, do_sample=False, max_new_tokens=24)
    expected = made[0, prompt["input_ids"].shape[1]:].tolist()
    print(f"greedily: {reply['text']}")
    assert reply["output_ids"] == expected, expected


main()
