"""`tf-infer serve --backend=tensorflow_model_server`, with a stand-in for the real server.

The last test starts the real one, where it is on PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from tests.fakes import model_server
from tf_infer import config
from tf_infer.cli import main as cli
from tf_infer.cli import model_server as cli_model_server
from tf_infer.client.client import Client
from tf_infer.config import ClassifierConfig, ShapeGrid
from tf_infer.manifest import (
    EXTRA_FOLDER,
    GOLDEN_FILE,
    MANIFEST_FILE,
    ModelManifest,
    Sample,
    write_samples,
)
from tf_infer.server import flags, launcher
from tf_infer.server.fakes import signature
from tf_infer.wire import serving_pb2 as pb

TLS = Path(__file__).resolve().parents[1] / "golden" / "tls"
TEXTS = np.array([b"a", b"a secret"], object)
START_FAILED = 255


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    return model_server.write(tmp_path / launcher.BINARY)


def version(base: Path, name: str, number: int = 1, *, op: str = "Placeholder",
            manifest: str = "") -> Path:
    """A model that gives its `text` back, with golden samples that say so."""
    texts = {"text": (pb.DT_STRING, (-1,))}
    graph = pb.MetaGraphDef(signature_def={"serving_default": signature(texts, texts)})
    graph.meta_info_def.tags.append("serve")
    graph.graph_def.node.add(name="text", op=op).attr["dtype"].type = pb.DT_STRING
    path = base / name / str(number)
    (path / EXTRA_FOLDER).mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(pb.SavedModel(meta_graphs=[graph]).SerializeToString())
    write_samples([Sample("serving_default", {"text": TEXTS}, {"text": TEXTS})],
                  path / EXTRA_FOLDER / GOLDEN_FILE)
    if manifest:
        config.dump(ModelManifest(
            name=name, version=number, task=ClassifierConfig(classes=("a", "b")), signatures=(),
            grid=ShapeGrid(rows=(1, 8)), compiled=manifest), path / EXTRA_FOLDER / MANIFEST_FILE)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    version(tmp_path / "models", "m", manifest="xla")
    version(tmp_path / "models", "n", 3)
    return tmp_path / "models"


class Launched:
    """The command in a process, and what it printed so far.

    Attributes:
        process: of the launcher.
        record: what the stand-in was told.
    """

    def __init__(self, record: Path, arguments: list[str], environment: dict[str, str]) -> None:
        self._record = record
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tf_infer", "serve", f"--backend={launcher.BINARY}", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "STAND_IN_RECORD": str(record), **environment})

    def read_until(self, words: str) -> str:
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if words in line:
                break
        return "".join(lines)

    def told(self) -> list[str]:
        found: list[str] = json.loads(self._record.read_text())
        return found


@contextmanager
def launched(tmp_path: Path, *arguments: str, **environment: str) -> Iterator[Launched]:
    one = Launched(tmp_path / "told.json", [
        f"--server_binary={tmp_path}/{launcher.BINARY}", "--port=0", *arguments], environment)
    watchdog = threading.Timer(120, one.process.kill)
    watchdog.start()
    try:
        yield one
    finally:
        watchdog.cancel()
        one.process.terminate()
        one.process.communicate()


def processes(words: str) -> list[str]:
    """Return the command lines of this machine's processes that hold `words`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:
            continue  # ended meanwhile
    return [line for line in found if words in line]


@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_starts_proves_and_passes_a_signal_on(
        tmp_path: Path, binary: Path, models: Path, number: int, code: int) -> None:
    with launched(tmp_path, f"--saved_models={models}", "--enable_batching", "--rest_api_port=8501",
                  "--enable_profiler=false", f"--server_config_dir={tmp_path}/files") as one:
        printed = one.read_until("  n version 3")
        assert f"{launcher.BINARY} 2.20.0 answers gRPC" in printed
        assert "  m version 1: available, 1 golden samples equal in " in printed
        told = one.told()
        assert told[:4] == ["--port=0", "--enable_batching", "--rest_api_port=8501",
                            "--enable_profiler=false"]
        assert told[4:8] == [
            f"--model_config_file={tmp_path}/files/models.config",
            f"--batching_parameters_file={tmp_path}/files/batching.config",
            f"--monitoring_config_file={tmp_path}/files/monitoring.config",
            "--xla_cpu_compilation_enabled=true"]
        socket = told[8].partition("=")[2]
        with Client(f"unix:{socket}") as client:
            assert client.predict("m", {"text": ["hello"]})["text"].tolist() == [b"hello"]
        assert "secret" not in printed
        one.process.send_signal(number)
        _, log = one.process.communicate(timeout=60)
        assert one.process.returncode == code
        assert "Running gRPC ModelServer" in log
    batching = text_format.Parse((tmp_path / "files" / "batching.config").read_text(),
                                 pb.BatchingParameters())
    assert list(batching.allowed_batch_sizes) == [1, 8]
    assert not processes(str(binary))
    assert not Path(socket).parent.exists()


@pytest.mark.process
def test_another_answer_than_the_golden_one_ends_the_server(
        tmp_path: Path, binary: Path, models: Path) -> None:
    (models / "n" / "3" / "wrong").touch()
    with launched(tmp_path, f"--saved_models={models}") as one:
        printed, _ = one.process.communicate(timeout=60)
        assert one.process.returncode == START_FAILED
        assert ("Failed to start server. Error: FAILED_PRECONDITION: golden sample 0, signature "
                "'serving_default', output 'text': 2 of 2 values differ") in printed
        assert "secret" not in printed
        assert "answers gRPC" not in printed
    assert not processes(str(binary))
    with launched(tmp_path, f"--saved_models={models}", "--enable_golden_replay=false") as one:
        assert "n version 3: available, no golden" in one.read_until("  n version 3")


@pytest.mark.process
def test_a_server_that_dies_at_its_start_is_reported(
        tmp_path: Path, binary: Path, models: Path) -> None:
    with launched(tmp_path, f"--saved_models={models}", STAND_IN_MODE="die") as one:
        printed, _ = one.process.communicate(timeout=60)
    assert one.process.returncode == START_FAILED
    assert "UNAVAILABLE: tensorflow_model_server ended with code 7 before it was ready" in printed
    assert printed.endswith("one line\nFailed to start server. Error: UNKNOWN: the reason\n")


@pytest.mark.process
def test_a_server_that_never_gets_ready_is_ended(
        tmp_path: Path, binary: Path, models: Path) -> None:
    with launched(tmp_path, f"--saved_models={models}", "--ready_seconds=1",
                  STAND_IN_MODE="hang") as one:
        printed, _ = one.process.communicate(timeout=60)
    assert one.process.returncode == START_FAILED
    assert "DEADLINE_EXCEEDED: --ready_seconds is over. m: expected to be AVAILABLE" in printed
    assert not processes(str(binary))


@pytest.mark.process
def test_a_signal_while_it_starts_ends_both(tmp_path: Path, binary: Path, models: Path) -> None:
    with launched(tmp_path, f"--saved_models={models}", STAND_IN_MODE="hang") as one:
        one.read_until("hanging")
        one.process.terminate()
        printed, _ = one.process.communicate(timeout=60)
    assert one.process.returncode == 143
    assert "Failed" not in printed
    assert not processes(str(binary))


def test_a_signal_that_comes_while_the_process_is_made_reaches_it(
        tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []

    class Slow:
        def __init__(self, command: object) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)

        def send(self, number: int) -> None:
            sent.append(number)

        def wait(self) -> int:
            return 138

        def stop(self) -> None:
            sent.append(0)

    missed: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: missed.append(number))
    try:
        monkeypatch.setattr(cli_model_server, "SIGNALS", (signal.SIGUSR1,))
        monkeypatch.setattr(launcher, "Child", Slow)
        values = flags.parse([f"--saved_models={models}", "--ready_seconds=0"]).values
        monkeypatch.setattr(launcher, "find", lambda named: launcher.Binary("/x", "2.20.0"))
        assert cli_model_server.run(values, []) == 138
        assert (sent, missed) == ([signal.SIGUSR1, 0], [])
        os.kill(os.getpid(), signal.SIGUSR1)
        assert missed == [signal.SIGUSR1]  # the handler from before is back
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.process
def test_the_code_of_a_server_that_ends_is_ours(tmp_path: Path, binary: Path, models: Path) -> None:
    with launched(tmp_path, f"--model_base_path={models}/n", "--model_name=n",
                  STAND_IN_MODE="end") as one:
        one.read_until("  n version 3: available, 1 golden")
        assert one.process.wait(60) == 7
        assert f"--model_base_path={models}/n" in one.told()


@pytest.mark.process
def test_a_server_of_an_unknown_release_starts_with_a_word_about_it(
        tmp_path: Path, binary: Path, models: Path) -> None:
    with launched(tmp_path, f"--saved_models={models}", "--ready_seconds=0",
                  STAND_IN_RELEASE="99.0.0") as one:
        printed = one.read_until("answers gRPC")
        assert "no list of operations of tensorflow_model_server 99.0.0" in printed


@pytest.mark.process
def test_TL05_it_is_asked_over_mutual_TLS(tmp_path: Path, binary: Path, models: Path) -> None:
    pem = {name: (TLS / f"{name}.pem").read_text() for name in ("ca", "server")}
    (tmp_path / "ssl.config").write_text(text_format.MessageToString(pb.SSLConfig(
        server_key=(TLS / "server.key").read_text(), server_cert=pem["server"],
        custom_ca=pem["ca"], client_verify=True)))
    ssl = f"--ssl_config_file={tmp_path}/ssl.config"
    with launched(tmp_path, f"--saved_models={models}", ssl, "--tls_server_name=localhost") as one:
        assert "1 golden samples equal" in one.read_until("  n version 3")
        assert ssl in one.told()


# ---------------------------------------------------------------------------- refused


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["serve", *arguments]) == START_FAILED
    return capsys.readouterr().out.splitlines()[-1]


def test_a_missing_program_is_told_with_the_fix(
        tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refused(capsys, f"--backend={launcher.BINARY}", f"--saved_models={models}")
    assert "expected the program tensorflow_model_server, got none" in said
    assert "--server_binary=PATH" in said


def test_what_cannot_be_is_refused_before_anything_starts(
        tmp_path: Path, binary: Path, models: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    real = [f"--backend={launcher.BINARY}", f"--server_binary={binary}"]
    both = [*real, f"--saved_models={models}"]
    monkeypatch.setenv("STAND_IN_RECORD", str(tmp_path / "told.json"))
    for arguments, words in (
            (["--backend=triton"], "expected embedded or tensorflow_model_server, got 'triton'"),
            (["--ready_seconds=1", "--model_base_path=/m"], "only beside --backend="),
            (real, "model_base_path"),
            ([*real, "--model_base_path=m"], "absolute path"),
            ([*both, "--drain_seconds=1"], "--drain_seconds: tensorflow_model_server has no such"),
            ([*both, "--xla_cpu_compilation_enabled=false"], "compiled by XLA"),
            ([*both, f"--ssl_config_file={TLS}/ca.pem"], "--tls_server_name: expected a name"),
            ([*both, "--use_alts_credentials"], "--ready_seconds=0")):
        assert words in refused(capsys, *arguments)
    version(models, "bad", op="MyOwnOp")
    said = refused(capsys, *both)
    assert "bad version 1, load: operation MyOwnOp is not linked" in said
    assert not (tmp_path / "told.json").exists()


# ---------------------------------------------------------------------------- the real one


def exported(base: Path, *, compiled: bool) -> Path:
    """A SavedModel of TensorFlow with golden samples."""
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.function = tf.function(
        lambda x: {"y": 2 * x + 1}, jit_compile=compiled,
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    path = base / "m" / "1"
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.function})
    (path / EXTRA_FOLDER).mkdir()
    given = np.array([1.0, -2.5], np.float32)
    write_samples([Sample("serving_default", {"x": given}, {"y": 2 * given + 1})],
                  path / EXTRA_FOLDER / GOLDEN_FILE)
    return base


@pytest.mark.skipif(shutil.which(launcher.BINARY) is None, reason=f"no {launcher.BINARY} on PATH")
@pytest.mark.parametrize("compiled", [False, True])
def test_the_real_server_starts_answers_and_ends(tmp_path: Path, compiled: bool) -> None:
    base = exported(tmp_path / "models", compiled=compiled)
    (tmp_path / launcher.BINARY).symlink_to(str(shutil.which(launcher.BINARY)))
    with launched(tmp_path, f"--saved_models={base}", "--enable_batching") as one:
        assert "1 golden samples equal" in one.read_until("  m version 1")
        one.process.terminate()
        assert one.process.wait(60) == 143
