"""`tf-infer profile` against a server in this process that has a trace to give."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import text_format

from tests.fakes.serving import FakeServer, echo
from tf_infer.cli.main import main
from tf_infer.wire import messages, methods
from tf_infer.wire import profiler_pb2 as profiler
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef
from tf_infer.wire.timings import ANSWER_KEY, REQUEST_KEY

ROWS = "tensor_shape { dim { size: -1 } }"
SIGNATURES = text_format.Parse("""
    signature_def { key: "serving_default" value {
      inputs { key: "prompt" value { dtype: DT_STRING ROWS } } } }
    signature_def { key: "pairs" value {
      inputs { key: "text" value { dtype: DT_STRING ROWS } }
      inputs { key: "text_pair" value { dtype: DT_STRING ROWS } } } }
    signature_def { key: "numbers" value {
      inputs { key: "x" value { dtype: DT_FLOAT ROWS } } } }
    """.replace("ROWS", ROWS), pb.SignatureDefMap()).signature_def
TRACE = profiler.XSpace(planes=[profiler.XPlane(
    event_metadata={1: profiler.XEventMetadata(id=1, name=b"call/core/dense/MatMul:MatMul")},
    lines=[profiler.XLine(events=[profiler.XEvent(metadata_id=1, duration_ps=10**9)])])])


def predict(request: Any, context: grpc.ServicerContext) -> Any:
    if request.model_spec.name == "broken":
        context.abort(grpc.StatusCode.INTERNAL, "out of order")
    detail = dict(context.invocation_metadata()).get(REQUEST_KEY)
    if detail is not None and request.model_spec.name != "foreign":
        split = "tokenize=10;model=80;decode=10" if detail == "stages" else "model=100"
        context.set_trailing_metadata(((ANSWER_KEY, f"queue=50;{split};total=200"),))
    return echo(request, context)


def record(request: profiler.ProfileRequest, context: grpc.ServicerContext) -> Any:
    time.sleep(request.opts.duration_ms / 1000)
    empty = request.opts.duration_ms < 100
    return profiler.ProfileResponse(
        xspace=(profiler.XSpace(warnings=[b"idle"]) if empty else TRACE).SerializeToString())


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer({
            methods.PREDICT: predict, methods.PROFILE: record,
            methods.GET_MODEL_METADATA: lambda request, context: messages.metadata_response(
                ModelRef(request.model_spec.name, version=1), SIGNATURES)}) as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.requests.clear()
    return shared


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("one\nzwei\n三\n", encoding="utf-8")
    return str(path)


def profile(server: FakeServer, logdir: Path, *words: str) -> int:
    return main(["profile", "--address", server.address, "--logdir", str(logdir),
                 "--duration", "0.3", *words])


def sent(server: FakeServer) -> list[tuple[Any, dict[str, str]]]:
    return [(request, metadata) for name, request, metadata in server.requests
            if name == "Predict"]


def test_what_others_send_is_recorded_and_written_for_tensorboard(
        server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(server, tmp_path) == 0
    written, = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert written.read_bytes() == TRACE.SerializeToString()
    assert written.name == server.address.replace(":", "_") + ".xplane.pb"
    shown = capsys.readouterr().out
    assert str(written) in shown
    assert "100.0 %  network" in shown
    assert "load " not in shown
    assert not sent(server)


def test_a_load_is_sent_meanwhile_and_told(
        server: FakeServer, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(server, tmp_path, "--load", texts, "--model", "writer", "--callers", "2",
                   "--json") == 0
    values = json.loads(capsys.readouterr().out)
    calls = sent(server)
    assert values["load"]["callers"] == 2
    assert values["load"]["failed"] == {}
    assert values["load"]["answered"] == len(calls) - 3   # each text once before it begins
    assert {text for request, _ in calls for text in request.inputs["prompt"].string_val} == {
        b"one", b"zwei", "三".encode()}
    assert values["call"]["queue"] == 0.25
    assert values["call"]["run"] == 0.5
    assert values["run"]["tokenizer"] == 0.1
    asked = [metadata.get(REQUEST_KEY) for _, metadata in calls]
    assert asked[:3] == [None] * 3
    assert set(asked[3:]) == {"queue", "stages"}
    assert 2 <= asked.count("stages") <= 6  # some in a second, however many calls there are
    assert values["operations"][0]["stage"] == "network"


def test_an_open_loop_and_several_rows(
        server: FakeServer, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(server, tmp_path, "--load", texts, "--model", "writer", "--rate", "50",
                   "--rows", "2", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["load"]["rate"] == 50
    assert {len(request.inputs["prompt"].string_val) for request, _ in sent(server)} == {1, 2}


def test_a_server_that_tells_no_timings_is_measured_from_outside(
        server: FakeServer, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(server, tmp_path, "--load", texts, "--model", "foreign", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["load"]["answered"] > 0
    assert (values["call"], values["run"]) == (None, None)


def test_an_idle_server_exits_1_and_says_what_to_do(
        server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile(server, tmp_path, "--duration", "0.01") == 1
    assert "none was recorded" in capsys.readouterr().out


def test_the_profiler_may_have_an_address_of_its_own(
        server: FakeServer, texts: str, tmp_path: Path) -> None:
    with FakeServer({methods.PROFILE: record}) as other:
        assert profile(server, tmp_path, "--profiler", other.address, "--load", texts, "--model",
                       "writer") == 0
        assert [name for name, *_ in other.requests] == ["Profile"]
    assert "Profile" not in [name for name, *_ in server.requests]


@pytest.mark.parametrize(("words", "message"), [
    (["--duration", "-1"], "--duration: expected at least 0.0, got -1.0"),
    (["--duration", "nan"], "--duration: expected"),
    (["--callers", "0"], "--callers: expected at least 1, got 0"),
    (["--load", "TEXTS"], "--load: expected together with --model"),
    (["--model", "writer"], "--load: expected together with --model"),
    (["--load", "TEXTS", "--model", "writer", "--rate", "0"], "rate: expected a number > 0"),
    (["--load", "/nowhere", "--model", "writer"], "--load: /nowhere cannot be read"),
    (["--load", "EMPTY", "--model", "writer"], "expected at least one line, got none"),
    (["--load", "BYTES", "--model", "writer"], "expected UTF-8 text"),
    (["--load", "TEXTS", "--model", "writer", "--signature", "none"],
     "--signature: expected one of ['numbers', 'pairs', 'serving_default'], got 'none'"),
    (["--load", "TEXTS", "--model", "writer", "--signature", "pairs"], "whose only input is text"),
    (["--load", "TEXTS", "--model", "writer", "--signature", "numbers"],
     "whose only input is text"),
    (["--load", "TEXTS", "--model", "broken"], "INTERNAL: out of order"),
    (["--address", "a:1,b:2"], "--address: expected one server, got several"),
])
def test_what_cannot_be_done_is_told(
        server: FakeServer, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        words: list[str], message: str) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe secret\n")
    files = {"TEXTS": texts, "EMPTY": str(tmp_path / "empty"), "BYTES": str(tmp_path / "bytes")}
    assert profile(server, tmp_path, *(files.get(word, word) for word in words)) == 1
    told = capsys.readouterr().err
    assert message in told
    assert "secret" not in told


def test_a_load_that_nobody_answers_exits_1(
        texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = iter(range(3))  # each text once, before the load

    def failing(request: Any, context: grpc.ServicerContext) -> Any:
        if next(first, None) is None:
            context.abort(grpc.StatusCode.INTERNAL, "broke")
        return echo(request, context)

    with FakeServer({
            methods.PREDICT: failing, methods.PROFILE: record,
            methods.GET_MODEL_METADATA: lambda request, context: messages.metadata_response(
                ModelRef("m", version=1), SIGNATURES)}) as server:
        assert profile(server, tmp_path, "--load", texts, "--model", "m") == 1
    shown = capsys.readouterr().out
    assert " INTERNAL" in shown
    assert "100.0 %  network" in shown
