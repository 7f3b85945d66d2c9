"""JSON as TensorFlow Serving reads and writes it: parsing, base64, and every digit of a number."""

from __future__ import annotations

import base64
import json
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.errors import InvalidRequest
from tf_infer.wire import rest_json


def refused(body: bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        rest_json.parse(body)
    return caught.value.details


# ---------------------------------------------------------------------------- parsing


@pytest.mark.parametrize("body", [b"", b" ", b"\n\t ", b"\xef\xbb\xbf"])
def test_rp16_an_empty_body_is_refused(body: bytes) -> None:
    assert refused(body).startswith("JSON Parse error: The document is empty")


@pytest.mark.parametrize(("body", "offset"), [
    (b'{"inputs": [1, 2}', 16), (b"{inputs: 1}", 1), (b'{"a" 1}', 5), (b'{"a": tru}', 6),
    (b'{"a": "\xc3\xbc', 6), (b"nonsense", 0), (b'{"a": "\x01"}', 7), (b'{"a": [1,]}', 9),
    (b'{"' + b"\xc3\xbc" * 9 + b'": x}', 23), (b'{"a": 1', 7), (b"\x00", 0), (b"{'a': 1}", 1),
    (b'{"a": "\\x"}', 7),
    (b'{"a": +1}', 6), (b'{"a": .5}', 6), (b'{"a": 01}', 7), (b'{"a": "\\u12"}', 7),
])
def test_rp16_broken_json_is_refused_with_the_place_in_bytes(body: bytes, offset: int) -> None:
    text = refused(body)
    assert text.startswith("JSON Parse error: ")
    place = int(text.rpartition(" at offset: ")[2])
    assert abs(place - offset) <= 1  # Python's versions put it on one or the other side


@pytest.mark.parametrize("body", [b"[1]", b"1", b'"secret"', b"null", b"NaN", b"true"])
def test_rp16_what_is_no_object_is_refused(body: bytes) -> None:
    text = refused(body)
    assert text.endswith("Is not object")
    assert "secret" not in text


def test_rp17_what_follows_the_value_is_ignored() -> None:
    for tail in (b"X", b" {}", b"]}", b"\x00\xff", b"\n"):
        assert rest_json.parse(b' {"a": 1}' + tail).members == {"a": 1}


def test_rp36_of_equal_keys_the_first_counts_on_every_level() -> None:
    body = b'{"a": {"x": 1, "y": 3, "x": 2}, "b": 5, "a": 7}'
    assert rest_json.parse(body).members == {"a": {"x": 1, "y": 3}, "b": 5}


def test_a_byte_order_mark_is_skipped() -> None:
    assert rest_json.parse(b'\xef\xbb\xbf{"a": 1}').members == {"a": 1}


@pytest.mark.parametrize("body", [
    b"[" * 100_000, b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b'{"a":' * 100_000])
def test_json_nested_without_end_is_refused(body: bytes) -> None:
    assert refused(body).startswith("JSON Parse error: ")


def test_rp34_more_digits_than_an_int_may_have_are_refused() -> None:
    assert "Number too big" in refused(b'{"a": 1' + b"0" * 10_000 + b"}")


@pytest.mark.parametrize("number", [
    b"1e400", b"-1E0309", b"0.1e+310", b"1" + b"0" * 309, b"1" + b"0" * 210 + b".5e99",
    b"[0, {\"b\": 17976931348623159e292}]"])
def test_rp34_a_number_beyond_double_is_refused_wherever_it_stands(number: bytes) -> None:
    assert refused(b'{"a": 1, "ignored": ' + number + b"}").startswith(rest_json.TOO_BIG)
    assert refused(b'{"a": ' + number + b', "a": }').startswith(rest_json.TOO_BIG)


@pytest.mark.parametrize(("number", "value"), [
    (b"1.7976931348623157e308", sys.float_info.max), (b"1e-400", 0.0), (b"0e999", 0.0),
    (b"1" + b"0" * 308, 10**308), (b"1" * 200 + b"e-199", 1.1111111111111112),
    (b'"1e400"', "1e400"), (b"Infinity", float("inf")), (b"-Inf", float("-inf"))])
def test_rp34_what_looks_like_a_number_beyond_double_may_be_none(number: bytes,
                                                                 value: object) -> None:
    body = b'{"a": ' + number + b', "b": 1e100} 1e400'
    assert rest_json.parse(body).members == {"a": value, "b": 1e100}


def test_texts_become_utf8_and_other_bytes_pass_as_they_came() -> None:
    whole = rest_json.parse('{"a": "ü\\ud83d\\ude00\\u0000"}'.encode())
    assert whole.to_bytes(whole.members["a"]) == "ü😀\0".encode()
    other = rest_json.parse(b'{"a": "\xff\xfe"}')
    assert other.to_bytes(other.members["a"]) == b"\xff\xfe"


@pytest.mark.parametrize(("body", "offset"), [
    (b'{"a": "\\ud800"}', 7), (b'{"a": 1, "a": ["\\uDBFF\\n"]}', 16), (b'{"\\ud83d\\ud83d": 1}', 2),
    (b'{"a": "\xc3\xbc\\\\\\ud83dx", "b": }', 11), (b'{"a": {"b": "\\ud800\\u0041"}}', 13),
], ids=["value", "ignored", "key", "before-another-fault", "below"])
def test_rp16_half_of_a_surrogate_pair_is_refused_wherever_it_stands(body: bytes, offset: int,
                                                                     ) -> None:
    assert refused(body) == ("JSON Parse error: The surrogate pair in string is invalid. "
                             f"at offset: {offset}")


@pytest.mark.parametrize(("text", "raw"), [
    (b"\\\\ud800", b"\\ud800"), (b"\\ud83d\\ude00", "😀".encode()),
    (b"\\uD83D\\uDE00x", "😀x".encode()), (b"\\udc80", b"\xed\xb2\x80"),
    (b"\\ud83d\\ude00\\ude00", "😀".encode() + b"\xed\xb8\x80"),
    (b"\\ud83d\\ude00\\\\\\ud83d\\ude00\\\\ud83d", "😀\\😀\\ud83d".encode()),
    (b"\\ud55c" * 1000 + b"\\ud83d\\ude00", ("한" * 1000 + "😀").encode()),
])
def test_rp22_what_looks_like_half_a_pair_may_be_none_or_passes_as_rapidjson_takes_it(
        text: bytes, raw: bytes) -> None:
    document = rest_json.parse(b'{"a": "' + text + b'"} "\\ud800"')
    assert document.to_bytes(document.members["a"]) == raw


@pytest.mark.parametrize("body", [
    b'{"a":"' + b"\\" * 60_000, b'{"a":"' + b"\\" * 60_000 + b'"}',
    b'{"a":-Inf,"b":"' + b'\\"' * 30_000, b'{"a":-NaN,"b":"' + b"\\" * 60_001,
    b'{"a":' + b"1" * 60_000, b'{"a":0.' + b"1" * 60_000 + b"}", b'{"a":' + b"-Inf" * 15_000,
], ids=["backslashes", "ended", "quotes", "one-backslash-more", "digits", "places", "spellings"])
def test_no_body_costs_more_than_its_length(body: bytes) -> None:
    def read() -> None:
        with suppress(InvalidRequest):
            rest_json.parse(body)

    assert _spent_s(read) < 2.0  # some milliseconds; at a cost of the length squared 20 s


def test_a_text_without_end_behind_another_spelling_is_told_of() -> None:
    assert "Missing a closing quotation mark" in refused(b'{"a": -Inf, "b": "\\"Inf')


def test_a_second_half_in_a_body_that_is_no_utf8_is_refused() -> None:
    document = rest_json.parse(b'{"a": "\\udfff", "b": "\xff"}')
    with pytest.raises(InvalidRequest, match="JSON Parse error: The surrogate pair"):
        document.to_bytes(document.members["a"])


def test_rp36_an_object_with_equal_keys_keeps_them_all() -> None:
    members = rest_json.parse(b'{"a": {"x": 1, "y": 3, "x": 2}, "b": {"x": 1}}').members
    assert list(rest_json.pairs_of(members["a"])) == [("x", 1), ("y", 3), ("x", 2)]
    assert list(rest_json.pairs_of(members["b"])) == [("x", 1)]
    assert rest_json.type_name(members["a"]) == "Object"


def test_rp23_b64_twice_is_no_base64() -> None:
    value = rest_json.parse(b'{"a": {"b64": "aGk=", "b64": "aGk="}}').members["a"]
    assert not rest_json.is_base64(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        document = rest_json.parse(body)
    except InvalidRequest:
        return
    assert isinstance(document.members, dict)


# ---------------------------------------------------------------------------- telling


@pytest.mark.parametrize(("value", "kind", "text"), [
    (None, "Null", "null"), (True, "True", "true"), (False, "False", "false"), (3, "Number", "3"),
    (0.1, "Number", "0.1"), (float("nan"), "Number", "NaN"), (2.0, "Number", "2.0"),
    (10**50, "Number", "<a longer number>"), ("secret", "String", "<text of 6 characters>"),
    (["secret"], "Array", "<list of 1>"), ({"secret": 1}, "Object", "<object of 1 keys>")])
def test_values_are_told_without_the_callers_text(value: object, kind: str, text: str) -> None:
    assert (rest_json.type_name(value), rest_json.shown(value)) == (kind, text)


# ---------------------------------------------------------------------------- base64


@given(st.binary(max_size=20), st.sampled_from(["", "="]), st.booleans())
def test_rp22_base64_comes_back_with_or_without_padding(data: bytes, pad: str, space: bool) -> None:
    text = base64.b64encode(data).decode()
    text = text if pad else text.rstrip("=")
    text = " ".join(text) if space else text
    assert rest_json.read_base64({"b64": text}) == data


@pytest.mark.parametrize("text", ["!", "a", "aGVsbG8==", "aGVs=", "aG=VsbG8=", "aä==",
                                  "aGVsbG8===", "aa=a", "aa-_"])
def test_rp23_bad_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Unable to base64 decode"):
        rest_json.read_base64({"b64": text})


@pytest.mark.parametrize("value", [{"b64": 5}, {"b64": "aa", "c": 1}, {"c": "aa"}, {},
                                   {"b64": None}])
def test_rp23_other_objects_are_not_base64(value: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="not formatted correctly for base64 data"):
        rest_json.read_base64(value)


# ---------------------------------------------------------------------------- numbers


def slowly(value: float, narrow: bool) -> str:
    """RP25 word by word: six digits, else nine or seventeen, and a point or an exponent."""
    kind = np.float32 if narrow else np.float64
    text = f"{value:g}"
    if kind(text) != kind(value):
        text = f"{value:.9g}" if narrow else f"{value:.17g}"
    return text if set(text) & set(".e") else text + ".0"


@pytest.mark.parametrize(("value", "text"), [
    (3.0, "3.0"), (0.5, "0.5"), (1e7, "1e+07"), (9e6, "9e+06"), (999999.0, "999999.0"),
    (3e-5, "3e-05"), (3e-4, "0.0003"), (555557.5, "555557.5"), (-0.0, "-0.0"), (0.0, "0.0"),
    (16777216.0, "16777216.0"), (123456792.0, "123456792.0"), (1e38, "1e+38"),
    (3.4028234663852886e38, "3.40282347e+38"), (1.401298464324817e-45, "1.4013e-45"),
    (0.20000000298023224, "0.2"), (0.30000001192092896, "0.3"), (1 / 3, "0.333333343")])
def test_rp25_float32_takes_six_digits_or_nine(value: float, text: str) -> None:
    value = float(np.float32(value))
    for copies in (1, rest_json.FEW + 1):
        assert set(rest_json.numbers(np.full(copies, value, np.float32))) == {text}


@pytest.mark.parametrize(("value", "text"), [
    (3.0, "3.0"), (0.1, "0.1"), (1 / 3, "0.33333333333333331"), (1e300, "1e+300"),
    (123456789.0, "123456789.0"), (2.0**53, "9007199254740992.0"), (1e22, "1e+22"),
    (5e-324, "4.94066e-324"), (1.7976931348623157e308, "1.7976931348623157e+308")])
def test_rp25_float64_takes_six_digits_or_seventeen(value: float, text: str) -> None:
    for copies in (1, rest_json.FEW + 1):
        assert set(rest_json.numbers(np.full(copies, value))) == {text}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rp25_every_kind_of_number_is_written_as_the_rule_says(dtype: type) -> None:
    rng = np.random.default_rng(0)
    bits = (np.uint32, np.float32) if dtype is np.float32 else (np.uint64, np.float64)
    anything = rng.integers(0, np.iinfo(bits[0]).max, 5000, dtype=bits[0]).view(bits[1])
    short = np.round(rng.standard_normal(3000), 4) * 10.0 ** rng.integers(-30, 30, 3000)
    tiny = rng.integers(0, 5000, 1000, dtype=bits[0]).view(bits[1])
    whole = rng.integers(-2**31, 2**31, 3000)
    nearly = (rng.integers(100_000, 1_000_000, 9000) + rng.integers(-80, 80, 9000) / 1000  # short
              ) * 10.0 ** rng.integers(-9, -2, 9000) * rng.choice([-1, 1], 9000)
    values = np.concatenate([part.astype(dtype) for part in (
        anything[np.isfinite(anything)], short, tiny, whole, nearly, np.arange(-50, 50))])
    narrow = dtype is np.float32
    expected = [slowly(value, narrow) for value in values.tolist()]
    assert rest_json.numbers(values) == expected
    assert [rest_json.number(value, narrow) for value in values.tolist()] == expected
    assert np.array([float(text) for text in expected]).astype(dtype).tobytes() == values.tobytes()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=rest_json.FEW + 1, max_size=40))
def test_rp25_many_numbers_are_written_as_one_by_one(words: list[int]) -> None:
    values = np.frombuffer(struct.pack(f"<{len(words)}I", *words), "<f4")
    with np.errstate(invalid="ignore"):
        expected = [rest_json.number(value, True) for value in values.tolist()]
    assert rest_json.numbers(values) == expected


def test_rp26_nan_and_infinities_are_bare_words() -> None:
    for copies in (1, rest_json.FEW):
        values = np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0] * copies, np.float32)
        assert rest_json.numbers(values) == ["NaN", "NaN", "Infinity", "-Infinity", "1.0"] * copies


def test_no_number_is_no_text() -> None:
    assert rest_json.numbers(np.zeros((0, 3), np.float32)) == []


# ---------------------------------------------------------------------------- texts, lists, errors


@given(st.text())
def test_rp28_texts_are_json_strings(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    if raw == text.encode("utf-8", "replace"):
        assert json.loads(rest_json.encode(rest_json.text_json(raw))) == text


def test_rp28_bytes_that_are_not_utf8_pass_as_they_are() -> None:
    assert rest_json.encode(rest_json.text_json(b'\xff"\xfe')) == b'"\xff\\"\xfe"'


@pytest.mark.parametrize(("shape", "expected"), [
    ((3,), ["0", "1", "2"]), ((1, 3), ["[0, 1, 2]"]), ((2, 0), ["[]", "[]"]), ((0, 2), []),
    ((2, 1, 2), ["[[0, 1]]", "[[2, 3]]"]), ((1, 2, 0), ["[[], []]"])])
def test_elements_are_put_into_lists_as_their_shape_says(shape: tuple[int, ...],
                                                         expected: list[str]) -> None:
    texts = [str(place) for place in range(int(np.prod(shape)))]
    assert rest_json.nested(texts, shape) == expected


def test_rs13_an_error_is_one_key_whatever_its_text_holds() -> None:
    for message in ("plain", 'quo"te\\', "ü\n\0", "\udc80"):
        whole = json.loads(rest_json.error_json(message))
        assert list(whole) == ["error"]
        assert whole["error"] == message.encode("utf-8", "replace").decode()


def test_many_numbers_cost_no_more_than_pythons_own_json() -> None:
    values = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    rounds = [(_spent_s(lambda: rest_json.numbers(values)),
               _spent_s(lambda: json.dumps(values.tolist()))) for _ in range(7)]
    ours_s, theirs_s = (min(spent) for spent in zip(*rounds))
    assert ours_s < 3 * theirs_s  # measured 0.8; one by one it would be 4


def _spent_s(function: Callable[[], object]) -> float:
    """Return the processor time of this thread, which other work takes nothing of."""
    started_s = time.thread_time()
    function()
    return time.thread_time() - started_s
