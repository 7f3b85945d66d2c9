"""A stand-in for tensorflow_model_server: its flags, its gRPC API, its way to end; echoing models.

Run as a program; `write(path)` makes one. Like the real one it has no handler for signals, says
"unknown argument" of what it does not know (and, unlike it, ends then), and prints its release.
The environment tells it what to do otherwise:

    STAND_IN_RELEASE   what --version says
    STAND_IN_RECORD    file for its arguments, as JSON
    STAND_IN_MODE      "die": write some lines and end with 7; "hang": never open a port;
                       "end": end with 7 as soon as it has served one Predict
A version directory that holds a file `wrong` answers wrongly.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RELEASE = os.environ.get("STAND_IN_RELEASE", "2.20.0")


def write(path: Path) -> Path:
    """Make a program of this file."""
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                    "from tests.fakes import model_server\nmodel_server.main(sys.argv[1:])\n")
    path.chmod(0o755)
    return path


ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str]) -> None:
    """Do as the arguments say; never returns."""
    if "--version" in arguments:
        print(f"TensorFlow ModelServer: {RELEASE}-rc0+dev.sha.no_git\nTensorFlow Library: 2.x")
        sys.exit(0)
    if "STAND_IN_RECORD" in os.environ:
        Path(os.environ["STAND_IN_RECORD"]).write_text(json.dumps(list(arguments)))
    mode = os.environ.get("STAND_IN_MODE", "")
    if mode == "die":
        print("one line\nFailed to start server. Error: UNKNOWN: the reason", flush=True)
        sys.exit(7)
    if mode == "hang":
        print("hanging", flush=True)
        time.sleep(600)
    values = _read(arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own wakes no pause from other threads
    with _server(values, mode) as server:
        print(f"Running gRPC ModelServer at {server.addresses}", file=sys.stderr, flush=True)
        signal.pause()


def _read(arguments: Sequence[str]) -> Mapping[str, Any]:
    from tf_infer.server import flags

    parsed = flags.parse(arguments)
    theirs = flags.for_tensorflow_serving(arguments)
    strange = [*parsed.unknown, *(set(arguments) - set(theirs))]
    if strange:
        print(f"unknown argument: {strange[0]}", flush=True)
        sys.exit(255)
    return parsed.values


def _server(values: Mapping[str, Any], mode: str) -> Any:
    from tf_infer.server import app, fakes, flags
    from tf_infer.server.config import ServerConfig
    from tf_infer.server.contracts import LoadTimes

    class Servable(fakes.EchoServable):
        def __init__(self, wrong: bool) -> None:
            super().__init__()
            self._wrong = wrong

        def run(self, signature: str, inputs: Any, *, outputs: Any, timeout_s: Any) -> Any:
            if mode == "end":
                threading.Timer(0.5, os._exit, [7]).start()
            found = super().run(signature, inputs, outputs=outputs, timeout_s=timeout_s)
            return {name: array[::-1] for name, array in found.items()} if self._wrong else found

    return app.Server(
        ServerConfig(models=flags.models_of(values), port=values["port"], host="localhost",
                     socket_path=values["grpc_socket_path"], poll_s=0,
                     ssl_config_file=values["ssl_config_file"]),
        load=lambda path: (Servable((path / "wrong").exists()), LoadTimes()))
