"""The profiler service on the server's own port: TensorFlow's profiler, asked inside this process.

Statements FL40 and LI11. TensorFlow's own profiler server would answer the same requests, but it
opens one more port, on every interface, without TLS, and keeps it until the process ends: a way
around --host, --ssl_config_file and any proxy. So its public API is used instead.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import grpc

from tf_infer.errors import Code, NotOffered, ServerFailure, ServingError
from tf_infer.server.logs import event
from tf_infer.server.replies import Reply
from tf_infer.server.scheduler import as_serving_error
from tf_infer.wire import methods, profiler_pb2
from tf_infer.wire.blocks import fields

BUSY = "Another profiling session active."  # TensorFlow's own text
_PLANES, _LINES, _EVENTS = (message.DESCRIPTOR.fields_by_name[name].number for message, name in (
    (profiler_pb2.XSpace, "planes"), (profiler_pb2.XPlane, "lines"),
    (profiler_pb2.XLine, "events")))


class Recorder(Protocol):
    """Records what the process does. One recording at a time."""

    def start(self, options: profiler_pb2.ProfileOptions) -> None:
        """Begin; raises ServingError."""

    def stop(self) -> bytes:
        """End, and return a serialized XSpace; raises ServingError. May take seconds."""


class TensorFlowRecorder:
    """TensorFlow's profiler, of which a process has one; TensorFlow is imported at the first use.

    Operations and their threads are recorded, never a tensor's values.
    """

    def __init__(self) -> None:
        self._folder = Path()

    def start(self, options: profiler_pb2.ProfileOptions) -> None:
        """Begin with the levels of `options`; without a version, with TensorFlow's own.

        TensorFlow 2.21 takes no other levels than its own from Python (its log then says "expects
        an i value"): costly operations of the host, all of a device.

        Raises:
            NotOffered: there is no TensorFlow.
            ServerFailure: it records already, or there is no folder for what it writes.
        """
        tf = _tensorflow()
        levels = tf.profiler.experimental.ProfilerOptions(
            host_tracer_level=options.host_tracer_level,
            python_tracer_level=options.python_tracer_level,
            device_tracer_level=options.device_tracer_level)
        own = not options.version or levels == tf.profiler.experimental.ProfilerOptions()
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="tf-infer-profile-"))
            tf.profiler.experimental.start(str(self._folder), None if own else levels)
        except (tf.errors.OpError, OSError) as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ServerFailure(getattr(error, "message", str(error))) from error

    def stop(self) -> bytes:
        """End, and return what TensorFlow wrote.

        Raises:
            ServerFailure: it cannot be written (a full disk) or read.
        """
        tf = _tensorflow()
        try:
            tf.profiler.experimental.stop()
            written, = self._folder.glob("plugins/profile/*/*.xplane.pb")
            return written.read_bytes()
        except (tf.errors.OpError, OSError, ValueError) as error:
            raise ServerFailure(f"the profile could not be kept: {error}") from error
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise NotOffered("profiling needs TensorFlow in the server's process.") from error
    return tensorflow


class _Session:
    """One recording: its id, what ends it, and whether its caller has gone."""

    def __init__(self, name: bytes) -> None:
        self.name, self.ended, self.gone = name, threading.Event(), False

    def give_up(self) -> None:
        """End it for nobody."""
        self.gone = True
        self.ended.set()


class Profiler:
    """Answers `tensorflow.ProfilerService`: Profile and Terminate, which are all there is on CPUs.

    A recording holds none of the server's threads: it has one of its own, and there is at most one.

    Args:
        recorder: None takes TensorFlow's.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder or TensorFlowRecorder()
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def handlers(self) -> list[grpc.GenericRpcHandler[Any, Any]]:
        """Return what a gRPC server adds to answer the service."""
        def profile(request: profiler_pb2.ProfileRequest, context: grpc.ServicerContext,
                    send: Callable[[bytes | None], None]) -> None:
            self._profile(request, Reply(context, send))

        # gRPC's form for answers that come later, from another thread.
        profile.experimental_non_blocking = True  # type: ignore[attr-defined]
        return [grpc.method_handlers_generic_handler(methods.PROFILER_SERVICE, {
            methods.PROFILE.name: grpc.unary_stream_rpc_method_handler(
                profile, request_deserializer=profiler_pb2.ProfileRequest.FromString),
            methods.TERMINATE.name: grpc.unary_unary_rpc_method_handler(
                self._terminate, request_deserializer=profiler_pb2.TerminateRequest.FromString)})]

    def close(self) -> None:
        """End the recording under way; its caller gets what there is."""
        with self._lock:
            if self._session is not None:
                self._session.ended.set()

    def _terminate(self, request: profiler_pb2.TerminateRequest,
                   context: grpc.ServicerContext) -> bytes:
        with self._lock:
            if self._session is not None and self._session.name == request.session_id:
                self._session.ended.set()
        return b""

    def _profile(self, request: profiler_pb2.ProfileRequest, reply: Reply) -> None:
        session = _Session(request.session_id)
        with self._lock:
            busy = self._session is not None
            if not busy:
                self._session = session
        if busy:
            reply.fail(Code.INTERNAL, BUSY)
            return
        reply.when_gone(session.give_up)
        threading.Thread(target=self._answer, args=(request, reply, session), daemon=True,
                         name="tf-infer-profile").start()

    def _answer(self, request: profiler_pb2.ProfileRequest, reply: Reply,
                session: _Session) -> None:
        answer: bytes | ServingError
        try:
            xspace = self._recorded(request.opts, session.ended)
            answer = b"" if session.gone else _response(request, xspace)
        except Exception as error:  # the caller must not wait for its deadline
            answer = as_serving_error(error, "profiling")
        with self._lock:
            self._session = None
        if isinstance(answer, ServingError):
            reply.fail(answer.code, answer.details)
        else:
            reply.send(answer)

    def _recorded(self, options: profiler_pb2.ProfileOptions, ended: threading.Event) -> bytes:
        if options.start_timestamp_ns:
            _wait(ended, options.start_timestamp_ns / 1e9 - time.time())
        self._recorder.start(options)
        event("profile", at_most_ms=options.duration_ms)
        _wait(ended, options.duration_ms / 1e3)
        return self._recorder.stop()


def _wait(ended: threading.Event, seconds: float) -> None:
    ended.wait(min(max(seconds, 0.0), threading.TIMEOUT_MAX))


def _response(request: profiler_pb2.ProfileRequest, xspace: bytes) -> bytes:
    """Return the answer: the trace itself, or, written where it is wanted, whether it is empty."""
    response = profiler_pb2.ProfileResponse(empty_trace=not has_events(xspace))
    if request.emit_xspace:
        response.xspace = xspace
    elif request.repository_root:
        _write(request, xspace)
    return bytes(response.SerializeToString())


def _write(request: profiler_pb2.ProfileRequest, xspace: bytes) -> None:
    host = request.opts.override_hostname or request.host_name
    names = [part.decode("utf-8", "surrogateescape") for part in (
        request.repository_root, request.session_id, host)]
    try:
        folder = Path(names[0], names[1])
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{uuid.uuid4().hex}"
        staged.write_bytes(xspace)
        staged.replace(folder / f"{names[2]}.xplane.pb")
    except (OSError, ValueError) as error:
        raise ServerFailure(f"the profile could not be written: {error}") from error


def has_events(xspace: bytes) -> bool:
    """Return whether anything was recorded in a serialized XSpace; parses no more than it must."""
    return any(event.number == _EVENTS
               for plane in fields(memoryview(xspace)) if plane.number == _PLANES
               for line in fields(plane.content) if line.number == _LINES
               for event in fields(line.content))
