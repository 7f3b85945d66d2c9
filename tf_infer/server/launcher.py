"""What the real tensorflow_model_server is told, and its process: found, started, watched, ended

Who asks it whether it is ready, and plays the golden samples to it, stands in
`cli/model_server.py`: a server knows no client.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tf_infer.config import ShapeGrid
from tf_infer.errors import (
    BackendMissing,
    Code,
    ConfigError,
    InvalidRequest,
    NotOffered,
    ServerUnavailable,
)
from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, read_manifest
from tf_infer.server import decide, flags, op_lists, preflight, tf_serving
from tf_infer.server.config import ModelConfig
from tf_infer.server.findings import Verdict
from tf_infer.server.preflight_graph import XLA_FLAG

BINARY = "tensorflow_model_server"
# flags of ours that mean something to it; any other one is refused
UNDERSTOOD = flags.OF_LAUNCHER | {"backend", "saved_models", "enable_golden_replay",
                                  "write_tf_serving_config", "model_root", "verbose"}
KEPT_LINES = 20
STOP_S = 10.0
WAKE_S = 0.5
VERSION_S = 60.0


class Binary(NamedTuple):
    """A server program.

    Attributes:
        path: of the program.
        release: such as "2.20.0"; empty when it does not say.
    """

    path: str
    release: str


def find(named: str) -> Binary:
    """Return the program `named`, or the one on PATH, with its release.

    Raises:
        BackendMissing: there is none, or it cannot be run.
    """
    path = shutil.which(named or BINARY)
    if path is None:
        raise BackendMissing(
            f"--backend={BINARY}: expected the program {named or BINARY}, got none. Install it "
            "(Debian package tensorflow-model-server, or out of the Docker image "
            "tensorflow/serving), name it by --server_binary=PATH, or leave --backend out: the "
            "embedded server serves the same directories.")
    try:
        said = subprocess.run([path, "--version"], stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=VERSION_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendMissing(f"{path} --version: cannot be run ({type(error).__name__}). Is it a "
                             f"{BINARY} for this machine?") from error
    found = re.search(rb"ModelServer: (\d+\.\d+\.\d+)", said)
    return Binary(path, found[1].decode("ascii") if found else "")


def check_flags(values: Mapping[str, Any]) -> None:
    """Raise NotOffered for what only the embedded server can do."""
    asked = [f"--{flag.name}" for flag in flags.FLAGS if flag.status == "ours"
             and flag.name not in UNDERSTOOD and values[flag.name] != flag.default]
    if asked:
        raise NotOffered(f"{', '.join(asked)}: {BINARY} has no such thing. Leave it out, or leave "
                         "--backend out: the embedded server has it.")


# ---------------------------------------------------------------------------- before the start


class Version(NamedTuple):
    """A version that the server is going to load."""

    model: str
    number: int
    path: Path


def versions(models: Sequence[ModelConfig]) -> Iterator[Version]:
    """Yield the versions on this machine's disks that the models' policies ask for."""
    for model in models:
        try:
            there = decide.versions_in(os.listdir(model.base_path))
        except OSError:
            continue  # the server waits for it (FL28); a URI is for the server to read
        for number in decide.aspired(model.policy, there):
            yield Version(model.name, number, Path(model.base_path) / there[number])


class Examined(NamedTuple):
    """What is known of the versions before the server is started.

    Attributes:
        compiled: whether one of them needs XLA.
        problems: why it would not run them, one text each.
        known_release: False when there is no list of operations to hold them against.
    """

    compiled: bool
    problems: tuple[str, ...]
    known_release: bool


def examine(found: Sequence[Version], values: Mapping[str, Any], release: str) -> Examined:
    """Look at every version as `tf-infer preflight` does."""
    try:
        known = op_lists.release(release)
    except ConfigError:
        return Examined(any(_needs_xla(one) for one in found), (), known_release=False)
    settings = preflight.Settings(
        tags=frozenset(tag for tag in values["saved_model_tags"].split(",") if tag),
        batching=values["enable_batching"], warmup=values["enable_model_warmup"])
    compiled, problems = False, []
    for one in found:
        where = f"{one.model} version {one.number}"
        try:
            verdict = preflight.examine(one.path, known, settings)
        except ConfigError as error:
            problems.append(f"{where}: {error}")
            continue
        compiled = compiled or _needs_xla(one, verdict)
        problems += [f"{where}, {stop.where}: {stop.what}. {stop.fix}" for stop in verdict.stops]
        problems += [f"{where}: it needs {flag}" for flag in verdict.flags
                     if not flag.startswith(XLA_FLAG) and not _is_set(flag, values)]
    return Examined(compiled, tuple(problems), known_release=True)


def _needs_xla(one: Version, verdict: Verdict | None = None) -> bool:
    """Return whether XLA compiles a part of it, by its graph or its manifest."""
    try:
        verdict = verdict or preflight.examine(
            one.path, op_lists.release(list(op_lists.RELEASES)[-1]),
            preflight.Settings(warmup=False))
        has_manifest = (one.path / EXTRA_FOLDER / MANIFEST_FILE).is_file()
        return any(flag.startswith(XLA_FLAG) for flag in verdict.flags) or (
            has_manifest and read_manifest(one.path).compiled == "xla")
    except ConfigError:
        return False  # the server says what it makes of it


def _is_set(flag: str, values: Mapping[str, Any]) -> bool:
    return bool(values[flag.strip("-").partition("=")[0]])


def refuse(binary: Binary, problems: Sequence[str]) -> None:
    """Raise InvalidRequest, FAILED_PRECONDITION, when there are problems."""
    if problems:
        raise InvalidRequest(
            f"{BINARY} {binary.release} would not run what it is to load: {' '.join(problems)} "
            "`tf-infer preflight DIR` says it model by model; --enable_preflight=false starts it "
            "all the same.", code=Code.FAILED_PRECONDITION)


# ---------------------------------------------------------------------------- what it is told


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How the server is started.

    Attributes:
        command: the program and its arguments.
        files: name -> text of the files that the arguments name.
        address: where a client on this machine asks it.
    """

    command: tuple[str, ...]
    files: Mapping[str, str]
    address: str


def plan(words: Sequence[str], values: Mapping[str, Any], models: Sequence[ModelConfig], *,
         binary: Binary, folder: Path, socket: Path, grids: Sequence[ShapeGrid],
         compiled: bool) -> Launch:
    """Return what to start: TensorFlow Serving's own flags as they were given, and what they lack.

    Args:
        words: the command line.
        values: what it says.
        models: what it names.
        binary: the program.
        folder: absolute, where the files are going to lie.
        socket: UNIX socket to open beside the port; so it is this very process that is asked, in
            plain text or TLS, whatever else listens on the port.
        grids: of the models with a manifest.
        compiled: whether XLA is needed.

    Raises:
        InvalidRequest: XLA is needed and turned off.
    """
    theirs = flags.for_tensorflow_serving(words)
    given = {word.lstrip("-").partition("=")[0] for word in theirs}
    files: dict[str, str] = {}
    more: list[str] = []

    def file(flag: str, name: str, text: str) -> None:
        files[name] = text
        more.append(f"--{flag}={folder / name}")

    if not values["model_config_file"] and not values["model_base_path"]:
        file("model_config_file", tf_serving.MODELS_FILE,
             tf_serving.models_text(models, model_root=None))
    if (values["enable_batching"] and not values["batching_parameters_file"]
            and not values["enable_per_model_batching_parameters"] and grids):
        file("batching_parameters_file", tf_serving.BATCHING_FILE,
             tf_serving.batching_text(grids))
    if values["rest_api_port"] and not values["monitoring_config_file"]:
        file("monitoring_config_file", tf_serving.MONITORING_FILE, tf_serving.monitoring_text())
    if compiled and XLA_FLAG[2:] not in given:
        more.append(f"{XLA_FLAG}=true")
    elif compiled and not values[XLA_FLAG[2:]]:
        raise InvalidRequest(f"{XLA_FLAG}: expected true, because a version is compiled by XLA, "
                             "got false. Leave it out, or export the model with compiled none.")
    address = values["grpc_socket_path"]
    if not address:
        address = str(socket)
        more.append(f"--grpc_socket_path={address}")
    return Launch(command=(binary.path, *theirs, *more), files=files, address=f"unix:{address}")


# ---------------------------------------------------------------------------- the process


class Child:
    """The running server. What it writes is passed on, and the last lines are kept.

    Args:
        command: the program and its arguments.
        out, err: where its standard output and error go; None for ours.

    It stays in our process group, so that a signal to the group (Ctrl-C) reaches it as well.
    """

    def __init__(self, command: Sequence[str], *, out: BinaryIO | None = None,
                 err: BinaryIO | None = None) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._last: deque[str] = deque(maxlen=KEPT_LINES)
        self._pumps = [
            threading.Thread(target=self._pump, args=ends, daemon=True, name="tf-infer-child")
            for ends in ((self._process.stdout, out or sys.stdout.buffer),
                         (self._process.stderr, err or sys.stderr.buffer))]
        self._over = threading.Event()
        self._code = 0
        for thread in (*self._pumps, threading.Thread(target=self._reap, daemon=True)):
            thread.start()

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def _pump(self, source: BinaryIO, target: BinaryIO) -> None:
        with source:
            for line in source:
                self._last.append(line.decode("utf-8", "replace").rstrip())
                try:
                    target.write(line)
                    target.flush()
                except (OSError, ValueError):
                    pass  # nobody reads us any more; it must be able to go on writing

    def _reap(self) -> None:
        self._code = self._process.wait()
        for pump in self._pumps:
            pump.join(STOP_S)
        self._over.set()

    def send(self, number: int) -> None:
        """Pass a signal on."""
        self._process.send_signal(number)

    def check(self) -> None:
        """Raise ServerUnavailable, with its last lines, when it has ended."""
        if self._over.is_set():
            code = self.wait()
            last = "\n".join(self._last)
            raise ServerUnavailable(f"{BINARY} ended with code {code} before it was ready"
                                    + (f"; its last lines:\n{last}" if last else
                                       ", and without a word."))

    def wait(self) -> int:
        """Return its exit code when it has ended; 128 and the signal's number if one killed it.

        A signal to us is handled while we wait. It would not always be in a wait without an end:
        one that comes just before the system call, or to another thread, wakes nobody.
        """
        while not self._over.wait(WAKE_S):
            pass
        return self._code if self._code >= 0 else 128 - self._code

    def stop(self) -> None:
        """End it: politely, then at once."""
        if not self._over.is_set():
            self.send(signal.SIGTERM)
            if not self._over.wait(STOP_S):
                self.send(signal.SIGKILL)
        self.wait()
