"""What cannot be asked of a decoder, and what is at the edge: over gRPC, HTTP and Predict.

A real decoder with the weights it was born with, exported and served in this process. Each row is a
clear error, the same on every protocol that can say it, or a defined result.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tf_infer.client.client import Client
from tf_infer.client.retry import RetryPolicy
from tf_infer.errors import ConfigError, InvalidRequest, ServerUnavailable, ServingError
from tf_infer.server.app import Server
from tf_infer.server.config import DecodeConfig, ModelConfig, ServerConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CAPACITY, LONGEST = 200, 32
DEEP: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
for _ in range(400):
    DEEP = {"type": "array", "items": DEEP}


class Served(NamedTuple):
    """A decoder behind a server, asked in three ways."""

    server: Server
    client: Client
    rest_port: int

    def stream(self, prompt: str | bytes = "ab", **options: Any) -> tuple[str, str]:
        """Return text and reason of a streamed answer."""
        with self.client.stream("bytes", prompt, **options) as stream:
            for _ in stream:
                pass
        return stream.text, stream.finish_reason

    def complete(self, prompt: Any = "ab", **fields: Any) -> tuple[int, dict[str, Any]]:
        """Return status and answer of POST /v1/completions."""
        body = json.dumps({"model": "bytes", "prompt": prompt, **fields}).encode()
        return self.post(body)

    def post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """Return status and answer of any body."""
        connection = http.client.HTTPConnection("localhost", self.rest_port, timeout=60)
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        got = answer.status, json.loads(answer.read())
        connection.close()
        return got

    def in_use(self) -> int:
        """Return the slots in which something is being generated."""
        return sum(engine.running for _, _, engine in self.server.generators.made())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export a small decoder of bytes that was never trained."""
    from tf_infer.cli.proof import make_golden
    from tf_infer.config import (
        CausalLMConfig,
        GenerationDefaults,
        PackingConfig,
        ShapeGrid,
        SmallTransformerConfig,
    )
    from tf_infer.equality import Tolerance
    from tf_infer.export.saved_model import save
    from tf_infer.tasks.build import build
    from tf_infer.verify.parity import verify
    from tf_infer.verify.predictors import SessionPredictor

    task = build(CausalLMConfig(
        name="bytes", capacity=CAPACITY, defaults=GenerationDefaults(max_new_tokens=2),
        network=SmallTransformerConfig(width=16, layers=1, heads=2, hidden=16,
                                       max_positions=LONGEST + CAPACITY),
        packing=PackingConfig(max_tokens=LONGEST, end=False, truncation="left"),
        grid=ShapeGrid(rows=(1, 2), tokens=(LONGEST,))))
    base = tmp_path_factory.mktemp("models") / "bytes"
    golden = make_golden(task, [b"ab"], max_rows=1)
    save(task, base, name="bytes", golden=golden, check=lambda folder: verify(
        {"session": lambda: SessionPredictor(folder)}, golden[:1], Tolerance()))
    return base


def start(exported: Path, socket_path: Path) -> Served:
    """Serve the decoder on a UNIX socket and a free port of HTTP."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        rest_port = probe.getsockname()[1]
    server = Server(ServerConfig(
        models=(ModelConfig(name="bytes", base_path=str(exported)),), port=0, poll_s=0.0,
        warmup=False, golden_replay=False, socket_path=str(socket_path), rest_port=rest_port,
        decode=DecodeConfig(slots=2)))
    server.start()
    return Served(server, Client(f"unix:{socket_path}", timeout_s=120,
                                 retry=RetryPolicy(attempts=1)), rest_port)


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
    ({"temperature": -0.5}, "temperature"),
    ({"temperature": math.inf}, "temperature"),
    ({"temperature": math.nan}, "temperature"),
    ({"top_k": -2}, "top_k"),  # -1 keeps all, as vLLM's clients say it
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_p": math.nan}, "top_p"),
    ({"min_p": 2.0}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"min_new_tokens": 9, "max_new_tokens": 3}, "min_new_tokens"),
    ({"stop": [""]}, "stop"),
]


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as the client takes them: some have no argument of their own."""
    own = {"max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop"}
    return {**{name: value for name, value in options.items() if name in own},
            "options": {name: value for name, value in options.items() if name not in own}}


@pytest.mark.parametrize(("options", "name"), OPTIONS, ids=str)
def test_an_option_that_cannot_be_is_named_on_every_protocol(
        served: Served, options: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        served.stream(**_named(options))
    with pytest.raises((InvalidRequest, ConfigError), match=name):
        served.client.generate("bytes", ["ab"], **_named(options))
    renamed = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
    status, answer = served.complete(**{
        renamed.get(option, option): value for option, value in options.items()})
    assert status == 400
    finite = all(not isinstance(value, float) or math.isfinite(value) for value in options.values())
    # JSON has no NaN and no infinity: that body is no JSON.
    assert (name.replace("new_tokens", "") if finite else "body") in answer["error"]["message"]
    assert served.in_use() == 0


CONSTRAINTS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"regex": "ab[c"}, {"guided_regex": "ab[c"}, r"(position|character|place) \d+"),
    ({"regex": "(?=a)b"}, {"guided_regex": "(?=a)b"}, "regex"),
    ({"json_schema": '{"type": '}, {}, r"column \d+"),
    ({"json_schema": {"type": "vegetable"}}, {"guided_json": {"type": "vegetable"}}, "schema"),
    ({"json_schema": {"$ref": "#/nowhere"}}, {"guided_json": {"$ref": "#/nowhere"}}, "schema"),
    ({"json_schema": DEEP}, {"guided_json": DEEP}, "schema"),
    ({"regex": "(a{1,1000}){1,1000}"}, {"guided_regex": "(a{1,1000}){1,1000}"}, "regex"),
    ({"choices": []}, {"guided_choice": []}, "choice"),
    ({"constraint": "nobody-exported-this"}, {"constraint": "nobody-exported-this"}, "constraint"),
]


@pytest.mark.parametrize(("given", "fields", "words"), CONSTRAINTS,
                         ids=lambda value: str(value)[:40])
def test_a_constraint_that_cannot_be_is_refused(
        served: Served, given: dict[str, Any], fields: dict[str, Any], words: str) -> None:
    began = time.monotonic()
    with pytest.raises((ServingError, ConfigError), match=words):
        served.stream(**given, max_new_tokens=5)
    if fields:
        status, answer = served.complete(**fields, max_tokens=5)
        assert status in (400, 501)
        assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert time.monotonic() - began < 20, "what is too large has to be found out soon"
    assert served.in_use() == 0


def test_two_constraints_contradict_each_other(served: Served) -> None:
    with pytest.raises(ConfigError, match=r"expected one of .*choices.*regex"):
        served.stream(regex="a", choices=["b"])
    status, answer = served.complete(guided_regex="a", guided_choice=["b"])
    assert status == 400 and "guided" in answer["error"]["message"]


# ---------------------------------------------------------------------------- edges


def test_a_prompt_longer_than_the_context_is_read_from_its_end(served: Served) -> None:
    long = "x" * 5_000 + "the end of a prompt that is long"
    wanted = served.stream(long[-200:], max_new_tokens=8)
    assert served.stream(long, max_new_tokens=8) == wanted
    assert served.client.generate("bytes", [long], max_new_tokens=8)[0].text == wanted[0]
    assert served.complete(long, max_tokens=8, temperature=0)[1]["choices"][0]["text"] == wanted[0]


def test_an_empty_prompt_is_a_prompt(served: Served) -> None:
    wanted = served.client.generate("bytes", [""], max_new_tokens=8)[0]
    assert served.stream("", max_new_tokens=8) == (wanted.text, wanted.finish_reason)
    status, answer = served.complete("", max_tokens=8, temperature=0)
    assert (status, answer["choices"][0]["text"]) == (200, wanted.text)


def test_no_tokens_at_all_are_an_empty_answer(served: Served) -> None:
    assert served.stream(max_new_tokens=0) == ("", "length")
    assert served.client.generate("bytes", ["ab"], max_new_tokens=0)[0].text == ""
    status, answer = served.complete(max_tokens=0)
    assert status == 200
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("", "length")


def test_top_k_above_the_vocabulary_keeps_all(served: Served) -> None:
    drawn = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3}
    wanted = served.stream(**drawn)
    assert served.stream(**drawn, top_k=2**31 - 1) == wanted
    assert served.client.generate(
        "bytes", ["ab"], **{**drawn, "seed": [3]}, top_k=100_000)[0].text == wanted[0]


def test_temperature_0_is_greedy_whatever_else_is_asked_for(served: Served) -> None:
    wanted = served.stream(max_new_tokens=12)
    assert served.stream(max_new_tokens=12, temperature=0.0, top_k=3, top_p=0.2, seed=9) == wanted


def test_a_prompt_that_is_not_utf_8_is_read_as_its_bytes(served: Served) -> None:
    prompt = b"\xff\xfe caf\xe9"
    wanted = served.client.generate("bytes", [prompt], max_new_tokens=6)[0]
    text, reason = served.stream(prompt, max_new_tokens=6)
    assert reason == wanted.finish_reason
    assert text == wanted.text
    # JSON is UTF-8: there it is no request.
    status, answer = served.post(b'{"model": "bytes", "prompt": "caf\xe9"}')
    assert status == 400 and "expected UTF-8" in answer["error"]["message"]


def test_a_constraint_goes_before_what_is_banned(served: Served) -> None:
    assert served.stream(choices=["yes", "no"], max_new_tokens=8,
                         options={"banned": ["yes", "no"]})[0] in ("yes", "no")


def test_a_constraint_that_the_limit_cuts_says_so(served: Served) -> None:
    assert served.stream(regex="a{100}", max_new_tokens=10) == ("a" * 10, "incomplete")


# ---------------------------------------------------------------------------- gone


def until(true: Any, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.01)
    return False


LONG = {"max_new_tokens": CAPACITY, "options": {"min_new_tokens": CAPACITY}}


def test_a_client_that_goes_in_mid_stream_frees_its_slot(served: Served) -> None:
    with served.client.stream("bytes", "ab", **LONG) as stream:
        next(stream)
        assert served.in_use() == 1
    assert until(lambda: served.in_use() == 0)
    assert stream.finish_reason == "" and stream.usage.new_tokens < CAPACITY

    connection = http.client.HTTPConnection("localhost", served.rest_port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps({
        "model": "bytes", "prompt": "ab", "max_tokens": CAPACITY, "min_tokens": CAPACITY,
        "stream": True}).encode(), {"Content-Type": "application/json"})
    assert connection.getresponse().readline().startswith(b"data: ")
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert until(lambda: served.in_use() == 0)
    assert len(served.stream("ab", max_new_tokens=3)[0].encode()) <= 9  # it still answers


def test_a_server_that_stops_in_mid_stream_says_unavailable(exported: Path, tmp_path: Path) -> None:
    one = start(exported, tmp_path / "grpc")
    ended: list[BaseException] = []

    def read(stream: Any) -> None:
        try:
            for _ in stream:
                time.sleep(0.01)
        except ServingError as error:
            ended.append(error)

    streams = [one.client.stream("bytes", "ab", **LONG) for _ in range(6)]  # four wait for a slot
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
