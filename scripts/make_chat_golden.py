"""Write tests/golden/chat/templates.json: chats as Hugging Face's transformers write them.

    python scripts/make_chat_golden.py

Needs the extra `oracles`. Templates are in the manner of models that are free to use, and one of
our own with the filters and methods that templates use.
"""

from __future__ import annotations

import json
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "chat" / "templates.json"

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "turns": """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
    {% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
    {% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "default_system": """{%- if tools %}
    {{- tools | tojson }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first)
           or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "namespace": """{%- set ns = namespace(index=0, system='') %}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0]['content'] + '\n\n' %}
    {%- set talk = messages[1:] %}
{%- else %}
    {%- set talk = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in talk %}
    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' ~ (ns.system if loop.last else '') ~ message['content'] ~ '[/INST]' }}
    {%- else %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}""",
    "filters": """{{ messages | tojson(indent=2) }}
{{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for m in messages | reverse %}{{ m.content.split(' ')[0] | upper }}{% continue %}{% endfor %}
{{ 'a-b' | replace('-', '+') }}{{ messages[0].content.strip().replace('i', 'I') }}
{%- macro quoted(text) %}"{{ text }}"{% endmacro %}{{ quoted(messages[-1].content) }}
{% generation %}marked{% endgeneration %}{{ 3 * 4 + 2 ** 3 }}{{ 'ab' * 3 }}{{ none is none }}""",
}
TALKS = (
    [{"role": "user", "content": "Hi there <b> é 你 "}],
    [{"role": "user", "content": "A"}, {"role": "assistant", "content": " B "},
     {"role": "user", "content": "C?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    [{"role": "user", "content": "A"}, {"role": "user", "content": "B"}],
)


def main() -> None:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    cases = []
    for name, template in TEMPLATES.items():
        for talk in TALKS:
            try:
                found, _ = render_jinja_template([talk], chat_template=template,
                                                 add_generation_prompt=True, **TOKENS)
                text = found[0]
            except TemplateError:
                text = None  # refused
            cases.append({"name": name, "messages": talk, "text": text})
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps({"tokens": TOKENS, "templates": TEMPLATES, "cases": cases},
                                 ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
