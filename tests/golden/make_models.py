"""Makes the golden numbers of stages/core/model/tests/golden.rs from transformers' own models.

    pip install torch==2.11.0 transformers==5.23.0 safetensors
    python tests/golden/make_models.py            # writes tests/golden/model_*.safetensors

Everything is computed in f64. transformers computes two parts of Llama in f32 whatever the model's
type (the norm's variance, the rotary tables) and the loss in f32; here they are computed in f64, so
that a comparison at 1e-9 means something, and the script asserts that the unpatched model agrees to
1e-5. Each file holds, as tensors:

    param/NAME     weights at the start                    ids, valid     a batch padded on the left
    logits         (token) or scores (scalar), all places  loss           mean over predicted tokens
    grad/NAME      gradients of the loss                   step10/NAME    weights after ten steps of
    config         config.json, as UTF-8 bytes                            AdamW on that batch
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from transformers.models.llama import modeling_llama

OUT = Path(__file__).parent
VOCAB, PAD = 37, 1  # odd on purpose
ADAMW = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)


def precise_norm(self, x):
    variance = x.pow(2).mean(-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


def precise_rotary(self, x, position_ids):
    config = self.config
    width = config.head_dim
    theta = config.rope_parameters["rope_theta"]
    exponents = torch.arange(0, width, 2, dtype=x.dtype) / width
    angles = position_ids[..., None].to(x.dtype) * (1.0 / theta**exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def gpt2(tied):
    return GPT2Config(
        vocab_size=VOCAB, n_positions=12, n_embd=12, n_layer=2, n_head=3, tie_word_embeddings=tied,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, num_labels=1, pad_token_id=PAD,
        bos_token_id=0, eos_token_id=0,
    )


def llama(tied):
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=12,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-5,
        tie_word_embeddings=tied, num_labels=1, pad_token_id=PAD, bos_token_id=0, eos_token_id=0,
    )


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


def golden(name, cls, config, seed):
    generator = torch.Generator().manual_seed(seed)
    config._attn_implementation = "sdpa"  # the eager softmax of Llama is in f32
    model = cls(config).double().eval()
    randomise(model, generator)
    ids, valid = batch(generator)
    with torch.no_grad():
        plain = forward(model, ids, valid)
    originals = (modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward)
    modeling_llama.LlamaRMSNorm.forward = precise_norm
    modeling_llama.LlamaRotaryEmbedding.forward = precise_rotary
    try:
        out = forward(model, ids, valid)
        gap = (plain - out.detach())[valid].abs().max().item()
        assert gap < 1e-5, f"{name}: {gap}"
        loss = loss_of(out, ids, valid)
        loss.backward()
        params = dict(model.named_parameters())
        tensors = {f"param/{k}": p.detach().float() for k, p in params.items()}
        assert all(torch.equal(tensors[f"param/{k}"].double(), p) for k, p in params.items())
        tensors |= {f"grad/{k}": p.grad.clone() for k, p in params.items()}
        optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
        for _ in range(10):
            optimizer.zero_grad()
            loss_of(forward(model, ids, valid), ids, valid).backward()
            optimizer.step()
    finally:
        modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward = originals
    tensors |= {f"step10/{k}": p.detach() for k, p in params.items()}
    text = json.dumps(config.to_diff_dict() | {"architectures": [cls.__name__]}).encode()
    tensors |= dict(ids=ids, valid=valid, out=out.detach(), loss=loss.detach().reshape(1),
                    config=torch.tensor(list(text), dtype=torch.uint8))
    path = OUT / f"model_{name}.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, path)
    print(f"{path.name}: {path.stat().st_size} bytes, loss {loss.item():.6f}")


if __name__ == "__main__":
    golden("gpt2_tied", GPT2LMHeadModel, gpt2(True), 1)
    golden("gpt2_untied", GPT2LMHeadModel, gpt2(False), 2)
    golden("gpt2_scalar", GPT2ForSequenceClassification, gpt2(True), 3)
    golden("llama_tied", LlamaForCausalLM, llama(True), 4)
    golden("llama_untied", LlamaForCausalLM, llama(False), 5)
    golden("llama_scalar", LlamaForSequenceClassification, llama(True), 6)
