"""The profiler service with a scripted recorder: FL40, LI11, and what TensorFlow's server does."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.serverkit import call, refused, running
from tf_infer.errors import ServerFailure
from tf_infer.server.fakes import load_echo
from tf_infer.server.profiler import BUSY, Profiler, has_events
from tf_infer.wire import methods
from tf_infer.wire import profiler_pb2 as pb

TRACE = pb.XSpace(planes=[pb.XPlane(name=b"/host:metadata"), pb.XPlane(name=b"/host:CPU", lines=[
    pb.XLine(), pb.XLine(events=[pb.XEvent(metadata_id=1, duration_ps=5)])])]).SerializeToString()
EMPTY = pb.XSpace(planes=[pb.XPlane(name=b"/host:CPU", lines=[pb.XLine(id=3)])]).SerializeToString()
LONG_MS = 100_000


class ScriptedRecorder:
    """Notes what it is told, and gives one trace after the other."""

    def __init__(self, *traces: bytes | Exception) -> None:
        self._traces = list(traces) or [TRACE]
        self.started: list[pb.ProfileOptions] = []
        self.begun, self.stopped = threading.Event(), threading.Event()
        self.begun_at = 0.0

    def start(self, options: pb.ProfileOptions) -> None:
        self.started.append(options)
        self.begun_at = time.time()
        self.begun.set()

    def stop(self) -> bytes:
        self.stopped.set()
        trace = self._traces.pop(0) if len(self._traces) > 1 else self._traces[0]
        if isinstance(trace, Exception):
            raise trace
        return trace


@contextmanager
def served(profiler: Profiler) -> Iterator[grpc.Channel]:
    """A port with one thread: whoever holds it stops every other call."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(tuple(profiler.handlers()))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        with grpc.insecure_channel(f"localhost:{port}") as channel:
            yield channel
    finally:
        server.stop(0).wait()


def request(duration_ms: int = 0, *, session: bytes = b"s", **options: Any) -> pb.ProfileRequest:
    return pb.ProfileRequest(session_id=session, host_name=b"host", emit_xspace=True,
                             opts=pb.ProfileOptions(version=1, duration_ms=duration_ms, **options))


def started(channel: grpc.Channel, message: pb.ProfileRequest) -> grpc.Future:
    return channel.unary_unary(
        methods.PROFILE.path, lambda sent: sent.SerializeToString(),
        pb.ProfileResponse.FromString).future(message, timeout=30)


def test_li11_a_profile_is_the_answer_when_it_is_asked_for() -> None:
    recorder = ScriptedRecorder()
    with served(Profiler(recorder)) as channel:
        answer = call(channel, methods.PROFILE, request(host_tracer_level=3))
    assert answer.xspace == TRACE
    assert not answer.empty_trace
    assert [one.host_tracer_level for one in recorder.started] == [3]


def test_li11_a_profile_is_written_where_a_repository_is_named(tmp_path: Path) -> None:
    asked = request(session=b"run")
    asked.emit_xspace, asked.repository_root = False, os.fsencode(tmp_path / "plugins" / "profile")
    with served(Profiler(ScriptedRecorder(TRACE, EMPTY))) as channel:
        first = call(channel, methods.PROFILE, asked)
        asked.opts.override_hostname = b"other"
        second = call(channel, methods.PROFILE, asked)
    assert (first.xspace, first.empty_trace) == (b"", False)
    assert (second.xspace, second.empty_trace) == (b"", True)
    folder = tmp_path / "plugins" / "profile" / "run"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "host.xplane.pb": TRACE, "other.xplane.pb": EMPTY}


def test_a_profile_of_minutes_holds_no_thread_and_ends_when_it_is_told_to() -> None:
    recorder = ScriptedRecorder()
    with served(Profiler(recorder)) as channel:
        going = started(channel, request(LONG_MS))
        assert recorder.begun.wait(10)
        call(channel, methods.TERMINATE, pb.TerminateRequest(session_id=b"another"))
        assert not recorder.stopped.wait(0.2)
        call(channel, methods.TERMINATE, pb.TerminateRequest(session_id=b"s"))
        assert going.result(10).xspace == TRACE


def test_a_second_profile_is_refused_as_long_as_one_runs() -> None:
    recorder = ScriptedRecorder()
    profiler = Profiler(recorder)
    with served(profiler) as channel:
        going = started(channel, request(LONG_MS))
        assert recorder.begun.wait(10)
        assert refused(channel, methods.PROFILE, request()) == ("INTERNAL", BUSY)
        profiler.close()
        assert going.result(10).xspace == TRACE
        assert call(channel, methods.PROFILE, request()).xspace == TRACE
    assert len(recorder.started) == 2


def test_a_caller_that_goes_ends_the_recording_and_nothing_is_written(tmp_path: Path) -> None:
    recorder = ScriptedRecorder()
    asked = request(LONG_MS)
    asked.emit_xspace, asked.repository_root = False, os.fsencode(tmp_path)
    with served(Profiler(recorder)) as channel:
        going = started(channel, asked)
        assert recorder.begun.wait(10)
        going.cancel()
        assert recorder.stopped.wait(10)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # its session ends a moment later
            try:
                answer = call(channel, methods.PROFILE, request())
                break
            except grpc.RpcError as error:
                assert error.details() == BUSY
    assert answer.xspace == TRACE
    assert list(tmp_path.iterdir()) == []


def test_a_profile_starts_when_it_is_asked_to() -> None:
    recorder = ScriptedRecorder()
    when = time.time() + 0.3
    with served(Profiler(recorder)) as channel:
        call(channel, methods.PROFILE, request(start_timestamp_ns=int(when * 1e9)))
    assert recorder.begun_at >= when - 0.01


def test_times_beyond_every_clock_are_waited_for_like_any_other() -> None:
    recorder = ScriptedRecorder()
    profiler = Profiler(recorder)
    with served(profiler) as channel:
        going = started(channel, request(2**64 - 1))
        assert recorder.begun.wait(10)
        profiler.close()
        assert going.result(10).xspace == TRACE


@pytest.mark.parametrize(("failure", "details"), [
    (ServerFailure("no room"), "no room"),
    (ValueError("a secret"), "ValueError in the server; see its log.")])
def test_what_fails_is_told_and_leaves_the_profiler_usable(
        failure: Exception, details: str) -> None:
    with served(Profiler(ScriptedRecorder(failure, TRACE))) as channel:
        assert refused(channel, methods.PROFILE, request()) == ("INTERNAL", details)
        assert call(channel, methods.PROFILE, request()).xspace == TRACE


def test_a_repository_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = request()
    asked.emit_xspace, asked.repository_root = False, os.fsencode(tmp_path / "file")
    with served(Profiler(ScriptedRecorder())) as channel:
        code, details = refused(channel, methods.PROFILE, asked)
    assert code == "INTERNAL"
    assert "could not be written" in details


def test_bytes_that_are_no_request_are_refused() -> None:
    with (served(Profiler(ScriptedRecorder())) as channel,
          pytest.raises(grpc.RpcError) as caught):
        channel.unary_unary(methods.PROFILE.path)(b"\xff\xff", timeout=10)
    assert caught.value.code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize(("enabled", "codes"), [
    (True, {"Profile": "INTERNAL", "Terminate": "OK", "Monitor": "UNIMPLEMENTED"}),
    (False, dict.fromkeys(("Profile", "Terminate", "Monitor"), "UNIMPLEMENTED"))])
def test_fl40_the_service_is_on_the_port_unless_it_is_switched_off(
        enabled: bool, codes: dict[str, str]) -> None:
    found = {}
    with running((), load_echo, profiler=enabled) as (_, channel):
        for name in codes:
            asked = channel.unary_unary(f"/tensorflow.ProfilerService/{name}")
            try:  # bytes that are no ProfileRequest: nothing is recorded
                asked(b"\xff" if name == "Profile" else b"", timeout=10)
                found[name] = "OK"
            except grpc.RpcError as error:
                found[name] = error.code().name
    assert found == codes


def test_a_trace_without_events_is_empty() -> None:
    assert has_events(TRACE)
    assert not has_events(EMPTY)
    assert not has_events(b"")
