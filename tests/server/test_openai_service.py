"""OpenAI's API over HTTP: scripted generators, plain HTTP, and the stock client as the oracle."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("aiohttp", reason="REST needs aiohttp: pip install 'tf_infer[server]'")
pytest.importorskip("jinja2", reason="chat templates need jinja2: pip install 'tf_infer[server]'")
pytest.importorskip("openai", reason="the stock client is in the dev extra")

import openai

from tests.server.generationkit import SCRIPT, TEXT, Serving, serving, until
from tf_infer.config import ChatFormat
from tf_infer.errors import Overloaded
from tf_infer.server import rest
from tf_infer.server.generation import Constraint
from tf_infer.server.rest import inflate
from tf_infer.server.scripted import Writer

CHAT = ChatFormat(template="{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
                           "{{ '<assistant>' if add_generation_prompt }}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("models"), Writer(SCRIPT), rest=True,
                 chat=CHAT) as running:
        yield running


@pytest.fixture
def one(shared: Serving) -> Serving:
    shared.writer.requests.clear()
    shared.writer.cancelled = shared.writer.ended = 0
    return shared


@pytest.fixture
def client(one: Serving) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://localhost:{one.rest_port}/v1", api_key="none",
                       max_retries=0, timeout=20) as made:
        yield made


class Got(NamedTuple):
    """An answer over plain HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> tuple[str, str, str | None, str | None]:
        """Return message, type, param, code; there must be nothing else."""
        value = self.json()
        assert list(value) == ["error"] and set(value["error"]) == {
            "message", "type", "param", "code"}
        return tuple(value["error"][name] for name in ("message", "type", "param", "code"))

    def events(self) -> list[Any]:
        """Return the events' values; the last must be [DONE]."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == "" and all(part.startswith("data: ") for part in parts)
        assert parts.pop() == "data: [DONE]"
        return [json.loads(part[6:]) for part in parts]


def ask(one: Serving, method: str, target: str, body: Any = None) -> Got:
    connection = http.client.HTTPConnection("localhost", one.rest_port, timeout=20)
    raw = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    connection.request(method, target, raw, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    got = Got(answer.status, dict(answer.getheaders()), answer.read())
    connection.close()
    return got


def complete(one: Serving, **fields: Any) -> Got:
    return ask(one, "POST", "/v1/completions", {"model": "writer", "prompt": "Once", **fields})


def chat(one: Serving, **fields: Any) -> Got:
    return ask(one, "POST", "/v1/chat/completions", {
        "model": "writer", "messages": [{"role": "user", "content": "Hi"}], **fields})


def test_models_that_generate_are_listed(one: Serving, client: Any) -> None:
    listed = ask(one, "GET", "/v1/models").json()
    assert [entry["id"] for entry in listed["data"]] == ["writer"]
    assert listed["object"] == "list" and listed["data"][0]["object"] == "model"
    assert [entry.id for entry in client.models.list()] == ["writer"]


def test_tensorflow_servings_routes_stay_as_they_are(one: Serving) -> None:
    status = ask(one, "GET", "/v1/models/writer").json()
    assert status["model_version_status"][0]["state"] == "AVAILABLE"
    assert ask(one, "GET", "/v1/completions").json() == {
        "error": "Malformed request: GET /v1/completions"}
    assert ask(one, "POST", "/v1/models/writer:completions", {}).json() == {
        "error": "Malformed request: POST /v1/models/writer:completions"}


def test_without_a_model_that_generates_the_list_is_tensorflow_servings_error(tmp_path: Path
                                                                              ) -> None:
    with serving(tmp_path, rest=True) as one:
        one.server.versions.configure(one.server.config.models[:1])
        got = ask(one, "GET", "/v1/models")
    assert (got.status, got.json()) == (400, {"error": "Missing model name in request."})


def test_a_completion_by_the_stock_client(client: Any) -> None:
    answer = client.completions.create(model="writer", prompt="Once")
    assert (answer.object, answer.model, answer.choices[0].text) == (
        "text_completion", "writer", TEXT)
    assert answer.choices[0].finish_reason == "stop" and answer.id.startswith("cmpl-")
    assert abs(answer.created - time.time()) < 60
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens,
            answer.usage.total_tokens) == (4, len(SCRIPT), 4 + len(SCRIPT))


def test_a_streamed_completion_by_the_stock_client(client: Any) -> None:
    parts = list(client.completions.create(
        model="writer", prompt="Once", stream=True, stream_options={"include_usage": True}))
    *pieces, last = parts
    assert "".join(piece.choices[0].text for piece in pieces) == TEXT
    assert [piece.choices[0].finish_reason for piece in pieces][-1] == "stop"
    assert len({part.id for part in parts}) == 1
    assert last.choices == [] and last.usage.completion_tokens == len(SCRIPT)
    assert all(piece.usage is None for piece in pieces)


def test_a_chat_by_the_stock_client(one: Serving, client: Any) -> None:
    answer = client.chat.completions.create(model="writer", messages=[
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "},
                                     {"type": "text", "text": "you"}]}])
    assert one.writer.requests[0].prompt == b"<system>Be kind.<user>Hi you<assistant>"
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    message = answer.choices[0].message
    assert (message.role, message.content, answer.choices[0].finish_reason) == (
        "assistant", TEXT, "stop")


def test_a_streamed_chat_by_the_stock_client(client: Any) -> None:
    pieces = list(client.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": "Hi"}], stream=True))
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == TEXT
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert pieces[0].object == "chat.completion.chunk"


def test_the_stock_clients_stream_helper_puts_a_chat_together(client: Any) -> None:
    with client.chat.completions.stream(
            model="writer", messages=[{"role": "user", "content": "Hi"}], logprobs=True,
            top_logprobs=1) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == TEXT
        choice = stream.get_final_completion().choices[0]
    assert choice.message.content == TEXT and len(choice.logprobs.content) == len(SCRIPT)


def test_the_stock_async_client_asks_many_at_once(one: Serving) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://localhost:{one.rest_port}/v1",
                                      api_key="none", max_retries=0) as client:
            async def read() -> str:
                stream = await client.completions.create(model="writer", prompt="x", stream=True)
                return "".join([piece.choices[0].text async for piece in stream])
            return list(await asyncio.gather(*(read() for _ in range(8))))

    assert asyncio.run(main()) == [TEXT] * 8


def test_the_events_are_as_they_are_known(tmp_path: Path) -> None:
    with serving(tmp_path, Writer([b"a", b"b"], every_s=0.02), rest=True, chat=CHAT) as one:
        got = complete(one, stream=True)
        assert got.headers["Content-Type"].startswith("text/event-stream")
        assert got.headers["Cache-Control"] == "no-store"
        first, second = got.events()
        assert first["choices"] == [{"index": 0, "text": "a", "logprobs": None,
                                     "finish_reason": None}]
        assert second["choices"] == [{"index": 0, "text": "b", "logprobs": None,
                                      "finish_reason": "stop"}]
        assert "usage" not in first and first["system_fingerprint"] == "version-7"
        begin, *_, end = chat(one, stream=True).events()
    assert begin["choices"] == [{"index": 0, "delta": {"role": "assistant", "content": ""},
                                 "finish_reason": None}]
    assert end["choices"] == [{"index": 0, "delta": {"content": "b"}, "logprobs": None,
                               "finish_reason": "stop"}]


def test_no_event_cuts_a_character(tmp_path: Path) -> None:
    with serving(tmp_path, Writer(SCRIPT, every_s=0.005), rest=True) as one:
        got = complete(one, stream=True)
    events = got.events()
    assert len(events) == len(SCRIPT) and "�" not in got.body.decode("utf-8", "strict")
    assert "".join(event["choices"][0]["text"] for event in events) == TEXT


def test_every_field_reaches_the_generator(one: Serving) -> None:
    complete(one, max_tokens=3, temperature=0.5, top_p=0.75, n=1, stop=["a", "b"], seed=-5,
             presence_penalty=0.25, frequency_penalty=-0.5, logit_bias={"7": -100, "3": 0.5},
             logprobs=2, user="me", top_k=-1, min_p=0.125, typical_p=0.5, repetition_penalty=1.5,
             min_tokens=1, stop_token_ids=[4, 5], bad_words=["x"], guided_regex="a+",
             best_of=1, suffix=None, echo=False)
    request, = one.writer.requests
    assert dict(request.options) == {
        "max_new_tokens": 3, "temperature": 0.5, "top_p": 0.75, "stop": "a\x1fb", "seed": -5,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "logit_bias": "3:0.5\x1f7:-100.0",
        "top_k": 0, "min_p": 0.125, "typical_p": 0.5, "repetition_penalty": 1.5,
        "min_new_tokens": 1, "stop_ids": "4\x1f5", "banned": "x"}
    assert (request.prompt, request.top_logprobs) == (b"Once", 2)
    assert request.constraint == Constraint(kind="regex", value="a+")


@pytest.mark.parametrize(("fields", "kind", "value"), [
    ({"response_format": {"type": "json_schema", "json_schema": {
        "name": "x", "strict": True, "schema": {"type": "string"}}}}, "json_schema",
     '{"type": "string"}'),
    ({"structured_outputs": {"choice": ["ja", "nein"]}}, "choices", "ja\x1fnein"),
    ({"structured_outputs": {"json": "{}"}}, "json_schema", "{}"),
    ({"structured_outputs": {"regex": "[a-z]"}}, "regex", "[a-z]"),
    ({"guided_json": {"a": "é"}}, "json_schema", '{"a": "é"}'),
    ({"guided_choice": ["a"]}, "choices", "a"), ({"constraint": "date"}, "name", "date"),
    ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
    ({"structured_outputs": {"json_object": True}}, "json_schema", '{"type": "object"}'),
])
def test_every_constraint_reaches_the_generator(one: Serving, fields: dict[str, Any], kind: str,
                                                value: str) -> None:
    assert chat(one, **fields).status == 200
    assert one.writer.requests[0].constraint == Constraint(kind=kind, value=value)


def test_texts_without_a_constraint_have_none(one: Serving) -> None:
    chat(one, response_format={"type": "text"}, stop=[], logit_bias={}, tools=[])
    complete(one, stop=None, structured_outputs={"json_object": False})
    assert all(request.constraint is None and set(request.options) == {"seed"}
               for request in one.writer.requests)


def test_max_completion_tokens_is_the_limit_of_a_chat(one: Serving) -> None:
    answer = chat(one, max_completion_tokens=2).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


def test_a_request_without_a_seed_gets_one_of_its_own(one: Serving) -> None:
    for _ in range(2):
        complete(one, n=2)
    seeds = [request.options["seed"] for request in one.writer.requests]
    draws = [request.options.get("draw") for request in one.writer.requests]
    assert seeds[0] == seeds[1] != seeds[2] == seeds[3]
    assert draws == [None, 1, None, 1]


def test_n_answers_for_each_prompt_in_order(one: Serving) -> None:
    answer = complete(one, prompt=["a", "bcd"], n=2, seed=3).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [(request.prompt, request.options.get("draw")) for request in one.writer.requests] == [
        (b"a", None), (b"a", 1), (b"bcd", None), (b"bcd", 1)]
    assert answer["usage"] == {
        "prompt_tokens": 1 + 3, "completion_tokens": 4 * len(SCRIPT),
        "total_tokens": 4 + 4 * len(SCRIPT), "prompt_tokens_details": {"cached_tokens": 0}}


def test_n_streams_share_the_events(one: Serving) -> None:
    texts = ["", ""]
    for event in complete(one, n=2, stream=True).events():
        choice, = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [TEXT, TEXT]


def test_echo_begins_with_the_prompt(one: Serving) -> None:
    assert complete(one, prompt="Once: ", echo=True).json()["choices"][0]["text"] == (
        "Once: " + TEXT)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_completions(one: Serving, stream: bool) -> None:
    got = complete(one, logprobs=2, stream=stream)
    told = ([event["choices"][0]["logprobs"] for event in got.events()] if stream
            else [got.json()["choices"][0]["logprobs"]])
    tokens = [token for part in told for token in part["tokens"]]
    offsets = [offset for part in told for offset in part["text_offset"]]
    assert tokens[:4] == ["Zo", "bytes:\\xc3", "bytes:\\xab\\x2c\\x20", "bytes:\\xe4\\xbd"]
    assert offsets[:6] == [0, 2, 3, 5, 6, 7]  # Zo|ë|, ...
    assert len(tokens) == len(offsets) == len(SCRIPT)
    assert told[0]["token_logprobs"][0] == -0.5
    assert told[0]["top_logprobs"][0] == {"t0": -0.5, "t1": -1.5}


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_of_a_chat(one: Serving, stream: bool) -> None:
    got = chat(one, logprobs=True, top_logprobs=1, stream=stream)
    told = ([event["choices"][0]["logprobs"] for event in got.events()
             if "logprobs" in event["choices"][0]] if stream
            else [got.json()["choices"][0]["logprobs"]])
    content = [token for part in told for token in part["content"]]
    assert len(content) == len(SCRIPT)
    assert content[1] == {"token": "�", "bytes": [0xc3], "logprob": -0.5, "top_logprobs": [
        {"token": "t0", "bytes": [116, 48], "logprob": -0.5}]}


def test_a_label_and_a_version_may_be_asked_for(one: Serving) -> None:
    for model in ("writer/versions/7", "writer/labels/stable"):
        assert complete(one, model=model).json()["model"] == model
    assert complete(one, model="writer/versions/8").status == 404


@pytest.mark.parametrize(("fields", "status", "param", "text"), [
    ({"model": "nobody"}, 404, "model", "nobody"),
    ({"model": None}, 400, "model", "expected a value"),
    ({"model": "a/b/c"}, 400, "model", "NAME/versions/NUMBER"),
    ({"model": "echo"}, 400, None, "decoder"),
    ({"prompt": None}, 400, "prompt", "got none"),
    ({"prompt": [1, 2]}, 400, "prompt", "Token ids are not taken"),
    ({"prompt": []}, 400, "prompt", "empty array"),
    ({"prompt": ["a", 1]}, 400, "prompt", "got a number"),
    ({"prompt": "x" * 10_001}, 400, "prompt", "at most 10000 tokens"),
    ({"max_tokens": -1}, 400, "max_tokens", "0 to 1000"),
    ({"max_tokens": 1001}, 400, "max_tokens", "0 to 1000"),
    ({"max_tokens": 2**40}, 400, "max_tokens", "another number"),
    ({"max_tokens": 1.5}, 400, "max_tokens", "whole number"),
    ({"max_tokens": True}, 400, "max_tokens", "a boolean"),
    ({"temperature": -1}, 400, "temperature", "a number >= 0"),
    ({"temperature": "hot"}, 400, "temperature", "got a text"),
    ({"top_k": -2}, 400, "top_k", "top_k >= 0"),
    ({"seed": 2**63}, 400, "seed", "another number"),
    ({"n": 0}, 400, "n", "1 to 128"), ({"n": 129}, 400, "n", "1 to 128"),
    ({"n": 64, "prompt": ["a", "b", "c"]}, 400, "n", "3 x 64"),
    ({"stop": ""}, 400, "stop", "empty one"), ({"stop": ["a", ""]}, 400, "stop", "item 1"),
    ({"stop": "a\x1fb"}, 400, "stop", "U+001F"), ({"stop": 5}, 400, "stop", "an array"),
    ({"logit_bias": {"x": 1}}, 400, "logit_bias", "token ids"),
    ({"logit_bias": {"-1": 1}}, 400, "logit_bias", "token ids"),
    ({"logit_bias": {"1": "x"}}, 400, "logit_bias", "got a text"),
    ({"logit_bias": [1]}, 400, "logit_bias", "an object"),
    ({"logprobs": 21}, 400, "logprobs", "0 to 20"),
    ({"logprobs": 1, "echo": True}, 400, "logprobs", "score"),
    ({"guided_regex": "a(b"}, 400, "constraint", "position 1"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, 400, "guided_choice", "guided_regex"),
    ({"guided_choice": []}, 400, "guided_choice", "at least one"),
    ({"guided_json": 5}, 400, "guided_json", "JSON Schema"),
    ({"structured_outputs": {"grammar": "x"}}, 400, "structured_outputs", "one of json"),
    ({"response_format": {"type": "xml"}}, 400, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, 400, "response_format.json_schema", "object"),
    ({"best_of": 3}, 400, "best_of", "not offered"), ({"suffix": "x"}, 400, "suffix", "offered"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream: true"),
    ({"stream": "yes"}, 400, "stream", "true or false"),
    ({"beam_width": 3}, 400, None, "'beam_width'"),
    ({"a secret!": 3}, 400, None, "9 characters"),
])
def test_what_cannot_be_is_refused_in_openais_shape(
        one: Serving, fields: dict[str, Any], status: int, param: str | None, text: str) -> None:
    got = complete(one, **{"prompt": "a secret", **fields})
    message, kind, told, code = got.error()
    assert (got.status, told, kind) == (status, param, "invalid_request_error")
    assert text in message and "secret" not in message
    assert code == ("model_not_found" if status == 404 else
                    "not_supported" if fields.get("model") == "echo" else None)
    assert until(lambda: one.lent() == 0)


@pytest.mark.parametrize(("fields", "param", "text"), [
    ({"messages": []}, "messages", "1 to 4096"), ({"messages": "x"}, "messages", "an array"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "expected one of"),
    ({"messages": [{"content": "x"}]}, "messages[0].role", "expected one of"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "got a number"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages[0].content[0].type", "Images"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0]", "Tools"),
    ({"messages": ["x"]}, "messages[0]", "an object"),
    ({"tools": [{"type": "function"}]}, "tools", "not offered"),
    ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
    ({"logprobs": 2}, "logprobs", "true or false"),
    ({"max_tokens": 2, "max_completion_tokens": 2}, "max_tokens", "Leave one out"),
    ({"prompt": "x"}, None, "'prompt'"),
])
def test_what_cannot_be_of_a_chat_is_refused(one: Serving, fields: dict[str, Any],
                                             param: str | None, text: str) -> None:
    got = chat(one, **fields)
    message, kind, told, _ = got.error()
    assert (got.status, told, kind) == (400, param, "invalid_request_error") and text in message


@pytest.mark.parametrize(("body", "text"), [
    (b"", "position 0"), (b"{", "position 1"), (b"[]", "an array"), (b"\xff{}", "UTF-8"),
    (b'{"model":"writer","prompt":"\xc3"}', "UTF-8, got other bytes at 28"),
    (b'{"model":"writer","prompt":"\\ud800"}', "surrogates"),
    (b'{"model":"writer","prompt":"a","temperature":NaN}', "no NaN and no Infinity"),
    (b'{"model":"writer","prompt":"a","temperature":1e999}', "finite"),
    (b'{"model":"writer","prompt":"a","seed":' + b"9" * 5000 + b"}", "JSON"),
    (b"[" * 100_000, "too deep"),
])
def test_bodies_that_are_no_request(one: Serving, body: bytes, text: str) -> None:
    got = ask(one, "POST", "/v1/completions", body)
    assert got.status == 400 and text in got.error()[0]


def test_a_body_has_a_bounded_size(one: Serving) -> None:
    got = ask(one, "POST", "/v1/completions", b" " * (8 * 2**20 + 1))
    assert got.status == 400 and "at most 8388608 bytes" in got.error()[0]


def test_no_tokens_are_an_empty_answer(one: Serving) -> None:
    answer = complete(one, max_tokens=0).json()
    assert answer["choices"][0]["text"] == "" and answer["choices"][0]["finish_reason"] == "length"
    events = chat(one, max_tokens=0, stream=True).events()
    assert events[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None,
                                        "finish_reason": "length"}


def test_an_empty_prompt_is_the_models_to_judge(one: Serving) -> None:
    assert complete(one, prompt="").json()["usage"]["prompt_tokens"] == 0


def test_the_stock_client_raises_its_own_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="nobody", prompt="x")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="writer", prompt="x", max_tokens=-1)
    with pytest.raises(openai.BadRequestError, match="decoder"):
        client.completions.create(model="echo", prompt="x", stream=True)


def test_a_full_queue_is_told_before_any_event(tmp_path: Path) -> None:
    class Full(Writer):
        def submit(self, request: Any, listener: Any) -> Any:
            raise Overloaded("The queue is full.")

    with serving(tmp_path, Full(SCRIPT), rest=True) as one:
        got = complete(one, stream=True)
    assert got.status == 429
    assert got.error() == ("The queue is full.", "rate_limit_error", None, "rate_limit_exceeded")


def test_an_error_in_mid_stream_is_an_event_that_the_stock_client_raises(tmp_path: Path) -> None:
    writer = Writer([b"a", b"b"], fault=Overloaded("no more"))
    with (serving(tmp_path, writer, rest=True) as one,
          openai.OpenAI(base_url=f"http://localhost:{one.rest_port}/v1", api_key="none",
                        max_retries=0) as client):
        heard = ""
        with pytest.raises(openai.APIError, match="no more"):
            for piece in client.completions.create(model="writer", prompt="x", stream=True):
                heard += piece.choices[0].text
        assert heard == "ab"
        got = complete(one)
        assert got.status == 429 and until(lambda: one.lent() == 0)


def test_a_caller_who_leaves_in_mid_stream_frees_the_slot(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with (serving(tmp_path, writer, rest=True) as one,
          openai.OpenAI(base_url=f"http://localhost:{one.rest_port}/v1", api_key="none",
                        max_retries=0) as client):
        stream = client.completions.create(model="writer", prompt="x", stream=True, n=2)
        next(iter(stream))
        stream.close()
        assert until(lambda: writer.cancelled == 2 and one.lent() == 0)


def test_a_caller_who_leaves_before_the_answer_frees_the_slot(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer, rest=True) as one:
        connection = http.client.HTTPConnection("localhost", one.rest_port)
        connection.request("POST", "/v1/completions", b'{"model":"writer","prompt":"x"}')
        assert until(lambda: len(writer.requests) == 1)
        connection.close()
        assert until(lambda: writer.cancelled == 1 and one.lent() == 0)


def test_no_leaving_gets_lost_however_dense_the_tokens_come(tmp_path: Path) -> None:
    """asyncio.wait_for of Python before 3.12 would swallow some of these cancellations."""
    writer = Writer([b"a"] * 20_000, every_s=0.0005, capacity=20_000)
    with serving(tmp_path, writer, rest=True) as one:
        for count in range(1, 9):
            connection = http.client.HTTPConnection("localhost", one.rest_port)
            connection.request("POST", "/v1/completions", b'{"model":"writer","prompt":"x"}')
            assert until(lambda wanted=count: len(writer.requests) == wanted)  # type: ignore[misc]
            time.sleep(0.01 * count)
            connection.close()
        assert until(lambda: writer.cancelled == 8 and one.lent() == 0)


def test_one_answer_that_fails_ends_the_others(tmp_path: Path) -> None:
    class Second(Writer):
        def submit(self, request: Any, listener: Any) -> Any:
            if request.options.get("draw") == 1:
                raise Overloaded("The queue is full.")
            return super().submit(request, listener)

    writer = Second([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer, rest=True) as one:
        assert complete(one, n=3).status == 429
        assert until(lambda: writer.cancelled == 2 and one.lent() == 0)


def test_a_caller_who_does_not_read_holds_nobody_up_and_loses_nothing(tmp_path: Path) -> None:
    count = 2000
    writer = Writer([b"x" * 1000] * count, capacity=count)
    with serving(tmp_path, writer, rest=True) as one:
        body = json.dumps({"model": "writer", "prompt": "x", "stream": True}).encode()
        with socket.create_connection(("localhost", one.rest_port), timeout=20) as caller:
            caller.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                           b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert until(lambda: writer.ended == 1, 10)  # nobody has read
            assert ask(one, "GET", "/v1/models").status == 200
            heard = b""
            while part := caller.recv(65536):
                heard += part
    assert heard.count(b"x" * 1000) > 0 and heard.count(b"x") - heard.count(b'"x"') >= 1000 * count
    assert b"[DONE]" in heard


def test_a_server_that_stops_tells_who_still_reads(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer, rest=True) as one:
        def stop() -> None:
            assert until(lambda: bool(writer.requests))
            one.server.stop(0.3)

        stopping = threading.Thread(target=stop)
        stopping.start()
        got = complete(one, stream=True)
        stopping.join()
    *pieces, last = [json.loads(part[6:]) for part in got.body.decode().split("\n\n")[:-1]]
    assert pieces and last["error"]["code"] == "service_unavailable"
    assert writer.cancelled == 1


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer, rest=True, rest_timeout_s=0.3) as one:
        got = complete(one)
        assert got.status == 504 and got.error()[3] == "timeout"
        assert until(lambda: writer.cancelled == 1)


def test_a_stream_may_take_longer_than_an_answer_as_long_as_something_comes(tmp_path: Path
                                                                             ) -> None:
    writer = Writer([b"a"] * 30, every_s=0.02)
    with serving(tmp_path, writer, rest=True, rest_timeout_s=0.3) as one:
        assert len(complete(one, stream=True).events()) == 30
        writer.gate = threading.Semaphore(2)
        got = complete(one, stream=True)
        assert b'"timeout"' in got.body and until(lambda: writer.cancelled == 1)


def test_a_model_without_a_template_has_no_chat(tmp_path: Path) -> None:
    with serving(tmp_path, rest=True) as one:
        got = chat(one)
        assert (got.status, got.error()[2:]) == (400, ("model", "not_supported"))
        assert "chat_template.jinja" in got.error()[0] and one.lent() == 0


def test_browsers_are_let_in_where_that_is_wanted(tmp_path: Path) -> None:
    with serving(tmp_path, rest=True, rest_cors=True) as one:
        for got in (complete(one), complete(one, stream=True), ask(one, "GET", "/v1/models"),
                    complete(one, n=0)):
            assert got.headers["Access-Control-Allow-Origin"] == "*"


def test_logs_and_metrics_hold_counts_and_no_text(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "tf_infer.server"), serving(
            tmp_path, rest=True, chat=CHAT) as one:
        complete(one, prompt="secret")
        chat(one, messages=[{"role": "user", "content": "secret"}], stream=True)
        complete(one, prompt="secret", stop=["", "secret"])
        page = one.server.metrics.page().decode()
    assert "secret" not in caplog.text and "Zo" not in caplog.text and "secret" not in page
    told = [vars(record)["fields"] for record in caplog.records
            if getattr(record, "event", "") == "request"]
    assert [(line["method"], line["code"], line["tokens"]) for line in told] == [
        ("REST completions", "OK", len(SCRIPT)), ("REST chat", "OK", len(SCRIPT)),
        ("REST completions", "INVALID_ARGUMENT", 0)]


def test_a_compressed_request_is_inflated_beside_the_loop(one: Serving,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def inflated(content: bytes, encoding: str) -> bytes:
        threads.append(threading.current_thread().name)
        return inflate(content, encoding)

    monkeypatch.setattr(rest, "inflate", inflated)
    body = gzip.compress(json.dumps({"model": "writer", "prompt": "Once"}).encode())
    connection = http.client.HTTPConnection("localhost", one.rest_port, timeout=20)
    connection.request("POST", "/v1/completions", body, {"Content-Encoding": "gzip"})
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["choices"][0]["text"]) == (200, TEXT)
    connection.close()
    assert len(threads) == 1 and threads[0].startswith("tf-infer-rest")
