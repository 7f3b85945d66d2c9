"""What the tests of REST share: models without TensorFlow, and a caller that speaks plain HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.server.serverkit import free_port, make_versions, running
from tf_infer.errors import Code, DeadlineExceeded, InvalidRequest
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig
from tf_infer.server.contracts import LoadTimes, Servable
from tf_infer.server.fakes import EchoServable, signature
from tf_infer.wire import serving_pb2 as pb

X, Y = {"x": (pb.DT_FLOAT, (-1,))}, {"y": (pb.DT_FLOAT, (-1,))}
EXAMPLES = {"inputs": (pb.DT_STRING, (-1,))}
SIGNATURES = {
    "serving_default": signature(X, Y),
    "text": signature({"text": (pb.DT_STRING, (-1,))}, {"text": (pb.DT_STRING, (-1,))}),
    "two": signature({"a": (pb.DT_STRING, (-1,)), "b": (pb.DT_FLOAT, (-1,))},
                     {"a": (pb.DT_STRING, (-1,)), "b": (pb.DT_FLOAT, (-1,))}),
    "half": signature({"x": (pb.DT_HALF, (-1,))}, Y), "no_inputs": signature({}, Y),
    "waits": signature(X, Y), "deaf": signature(X, Y), "fails": signature(X, Y),
    "breaks": signature(X, Y), "odd": signature(X, Y, "tensorflow/serving/odd"),
    "classify": signature(EXAMPLES, {"classes": (pb.DT_STRING, (-1, 2)),
                                     "scores": (pb.DT_FLOAT, (-1, 2))},
                          "tensorflow/serving/classify"),
    "regress": signature(EXAMPLES, {"outputs": (pb.DT_FLOAT, (-1,))},
                         "tensorflow/serving/regress"),
}


class Model(EchoServable):
    """x / 2 + 2, echoes, and what goes wrong.

    Attributes:
        release: lets "waits" and "deaf" go on.
        runs: names of the signatures that ran.
    """

    def __init__(self) -> None:
        super().__init__(SIGNATURES)
        self.release = threading.Event()
        self.started = threading.Semaphore(0)
        self.runs: list[str] = []

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        self.runs.append(signature)
        self.started.release()
        if signature == "waits" and not self.release.wait(timeout_s):
            raise DeadlineExceeded("Timed out waiting for notification")
        if signature == "deaf":
            self.release.wait(20)
        if signature == "fails":
            raise InvalidRequest("assertion failed: [x must be small]")
        if signature == "breaks":
            raise ValueError("secret")
        rows = len(next(iter(inputs.values()), ()))
        made = {**inputs, "classes": np.array([[b"no", b"yes"]] * rows, object),
                "scores": np.tile(np.array([0.25, 3.0], np.float32), (rows, 1)),
                "outputs": np.arange(rows, dtype=np.float32)}
        if "x" in inputs:
            made["y"] = np.asarray(inputs["x"] / 2 + 2)
        return {name: made[name] for name in outputs}


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> str:
        """Return the text of a failure; there must be nothing else (RS12, RS13)."""
        assert self.headers["Content-Type"] == "application/json"
        value = self.json()
        assert list(value) == ["error"]
        return str(value["error"])


class Rest(NamedTuple):
    """A running server, and one connection to it."""

    server: Server
    model: Model
    port: int
    connection: http.client.HTTPConnection

    def ask(self, method: str, target: str, body: Any = None, **headers: str) -> Reply:
        raw = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, target, raw, named)
        answer = self.connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())

    def get(self, target: str, **headers: str) -> Reply:
        return self.ask("GET", target, None, **headers)

    def post(self, target: str, body: Any, **headers: str) -> Reply:
        return self.ask("POST", target, body, **headers)

    def predict(self, body: Any, model: str = "m") -> Reply:
        return self.post(f"/v1/models/{model}:predict", body)

    def other(self) -> Rest:
        """Return the same server over another connection; close that."""
        return self._replace(connection=http.client.HTTPConnection(
            "localhost", self.port, timeout=20))

    def socket(self) -> socket.socket:
        return socket.create_connection(("localhost", self.port), timeout=20)


@contextmanager
def serving(tmp_path: Path, *models: ModelConfig, **settings: Any) -> Iterator[Rest]:
    """Serve model "m", versions 1 and 2, or other models, over REST."""
    model = Model()
    base = make_versions(tmp_path / "m", "1", "2")

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        if path.name == "13":
            raise InvalidRequest("broken", code=Code.NOT_FOUND)
        return model, LoadTimes()

    settings.setdefault("rest_port", free_port())
    with running(models or (ModelConfig(name="m", base_path=str(base)),), load,
                 **settings) as (server, _):
        connection = http.client.HTTPConnection("localhost", settings["rest_port"], timeout=20)
        try:
            yield Rest(server, model, settings["rest_port"], connection)
        finally:
            model.release.set()
            connection.close()


def read_all(one: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    parts = []
    while part := one.recv(65536):
        parts.append(part)
    return b"".join(parts)
