"""TensorFlow's own profiler client against our port, and our messages against its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

tf = pytest.importorskip("tensorflow")

from tensorflow.tsl.profiler.protobuf import profiler_options_pb2, xplane_pb2  # noqa: E402

from tests.server.serverkit import call  # noqa: E402
from tf_infer.server.profiler import Profiler  # noqa: E402
from tf_infer.wire import methods  # noqa: E402
from tf_infer.wire import profiler_pb2 as pb  # noqa: E402

UNLIMITED = [("grpc.max_receive_message_length", -1)]
MILLISECONDS = 400


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(1),
                         options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers(tuple(Profiler().handlers()))
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(0).wait()


@contextmanager
def repeating(act: Callable[[], object]) -> Iterator[None]:
    """Do something again and again on another thread, once before the block begins."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            act()

    act()
    worker = threading.Thread(target=work)
    worker.start()
    try:
        yield
    finally:
        ended.set()
        worker.join()


@tf.function(autograph=False)
def multiplied(matrix: Any) -> Any:
    with tf.name_scope("core"):
        return tf.matmul(matrix, matrix, name="product")


def multiplying() -> AbstractContextManager[None]:
    return repeating(lambda: multiplied(tf.ones([64, 64])))


def event_names(space: Any) -> set[bytes]:
    names = {metadata.name for plane in space.planes for metadata in plane.event_metadata.values()}
    return {name if isinstance(name, bytes) else name.encode() for name in names}


def test_li11_tensorflows_own_client_captures_from_the_port(address: str, tmp_path: Path) -> None:
    with multiplying():
        tf.profiler.experimental.client.trace(f"grpc://{address}", str(tmp_path), MILLISECONDS)
    written, = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(written.read_bytes())
    assert b"core/product:_MklMatMul" in event_names(space)


def test_a_recording_is_read_alike_by_our_messages_and_tensorflows(address: str) -> None:
    asked = pb.ProfileRequest(emit_xspace=True, opts=pb.ProfileOptions(
        version=1, host_tracer_level=2, duration_ms=MILLISECONDS))
    with grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        with multiplying():
            answer = call(channel, methods.PROFILE, asked)
        again = call(channel, methods.PROFILE, asked)
    ours = pb.XSpace.FromString(answer.xspace)
    assert not answer.empty_trace
    assert b"core/product:_MklMatMul" in event_names(ours)
    assert event_names(ours) == event_names(xplane_pb2.XSpace.FromString(answer.xspace))
    assert b"core/product:_MklMatMul" not in event_names(pb.XSpace.FromString(again.xspace))


def test_levels_are_not_heard_by_tensorflow_yet(address: str) -> None:
    """On the day this fails, TensorFlow takes them: change what server/profiler.py says of it."""
    asked = pb.ProfileRequest(emit_xspace=True, opts=pb.ProfileOptions(
        version=1, host_tracer_level=0, duration_ms=MILLISECONDS))
    with grpc.insecure_channel(address, UNLIMITED) as channel, multiplying():
        assert not call(channel, methods.PROFILE, asked).empty_trace


def test_a_recording_holds_no_text(address: str) -> None:
    """Invariant 10: texts are private, also those that run, and fail, while somebody records."""
    secret = b"a-secret-that-nobody-may-read"

    @tf.function(autograph=False)
    def numbers(texts: Any) -> Any:
        return tf.strings.to_number(tf.strings.split(tf.strings.lower(texts), "-").values)

    def fail() -> None:
        with pytest.raises(tf.errors.InvalidArgumentError, match="StringToNumber"):
            numbers(tf.constant([secret] * 2000))

    asked = pb.ProfileRequest(emit_xspace=True, opts=pb.ProfileOptions(duration_ms=MILLISECONDS))
    with grpc.insecure_channel(address, UNLIMITED) as channel, repeating(fail):
        answer = call(channel, methods.PROFILE, asked)
    assert b"StringLower:StringLower" in event_names(pb.XSpace.FromString(answer.xspace))
    assert not any(word in answer.xspace for word in (secret, b"secret", b"nobody"))


@pytest.mark.parametrize(("ours", "theirs"), [
    (pb.ProfileOptions, profiler_options_pb2.ProfileOptions),
    *((getattr(pb, name), getattr(xplane_pb2, name))
      for name in ("XSpace", "XPlane", "XLine", "XEvent", "XEventMetadata"))],
    ids=lambda message: message.DESCRIPTOR.full_name)
def test_fields_have_tensorflows_names_and_numbers(ours: Any, theirs: Any) -> None:
    for field in ours.DESCRIPTOR.fields:
        match = theirs.DESCRIPTOR.fields_by_number[field.number]
        assert match.name == field.name
        names = {match.TYPE_STRING: field.TYPE_BYTES, match.TYPE_ENUM: field.TYPE_INT32}
        assert names.get(match.type, match.type) == field.type
