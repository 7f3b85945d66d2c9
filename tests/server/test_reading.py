"""Requests that are read on gRPC's own thread: which thread, and calls that are not as usual."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import _server

from tests.server.serverkit import call, make_versions, predict_request, running
from tf_infer.server import reading, replies
from tf_infer.server.config import ModelConfig
from tf_infer.server.fakes import load_echo
from tf_infer.wire import methods, serving_pb2

WAIT_S = 20.0
PATH = "/service/Method"


@contextmanager
def serving(behaviour: reading.Behaviour) -> Iterator[grpc.Channel]:
    """Serve one method, its large requests in a thread called "large"."""
    pool, other = ThreadPoolExecutor(1, "pool"), ThreadPoolExecutor(1, "large")
    server = grpc.server(pool, options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        "service", {"Method": reading.handler(behaviour, other.submit)}),))
    port = server.add_insecure_port("localhost:0")
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield channel
    server.stop(0).wait()
    pool.shutdown()
    other.shutdown()


def thread_and_length(data: bytes, context: Any, send: Callable[[Any], None]) -> None:
    name = threading.current_thread().name

    def later() -> None:  # `send` waits for the network, whose thread this may be
        send(f"{name} {len(data)}".encode())
        send(None)

    threading.Thread(target=later).start()


def test_a_request_is_read_on_the_thread_of_the_network_and_a_large_one_is_not() -> None:
    with serving(thread_and_length) as channel:
        ask = channel.unary_unary(PATH)
        small, large = ask(b"x" * 3, timeout=WAIT_S), ask(b"x" * 300_000, timeout=WAIT_S)
    assert b"_serve" in small
    assert small.endswith(b" 3")
    assert large == b"large_0 300000"


def test_an_empty_request_is_one() -> None:
    with serving(thread_and_length) as channel:
        assert channel.unary_unary(PATH)(b"", timeout=WAIT_S).endswith(b" 0")


def test_a_call_without_a_request_is_unimplemented() -> None:
    with serving(thread_and_length) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(PATH)(iter(()), timeout=WAIT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == f'"{PATH}" requires exactly one request message.'


def test_of_several_requests_in_a_call_the_first_is_answered() -> None:
    with serving(thread_and_length) as channel:
        answer = channel.stream_unary(PATH)(iter([b"1", b"22"]), timeout=WAIT_S)
    assert answer.endswith(b" 1")


def test_a_call_that_is_cancelled_before_its_request_came_disturbs_no_other() -> None:
    never = threading.Event()
    with serving(thread_and_length) as channel:
        held = [channel.stream_unary(PATH).future(iter(never.wait, True), timeout=WAIT_S)
                for _ in range(5)]
        for call in held:
            call.cancel()
        assert channel.unary_unary(PATH)(b"x", timeout=WAIT_S).endswith(b" 1")
        never.set()


def test_a_fault_while_reading_does_not_end_the_thread_of_all_calls(
        caplog: pytest.LogCaptureFixture) -> None:
    def faulty(data: bytes, context: Any, send: Callable[[Any], None]) -> None:
        if data == b"bad":
            raise RuntimeError("secret")
        thread_and_length(data, context, send)

    with serving(faulty) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(PATH)(b"bad", timeout=WAIT_S)
        assert channel.unary_unary(PATH)(b"good", timeout=WAIT_S).endswith(b" 4")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN
    assert "where=reading error=RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def as_imported_now(module: Any) -> Any:
    """Return a second copy of a module of ours, as it finds grpcio now."""
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_again", module.__file__)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", [
    "_RECEIVE_MESSAGE_TOKEN", "_possibly_finish_call", "_is_rpc_state_active", "_CANCELLED",
    "_RequestIterator", "_select_thread_pool_for_behavior"])
def test_without_a_private_name_requests_are_read_in_the_pool(
        name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reading.KNOWN
    monkeypatch.delattr(_server, name)
    assert not as_imported_now(reading).KNOWN


@pytest.mark.parametrize("name", ["_status", "_Context"])
def test_where_an_answer_has_to_wait_for_the_network_requests_are_not_read_on_its_thread(
        name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert replies.AT_ONCE
    monkeypatch.delattr(_server, name)
    assert not as_imported_now(replies).AT_ONCE
    monkeypatch.setattr(replies, "AT_ONCE", False)
    assert not as_imported_now(reading).KNOWN


def test_a_server_answers_with_nothing_of_grpcs_that_is_private(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KNOWN", False)
    monkeypatch.setattr(replies, "AT_ONCE", False)
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, load_echo) as (_, channel):
        status = serving_pb2.GetModelStatusRequest()
        metadata = serving_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        status.model_spec.name = metadata.model_spec.name = "m"
        for size in (1, 300_000):
            answer = call(channel, methods.PREDICT, predict_request(text=[b"x" * size]))
            assert answer.outputs["text"].string_val == [b"x" * size]
        assert len(call(channel, methods.GET_MODEL_STATUS, status).model_version_status) == 1
        assert call(channel, methods.GET_MODEL_METADATA, metadata).metadata
