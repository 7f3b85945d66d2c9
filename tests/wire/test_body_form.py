"""Bodies like one that came before, read by their bytes: what is read is what JSON says."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.wire.wirekit import damaged
from tf_infer.wire import body_form, rest
from tf_infer.wire import serving_pb2 as pb

TEXT = b"<text>"
FORMS = {
    "row": b'{"instances": ["<text>"]}',
    "object": b'{"instances": [{"text": "<text>"}]}',
    "nested": b'{"instances": [["<text>"]]}',
    "column": b'{"inputs": ["<text>"]}',
    "named column": b'{"inputs": {"text": ["<text>"]}}',
    "scalar": b'{"inputs": "<text>"}',
    "named": b'{"signature_name": "s", "instances": ["<text>"]}',
    "spaces": b' \n{ "instances" :["<text>" ] }\r\n',
    "more behind": b'{"instances": ["<text>"]} "and more',
    "twice": b'{"instances": ["<text>"], "instances": ["b"]}',
    "numbers": b'{"x": [1e300, 12345678901234567890], "instances": ["<text>"], "y": -Inf}',
    "escapes": b'{"\\u00e9\\"": "\\\\", "instances": ["<text>"]}',
    "bytes": b'{"x": "\xff", "instances": ["<text>"]}'}
PLAIN = st.one_of(st.text(st.characters(blacklist_characters='"\\', min_codepoint=32), max_size=20)
                  .map(lambda text: text.encode("utf-8", "surrogatepass")),
                  st.sampled_from([b"", b"\xff\x00"[:1], b"1e400", b"x" * 5000, b"\x7f"]))


class Found(NamedTuple):
    names: list[str]
    shape: tuple[int, ...]
    texts: list[bytes]
    form: rest.Form


def read(body: bytes) -> tuple[rest.Arrays, rest.Form]:
    return rest.read_inputs(rest.read_body(body), {"text": pb.TensorInfo(dtype=pb.DT_STRING)})


def found_in(body: bytes) -> Found:
    arrays, form = read(body)
    (array,) = arrays.values()
    return Found(list(arrays), array.shape, array.reshape(-1).tolist(), form)


def form_of(body: bytes) -> body_form.BodyForm | None:
    return body_form.form_of(body, *read(body), read)


@pytest.mark.parametrize("whole", FORMS.values(), ids=FORMS)
@given(first=PLAIN, other=PLAIN)
@settings(deadline=None, max_examples=20)
def test_another_text_in_the_same_body_is_read_as_json_has_it(
        whole: bytes, first: bytes, other: bytes) -> None:
    assume(b'"' + first + b'"' not in whole)
    form = form_of(whole.replace(TEXT, first))
    assert form is not None
    body = whole.replace(TEXT, other)
    array = form.array_in(body)
    assert array is not None and array.dtype == object
    expected = found_in(body)
    assert expected == ([form.name], array.shape, array.reshape(-1).tolist(),
                        found_in(whole.replace(TEXT, first)).form)
    assert expected.texts == [other]


@pytest.mark.parametrize("body", [
    b'{"instances": ["a", "b"]}', b'{"instances": [{"b64": "YQ=="}]}',
    b'{"instances": ["a"], "x": "a"}', b'{"x": "a", "instances": ["\\u0061"]}',
    b'{"a": 1, "instances": ["a"]}',
    b'{"instances": ["\\u0061"]}', b'{"instances": ["a\\n"]}', b'{"inputs": []}',
    b'{"inputs": {"text": {"b64": ""}}}'],
    ids=["texts", "base64", "value", "elsewhere", "key", "escape", "line", "nothing",
         "empty base64"])
def test_of_other_bodies_there_is_no_form(body: bytes) -> None:
    assert form_of(body) is None


@pytest.mark.parametrize("text", [
    b"\\u0041", b"\\", b"a\\", b'"', b'", "b', b"a\nb", b"\x00", b"\x1f"])
def test_a_text_that_is_not_as_it_is_read_is_left_to_json(text: bytes) -> None:
    for whole in FORMS.values():
        form = form_of(whole.replace(TEXT, b"a text of some length"))
        assert form is not None
        assert form.array_in(whole.replace(TEXT, text)) is None


def test_what_begins_and_ends_like_the_form_may_be_too_short_for_it() -> None:
    form = form_of(b'{"inputs": "a"}')
    assert form is not None and (form.head, form.tail) == (b'{"inputs": "', b'"}')
    assert form.array_in(b'{"inputs": "}') is None


def test_other_inputs_than_one_text_have_no_form() -> None:
    text, number = pb.TensorInfo(dtype=pb.DT_STRING), pb.TensorInfo(dtype=pb.DT_FLOAT)
    for body, inputs in ((b'{"inputs": {"a": "x", "b": "y"}}', {"a": text, "b": text}),
                         (b'{"instances": [1.5]}', {"x": number})):
        arrays, form = rest.read_inputs(rest.read_body(body), inputs)
        assert body_form.form_of(body, arrays, form, lambda one, taken=inputs: rest.read_inputs(
            rest.read_body(one), taken)) is None


def test_a_body_is_not_read_again_for_its_form() -> None:
    body, seen = b'{"instances": ["a"]}', list[bytes]()

    def reading(other: bytes) -> tuple[rest.Arrays, rest.Form]:
        seen.append(other)
        return read(other)

    assert body_form.form_of(body, *read(body), reading) is not None
    assert seen and body not in seen


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_what_is_read_of_damaged_bytes_is_what_json_says_of_them(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from(sorted(FORMS.values())))
    body = whole.replace(TEXT, b"a text of some length")
    form = form_of(body)
    assert form is not None
    wrong = damaged(data, body, b'"\\{}[]:,b64u\n \x00\x1f\x7f\x80\xc3\xff')
    if not wrong:
        return
    array = form.array_in(wrong)
    if array is not None:  # else JSON is asked
        assert found_in(wrong) == (
            [form.name], array.shape, array.reshape(-1).tolist(), found_in(body).form)
