"""Makes the golden numbers of stages/core/generation/tests/beams.rs from transformers' own beam search.

    pip install torch==2.11.0 transformers==5.23.0 safetensors
    python tests/golden/make_beams.py             # writes tests/golden/beams.json

The models are those of make_models.py, in f64 and with weights three times as large, so that their
distributions are far from flat. Each case: the model, a prompt, what was asked for, and the responses.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

OUT = Path(__file__).parent
SCALE = 3.0


def model_of(name):
    golden = load_file(OUT / f"model_{name}.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(bytes(golden["config"].tolist()))
        weights = {key.removeprefix("param/"): SCALE * value for key, value in golden.items() if key.startswith("param/")}
        save_file(weights, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def cases():
    for name in ("llama_untied", "gpt2_untied"):
        model = model_of(name)
        for index, prompt in enumerate([[3, 17, 9], [30], [2, 2, 5, 11]]):
            for beams, penalty, eos in [(1, 1.0, [0]), (3, 1.0, [0, 4, 7]), (4, 0.0, [0, 5, 6, 9, 12]), (3, 2.0, [8, 20]), (5, -1.0, [0, 1, 2, 3]), (2, 1.0, [])]:
                config = GenerationConfig(
                    num_beams=beams, num_return_sequences=beams, length_penalty=penalty, do_sample=False, early_stopping=False,
                    max_new_tokens=8, eos_token_id=eos or [10_000],  # None would be the model's own
                    pad_token_id=1,
                )
                ids = torch.tensor([prompt])
                with torch.no_grad():
                    rows = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
                responses = []
                for row in rows[:, len(prompt) :].tolist():
                    end = next((i + 1 for i, token in enumerate(row) if token in eos), len(row))
                    responses.append(row[:end])
                yield dict(model=name, prompt=prompt, beams=beams, length_penalty=penalty, eos=eos, max_new_tokens=8, responses=responses)


all_cases = list(cases())
(OUT / "beams.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in all_cases) + "\n]\n")
print(len(all_cases), "cases,", len({json.dumps(case["responses"]) for case in all_cases}), "different")
