"""Writes templates.json: what transformers makes of the chat templates in templates/, and its masks of the assistant's tokens.

The templates are written after those that the families publish: the same formats by the same means of Jinja.

Run with transformers 5.23 and jinja2 3.1.6: python3 tests/golden/make_templates.py
"""
import datetime
import json
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).parent
BOS, EOS = "<s>", "</s>"
SPECIALS = [BOS, EOS, "<pad>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ t", "i s", "t h", "Ġ th", "Ġth is", "Ċ Ċ", "a s", "as s", "ass is", "assis t"]


def message(role, content):
    return {"role": role, "content": content}


SYSTEM = message("system", " You are a pirate. \n")
TALK = [
    message("user", ' Hello, "how" are <you>? '),
    message("assistant", "\n\nhello, this is great.\n"),
    message("user", "naïve 日本 🎉\ttab"),
    message("assistant", "<think>\nhm, hello?\n</think>\n\nThis is it."),
    message("user", "Bye"),
]
DIALOGUES = {
    "one turn": TALK[:1],
    "one turn, system": [SYSTEM, *TALK[:1]],
    "answered": TALK[:2],
    "three turns": TALK,
    "three turns, system": [SYSTEM, *TALK],
    "thinking": TALK[2:4],
    "thinking, system": [SYSTEM, *TALK[:4]],
    "two users": [TALK[0], TALK[2]],
    "empty contents": [message("user", ""), message("assistant", "")],
    "system alone": [SYSTEM],
    "text like markup": [message("user", "{{ x }}{% y %}\ufdd0 0\ufdd1"), message("assistant", "\ufdd00\ufdd1</s>")],
}


def tokenizer(template):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    vocabulary = {token: i for i, token in enumerate(SPECIALS + alphabet + merged)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in MERGES]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=BOS, eos_token=EOS, pad_token="<pad>", chat_template=template
    )


def rendered(template, messages, generation_prompt):
    try:
        texts, _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=generation_prompt, bos_token=BOS, eos_token=EOS
        )
    except TemplateError as error:
        return {"error": str(error)}
    return {"text": texts[0].replace(datetime.datetime.now().strftime("%d %b %Y"), "TODAY")}


def masked(template, messages):
    encoded = tokenizer(template).apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True
    )
    return {"ids": encoded["input_ids"], "mask": encoded["assistant_masks"]}


templates = {}
for file in sorted((HERE / "templates").glob("*.jinja")):
    source = file.read_text(encoding="utf-8")
    cases = {}
    for name, messages in DIALOGUES.items():
        cases[name] = {
            "plain": rendered(source, messages, False),
            "prompted": rendered(source, messages, True),
        }
        if file.stem.startswith("generation"):
            cases[name]["masked"] = masked(source, messages)
    templates[file.stem] = cases
out = {
    "bos_token": BOS,
    "eos_token": EOS,
    "tokenizer": json.loads(tokenizer(None)._tokenizer.to_str()),
    "dialogues": DIALOGUES,
    "templates": templates,
}
path = HERE / "templates.json"
path.write_text(json.dumps(out, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
