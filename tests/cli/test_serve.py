"""`tf-infer serve`: what it prints and how it ends, in processes of their own where it must be."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tf_infer.cli import main as cli
from tf_infer.cli import quickstart
from tf_infer.config import ShapeGrid
from tf_infer.server import tf_serving
from tf_infer.server.config import ModelConfig, read_config_file, read_monitoring_file
from tf_infer.server.serving_batching import read_parameters
from tf_infer.wire import methods, serving_pb2, tensors

# The command with a server that echoes, so that no TensorFlow is needed.
ECHO = """
import sys, time
from tf_infer.cli import serve
from tf_infer.server import app, fakes
run = app.run
class Slow(fakes.EchoServable):
    def run(self, signature, inputs, *, outputs, timeout_s):
        time.sleep(len(inputs["text"]) - 1)  # seconds: rows - 1
        return super().run(signature, inputs, outputs=outputs, timeout_s=timeout_s)
def load(path):
    if path.is_file():
        raise ValueError("no folder")
    return Slow(), app.LoadTimes()
app.run = lambda config: run(config, load=load)
serve.require_models, serve.load_tensorflow = lambda command: None, lambda: None
from tf_infer.cli.main import main
sys.exit(main(["serve", *sys.argv[1:]]))
"""


def serve(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(["serve", *arguments])
    return code, capsys.readouterr().out


def test_FL05_help_prints_all_flags_and_ends_as_TensorFlow_Serving_does(
        capsys: pytest.CaptureFixture[str]) -> None:
    for word, expected in (("--help", 255), ("--help=true", 255), ("-h", 0)):
        code, text = serve(capsys, word)
        assert code == expected
        assert "--model_base_path=" in text
        assert "examples:" in text


def test_FL06_version_needs_no_other_flag(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = serve(capsys, "--version")
    first, second = text.splitlines()
    assert code == 0
    assert first.startswith("TensorFlow ModelServer: ")
    assert second.startswith("TensorFlow Library: ")


def test_FL04_FL08_FL18_FL20_FL21_starts_that_fail(
        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, words in ((["--port=abc"], "--port"), ([], "model_base_path"),
                             (["--model_base_path=/m", "--port=0"], "port"),
                             (["--model_base_path=m"], "absolute path"),
                             ([f"--model_config_file={tmp_path}/none"], "none"),
                             (["--model_base_path=/m", "--rest_api_port=abc"], "--rest_api_port"),
                             (["--model_base_path=/m", "--log_format=yaml"], "--log_format")):
        code, text = serve(capsys, *arguments)
        last = text.splitlines()[-1]
        assert code == 255
        assert last.startswith("Failed to start server. Error: ")
        assert words in last


def test_the_settings_of_the_real_server_are_written(
        capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "saved" / "m" / "1").mkdir(parents=True)
    code, text = serve(capsys, f"--saved_models={tmp_path}/saved", "--model-root=/models",
                       f"--write_tf_serving_config={tmp_path}/out")
    assert (code, text) == (0, f"wrote {tmp_path}/out/models.config\n"
                               f"wrote {tmp_path}/out/monitoring.config\n")
    assert "/models/m" in (tmp_path / "out" / "models.config").read_text(encoding="utf-8")


def test_the_settings_in_serving_are_those_of_the_quickstarts_models() -> None:
    root = Path(__file__).resolve().parent.parent.parent / "serving" / "tf_serving"
    models = [ModelConfig(name=name, base_path=f"/somewhere/{name}")
              for name in (quickstart.INTENTS, quickstart.WRITER)]
    assert (root / tf_serving.MODELS_FILE).read_text(encoding="utf-8") == (
        tf_serving.models_text(models, model_root="/models"))
    grid = ShapeGrid(rows=quickstart.ROWS, tokens=quickstart.TOKENS)
    assert (root / tf_serving.BATCHING_FILE).read_text(encoding="utf-8") == (
        tf_serving.batching_text([grid, grid]))
    assert (root / tf_serving.MONITORING_FILE).read_text(encoding="utf-8") == (
        tf_serving.monitoring_text())
    assert sorted(path.name for path in root.iterdir()) == [
        tf_serving.BATCHING_FILE, tf_serving.MODELS_FILE, tf_serving.MONITORING_FILE]


def test_the_settings_in_serving_are_valid() -> None:
    root = Path(__file__).resolve().parent.parent.parent / "serving" / "tf_serving"
    assert [model.base_path for model in read_config_file(root / tf_serving.MODELS_FILE)] == [
        "/models/support_intents", "/models/support_replies"]
    batching = read_parameters(root / tf_serving.BATCHING_FILE)
    assert (batching.max_batch_size, batching.allowed_batch_sizes) == (32, (1, 8, 32))
    assert read_monitoring_file(root / tf_serving.MONITORING_FILE).enabled


@contextmanager
def process(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the command, wait for its summary, give the process and what it printed so far."""
    (tmp_path / "m" / "1").mkdir(parents=True, exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-c", ECHO, "--port=0", f"--grpc_socket_path={tmp_path}/s",
         "--model_name=m", f"--model_base_path={tmp_path}/m", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(120, child.kill)
    watchdog.start()
    try:
        assert child.stdout is not None
        lines = []
        for line in child.stdout:
            lines.append(line)
            if "m version 1" in line:
                break
        yield child, "".join(lines)
    finally:
        watchdog.cancel()
        child.kill()
        child.communicate()


def ask(channel: grpc.Channel, rows: int) -> grpc.Future:
    request = serving_pb2.PredictRequest()
    request.model_spec.name = "m"
    tensors.write(tensors.as_array(["a secret"] * rows), request.inputs["text"])
    return channel.unary_unary(methods.PREDICT.path).future(
        request.SerializeToString(), timeout=60, wait_for_ready=True)


def failed_start(*arguments: str) -> str:
    """Return what a start that fails prints last; it must end with 255."""
    done = subprocess.run([sys.executable, "-c", ECHO, *arguments], capture_output=True, text=True,
                          timeout=120)
    assert done.returncode == 255, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.process
def test_FL13_FL21_FL25_FL30_a_start_that_fails_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    model = ["--model_name=m", f"--model_base_path={tmp_path}/m"]
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert failed_start(*model, f"--port={port}").startswith(
            f"Failed to start server. Error: UNAVAILABLE: 0.0.0.0:{port} cannot be opened")
    config = tmp_path / "bad.config"
    config.write_text("model_config_list {", encoding="utf-8")
    assert failed_start(f"--model_config_file={config}").startswith(
        f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{config}'")
    (tmp_path / "m" / "2").write_text("no folder", encoding="utf-8")
    assert "did not become available" in failed_start(
        *model, "--port=0", f"--grpc_socket_path={tmp_path}/s", "--max_num_load_retries=0")


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_LI07_LI08_a_signal_drains_and_ends(tmp_path: Path, number: int) -> None:
    with process(tmp_path, "--nonsense=1", "--verbose") as (child, printed):
        assert "unknown argument: --nonsense=1" in printed          # FL03
        assert f"answers gRPC at unix:{tmp_path}/s" in printed
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            ask(channel, rows=1).result()
            slow = ask(channel, rows=2)
            time.sleep(0.3)
            child.send_signal(number)
            assert slow.code() is grpc.StatusCode.OK
        out, log = child.communicate(timeout=60)
        assert child.returncode == 0
        assert "state=AVAILABLE" in log
        assert "method=Predict code=OK" in log
        assert "secret" not in out + log


@pytest.mark.process
def test_logs_as_json_are_one_object_a_line(tmp_path: Path) -> None:
    with process(tmp_path, "--log_format=json", "--verbose") as (child, _):
        with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
            ask(channel, rows=1).result()
        child.terminate()
        _, log = child.communicate(timeout=60)
    events = [json.loads(line) for line in log.splitlines()]
    assert [line["state"] for line in events if line["event"] == "state"][:2] == [
        "LOADING", "AVAILABLE"]
    (request,) = [line for line in events if line["event"] == "request"]
    assert (request["method"], request["code"], request["rows"]) == ("Predict", "OK", 1)
    assert events[-1]["event"] in ("stopped", "state")
    assert "secret" not in log


@pytest.mark.process
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_full_disk_for_logs_and_output_stops_nobody(tmp_path: Path, form: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    with open("/dev/full", "wb") as full:
        child = subprocess.Popen(
            [sys.executable, "-c", ECHO, "--port=0", f"--grpc_socket_path={tmp_path}/s",
             "--nonsense=1", f"--log_format={form}", "--verbose", "--model_name=m",
             f"--model_base_path={tmp_path}/m"], stdout=full, stderr=full)
        try:
            with grpc.insecure_channel(f"unix:{tmp_path}/s") as channel:
                for _ in range(200):
                    ask(channel, rows=1).result()
            child.terminate()
            assert child.wait(timeout=60) == 0
        finally:
            child.kill()
            child.wait()


@pytest.mark.process
def test_what_cannot_be_written_at_the_end_does_not_hold_up_the_end() -> None:
    code = ("import sys\nfrom tf_infer.server import app\nsys.stdout.write('buffered')\n"
            "app._end(0)")
    with open("/dev/full", "wb") as full:
        assert subprocess.run([sys.executable, "-c", code], stdout=full, timeout=60, check=False,
                              env={**os.environ, "PYTHONUNBUFFERED": ""}).returncode == 0


@pytest.mark.process
def test_a_drain_is_bounded(tmp_path: Path) -> None:
    with (process(tmp_path, "--drain_seconds=0.2") as (child, _),
          grpc.insecure_channel(f"unix:{tmp_path}/s") as channel):
        slow = ask(channel, rows=3600)
        time.sleep(0.3)
        child.terminate()
        assert child.wait(timeout=60) == 0
        assert slow.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.process
def test_killing_the_server_in_mid_call_is_UNAVAILABLE(tmp_path: Path) -> None:
    with (process(tmp_path) as (child, _),
          grpc.insecure_channel(f"unix:{tmp_path}/s") as channel):
        slow = ask(channel, rows=3600)
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGKILL)
        assert slow.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.process
def test_a_signal_ends_a_server_that_still_waits_for_its_models(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ECHO, "--port=0", "--model_base_path=/none",
                              f"--grpc_socket_path={tmp_path}/s"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        assert "poll model=default" in child.stderr.readline()      # FL28
        child.terminate()
        child.communicate(timeout=60)
        assert child.returncode == 0
    finally:
        child.kill()
