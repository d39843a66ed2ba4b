"""A small Llama as GGUF, in every type that is read, with what transformers makes of it; a small sentencepiece
model with what sentencepiece makes of texts.

    python tests/golden/make_gguf.py               (gguf 0.19, transformers 5.23, torch 2.11, sentencepiece 0.2)
"""

import io
import json
import pathlib

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).parent
WIDTH, HEADS, KV, MLP, LAYERS = 32, 2, 1, 64, 2
TEXT = "It's 12345 o'clock;  the héllo\n\n\tworld 🙂 <|im_start|>user says"


def byte_letters():
    """GPT-2's letter for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}


def write(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5e4)
    merges = ["Ġ t", "h e", "Ġt he", "l l", "o r", "Ġ w", "Ġw or"]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = [letter for _, letter in sorted(byte_letters().items())]
    tokens = specials + letters + [merge.replace(" ", "") for merge in merges]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
    random = np.random.default_rng(5)
    kinds = [Type.F32, Type.F16, Type.Q8_0, Type.Q4_0, Type.Q4_1]

    def add(name, shape, kind):
        data = random.normal(0, 0.3, shape).astype(np.float32)
        raw = gguf.quants.quantize(data, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)

    add("token_embd.weight", (len(tokens), WIDTH), Type.Q8_0)
    add("output.weight", (len(tokens), WIDTH), Type.Q4_1)
    for layer in range(LAYERS):
        parts = [
            ("attn_q", (WIDTH, WIDTH)), ("attn_k", (WIDTH // HEADS * KV, WIDTH)),
            ("attn_v", (WIDTH // HEADS * KV, WIDTH)), ("attn_output", (WIDTH, WIDTH)),
            ("ffn_gate", (MLP, WIDTH)), ("ffn_up", (MLP, WIDTH)), ("ffn_down", (WIDTH, MLP)),
        ]
        for index, (part, shape) in enumerate(parts):
            add(f"blk.{layer}.{part}.weight", shape, kinds[(layer + index) % len(kinds)])
        for part in ["attn_norm", "ffn_norm"]:
            add(f"blk.{layer}.{part}.weight", (WIDTH,), Type.F32)
    add("output_norm.weight", (WIDTH,), Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


write(HERE / "llama.gguf")
model = AutoModelForCausalLM.from_pretrained(HERE, gguf_file="llama.gguf", dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(HERE, gguf_file="llama.gguf")
ids = tokenizer(TEXT)["input_ids"]
with torch.no_grad():
    logits = model(torch.tensor([ids[:16]])).logits[0]
tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if ".layers.0." in name}
text = torch.tensor(list(TEXT.encode()), dtype=torch.uint8)
save_file(tensors | {"text": text, "ids": torch.tensor(ids), "logits": logits}, HERE / "llama_gguf.safetensors")

corpus = pathlib.Path(__file__).read_text().splitlines() * 3
written = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus), model_writer=written, vocab_size=360, model_type="bpe", byte_fallback=True,
    normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
    user_defined_symbols=["<|user|>"],
)
(HERE / "sentencepiece.model").write_bytes(written.getvalue())
processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
texts = ["The tokens of a small model", "  spaces   kept ", "digits 1024, bytes é🙂\n", "x"]
encoded = [{"text": text, "ids": processor.encode(text), "decoded": processor.decode(processor.encode(text))} for text in texts]
(HERE / "sentencepiece.json").write_text(json.dumps(encoded, indent=1, ensure_ascii=False) + "\n")
unigram = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(corpus), model_writer=unigram, vocab_size=120, model_type="unigram", minloglevel=2,
    normalization_rule_name="identity", remove_extra_whitespaces=False,
)
(HERE / "sentencepiece_unigram.model").write_bytes(unigram.getvalue())
