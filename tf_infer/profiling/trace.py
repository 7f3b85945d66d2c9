"""Record what a serving process does, through its gRPC port, and read the trace.

    path = capture(GrpcTransport("localhost:8500"), duration_s=5.0, logdir=Path("runs/profile"),
                   run="first", host="localhost_8500")
    for operation in read(path.read_bytes()).operations[:10]:
        print(operation.stage, operation.kind, operation.self_s)

Any server with TensorFlow's profiler service: ours, tensorflow_model_server, a training job.
TensorFlow is not needed here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tf_infer.client.transport import Transport
from tf_infer.errors import ConfigError, NotOffered, ServerFailure
from tf_infer.stages import stage_of
from tf_infer.wire import methods, profiler_pb2

COLLECT_S = 120.0  # a server may need long to collect what it recorded
HOST_TRACER_LEVEL = 2  # costly operations, TensorFlow's own default
PLUGIN = Path("plugins", "profile")  # where TensorBoard looks below its log directory

# What the runtime calls an operation: its name in the graph, a colon, its type.
_OPERATION = re.compile(r"([A-Za-z0-9.][\w.\\/>-]*):([A-Za-z_][\w>]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a graph, all its runs together.

    Attributes:
        name: in the graph, the scopes before it.
        kind: its type ("MatMul").
        count: how often it ran.
        self_s: how long, without operations that ran inside it.
    """

    name: str
    kind: str
    count: int
    self_s: float

    @property
    def stage(self) -> str | None:
        """The stage it belongs to; None where its name tells none."""
        return stage_of(self.name)


@dataclass(frozen=True, slots=True)
class Trace:
    """What was recorded.

    Attributes:
        operations: of all threads, those that took longest first. Cheap operations are not
            recorded.
        threads: on which anything was recorded.
        events: recorded in all; 0 of a process that did nothing.
    """

    operations: tuple[Operation, ...]
    threads: int
    events: int

    @property
    def busy_s(self) -> float:
        """Time in recorded operations, all threads added up."""
        return sum(operation.self_s for operation in self.operations)

    def by_stage_s(self) -> Mapping[str | None, float]:
        """Return the time in operations of each stage; None for those of no stage."""
        times: Counter[str | None] = Counter()
        for operation in self.operations:
            times[operation.stage] += operation.self_s  # type: ignore[assignment]
        return times


def capture(transport: Transport, *, duration_s: float, logdir: Path, run: str, host: str
            ) -> Path:
    """Record for `duration_s` and write the trace where TensorBoard finds it; return the file.

    Args:
        transport: to the server.
        duration_s: how long the server records; collecting comes on top.
        logdir: TensorBoard's log directory, on this machine.
        run: name of the recording.
        host: name of the process in it.

    Raises:
        NotOffered: the server has no profiler service.
        ServerFailure: it records already, or wrote the trace to a disk that is not ours.
        ConfigError: the log directory cannot be written.
    """
    repository = (logdir / PLUGIN).absolute()
    path = repository / run / f"{host}.xplane.pb"
    request = profiler_pb2.ProfileRequest(
        duration_ms=round(duration_s * 1000), emit_xspace=True, session_id=run.encode(),
        repository_root=str(repository).encode(), host_name=host.encode(),
        opts=profiler_pb2.ProfileOptions(
            version=1, host_tracer_level=HOST_TRACER_LEVEL, device_tracer_level=1,
            enable_hlo_proto=True, duration_ms=round(duration_s * 1000)))
    try:
        data = transport.unary(methods.PROFILE.path, request.SerializeToString(),
                               timeout_s=duration_s + COLLECT_S)
    except NotOffered as error:
        raise NotOffered("the server has no profiler service at this address. Start it with "
                         "--enable_profiler=true; one with --admin_port has it there."
                         ) from error
    response = methods.parse(profiler_pb2.ProfileResponse, data, where="answer to Profile")
    if response.xspace:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(response.xspace)
        except OSError as error:
            raise ConfigError(f"logdir: {path} cannot be written: {error.strerror}.") from error
    elif not path.is_file():
        raise ServerFailure(
            "the server kept the trace: one before TensorFlow 2.21 writes it to its own disk, at "
            f"{path}. Run this command on its machine, or give a --logdir that both see.")
    return path


def read(xspace: bytes) -> Trace:
    """Return what a serialized XSpace says of operations.

    Raises:
        InvalidRequest: the bytes are none.

    Cost: about 2 us for each event that is an operation's.
    """
    space = methods.parse(profiler_pb2.XSpace, xspace, where="trace")
    times: Counter[tuple[str, str]] = Counter()
    counts: Counter[tuple[str, str]] = Counter()
    threads = events = 0
    for plane in space.planes:
        known = {number: (found[1], found[2]) for number, metadata in plane.event_metadata.items()
                 if (found := _OPERATION.fullmatch(metadata.name.decode("utf-8", "replace")))}
        for line in plane.lines:
            threads += bool(line.events)
            events += len(line.events)
            spans = ((event.offset_ps, event.duration_ps, event.metadata_id)
                     for event in line.events if event.metadata_id in known)
            for number, self_ps in self_times(spans):
                times[known[number]] += self_ps
                counts[known[number]] += 1
    return Trace(tuple(Operation(*key, counts[key], value / 1e12)
                       for key, value in times.most_common()), threads, events)


def self_times(spans: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (what, time of its own) of spans on one thread, which nest but do not overlap.

    Args:
        spans: (start, duration, what).
    """
    # An enclosing span comes first: it starts earlier, or lasts longer.
    open_spans: list[list[int]] = []  # end, what, time of its own
    for start, duration, what in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_spans and open_spans[-1][0] <= start:
            yield _own(open_spans.pop())
        if open_spans:
            open_spans[-1][2] -= duration
        open_spans.append([start + duration, what, duration])
    yield from map(_own, open_spans)


def _own(span: list[int]) -> tuple[int, int]:
    return span[1], max(0, span[2])  # clocks of threads are not perfect: spans may overlap a bit
