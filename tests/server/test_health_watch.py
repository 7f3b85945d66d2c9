"""Health.Watch (LI10): a client that balances by health, and what a drain says to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.serverkit import call, make_versions, predict_request, running
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig
from tf_infer.server.fakes import load_echo
from tf_infer.server.health_watch import _Watcher
from tf_infer.wire import methods, serving_pb2

WATCH = methods.HEALTH_WATCH
STATES = serving_pb2.HealthCheckResponse.ServingStatus


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, grpc.Channel]]:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path / "m", "1"))),)
    with running(models, load_echo, health=True) as found:
        yield found


def watch(channel: grpc.Channel, service: str = "", **options: Any) -> Any:
    return channel.unary_stream(
        WATCH.path, serving_pb2.HealthCheckRequest.SerializeToString,
        serving_pb2.HealthCheckResponse.FromString)(
            serving_pb2.HealthCheckRequest(service=service), timeout=60, **options)


def state(stream: Any) -> str:
    name: str = STATES.Name(next(stream).status)
    return name


def watching(server: Server, count: int) -> None:
    """Wait until so many callers watch."""
    assert server._watch is not None
    end_s = time.monotonic() + 30
    while server._watch.watching() != count:
        assert time.monotonic() < end_s
        time.sleep(0.002)


@pytest.mark.parametrize(("service", "told"), [
    ("", "SERVING"), ("ModelService", "SERVING"), ("PredictionService", "SERVING"),
    ("x", "SERVICE_UNKNOWN")])
def test_LI10_a_watched_service_tells_its_state_and_stays_open(
        served: tuple[Server, grpc.Channel], service: str, told: str) -> None:
    server, channel = served
    stream = watch(channel, service)
    assert state(stream) == told
    watching(server, 1)
    assert stream.is_active()
    stream.cancel()
    watching(server, 0)  # nothing is kept of a caller who has gone


def test_a_drain_tells_who_watches_and_does_not_wait_for_them(
        served: tuple[Server, grpc.Channel]) -> None:
    server, channel = served
    streams = [watch(channel) for _ in range(3)]
    assert [state(stream) for stream in streams] == ["SERVING"] * 3
    began_s = time.monotonic()
    assert server.stop(600.0)
    assert time.monotonic() - began_s < 300
    assert [state(stream) for stream in streams] == ["NOT_SERVING"] * 3
    for stream in streams:
        with pytest.raises(StopIteration):
            next(stream)


class Said:
    """What a caller is told, in place of a network that may be slow to take it."""

    def __init__(self) -> None:
        self.states: list[str] = []

    def send(self, data: bytes) -> None:
        self.states.append(STATES.Name(serving_pb2.HealthCheckResponse.FromString(data).status))


def test_the_end_is_told_once_behind_the_state_whichever_comes_first() -> None:
    for ends_first in (True, False):
        reply = Said()
        watcher: Any = _Watcher(reply)  # type: ignore[arg-type]
        first, second = (watcher.tell_the_end, watcher.told) if ends_first else (
            watcher.told, watcher.tell_the_end)
        first()
        assert reply.states == []  # the state is still on its way, or nothing has ended
        second()
        assert reply.states == ["NOT_SERVING"]


def test_who_begins_to_watch_a_server_that_ends_is_told(
        served: tuple[Server, grpc.Channel]) -> None:
    server, channel = served
    assert server._watch is not None
    server._watch.close()
    with pytest.raises(grpc.RpcError) as caught:
        next(watch(channel))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server._watch.watching() == 0  # nobody is kept behind the end


def test_what_is_no_request_is_refused_as_everywhere(served: tuple[Server, grpc.Channel]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        next(served[1].unary_stream(WATCH.path)(b"\xff\xff", timeout=30))
    assert caught.value.code() is grpc.StatusCode.INTERNAL


def test_LI10_without_the_flag_nothing_can_be_watched(tmp_path: Path) -> None:
    with running((), load_echo) as (_, channel), pytest.raises(grpc.RpcError) as caught:
        next(watch(channel))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(("service", "code"), [("PredictionService", None), ("x", "UNAVAILABLE")])
def test_a_client_that_balances_by_health_asks_only_who_is_healthy(
        served: tuple[Server, grpc.Channel], service: str, code: str | None) -> None:
    balanced = json.dumps({"loadBalancingConfig": [{"round_robin": {}}],
                           "healthCheckConfig": {"serviceName": service}})
    address = served[0].addresses[0]
    with grpc.insecure_channel(address, options=(("grpc.service_config", balanced),)) as channel:
        try:
            call(channel, methods.PREDICT, predict_request(text=["x"]))
            found = None
        except grpc.RpcError as error:
            found = error.code().name
    assert found == code
