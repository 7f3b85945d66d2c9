"""The servers of benchmarks/server.py: how each is started with its best settings, and frozen.

Every peer has a virtual environment of its own in one folder (`--peers`), named as below:

    for name in fastapi litserve mlserver bentoml ray; do python3.11 -m venv peers/$name; done
    peers/fastapi/bin/pip install tensorflow tensorflow-text fastapi 'uvicorn[standard]'
    peers/litserve/bin/pip install tensorflow tensorflow-text litserve
    peers/mlserver/bin/pip install tensorflow tensorflow-text mlserver
    peers/bentoml/bin/pip install tensorflow tensorflow-text bentoml
    peers/ray/bin/pip install tensorflow tensorflow-text 'ray[serve]'

A server that is not being measured is stopped by SIGSTOP, so that it takes no processor time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.load import Load

HERE = Path(__file__).resolve().parent
READY_S = 180.0
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
NO_WARMUP = ("--enable_model_warmup=false", "--enable_golden_replay=false")


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One server to be measured.

    Attributes:
        name: in the results.
        command, environment: that start it; `{port}` and `{folder}` are filled in.
        files: written into its folder first.
        protocol, path, form: of its requests; see `load.Load`.
        peer: whether it is somebody else's.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    protocol: str = "http"
    path: str = "/predict"
    form: str = "text"
    peer: bool = True


def ours(model: Path, *flags: str, name: str, rest: bool = False, warm: bool = False,
         files: Mapping[str, str] | None = None) -> Contestant:
    """Return our server for one model, asked over gRPC or REST, with warm-up only if `warm`."""
    ports = ("--port={port}", "--rest_api_port={second}") if rest else ("--port={port}",)
    return Contestant(
        name=name, peer=False, protocol="http" if rest else "grpc",
        path=f"/v1/models/{model.name}:predict", form="instances", files=files or {},
        command=(sys.executable, "-m", "tf_infer", "serve", *ports, f"--model_name={model.name}",
                 f"--model_base_path={model}", *(() if warm else NO_WARMUP), *flags))


BATCHING = """max_batch_size {{ value: 32 }} batch_timeout_micros {{ value: {wait_us} }}
max_enqueued_batches {{ value: 1000 }} num_batch_threads {{ value: {threads} }}
"""


def in_arrival_order(model: Path, *flags: str, wait_us: int = 2000, threads: int = 2) -> Contestant:
    """Return our server with TensorFlow Serving's batching: whoever comes next, padded together."""
    return ours(model, *flags, "--enable_batching",
                "--batching_parameters_file={folder}/batching.txt",
                name="tf_infer gRPC --enable_batching",
                files={"batching.txt": BATCHING.format(wait_us=wait_us, threads=threads)})


class Setting(NamedTuple):
    """How a peer is run.

    Attributes:
        wait_ms: how long a batch stays open; of BentoML the latency that its own rule aims at.
        workers: batches, or processes, at once.
        threads: of TensorFlow inside one operation; 0 for its own choice.
    """

    wait_ms: float
    workers: int = 1
    threads: int = 0


# What `python -m benchmarks.server --tune` tries; the one that did best comes first.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    "fastapi": tuple(Setting(wait, *more) for more in ((2, 1), (1, 0), (1, 1), (2, 0))
                     for wait in (2.0, 0.0, 5.0)),
    "litserve": tuple(Setting(wait, *more) for more in ((2, 1), (1, 0), (1, 1))
                      for wait in (5.0, 0.0, 2.0, 10.0)),
    "mlserver": tuple(Setting(wait, 1, threads) for threads in (0, 1)
                      for wait in (5.0, 1.0, 2.0, 10.0)),
    "bentoml": tuple(Setting(wait, *more) for more in ((1, 0), (1, 1), (2, 1))
                     for wait in (60000.0, 1000.0, 200.0)),
    "ray": tuple(Setting(wait, *more) for more in ((1, 0), (1, 1), (2, 1))
                 for wait in (5.0, 0.0, 10.0))}


def peer(name: str, model: Path, venvs: Path, setting: Setting) -> Contestant:
    """Return a peer with its settings."""
    where = (venvs / name / "bin").resolve()
    environment = {"MODEL": str(model / "1"), "PORT": "{port}", "WAIT_MS": str(setting.wait_ms),
                   "WORKERS": str(setting.workers), "THREADS": str(setting.threads),
                   "PYTHONPATH": str(HERE / "peers"),
                   "PATH": f"{where}:{os.environ['PATH']}"}
    python = str(where / "python")
    if name == "mlserver":
        return Contestant(
            name=name, command=(str(where / "mlserver"), "start", "{folder}"),
            environment=environment, form="v2", path="/v2/models/classifier/infer",
            files=_mlserver_files(setting.wait_ms))
    if name == "bentoml":
        return Contestant(
            name=name, form="texts", environment=environment | {"BENTOML_HOME": "{folder}"},
            command=(str(where / "bentoml"), "serve", "bentoml_service:Classifier", "--port",
                     "{port}", "--working-dir", str(HERE / "peers")))
    script = str(HERE / "peers" / f"{name}_server.py")
    return Contestant(name=name, command=(python, script),
                      environment=environment | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"})


def bare(model: Path, form: str, threads: int) -> Contestant:
    """Return grpcio without a server of ours or a model: what a call costs in the stack itself.

    Args:
        model: what the requests name.
        form: "parsed" parses each request and writes each answer, "bytes" does neither.
        threads: that answer; 0 for asyncio.
    """
    return Contestant(
        name=f"grpcio {f'{threads} threads' if threads else 'aio'}, {form}", protocol="grpc",
        path=f"/v1/models/{model.name}:predict",
        command=(sys.executable, str(HERE / "peers" / "grpc_server.py")),
        environment={"PORT": "{port}", "FORM": form, "WORKERS": str(threads)})


def _mlserver_files(wait_ms: float) -> dict[str, str]:
    return {
        "settings.json": json.dumps({
            "http_port": "{port}", "grpc_port": "{second}", "metrics_port": "{third}",
            "parallel_workers": 0, "debug": False, "access_log": False}),
        "model-settings.json": json.dumps({
            "name": "classifier", "implementation": "mlserver_model.Classifier",
            "max_batch_size": 32, "max_batch_time": wait_ms / 1000})}


# ---------------------------------------------------------------------------- running


class Running:
    """A contestant's process, and all that it started.

    Args:
        contestant: what to start.
        probe: a request to ask until it is answered.
    """

    def __init__(self, contestant: Contestant, probe: Any) -> None:
        self.contestant = contestant
        self._scratch = tempfile.TemporaryDirectory(prefix="tf-infer-bench-")
        ports = dict(zip(("port", "second", "third"), map(str, free_ports(3))))
        words = ports | {"folder": self._scratch.name}
        for name, text in contestant.files.items():
            (Path(self._scratch.name) / name).write_text(_filled(text, words), encoding="utf-8")
        self.log = Path(self._scratch.name) / "log.txt"
        started = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [_filled(word, words) for word in contestant.command], start_new_session=True,
                stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parent,
                env=os.environ | QUIET | {
                    key: _filled(value, words) for key, value in contestant.environment.items()})
        rest = contestant.protocol == "http" and not contestant.peer
        self.address = f"localhost:{ports['second' if rest else 'port']}"
        self._wait(probe)
        self.start_s = time.perf_counter() - started

    def load(self, requests: Sequence[Any], **values: Any) -> Load:
        """Return a load for this server."""
        one = self.contestant
        target = (f"http://{self.address}{one.path}" if one.protocol == "http"
                  else self.address)
        return Load(protocol=one.protocol, target=target, form=one.form, requests=requests,
                    model=one.path.removeprefix("/v1/models/").removesuffix(":predict"), **values)

    def ask(self, request: Any, timeout_s: float = 30.0) -> str:
        """Return the answer to one request as text."""
        from benchmarks.load import ask

        return ask(self.load([request], deadline_s=timeout_s))

    def _wait(self, probe: Any) -> None:
        end = time.monotonic() + READY_S
        while True:
            if self.process.poll() is not None or time.monotonic() > end:
                told = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"{self.contestant.name} did not start:\n{told}")
            try:
                self.ask(probe, timeout_s=10.0)
                return
            except Exception:
                time.sleep(0.1)

    def pids(self) -> list[int]:
        """Return the process and its descendants."""
        parents = {pid: parent for pid, parent, _ in _processes()}
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu_s(self) -> float:
        """Return the processor time of all of them so far."""
        wanted = set(self.pids())
        return sum(spent for pid, _, spent in _processes() if pid in wanted)

    def resident_mb(self) -> float:
        """Return the memory of all of them, what they share counted once."""
        total = 0
        for pid in self.pids():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return round(total / 1024, 1)

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop all processes, or let them go on."""
        for pid in self.pids():
            _signal(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """End all processes."""
        pids = self.pids()
        self.freeze(frozen=False)
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        for pid in pids:
            _signal(pid, signal.SIGKILL)
        self.process.wait()
        self._scratch.cleanup()


def _filled(text: str, words: Mapping[str, str]) -> str:
    for key, value in words.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes() -> list[tuple[int, int, float]]:
    """Return (pid, parent, processor seconds) of every process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks = int(words[11]) + int(words[12])
            found.append((int(folder.name), int(words[1]), ticks / os.sysconf("SC_CLK_TCK")))
    return found


def free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody has."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
