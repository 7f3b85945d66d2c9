"""Traces: asked for, written where TensorBoard looks, and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.serving import FakeServer
from tf_infer.client.transport import GrpcTransport
from tf_infer.errors import ConfigError, InvalidRequest, NotOffered, ServerFailure
from tf_infer.profiling.trace import Operation, Trace, capture, read, self_times
from tf_infer.wire import methods
from tf_infer.wire import profiler_pb2 as pb

MS = 10**9  # picoseconds
NAMES = {1: b"call/preprocess/Split:StringSplit", 2: b"call/core/cond/dense/MatMul:_MklMatMul",
         3: b"ExecutorState::Process", 4: b"EagerLocalExecute: Fill", 5: b"ParallelFor",
         6: b"\xff\xfe", 7: b"call/core/Call:StatefulPartitionedCall", 8: b"plain/Add:AddV2",
         9: b"a/TFText>Tokenize:TFText>Tokenize"}


def space(*threads: list[tuple[int, int, int]]) -> bytes:
    """Return a trace: per thread (event, start in ms, length in ms), and an empty thread."""
    lines = [pb.XLine(events=[
        pb.XEvent(metadata_id=event, offset_ps=start * MS, duration_ps=length * MS)
        for event, start, length in thread]) for thread in (*threads, [])]
    plane = pb.XPlane(name=b"/host:CPU", lines=lines, event_metadata={
        number: pb.XEventMetadata(id=number, name=name) for number, name in NAMES.items()})
    return pb.XSpace(planes=[plane, pb.XPlane(name=b"Task Environment")]).SerializeToString()


def test_operations_are_told_by_their_names_and_added_up_over_threads() -> None:
    trace = read(space([(3, 0, 50), (1, 1, 4), (2, 10, 8), (6, 60, 3)], [(2, 12, 2), (4, 20, 9)],
                       [(9, 0, 1), (5, 0, 30)]))
    assert trace.operations == (
        Operation("call/core/cond/dense/MatMul", "_MklMatMul", 2, 0.010),
        Operation("call/preprocess/Split", "StringSplit", 1, 0.004),
        Operation("a/TFText>Tokenize", "TFText>Tokenize", 1, 0.001))
    assert [one.stage for one in trace.operations] == ["model", "tokenize", None]
    assert (trace.threads, trace.events) == (3, 8)
    assert trace.busy_s == pytest.approx(0.015)
    assert trace.by_stage_s() == pytest.approx({"model": 0.010, "tokenize": 0.004, None: 0.001})


def test_time_inside_an_operation_counts_for_the_innermost() -> None:
    trace = read(space([(7, 0, 20), (3, 1, 18), (2, 2, 5), (8, 3, 1), (2, 8, 5), (7, 20, 4)]))
    assert {(one.name, one.count): round(one.self_s, 6) for one in trace.operations} == {
        ("call/core/Call", 2): 0.014, ("call/core/cond/dense/MatMul", 2): 0.009,
        ("plain/Add", 1): 0.001}


@st.composite
def nested(draw: Any, start: int = 0, length: int = 64) -> list[tuple[int, int, int]]:
    """Spans that lie beside or inside each other, within [start, start + length)."""
    spans, at = [], start
    while at < start + length and draw(st.booleans()):
        begin = draw(st.integers(at, start + length - 1))
        size = draw(st.integers(1, start + length - begin))
        spans.append((begin, size, draw(st.integers(0, 3))))
        if size > 1:
            spans += draw(nested(begin, size // 2))
        at = begin + size
    return spans


@given(nested(), st.randoms())
def test_every_moment_counts_for_the_span_that_is_innermost(
        spans: list[tuple[int, int, int]], random: Any) -> None:
    wanted = [0] * 4
    for moment in range(64):
        inside = [span for span in spans if span[0] <= moment < span[0] + span[1]]
        if inside:
            wanted[min(reversed(inside), key=lambda span: span[1])[2]] += 1
    random.shuffle(shuffled := list(spans))
    found = [0] * 4
    for what, own in self_times(shuffled):
        found[what] += own
    assert sum(found) == sum(wanted)
    if len({span[:2] for span in spans}) == len(spans):  # of equal spans either may be the inner
        assert found == wanted


def test_nothing_recorded_is_nothing() -> None:
    assert read(b"") == Trace((), 0, 0)
    assert read(space()) == Trace((), 0, 0)


def test_bytes_that_are_no_trace_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="trace: expected a XSpace"):
        read(b"\xff\xff\xff")


def captured(answer: Any, logdir: Path) -> tuple[Path, pb.ProfileRequest]:
    with FakeServer({methods.PROFILE: answer}) as server:
        transport = GrpcTransport(server.address)
        try:
            path = capture(transport, duration_s=0.25, logdir=logdir, run="run", host="host_1")
        finally:
            transport.close()
    return path, server.requests[0][1]


def test_a_capture_lies_where_tensorboard_looks(tmp_path: Path) -> None:
    trace = space([(2, 0, 1)])
    path, request = captured(lambda *_: pb.ProfileResponse(xspace=trace), tmp_path / "logs")
    assert path == tmp_path / "logs" / "plugins" / "profile" / "run" / "host_1.xplane.pb"
    assert path.read_bytes() == trace
    assert request.emit_xspace
    assert request.duration_ms == request.opts.duration_ms == 250
    assert (request.opts.version, request.opts.host_tracer_level) == (1, 2)


def test_a_server_of_old_writes_by_itself(tmp_path: Path) -> None:
    trace = space([(2, 0, 1)])

    def answer(request: pb.ProfileRequest, context: grpc.ServicerContext) -> pb.ProfileResponse:
        folder = Path(request.repository_root.decode()) / request.session_id.decode()
        folder.mkdir(parents=True)
        (folder / f"{request.host_name.decode()}.xplane.pb").write_bytes(trace)
        return pb.ProfileResponse()

    path, _ = captured(answer, tmp_path)
    assert path.read_bytes() == trace


def test_a_trace_on_the_servers_own_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServerFailure, match="Run this command on its machine"):
        captured(lambda *_: pb.ProfileResponse(), tmp_path)


def test_a_server_without_the_service_is_told_with_the_flag(tmp_path: Path) -> None:
    with FakeServer({}) as server:
        transport = GrpcTransport(server.address)
        with pytest.raises(NotOffered, match="--enable_profiler=true"):
            capture(transport, duration_s=0.1, logdir=tmp_path, run="run", host="h")
        transport.close()


def test_a_log_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"logdir: .* cannot be written"):
        captured(lambda *_: pb.ProfileResponse(xspace=b"x"), tmp_path / "file")
