"""Requests and answers of OpenAI's API, without a server."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import Code, InvalidRequest, ServerFailure, ServingError
from tf_infer.wire import generation, openai, openai_answers
from tf_infer.wire.openai_answers import Answer, Head

FIELDS = sorted(openai._COMMON | openai._IGNORED | set().union(*openai._OF_KIND.values()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False)
    | st.sampled_from(["secret", "", "a\x1fsecret", "secret\ud800", "json_schema"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["secret", "type", "role", "content", "text", "json", "regex", "1"]),
        inner, max_size=3), max_leaves=6)


@given(kind=st.sampled_from(["completions", "chat"]),
       body=st.dictionaries(st.sampled_from([*FIELDS, "secret!"]), JSON, max_size=5))
@settings(max_examples=120, deadline=None)
def test_any_body_is_understood_or_refused_without_its_text(kind: Any, body: dict[str, Any]
                                                            ) -> None:
    whole = {"model": "m", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    del whole["messages" if kind == "completions" else "prompt"]
    raw = json.dumps({**whole, **body}).encode("utf-8", "surrogatepass")
    try:
        wanted = openai.read(kind, raw)
    except InvalidRequest as error:
        assert "secret" not in error.details
        assert ": expected " in error.details
        return
    assert wanted.n * max(1, len(wanted.prompts)) <= openai.MAX_ANSWERS
    assert all(isinstance(value, (int, float, str)) for value in wanted.options.values())


@pytest.mark.parametrize(("text", "expected"), [
    ("m", ("m", None, None)), ("a b:c", ("a b:c", None, None)),
    ("m/versions/12", ("m", 12, None)), ("m/labels/beta", ("m", None, "beta"))])
def test_a_model_may_name_a_version_or_a_label(text: str, expected: Any) -> None:
    assert openai.read_model(text) == expected


@pytest.mark.parametrize("text", ["", "m/", "/m", "m/versions/", "m/versions/x", "a/b", "m/labels/",
                                  "m/versions/9999999999999999999"])
def test_other_forms_of_a_model_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"model: expected NAME"):
        openai.read_model(text)


def test_lists_travel_as_one_text_and_bad_items_do_not() -> None:
    assert generation.join(["a", "b c"], where="stop") == "a\x1fb c"
    assert generation.join_ids([0, 7], where="x") == "0\x1f7"
    assert generation.join_bias({5: 1.5, 1: -2.0}, where="x") == "1:-2.0\x1f5:1.5"
    for bad in ([""], ["a\x1f"], ["x"] * 1025):
        with pytest.raises(InvalidRequest, match="stop: expected"):
            generation.join(bad, where="stop")
    for bias in ({-1: 0.0}, {1: math.nan}, {1: math.inf}):
        with pytest.raises(InvalidRequest, match="logit_bias"):
            generation.join_bias(bias, where="logit_bias")


@dataclass(frozen=True)
class Token:
    piece: bytes
    logprob: float = -0.5
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    text: bytes
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 3
    cached_tokens: int = 2
    new_tokens: int = 1


def head(**fields: Any) -> Head:
    return Head(**{"kind": "completions", "id": "1", "created": 5, "model": "m", "version": 2,
                   "logprobs": True, "stream": False, **fields})


def test_numbers_that_json_cannot_hold_are_written_as_openai_does() -> None:
    piece = Piece(b"ab", (Token(b"a", -math.inf), Token(b"b", math.nan)), "stop")
    body = json.loads(head().whole([Answer(0)], [[piece]], 1))
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0, None]


def test_an_answer_without_tokens_has_empty_log_probabilities() -> None:
    for kind, empty in (("completions", []), ("chat", [])):
        body = json.loads(head(kind=kind).whole([Answer(0)], [[Piece(b"", (), "length")]], 1))
        told = body["choices"][0]["logprobs"]
        assert told["tokens" if kind == "completions" else "content"] == empty


def test_a_prompts_tokens_count_once_however_many_answers() -> None:
    answers = [Answer(index, prompt_tokens=10 + index // 2, cached_tokens=1, new_tokens=1)
               for index in range(4)]
    assert openai_answers.usage(answers, 2) == {
        "prompt_tokens": 21, "completion_tokens": 4, "total_tokens": 25,
        "prompt_tokens_details": {"cached_tokens": 2}}


@pytest.mark.parametrize(("code", "status", "kind"), [
    (Code.INVALID_ARGUMENT, 400, "invalid_request_error"),
    (Code.FAILED_PRECONDITION, 400, "invalid_request_error"),
    (Code.UNIMPLEMENTED, 400, "invalid_request_error"),
    (Code.NOT_FOUND, 404, "invalid_request_error"),
    (Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error"), (Code.INTERNAL, 500, "server_error"),
    (Code.UNAVAILABLE, 503, "server_error"), (Code.DEADLINE_EXCEEDED, 504, "timeout_error")])
def test_every_code_has_a_status_and_a_type(code: Code, status: int, kind: str) -> None:
    error = ServingError("the text", code=code)
    assert openai_answers.error_status(error) == status
    body = json.loads(openai_answers.error_body(error))["error"]
    assert (body["type"], body["message"]) == (kind, "the text")


def test_an_error_names_the_field_as_the_caller_knows_it() -> None:
    body = json.loads(openai_answers.error_body(InvalidRequest(
        "max_new_tokens: expected 0 to 7, got 8.")))["error"]
    assert (body["param"], body["message"]) == ("max_tokens", "max_tokens: expected 0 to 7, got 8.")
    body = json.loads(openai_answers.error_body(InvalidRequest(
        "assertion failed: [max_new_tokens: expected more.] [First such row:] [0]")))["error"]
    assert body["param"] == "max_tokens" and "[max_tokens: expected" in body["message"]
    assert json.loads(openai_answers.error_body(ServerFailure("x: y")))["error"]["param"] is None
