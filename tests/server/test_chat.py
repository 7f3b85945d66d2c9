"""Chat templates in their sandbox."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2", reason="chat templates need jinja2: pip install 'tf_infer[server]'")

from tf_infer.config import ChatFormat
from tf_infer.errors import ConfigError, InvalidRequest, ServerFailure
from tf_infer.server.chat import MAX_CHARS, Template, prompt_of

GOLDEN = json.loads((Path(__file__).resolve().parent.parent / "golden" / "chat" / "templates.json"
                     ).read_text(encoding="utf-8"))
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüß Gott <b>"}]

CHATML = """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}
{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant') }}
{% endif %}
{% if loop.index0 == 0 and system %}
{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{% generation %}{{ ' ' + content | trim + ' ' + eos_token }}{% endgeneration %}
{%- endif %}{% endfor %}"""


def rendered(template: str, messages: Any = None, **tokens: str) -> str:
    return Template(template).render(messages or TALK, tokens)


def test_chatml_is_as_it_is_known() -> None:
    assert rendered(CHATML) == ("<|im_start|>system\nBe kind.<|im_end|>\n"
                                "<|im_start|>user\nGrüß Gott <b><|im_end|>\n"
                                "<|im_start|>assistant\n")


def test_llamas_template_with_its_tokens_and_marks() -> None:
    talk = [*TALK, {"role": "assistant", "content": " Ja. "}, {"role": "user", "content": "So?"}]
    assert rendered(LLAMA2, talk, bos_token="<s>", eos_token="</s>") == (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nGrüß Gott <b> [/INST] Ja. </s>"
        "<s>[INST] So? [/INST]")


@pytest.mark.parametrize("case", GOLDEN["cases"],
                         ids=lambda case: f"{case['name']}-{len(case['messages'])}")
def test_every_chat_is_as_transformers_writes_it(case: dict[str, Any]) -> None:
    template = Template(GOLDEN["templates"][case["name"]])
    if case["text"] is None:
        with pytest.raises(InvalidRequest, match="roles must alternate"):
            template.render(case["messages"], GOLDEN["tokens"])
    else:
        assert template.render(case["messages"], GOLDEN["tokens"]) == case["text"]


def test_a_template_may_refuse_with_its_own_words_alone() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate user/assistant"):
        rendered(LLAMA2, [TALK[1], TALK[1]], bos_token="<s>")
    with pytest.raises(InvalidRequest, match="no reason") as caught:
        rendered("{{ raise_exception('bad: ' + messages[1].content) }}")
    assert "Gott" not in str(caught.value)


def test_json_keeps_letters_and_signs_as_hugging_face_does() -> None:
    assert rendered("{{ messages[1] | tojson }}") == '{"role": "user", "content": "Grüß Gott <b>"}'


def test_loops_may_be_left_and_dates_told() -> None:
    assert rendered("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}"
                    "{{ strftime_now('%Y') | length }}") == "system4"


def test_a_start_token_is_left_out_where_the_codec_puts_one() -> None:
    template = "{{ bos_token }}{{ messages[1].content }}"
    for start, expected in ((True, "Grüß Gott <b>"), (False, "<s>Grüß Gott <b>")):
        format = ChatFormat(template=template, tokens={"bos_token": "<s>"}, start=start)
        assert prompt_of(format, TALK) == expected


@pytest.mark.parametrize("template", [
    "{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update({}) }}",
    "{{ '%99999999d' % 1 }}", "{{ 'x'.center(999999999) }}", "{{ '{:99999999}'.format(1) }}",
    "{{ cycler.__init__.__globals__ }}", "{{ [1] | batch(99999999, 'x') | list }}",
    "{{ [1] | slice(99999999) | list }}", "{{ 'x'.encode().ljust(999999999) }}",
    "{{ (1).to_bytes(999999999) }}", "{{ [[1], [1]] | sum(start=[]) }}",
])
def test_what_the_sandbox_forbids_is_a_fault_of_the_model(template: str) -> None:
    with pytest.raises(ServerFailure, match="template"):
        rendered(template)


@pytest.mark.parametrize("template", [
    "{{ 'x' * 99999999 }}", "{{ 2 ** 99999999 }}", "{{ [1] * 99999999 }}",
    "{% set x = 'abcdefgh' %}" + "{% set x = x ~ x %}" * 40 + "{{ x | length }}",
    "{% set x = 'abcdefgh' %}" + "{% set x = x + x %}" * 40 + "{{ x | length }}",
    "{% set n = namespace(x='abcdefgh') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}",
    "{% set x = 'a' * 3000 %}{{ x.replace('a', x) }}",
    "{% set x = 'a' * 3000 %}{{ x | replace('a', x) }}",
    "{% set x = 'a' * 3000 %}{{ ([1] * 3000) | join(x) }}",
    "{% set x = 'a' * 3000 %}{{ x.join([1] * 3000) }}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}{% endfor %}"
    "{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{% for i in r %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% set r = range(99999) %}{{ r | map('string') | map('list') | list | length }}" * 20,
])
def test_what_grows_or_never_ends_is_stopped(template: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(ServerFailure, match="too long or grows"):
        Template(template).render(TALK, {}, seconds=0.2)
    assert time.monotonic() - started_s < 60


def test_a_prompt_has_a_bounded_length() -> None:
    with pytest.raises(InvalidRequest, match="at most"):
        rendered("{% for i in range(9) %}{{ messages[0].content }}{% endfor %}",
                 [{"role": "user", "content": "x" * (MAX_CHARS // 8)}])


def test_a_fault_of_the_template_tells_no_text() -> None:
    with pytest.raises(ServerFailure, match="UndefinedError") as caught:
        rendered("{{ messages[0].nothing.more }}")
    assert "kind" not in str(caught.value)


def test_a_template_that_is_none_tells_its_line() -> None:
    with pytest.raises(ServerFailure, match="line 2"):
        Template("a\n{% if %}")


def test_threads_share_a_template_and_each_has_its_own_time() -> None:
    template = Template(CHATML + "{% for i in range(2000) %}{{ messages[0].role }}{% endfor %}")
    found: list[str] = []

    def work(name: str) -> None:
        found.append(template.render([{"role": "user", "content": name}], {})[:30])

    threads = [threading.Thread(target=work, args=(f"{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"<|im_start|>user\n{n}<|im_end|>\n<" for n in range(4)]


def test_a_format_has_a_template_of_a_bounded_size() -> None:
    for template in ("", "x" * 70_000):
        with pytest.raises(ConfigError, match=r"ChatFormat\.template"):
            ChatFormat(template=template)
