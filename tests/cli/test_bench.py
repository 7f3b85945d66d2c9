"""`tf-infer bench` against a server in this process."""

from __future__ import annotations

import json
import os
import signal
import threading
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
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef

SIGNATURES = text_format.Parse("""
    signature_def { key: "serving_default" value { inputs { key: "text" value {
      dtype: DT_STRING tensor_shape { dim { size: -1 } } } } } }""",
                               pb.SignatureDefMap()).signature_def


def predict(request: Any, context: grpc.ServicerContext) -> Any:
    if request.model_spec.name == "broken":
        context.abort(grpc.StatusCode.INTERNAL, "out of order")
    if request.model_spec.name == "busy" and b"two" in request.inputs["text"].string_val:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    time.sleep(0.01)
    return echo(request, context)


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer({
            methods.PREDICT: predict,
            methods.GET_MODEL_METADATA: lambda request, context: messages.metadata_response(
                ModelRef(request.model_spec.name, version=1), SIGNATURES)}) as server:
        yield server


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\nthree\n", encoding="utf-8")
    return str(path)


def bench(server: FakeServer, texts: str, *words: str, model: str = "m") -> int:
    return main(["bench", "--address", server.address, "--model", model, "--texts", texts,
                 "--duration", "0.3", "--warmup", "0", *words])


def test_closed_loops_are_told_one_a_line(
        shared: FakeServer, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    def scales() -> bool:
        assert bench(shared, texts, "--concurrency", "1", "4") == 0
        shown = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in shown[1:]] == [["closed", "1"], ["closed", "4"]]
        slow, fast = (float(line.split()[2]) for line in shown[1:])
        assert slow <= 100
        return fast > 1.5 * slow

    assert any(scales() for _ in range(5))  # a busy machine may hold up the second


def test_everything_is_written_and_compared(
        shared: FakeServer, texts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"bench.{name}" for name in ("json", "hgrm", "png")}
    assert bench(shared, texts, "--rate", "40", "--rows", "2", "--output", str(files["json"]),
                 "--hgrm", str(files["hgrm"]), "--plot", str(files["png"])) == 0
    written = json.loads(files["json"].read_text())
    load, = written["loads"]
    assert (load["name"], load["rate"], load["failed"]) == ("open 40/s", 40.0, {})
    assert load["percentiles_ms"]["50"] >= 10.0
    assert f"Total count    = {load['answered']:12d}" in files["hgrm"].read_text()
    assert files["png"].read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert bench(shared, texts, "--rate", "40", "--json", "--compare", str(files["json"])) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["rows"] == 1
    assert "now / earlier" in told.err and "open 40/s" in told.err


def test_of_rows_the_text_is_sent_and_nothing_else(
        shared: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one", "label": "x"}\n{"text": "t\\u00fc", "label": "y"}\n')
    shared.requests.clear()
    assert bench(shared, str(path), "--concurrency", "1") == 0
    sent = {text for _, request, _ in shared.requests if isinstance(request, pb.PredictRequest)
            for text in request.inputs["text"].string_val}
    assert sent == {b"one", "t\u00fc".encode()}
    path.write_text('{"words": "one"}\n')
    assert bench(shared, str(path)) == 1
    assert "rows.jsonl:1: " in capsys.readouterr().err


def test_calls_that_fail_are_counted_and_one_answer_is_enough(
        shared: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts"
    path.write_text("\n".join(["one"] * 8 + ["two"] * 8))
    assert bench(shared, str(path), "--concurrency", "2", model="busy") == 0
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().out


def test_ctrl_c_shows_what_was_measured(
        shared: FakeServer, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    shared.requests.clear()

    def press() -> None:
        while len(shared.requests) < 20:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    began = time.monotonic()
    assert bench(shared, texts, "--duration", "120", "--concurrency", "1", "2") == 0
    assert time.monotonic() - began < 100
    shown = capsys.readouterr().out.splitlines()
    assert "(interrupted)" in shown[1]
    assert len(shown) == 2


@pytest.mark.parametrize(("words", "message"), [
    (["--rows", "0"], "--rows: expected at least 1, got 0"),
    (["--warmup", "-1"], "--warmup: expected at least 0"),
    (["--duration", "0"], "duration_s: expected a number > 0"),
    (["--concurrency", "0"], "callers: expected at least 1, got 0"),
    (["--rate", "0"], "rate: expected a number > 0"),
    (["--rate", "9", "--concurrency", "1", "2"], "--concurrency: expected one number with --rate"),
    (["--output", "/nowhere/x.json"], "--output: expected a file in a folder that exists"),
    (["--plot", "/nowhere/x.png"], "--plot: expected a file in a folder that exists"),
    (["--compare", "/nowhere"], "/nowhere: expected what `tf-infer bench --output` wrote"),
    (["--signature", "none"], "--signature: expected one of ['serving_default'], got 'none'"),
])
def test_what_cannot_be_done_is_told(
        shared: FakeServer, texts: str, capsys: pytest.CaptureFixture[str], words: list[str],
        message: str) -> None:
    assert bench(shared, texts, *words) == 1
    assert message in capsys.readouterr().err


def test_a_model_that_answers_nothing_exits_1(
        shared: FakeServer, texts: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(shared, texts, model="broken") == 1
    assert "INTERNAL: out of order" in capsys.readouterr().err
