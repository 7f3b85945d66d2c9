"""Calls straight from gRPC's completion queue: what each ends with, and who forgets it."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc

from tests.server.serverkit import call, make_versions, predict_request, running
from tf_infer.errors import Code
from tf_infer.server import direct
from tf_infer.server.config import ModelConfig
from tf_infer.server.direct import DirectCall
from tf_infer.server.fakes import load_echo
from tf_infer.wire import methods

WAIT_S = 20.0
PATH = "/service/Method"


@contextmanager
def serving(behaviour: direct.Behaviour) -> Iterator[tuple[grpc.Server, grpc.Channel]]:
    """Serve one method, its large requests in a thread called "large"."""
    other = ThreadPoolExecutor(1, "large")
    server = grpc.server(other, options=[("grpc.max_receive_message_length", -1)])
    begin = direct.register(server, {PATH: behaviour}, other.submit)
    port = server.add_insecure_port("localhost:0")
    server.start()
    begin()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield server, channel
    assert server.stop(0).wait(WAIT_S)
    other.shutdown()


def thread_and_length(data: bytes, one: DirectCall) -> None:
    one.send(f"{threading.current_thread().name} {len(data)}".encode())


def refused(ask: Callable[..., Any], *arguments: Any) -> tuple[grpc.StatusCode, str]:
    """Return code and text of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(*arguments, timeout=WAIT_S)
    return caught.value.code(), caught.value.details()


def test_a_request_is_read_on_the_thread_of_the_network_and_a_large_one_is_not() -> None:
    with serving(thread_and_length) as (_, channel):
        ask = channel.unary_unary(PATH)
        small, empty, large = (ask(b"x" * size, timeout=WAIT_S) for size in (3, 0, 300_000))
    assert b"_serve" in small and small.endswith(b" 3") and empty.endswith(b" 0")
    assert large == b"large_0 300000"


def test_of_no_request_and_of_several_grpcs_own_answer_comes() -> None:
    with serving(thread_and_length) as (_, channel):
        ask = channel.stream_unary(PATH)
        assert refused(ask, iter(())) == (
            grpc.StatusCode.UNIMPLEMENTED, f'"{PATH}" requires exactly one request message.')
        assert ask(iter([b"1", b"22"]), timeout=WAIT_S).endswith(b" 1")
        assert refused(channel.unary_unary("/service/Other"), b"") == (
            grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


def test_a_fault_does_not_end_the_thread_of_all_calls(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(data: bytes, one: DirectCall) -> None:
        if data == b"bad":
            raise RuntimeError("secret")
        thread_and_length(data, one)

    with serving(faulty) as (_, channel):
        ask = channel.unary_unary(PATH)
        assert refused(ask, b"bad") == (grpc.StatusCode.UNKNOWN, "")
        assert ask(b"good", timeout=WAIT_S).endswith(b" 4")
    assert "where=reading error=RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_metadata_deadline_and_trailing_metadata_travel() -> None:
    def told(data: bytes, one: DirectCall) -> None:
        left = one.time_remaining()
        some = 0 < left <= WAIT_S + 0.1  # a deadline's time travels rounded up
        one.trailing("left", "much" if left > 1e6 else "little" if some else "none")
        one.send(dict(one.invocation_metadata())["sent"].encode())

    with serving(told) as (_, channel):
        for timeout, left in ((WAIT_S, "little"), (None, "much")):
            answer, info = channel.unary_unary(PATH).with_call(
                b"", timeout=timeout, metadata=(("sent", "this"),))
            assert (answer, dict(info.trailing_metadata())) == (b"this", {"left": left})


def test_what_ends_a_call_ends_it_once() -> None:
    def twice(data: bytes, one: DirectCall) -> None:
        one.fail(Code.NOT_FOUND, "nö")
        one.send(b"late")
        one.fail(Code.INTERNAL, "later")

    with serving(twice) as (_, channel):
        assert refused(channel.unary_unary(PATH), b"") == (grpc.StatusCode.NOT_FOUND, "nö")


class Held:
    """Keeps its calls, and counts those that went without an answer."""

    def __init__(self) -> None:
        self.calls: list[DirectCall] = []
        self.gone = threading.Semaphore(0)
        self.there = threading.Semaphore(0)

    def __call__(self, data: bytes, one: DirectCall) -> None:
        self.calls.append(one)
        one.when_gone(self.gone.release)
        self.there.release()


def forgotten(server: Any) -> bool:
    """Whether grpcio's server has, after a while, no call of its own or ours left."""
    end = time.monotonic() + WAIT_S
    while server._state.rpc_states and time.monotonic() < end:
        time.sleep(0.005)
    return not server._state.rpc_states


def test_a_caller_that_goes_is_told_of_and_an_answered_one_is_not() -> None:
    held = Held()
    with serving(held) as (server, channel):
        ask = channel.unary_unary(PATH)
        answered, cancelled = (ask.future(b"", timeout=9 * WAIT_S) for _ in range(2))
        assert all(held.there.acquire(timeout=WAIT_S) for _ in range(2))
        assert len(server._state.rpc_states) == 2
        cancelled.cancel()
        assert held.gone.acquire(timeout=WAIT_S)
        for timeout_s in (0.2, 2.0, WAIT_S):  # on a busy machine one may pass, or come late
            late = ask.future(b"", timeout=timeout_s)
            assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if held.there.acquire(timeout=timeout_s):
                break
        known = list(held.calls)
        assert all(held.gone.acquire(timeout=WAIT_S) for _ in known[2:])
        for one in known:
            one.send(b"yes")
        assert answered.result() == b"yes"
        assert forgotten(server)
        assert all(held.gone.acquire(timeout=WAIT_S) for _ in held.calls[len(known):])
        assert not held.gone.acquire(blocking=False)
        held.calls[0].when_gone(held.gone.release)  # it is over already
        assert held.gone.acquire(blocking=False)


def test_a_call_that_is_cancelled_before_its_request_came_is_forgotten() -> None:
    never, held = threading.Event(), Held()
    with serving(held) as (server, channel):
        waiting = [channel.stream_unary(PATH).future(iter(never.wait, True), timeout=WAIT_S)
                   for _ in range(3)]
        for one in waiting:
            one.cancel()
        done = channel.unary_unary(PATH).future(b"", timeout=WAIT_S)
        assert held.there.acquire(timeout=WAIT_S)
        held.calls[0].send(b"")
        assert done.result() == b""
        assert forgotten(server) and len(held.calls) == 1
        never.set()


class Recorded:
    """A call of gRPC's that remembers what it is to do, as what grpcio tells of a new one."""

    def __init__(self) -> None:
        self.call = self.call_details = self
        self.invocation_metadata, self.deadline = (), time.time() + WAIT_S
        self.batches: list[list[str]] = []
        self.tags: list[Callable[[Any], Any]] = []

    def start_server_batch(self, operations: tuple[Any, ...], tag: Callable[[Any], Any]) -> None:
        self.batches.append([type(one).__name__.removesuffix("Operation") for one in operations])
        self.tags.append(tag)


class Happened:
    """What grpcio tells of the end of a call that is not cancelled."""

    def __init__(self) -> None:
        self.batch_operations = [self]

    def cancelled(self) -> bool:
        return False


def answered(*, waits: bool) -> list[list[str]]:
    """Return what gRPC is asked for a call that is answered, and then forgotten."""
    recorded = Recorded()
    one = DirectCall(recorded)
    one.begin(lambda happened: one.left())
    for _ in range(2 * waits):
        one.when_gone(lambda: None)
    one.send(b"")
    finished = [tag(Happened())[0] for tag in recorded.tags]
    assert finished == [None] * (len(finished) - 1) + [one]
    return recorded.batches


def test_gRPC_tells_of_the_end_of_a_call_with_its_answer_unless_somebody_waits_for_it() -> None:
    answer, end = ["SendStatusFromServer", "SendInitialMetadata", "SendMessage"], [
        "ReceiveCloseOnServer"]
    assert answered(waits=False) == [["ReceiveMessage"], answer + end]
    assert answered(waits=True) == [["ReceiveMessage"], end, answer]


def test_a_stop_waits_for_a_call_and_then_cancels_it() -> None:
    held = Held()
    with serving(held) as (server, channel):
        first = channel.unary_unary(PATH).future(b"", timeout=WAIT_S)
        assert held.there.acquire(timeout=WAIT_S)
        stopped = server.stop(WAIT_S)
        assert not stopped.wait(0.05)
        held.calls[0].send(b"in time")
        assert first.result() == b"in time"
        assert stopped.wait(WAIT_S)
    with serving(held) as (server, channel):
        second = channel.unary_unary(PATH).future(b"", timeout=WAIT_S)
        assert held.there.acquire(timeout=WAIT_S)
        assert server.stop(0).wait(WAIT_S)
        assert held.gone.acquire(timeout=WAIT_S)
        assert second.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
        held.calls[1].send(b"late")  # harmless


def test_many_calls_at_once_get_each_their_own_answer() -> None:
    pool = ThreadPoolExecutor(4)
    with serving(lambda data, one: pool.submit(one.send, data * 2) and None) as (_, channel):
        ask = channel.unary_unary(PATH)
        asked = [ask.future(str(number).encode(), timeout=WAIT_S) for number in range(500)]
        assert [one.result() for one in asked] == [str(n).encode() * 2 for n in range(500)]
    pool.shutdown()


@pytest.mark.parametrize("name", ["ReceiveMessageOperation", "SendStatusFromServerOperation"])
def test_without_a_private_name_nothing_is_taken_from_the_queue(
        name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct.KNOWN
    monkeypatch.delattr(cygrpc, name)
    spec = importlib.util.spec_from_file_location("direct_again", direct.__file__)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    assert not made.KNOWN


def test_a_server_answers_with_the_handlers_of_grpcio_alone(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "KNOWN", False)
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, load_echo) as (_, channel):
        for size in (1, 300_000):
            answer = call(channel, methods.PREDICT, predict_request(text=[b"x" * size]))
            assert answer.outputs["text"].string_val == [b"x" * size]
