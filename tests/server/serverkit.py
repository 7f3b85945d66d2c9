"""What the server's tests share: a port, a channel, calls through our own messages."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tf_infer.server import quick_runs
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.contracts import LoadFn
from tf_infer.server.versions import Lease, ModelRef, Versions
from tf_infer.wire import methods, serving_pb2

_given: set[int] = set()


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, what still holds itself stays: no garbage is collected, which may be far away."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def free_port() -> int:
    """Return a port that nobody listens on, and that was not given before: two servers of one test
    on the same number would both start, one for IPv4 and one for IPv6.
    """
    while True:
        both = socket.has_dualstack_ipv6()
        with socket.create_server(("", 0), dualstack_ipv6=both, family=(
                socket.AF_INET6 if both else socket.AF_INET)) as probe:
            port: int = probe.getsockname()[1]
        if port not in _given:
            _given.add(port)
            return port


def make_versions(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).mkdir(parents=True, exist_ok=True)
    return base


def however_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs that are quick by their graphs be so at once, on a machine that is busy too."""
    monkeypatch.setattr(quick_runs, "QUICK_S", float("inf"))
    monkeypatch.setattr(quick_runs, "SLOW_S", float("inf"))


@contextmanager
def running(models: tuple[ModelConfig, ...], load: LoadFn | None = None, **settings: Any,
            ) -> Iterator[tuple[Server, grpc.Channel]]:
    settings = {"port": free_port(), "poll_s": 0, "max_load_retries": 0, "host": "localhost",
                **settings}
    unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    with (Server(ServerConfig(models=models, **settings), load=load) as server,
          grpc.insecure_channel(server.addresses[0], options=unlimited) as channel):
        yield server, channel


def call(channel: grpc.Channel, method: methods.Method, request: Any, **options: Any) -> Any:
    options.setdefault("timeout", 30)
    return channel.unary_unary(method.path, lambda message: message.SerializeToString(),
                               method.response.FromString)(request, **options)


def refused(channel: grpc.Channel, method: methods.Method, request: Any, **options: Any,
            ) -> tuple[str, str]:
    """Return the code's name and the text that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request, **options)
    return caught.value.code().name, caught.value.details()


@contextmanager
def lent(versions: Versions, ref: ModelRef) -> Iterator[Lease]:
    lease = versions.borrow(ref)
    try:
        yield lease
    finally:
        versions.give_back(lease)


def wait_until(versions: Versions, condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look at `condition` after every change of the table; return whether it came to hold."""
    with versions._changed:
        return versions._changed.wait_for(condition, timeout_s)


def queued(server: Server, count: int) -> None:
    """Wait until so many requests for the model "m" wait for a batch."""
    end_s = time.monotonic() + 30
    while (there := server.schedulers.waiting.count("m")) != count:
        assert time.monotonic() < end_s, f"{there} instead of {count}"
        time.sleep(0.002)


def predict_request(model: str = "m", signature: str = "", **inputs: Any,
                    ) -> serving_pb2.PredictRequest:
    from tf_infer.wire import tensors
    request = serving_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    tensors.write_all({name: tensors.as_array(value) for name, value in inputs.items()},
                      request.inputs)
    return request
