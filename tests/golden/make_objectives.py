"""Makes the golden numbers of stages/pretrain/tests/golden.rs: what masked tokens (BERT) and blank infilling
(GLM) compute, from transformers' own decoders under an explicit mask, in f64 (see make_models.py).

    pip install torch==2.11.0 transformers==5.23.0 safetensors
    python tests/golden/make_objectives.py        # writes tests/golden/objective_*.safetensors

Who sees whom is written down pair by pair (`sees`) and given as a 4-D mask; the rows of blank infilling are
made here anew, token by token. Each file holds, as tensors:

    param/NAME     weights                         ids, targets   a batch padded on the right (no target: -1)
    grad/NAME      gradients of the loss           prefix         tokens of each row that see each other
    out            logits, all places              loss           mean over the targets
    config         config.json, as UTF-8 bytes
    text/ROW, spans/ROW, positions                 (infill) texts; spans in the order of part B; both positions
"""

import importlib
import json

import torch
import transformers
from safetensors.torch import save_file

from make_models import GPT, LLAMA, OPT, OUT, VOCAB, configuration, precise, randomise, rope

PAD, MASK, START, END, FIRST = 1, 2, 3, 4, 5  # ordinary tokens from FIRST on
PLACES = 5

# name: (model, class, configuration, name of the table of places)
MODELS = {
    "masked_gpt2": ("gpt2", "GPT2LMHeadModel", GPT, None),
    "masked_llama": ("llama", "LlamaForCausalLM", LLAMA | dict(rope_parameters=rope()), None),
    "infill_gpt2": ("gpt2", "GPT2LMHeadModel", GPT, "transformer.span_positions.weight"),
    "infill_opt": ("opt", "OPTForCausalLM", OPT, "model.span_positions.weight"),
    # Narrow embeddings: the places are added where the positions are, behind the projection.
    "infill_opt_350m": (
        "opt", "OPTForCausalLM", OPT | dict(do_layer_norm_before=False, word_embed_proj_dim=8),
        "model.span_positions.weight",
    ),
}

# Texts' lengths, and spans (first, behind the last) in the order of part B.
BLANKS = [(12, [(6, 10), (0, 1), (2, 4)]), (9, [(3, 6)]), (7, [(5, 7), (1, 3)])]


def masked_rows(generator):
    """Rows of 9, 6 and 3 tokens; of three hidden ones, one is a mask, one another token, one left."""
    rows = []
    for length in (9, 6, 3):
        text = torch.randint(FIRST, VOCAB, (length,), generator=generator).tolist()
        hidden = torch.randperm(length, generator=generator)[:3].tolist()
        ids = list(text)
        ids[hidden[0]] = MASK
        ids[hidden[1]] = (text[hidden[1]] - FIRST + 7) % (VOCAB - FIRST) + FIRST
        targets = [text[i] if i in hidden else -1 for i in range(length)]
        rows.append(dict(ids=ids, targets=targets, prefix=length))
    return rows


def infill_row(text, spans):
    """Part A and part B by the definition of Du et al. 2022, figure 2."""
    ids, targets, positions, blank = [], [], [], {}
    for i, token in enumerate(text):
        inside = [s for s in spans if s[0] <= i < s[1]]
        if not inside:
            ids.append(token)
        elif i == inside[0][0]:
            blank[inside[0]] = len(ids)
            ids.append(MASK)
    targets = [-1] * len(ids)
    positions = [(i, 0) for i in range(len(ids))]
    prefix = len(ids)
    for span in spans:
        place = 0
        for token, target in zip([START] + text[span[0]:span[1]], text[span[0]:span[1]] + [END]):
            place += 1
            ids.append(token)
            targets.append(target)
            positions.append((blank[span], place))
    return dict(ids=ids, targets=targets, positions=positions, prefix=prefix)


def sees(query, key, row):
    """Whether a token of a row sees another one."""
    in_a = key < row["prefix"]
    return key < len(row["ids"]) and (in_a or key <= query) or key == query


def padded(rows, key, fill, length):
    return torch.tensor([row[key] + [fill] * (length - len(row[key])) for row in rows])


def golden(name, seed):
    family, cls, settings, table = MODELS[name]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    generator = torch.Generator().manual_seed(seed)
    config = configuration(module, settings)
    config._attn_implementation = "sdpa"
    model = getattr(transformers, cls)(config).double().eval()
    if table:
        model.places = torch.nn.Embedding(PLACES, config.hidden_size).double()
    randomise(model, generator)
    tensors = {}
    if table:
        texts = [torch.randint(FIRST, VOCAB, (n,), generator=generator).tolist() for n, _ in BLANKS]
        rows = [infill_row(text, spans) for text, (_, spans) in zip(texts, BLANKS)]
        for i, (text, (_, spans)) in enumerate(zip(texts, BLANKS)):
            tensors |= {f"text/{i}": torch.tensor(text), f"spans/{i}": torch.tensor(spans)}
    else:
        rows = masked_rows(generator)
    length = max(len(row["ids"]) for row in rows)
    ids, targets = padded(rows, "ids", PAD, length), padded(rows, "targets", -1, length)
    seen = torch.tensor([[[sees(q, k, row) for k in range(length)] for q in range(length)] for row in rows])
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))[:, None]
    if table:
        positions = padded(rows, "positions", (0, 0), length)
        inside = positions[..., 1:] > 0

        def add_places(_module, _inputs, words):
            return words + model.places((positions[..., 1] - 1).clamp_min(0)) * inside

        projected = name == "infill_opt_350m"
        (model.model.decoder.project_in if projected else model.get_input_embeddings()).register_forward_hook(add_places)
        inputs = dict(input_ids=ids, position_ids=positions[..., 0])
        tensors |= dict(positions=positions)
    else:
        inputs = dict(input_ids=ids, position_ids=torch.arange(length).expand(len(rows), length))
    with torch.no_grad():
        plain = model(attention_mask=mask, **inputs).logits
    with precise(module):
        out = model(attention_mask=mask, **inputs).logits
        real = torch.arange(length) < torch.tensor([[len(row["ids"])] for row in rows])
        gap = (plain - out.detach())[real].abs().max().item()
        assert gap < 1e-5, f"{name}: {gap}"
        wanted = targets >= 0
        loss = -out.log_softmax(-1)[wanted].gather(-1, targets[wanted][:, None]).mean()
        loss.backward()
    params = {k.replace("places.weight", table or ""): p for k, p in model.named_parameters()}
    tensors |= {f"param/{k}": p.detach().float() for k, p in params.items()}
    assert all(torch.equal(tensors[f"param/{k}"].double(), p) for k, p in params.items())
    tensors |= {f"grad/{k}": p.grad for k, p in params.items()}
    stated = config.to_diff_dict() | {"architectures": [cls]} | ({"span_positions": PLACES} if table else {})
    tensors |= dict(
        ids=ids, targets=targets, prefix=torch.tensor([row["prefix"] for row in rows]),
        out=out.detach(), loss=loss.detach().reshape(1),
        config=torch.tensor(list(json.dumps(stated).encode()), dtype=torch.uint8),
    )
    path = OUT / f"objective_{name}.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    print(f"{path.name}: {path.stat().st_size} bytes, gap {gap:.1e}, loss {loss.item():.6f}")


if __name__ == "__main__":
    for seed, name in enumerate(MODELS):
        golden(name, seed)
