"""What cannot be asked of a decoder, and what is at the edge, on every way to it.

A real decoder with the weights it was born with, exported and served in this process. Each case is
a clear error, or a defined result, the same on every protocol that can say it:

    stream       tf_infer.GenerationService/Generate, over gRPC
    predict      Predict with the signature `generate`, over gRPC
    rest         the same over HTTP
    completions  OpenAI's API, over HTTP
    chat         the same, with a template that joins the messages
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.journeys.writerkit import export_writer
from tests.server.generationkit import until
from tests.server.serverkit import free_port
from tf_infer.client.client import Client
from tf_infer.client.retry import RetryPolicy
from tf_infer.errors import InvalidRequest, NotOffered, ServerUnavailable, ServingError
from tf_infer.manifest import TensorSpec, read_manifest
from tf_infer.server.app import Server
from tf_infer.server.config import DecodeConfig, ModelConfig, ServerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CAPACITY, LONGEST = 1_500, 32
PROTOCOLS = ("stream", "predict", "rest", "completions", "chat")
OPENAI = ("completions", "chat")
EVERYWHERE = pytest.mark.parametrize("protocol", PROTOCOLS)
# how OpenAI's API, and vLLM's additions, call what `generate` has
RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens",
           "stop_ids": "stop_token_ids", "banned": "bad_words", "regex": "guided_regex",
           "json_schema": "guided_json", "choices": "guided_choice"}
ARGUMENTS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "regex",
             "json_schema", "choices", "constraint")  # of Client.stream; the others are `options`
DEEP: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}


class Refused(NamedTuple):
    """An error: "invalid" or "not offered", and its message."""

    kind: str
    message: str


class Answer(NamedTuple):
    """An answer: text and reason."""

    text: str
    reason: str


class Served(NamedTuple):
    """A decoder behind a server."""

    server: Server
    client: Client
    rest_port: int
    options: tuple[TensorSpec, ...]

    def ask(self, protocol: str, prompt: str | bytes = "ab", **options: Any) -> Answer | Refused:
        """Ask for one answer, greedy unless the options say something else."""
        asking: Mapping[str, Callable[..., Answer]] = {
            "stream": self._stream, "predict": self._predict, "rest": self._rest}
        try:
            if protocol in OPENAI:
                return self._openai(protocol, prompt, {"temperature": 0.0, **options})
            return asking[protocol](prompt, options)
        except InvalidRequest as error:
            return Refused("invalid", str(error))
        except NotOffered as error:
            return Refused("not offered", str(error))

    def _stream(self, prompt: str | bytes, options: Mapping[str, Any]) -> Answer:
        named = {name: value for name, value in options.items() if name in ARGUMENTS}
        more = {name: value for name, value in options.items() if name not in ARGUMENTS}
        with self.client.stream("writer", prompt, **named, options=more) as stream:
            for _ in stream:
                pass
        return Answer(stream.text, stream.finish_reason)

    def _row(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return one value for each option of the signature; lists are joined, as they travel."""
        joined = {name: "\x1f".join(map(str, value)) if isinstance(value, list) else value
                  for name, value in options.items()}
        return {spec.name: joined.get(spec.name, spec.default) for spec in self.options}

    def _predict(self, prompt: str | bytes, options: Mapping[str, Any]) -> Answer:
        raw = prompt.encode() if isinstance(prompt, str) else prompt
        row = self._row(options)
        inputs = {spec.name: np.array([row[spec.name]], spec.dtype.replace("string", "object"))
                  for spec in self.options}
        found = self.client.predict("writer", {"prompt": np.array([raw], object), **inputs},
                                    signature="generate", outputs=["text", "finish_reason"])
        return Answer(found["text"][0].decode("utf-8", "replace"),
                      found["finish_reason"][0].decode())

    def _rest(self, prompt: str | bytes, options: Mapping[str, Any]) -> Answer:
        text: Any = prompt
        if isinstance(prompt, bytes):
            text = {"b64": base64.b64encode(prompt).decode()}
        status, answer = self.post("/v1/models/writer:predict", {
            "signature_name": "generate", "instances": [{"prompt": text, **self._row(options)}]})
        if status != 200:
            raise _refused(status, answer["error"])
        row = answer["predictions"][0]
        return Answer(row["text"], row["finish_reason"])

    def _openai(self, kind: str, prompt: str | bytes, options: Mapping[str, Any]) -> Answer:
        body = {"model": "writer", **asked_of(kind, prompt),
                **{RENAMED.get(name, name): value for name, value in options.items()}}
        status, answer = self.post(PATHS[kind], body)
        if status != 200:
            assert set(answer["error"]) == {"message", "type", "param", "code"}
            raise _refused(status, answer["error"]["message"])
        choice = answer["choices"][0]
        text = choice["text"] if kind == "completions" else choice["message"]["content"]
        return Answer(text, choice["finish_reason"])

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and answer of a body: bytes, or what becomes JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("localhost", self.rest_port, timeout=60)
        try:
            connection.request("POST", path, raw, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            # As with TensorFlow Serving, strings of REST are bytes: those of noise are no UTF-8.
            return answer.status, json.loads(answer.read().decode("utf-8", "replace"))
        finally:
            connection.close()

    def in_use(self) -> int:
        """Return the slots in which something is being generated."""
        return sum(engine.running for _, _, engine in self.server.generators.made())


PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


def asked_of(kind: str, prompt: Any) -> dict[str, Any]:
    return {"prompt": prompt} if kind == "completions" else {
        "messages": [{"role": "user", "content": prompt}]}


def _refused(status: int, message: str) -> ServingError:
    return {400: InvalidRequest, 501: NotOffered, 503: ServerUnavailable}[status](message)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_writer(tmp_path_factory.mktemp("models"), capacity=CAPACITY, longest=LONGEST)


def start(exported: Path, socket_path: Path, *, slots: int = 2) -> Served:
    """Serve the decoder on a UNIX socket and a free port of HTTP."""
    rest_port = free_port()
    server = Server(ServerConfig(
        models=(ModelConfig(name="writer", base_path=str(exported)),), port=0, poll_s=0.0,
        warmup=False, golden_replay=False, socket_path=str(socket_path), rest_port=rest_port,
        decode=DecodeConfig(slots=slots)))
    server.start()
    signature = next(one for one in read_manifest(exported / "1").signatures
                     if one.name == "generate")
    options = tuple(spec for spec in signature.inputs if spec.name != "prompt")
    return Served(server, Client(f"unix:{socket_path}", timeout_s=120,
                                 retry=RetryPolicy(attempts=1)), rest_port, options)


@pytest.fixture(scope="module")
def served(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    one = start(exported, tmp_path_factory.mktemp("socket") / "grpc")
    yield one
    one.client.close()
    one.server.stop(0.0)


# ---------------------------------------------------------------------------- what cannot be

OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": -1}, "max_new_tokens"),
    ({"max_new_tokens": CAPACITY + 1}, "max_new_tokens"),
    ({"max_new_tokens": 2**31 - 1}, "max_new_tokens"),
    ({"temperature": -0.5}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"top_k": -2}, "top_k"),  # -1 keeps all in OpenAI's API, as vLLM's clients say it
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"min_p": 2.0}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"presence_penalty": math.nan}, "presence_penalty"),
    ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop_ids": [-3]}, "stop_ids"),
    ({"banned": ["a", ""]}, "banned"),
    ({"constraint": "nobody-exported-this"}, "constraint"),
]


@EVERYWHERE
@pytest.mark.parametrize(("options", "name"), OPTIONS, ids=str)
def test_an_option_that_cannot_be_is_refused_by_its_name(
        served: Served, protocol: str, options: dict[str, Any], name: str) -> None:
    found = served.ask(protocol, **options)
    assert isinstance(found, Refused)
    names = {name, RENAMED.get(name, name)} if protocol in OPENAI else {name}
    if protocol in OPENAI and not all(math.isfinite(value) for value in options.values()
                                      if isinstance(value, float)):
        names = {"NaN"}  # such a body is no JSON
    assert any(one in found.message for one in names), found.message
    assert served.in_use() == 0


CONSTRAINTS: list[tuple[dict[str, Any], str]] = [
    ({"regex": "ab[c"}, r"regex: .*position \d+"),
    ({"regex": "a(?=b)b"}, r"regex: .*position \d+"),
    ({"regex": "a{3,2}"}, r"regex: .*position \d+"),
    ({"json_schema": '{"type": '}, r"json_schema: .*line 1, column \d+"),
    ({"json_schema": {"type": "vegetable"}}, r"json_schema: .* at #/type"),
    ({"json_schema": {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}},
     r"json_schema: .* at #/properties/a/\$ref"),
    ({"json_schema": {"type": "integer", "minimum": 3, "maximum": 2}},
     "json_schema: .*range that holds a number at #"),
    ({"json_schema": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}},
     r"json_schema: .*recursion that can end .* at #/items/\$ref"),
    ({"json_schema": DEEP}, "json_schema: .*(too deep|at most 400000 characters)"),
    ({"json_schema": {"enum": ["x" * 250_000]}}, "json_schema: .*at most 200000 characters"),
    ({"regex": "(a{1,1000}){1,1000}"}, "regex: .*at most 100000 characters with every repetition"),
    ({"choices": []}, "choice"),
    ({"choices": ["a", ""]}, "choice"),
    ({"choices": [f"{number}" for number in range(20_000)]}, "choice"),
]


@pytest.mark.parametrize("protocol", ["stream", *OPENAI])
@pytest.mark.parametrize(("given", "words"), CONSTRAINTS, ids=lambda value: str(value)[:40])
def test_a_constraint_that_cannot_be_is_refused_with_the_place(
        served: Served, protocol: str, given: dict[str, Any], words: str) -> None:
    began = time.monotonic()
    found = served.ask(protocol, max_new_tokens=5, **given)
    assert isinstance(found, Refused)
    renamed = words.replace("json_schema: ", "(json_schema|guided_json): ")
    assert re.search(renamed, found.message), found.message
    assert time.monotonic() - began < 20, "what is too large has to be found out soon"
    assert served.in_use() == 0


CONTRADICTIONS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (OPENAI, {"regex": "a", "choices": ["b"]}),
    (OPENAI, {"json_schema": {"type": "null"}, "regex": "a"}),
    (OPENAI, {"constraint": "answer", "choices": ["b"]}),
    (("predict", "rest"), {"constraint": "answer", "choices": ["b"]}),
]


@pytest.mark.parametrize(("protocol", "given"), [
    (protocol, given) for protocols, given in CONTRADICTIONS for protocol in protocols], ids=str)
def test_constraints_that_contradict_each_other_are_refused(
        served: Served, protocol: str, given: dict[str, Any]) -> None:
    found = served.ask(protocol, **given)
    assert isinstance(found, Refused)
    assert "constraint" in found.message


# ---------------------------------------------------------------------------- edges


@EVERYWHERE
def test_a_prompt_longer_than_the_context_is_read_from_its_end(
        served: Served, protocol: str) -> None:
    long = "x" * 5_000 + "the end of a prompt that is long"
    wanted = served.ask("predict", long[-LONGEST:], max_new_tokens=8)
    assert isinstance(wanted, Answer)
    assert served.ask(protocol, long, max_new_tokens=8) == wanted


@EVERYWHERE
def test_an_empty_prompt_is_a_prompt(served: Served, protocol: str) -> None:
    wanted = served.client.generate("writer", [""], max_new_tokens=8)[0]
    assert wanted.text
    assert served.ask(protocol, "", max_new_tokens=8) == (wanted.text, wanted.finish_reason)


@EVERYWHERE
def test_no_tokens_at_all_are_an_empty_answer(served: Served, protocol: str) -> None:
    assert served.ask(protocol, max_new_tokens=0) == ("", "length")


@EVERYWHERE
def test_as_many_tokens_as_fit_are_given(served: Served, protocol: str) -> None:
    found = served.ask(protocol, max_new_tokens=CAPACITY, min_new_tokens=CAPACITY)
    assert isinstance(found, Answer)
    assert found.reason == "length" and len(found.text) > CAPACITY // 8


@EVERYWHERE
def test_top_k_above_the_vocabulary_keeps_all(served: Served, protocol: str) -> None:
    drawn = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    wanted = served.ask("stream", **drawn)
    assert isinstance(wanted, Answer)
    assert served.ask(protocol, **drawn, top_k=2**31 - 1) == wanted
    assert served.ask(protocol, **drawn, top_k=100_000) == wanted


@EVERYWHERE
def test_temperature_0_is_greedy_whatever_else_is_asked_for(
        served: Served, protocol: str) -> None:
    wanted = served.ask("predict", max_new_tokens=12)
    assert isinstance(wanted, Answer)
    assert served.ask(protocol, max_new_tokens=12, temperature=0.0, top_k=3, top_p=0.2, seed=9
                      ) == wanted


@pytest.mark.parametrize("protocol", ["stream", "predict", "rest"])
def test_a_prompt_that_is_not_utf_8_is_read_as_its_bytes(served: Served, protocol: str) -> None:
    wanted = served.client.generate("writer", [b"\xff\xfe caf\xe9"], max_new_tokens=6)[0]
    assert served.ask(protocol, b"\xff\xfe caf\xe9", max_new_tokens=6) == (
        wanted.text, wanted.finish_reason)
    assert served.ask(protocol, b"\xff\xfe caf\xe8", max_new_tokens=6) != (
        wanted.text, wanted.finish_reason), "its bytes should make a difference"


@pytest.mark.parametrize("kind", OPENAI)
def test_a_body_that_is_not_utf_8_is_no_request(served: Served, kind: str) -> None:
    body = json.dumps({"model": "writer", **asked_of(kind, "cafX")}).encode()
    status, answer = served.post(PATHS[kind], body.replace(b"X", b"\xe9"))
    assert status == 400 and "expected UTF-8, got other bytes at" in answer["error"]["message"]
    half = json.dumps({"model": "writer", **asked_of(kind, "caf\ud800")})
    status, answer = served.post(PATHS[kind], half.encode())
    assert status == 400 and "half of a pair of surrogates" in answer["error"]["message"]


@EVERYWHERE
@pytest.mark.parametrize("given", [{"choices": ["yes", "no"]}, {"constraint": "answer"}], ids=str)
def test_a_constraint_goes_before_what_is_banned(
        served: Served, protocol: str, given: dict[str, Any]) -> None:
    found = served.ask(protocol, **given, max_new_tokens=8, banned=["yes", "no"])
    assert isinstance(found, Answer)
    assert found.text in ("yes", "no")


@pytest.mark.parametrize("protocol", ["stream", "predict", "rest"])
def test_a_constraint_goes_before_what_is_forced(served: Served, protocol: str) -> None:
    found = served.ask(protocol, choices=["yes", "no"], max_new_tokens=8, forced_prefix="xyz")
    assert isinstance(found, Answer)
    assert found.text in ("yes", "no")


@pytest.mark.parametrize("protocol", ["stream", *OPENAI])
def test_a_constraint_that_the_limit_cuts_says_so(served: Served, protocol: str) -> None:
    found = served.ask(protocol, regex="a{100}", max_new_tokens=10)
    # OpenAI's API has no word for it but "length"
    assert found == ("a" * 10, "length" if protocol in OPENAI else "incomplete")


# ---------------------------------------------------------------------------- gone

LONG = {"max_new_tokens": CAPACITY, "options": {"min_new_tokens": CAPACITY}}


def asking(served: Served, kind: str, *, stream: bool) -> http.client.HTTPConnection:
    """Send a request for a long answer; return its connection."""
    connection = http.client.HTTPConnection("localhost", served.rest_port, timeout=60)
    connection.request("POST", PATHS[kind], json.dumps({
        "model": "writer", **asked_of(kind, "ab"), "max_tokens": CAPACITY, "min_tokens": CAPACITY,
        "stream": stream}).encode(), {"Content-Type": "application/json"})
    return connection


def test_a_grpc_client_that_goes_in_mid_stream_frees_its_slot(served: Served) -> None:
    with served.client.stream("writer", "ab", **LONG) as stream:
        next(stream)
        assert served.in_use() == 1
    assert until(lambda: served.in_use() == 0, 20)
    assert stream.finish_reason == "" and stream.usage.new_tokens < CAPACITY
    assert isinstance(served.ask("stream", max_new_tokens=3), Answer)  # it still answers


@pytest.mark.parametrize("kind", OPENAI)
def test_an_http_client_that_goes_in_mid_stream_frees_its_slot(served: Served, kind: str) -> None:
    connection = asking(served, kind, stream=True)
    assert connection.getresponse().readline().startswith(b"data: ")
    assert served.in_use() == 1
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert until(lambda: served.in_use() == 0, 20)
    assert isinstance(served.ask(kind, max_new_tokens=3), Answer)


@pytest.mark.parametrize("kind", OPENAI)
def test_an_http_client_that_does_not_wait_for_its_answer_frees_its_slot(
        served: Served, kind: str) -> None:
    connection = asking(served, kind, stream=False)
    assert until(lambda: served.in_use() == 1, 20)
    began = time.monotonic()
    connection.close()
    assert until(lambda: served.in_use() == 0, 20)
    spent = time.monotonic() - began
    began = time.monotonic()
    served.ask(kind, max_new_tokens=CAPACITY, min_new_tokens=CAPACITY)
    assert spent < time.monotonic() - began, "it has come to its end all the same"


def test_grpc_streams_of_a_server_that_stops_end_with_unavailable(
        exported: Path, tmp_path: Path) -> None:
    one = start(exported, tmp_path / "grpc")
    ended: list[BaseException] = []

    def read(stream: Any) -> None:
        try:
            for _ in stream:
                time.sleep(0.01)
        except ServingError as error:
            ended.append(error)

    streams = [one.client.stream("writer", "ab", **LONG) for _ in range(6)]  # four wait for a slot
    threads = [threading.Thread(target=read, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    assert until(lambda: one.in_use() == 2, 120)
    one.server.stop(0.0)
    for thread in threads:
        thread.join(30)
    one.client.close()
    assert len(ended) >= 4
    assert all(isinstance(error, ServerUnavailable) for error in ended), ended


@pytest.mark.parametrize("kind", OPENAI)
def test_http_answers_of_a_server_that_stops_end_with_its_error(
        exported: Path, tmp_path: Path, kind: str) -> None:
    one = start(exported, tmp_path / "grpc", slots=1)
    one.ask("stream", max_new_tokens=2)  # what is made once is made here
    running = asking(one, kind, stream=True)
    answer = running.getresponse()
    assert answer.readline().startswith(b"data: ")
    waiting = asking(one, kind, stream=False)
    assert until(lambda: any(engine.waiting for _, _, engine in one.server.generators.made()), 10)
    one.server.stop(0.0)
    events = [event for event in answer.read().decode().split("\n\n") if event]
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["code"] == "service_unavailable"
    told = waiting.getresponse()
    assert told.status == 503
    assert json.loads(told.read())["error"]["code"] == "service_unavailable"
    for connection in (running, waiting):
        connection.close()
    one.client.close()
