"""Writes templates.json: chat templates and what Jinja2, configured as transformers configures it, makes of them.

Run with any Python that has jinja2 (PyTorch brings it): python3 tests/golden/make_templates.py
"""
import json
from pathlib import Path

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """transformers' AssistantTracker, without the tracking."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_call"), [], [], body).set_lineno(line)

    def _call(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
env.filters["tojson"] = tojson

MESSAGES = [
    {"role": "system", "content": "Be kind. "},
    {"role": "user", "content": ' Hi, "you"?'},
    {"role": "assistant", "content": "Hello!\n"},
    {"role": "user", "content": "Bye <é>"},
]
TEMPLATES = {
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "blocks": """{%- set ns = namespace(count=0) -%}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% set ns.count = ns.count + 1 %}
    {% if message.role == 'assistant' %}
        {%- generation -%}
<a>{{ message.content.strip() }}</a>
        {% endgeneration %}
    {% else %}
{{ message | tojson }}
{{ {'z': [1, true, none], 'a': {}} | tojson(indent=2) }}
    {% endif %}
{% endfor %}
{{ ns.count }} {{ add_generation_prompt }} {{ none }} {{ messages[0].get('name', 'nobody') }}
""",
}
golden = [
    {
        "name": name,
        "template": template,
        "rendered": env.from_string(template).render(
            messages=MESSAGES, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        ),
    }
    for name, template in TEMPLATES.items()
]
out = {"messages": MESSAGES, "bos_token": "<s>", "eos_token": "</s>", "templates": golden}
path = Path(__file__).with_name("templates.json")
path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
