"""TensorFlow Serving's batching: its parameters and its queue, as a state machine without threads.

Statements BA02 to BA08 and BA17 to BA21 of its observed behaviour. Each signature of each version
has one `Queue` (BA09, BA24); the loop of `serving_scheduler.py` owns the threads and the clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tf_infer.errors import InvalidRequest, Overloaded, ServerUnavailable
from tf_infer.server.protos import read_text_proto
from tf_infer.wire import serving_pb2

PER_MODEL_FILE = "batching_params.pbtxt"
TIMED_OUT_IN_QUEUE = "Run() timeout exceeded while waiting in batching queue"


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingParameters:
    """TensorFlow Serving's batching parameters with its defaults (BA03).

    Attributes:
        max_batch_size: rows of a request at most, and of a batch unless large ones are split.
        batch_timeout_micros: how long a batch that is not full may wait for more.
        max_enqueued_batches: batches that wait in a queue at most, the open one among them.
        num_batch_threads: of the whole server; 0 for one per CPU.
        thread_pool_name: begins the names of those threads (BA26).
        allowed_batch_sizes: what a batch is filled up to; empty for any.
        pad_variable_length_inputs: BA11.
        enable_large_batch_splitting: BA21.
        max_execution_batch_size: rows of a batch when large ones are split; 0 for max_batch_size.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0
    thread_pool_name: str = "batch_threads"
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    @property
    def batch_rows(self) -> int:
        """Rows of a batch at most."""
        splits = self.enable_large_batch_splitting and self.max_execution_batch_size > 0
        return self.max_execution_batch_size if splits else self.max_batch_size

    @property
    def batch_timeout_s(self) -> float:
        """`batch_timeout_micros` in seconds."""
        return self.batch_timeout_micros / 1e6


def read_parameters(path: str | Path) -> BatchingParameters:
    """Read a text file of BatchingParameters (BA02).

    Raises:
        InvalidRequest: the file is missing, does not parse, or breaks a rule (BA08, BA19).
    """
    return parameters_from(read_text_proto(path, serving_pb2.BatchingParameters()))


def per_model_parameters(version_dir: str | Path,
                         server: BatchingParameters) -> BatchingParameters | None:
    """Return a version's own parameters; None when it has none and so is not batched (BA20).

    Args:
        version_dir: the folder of the SavedModel.
        server: of the whole server: the threads are its.

    Raises:
        InvalidRequest: as `read_parameters`.
    """
    path = Path(version_dir) / PER_MODEL_FILE
    if not path.is_file():
        return None
    return replace(read_parameters(path), num_batch_threads=server.num_batch_threads,
                   thread_pool_name=server.thread_pool_name)


def parameters_from(message: serving_pb2.BatchingParameters) -> BatchingParameters:
    """Return the parameters of a message, defaults filled in (BA03).

    Raises:
        InvalidRequest: they break a rule (BA08, BA19); with TensorFlow Serving's text.
    """
    given = {name: getattr(message, name).value for name in (
        "max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads",
        "thread_pool_name", "enable_large_batch_splitting", "max_execution_batch_size")
        if message.HasField(name)}
    for name in ("num_batch_threads", "max_execution_batch_size"):
        if given.get(name, 1) < 1:
            raise InvalidRequest(f"{name} must be positive; was {given[name]}")
    parameters = BatchingParameters(
        **given, allowed_batch_sizes=tuple(message.allowed_batch_sizes),
        pad_variable_length_inputs=message.pad_variable_length_inputs)
    _check(parameters)
    return parameters


def _check(parameters: BatchingParameters) -> None:
    allowed, most = parameters.allowed_batch_sizes, parameters.max_batch_size
    if allowed and allowed[-1] != most:
        raise InvalidRequest("Last entry in allowed_batch_sizes must match max_batch_size; last "
                             f"entry was {allowed[-1]}; expected {most}")
    if most < 1:
        raise InvalidRequest(f"input_batch_size_limit must be positive; was {most}. "
                             "Set max_batch_size to 1 or more.")
    if parameters.batch_timeout_micros < 0:
        raise InvalidRequest("batch_timeout_micros must be non-negative; was "
                             f"{parameters.batch_timeout_micros}")
    if parameters.max_enqueued_batches < 1:
        raise InvalidRequest("max_enqueued_batches must be positive; was "
                             f"{parameters.max_enqueued_batches}")
    if parameters.enable_large_batch_splitting and most < parameters.batch_rows:
        raise InvalidRequest(
            "When enable_large_batch_splitting is true, input_batch_size_limit must be greater "
            f"than or equal to max_execution_batch_size; max_batch_size is {most}, "
            f"max_execution_batch_size is {parameters.batch_rows}.")


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one request that run in one batch: all of them, unless the request was split (BA21).

    Attributes:
        ticket: of the request.
        start, rows: which of its rows.
        deadline_s: of the request; None for none.
    """

    ticket: int
    start: int
    rows: int
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class QueuedBatch:
    """Pieces that run together, in the order of their arrival.

    Attributes:
        opened_s: when its first piece came; 0.0 while there is none.
    """

    pieces: tuple[Piece, ...] = ()
    rows: int = 0
    opened_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Queue:
    """What waits for one signature of one version.

    Attributes:
        batches: oldest first; the last one is open, the others are full or did not fit the next.
    """

    parameters: BatchingParameters
    batches: tuple[QueuedBatch, ...] = field(default=(QueuedBatch(),))


def enqueue(queue: Queue, piece: Piece, *, now_s: float) -> Queue:
    """Return the queue with a request in it.

    Args:
        queue: as it is; it is not changed.
        piece: the whole request, `start` 0.
        now_s: on the clock of `take`.

    Raises:
        InvalidRequest: more rows than a request may have (BA04).
        ServerUnavailable: the queue is full (BA06).
    """
    parameters = queue.parameters
    if piece.rows > parameters.max_batch_size:
        raise InvalidRequest(f"Task size {piece.rows} is larger than maximum input batch size "
                             f"{parameters.max_batch_size}")
    _check_room(queue, piece.rows)
    pieces = [piece]
    if parameters.enable_large_batch_splitting:
        pieces = _pieces(piece, parameters.batch_rows - queue.batches[-1].rows,
                         parameters.batch_rows)
    *closed, last = queue.batches
    for part in pieces:
        if last.rows + part.rows > parameters.batch_rows:
            closed.append(last)
            last = QueuedBatch()
        last = QueuedBatch((*last.pieces, part), last.rows + part.rows,
                           last.opened_s if last.pieces else now_s)
    return Queue(parameters, (*closed, last))


def _check_room(queue: Queue, rows: int) -> None:
    parameters, waiting = queue.parameters, len(queue.batches)
    room = parameters.batch_rows - queue.batches[-1].rows
    free = parameters.max_enqueued_batches - waiting
    if parameters.enable_large_batch_splitting:
        capacity = free * parameters.batch_rows + room
        if rows > capacity:
            raise ServerUnavailable(
                "The batch scheduling queue to which this task was submitted is full; task size is "
                f"{rows} but scheduling capacity is only {capacity} (num_enqueued_batches={waiting}"
                f", max_enqueued_batches={parameters.max_enqueued_batches}, "
                f"open_batch_size={queue.batches[-1].rows}, "
                f"max_execution_batch_size={parameters.batch_rows})")
    elif rows > room and free <= 0:
        raise ServerUnavailable(
            "The batch scheduling queue to which this task was submitted is full; currently "
            f"{waiting} batches enqueued and max_enqueued_batches is "
            f"{parameters.max_enqueued_batches}")


def _pieces(whole: Piece, room: int, most: int) -> list[Piece]:
    """Cut a request into what the open batch has room for, then full batches, then the rest."""
    if whole.rows <= room:
        return [whole]
    pieces, start = [], 0
    while start < whole.rows:
        rows = min(room if room and not start else most, whole.rows - start)
        pieces.append(Piece(whole.ticket, start, rows, whole.deadline_s))
        start += rows
    return pieces


def take(queue: Queue, *, now_s: float, closing: bool = False) -> tuple[QueuedBatch | None, Queue]:
    """Return what a free thread runs now (BA05), None for nothing yet, and the queue without it.

    Args:
        queue: as it is; it is not changed.
        now_s: on the clock of `enqueue`.
        closing: no request will come any more, so nothing is waited for.
    """
    when = ready_at(queue)
    if when is None or (when > now_s and not closing):
        return None, queue
    first, *rest = queue.batches
    return first, Queue(queue.parameters, tuple(rest) or (QueuedBatch(),))


def ready_at(queue: Queue) -> float | None:
    """Return from when on `take` has a batch; None while nothing waits."""
    first = queue.batches[0]
    if not first.pieces:
        return None
    full = len(queue.batches) > 1 or first.rows >= queue.parameters.batch_rows
    return first.opened_s + (0.0 if full else queue.parameters.batch_timeout_s)


def withdraw(queue: Queue, tickets: Collection[int]) -> Queue:
    """Return the queue without the requests of `tickets`, whose callers have gone."""
    kept = []
    for batch in queue.batches:
        pieces = tuple(piece for piece in batch.pieces if piece.ticket not in tickets)
        kept.append(batch if len(pieces) == len(batch.pieces) else QueuedBatch(
            pieces, sum(piece.rows for piece in pieces), batch.opened_s if pieces else 0.0))
    *closed, last = kept
    return Queue(queue.parameters, (*(batch for batch in closed if batch.pieces), last))


def next_queue(queues: Sequence[Queue], start: int, *, now_s: float) -> int | None:
    """Return the index of the first queue from `start` on, around, that has a batch (BA24)."""
    order: Iterable[int] = (*range(start, len(queues)), *range(start))
    for index in order:
        when = ready_at(queues[index])
        if when is not None and when <= now_s:
            return index
    return None


def drop_expired(batch: QueuedBatch, *, now_s: float,
                 ) -> tuple[tuple[Piece, ...], tuple[Piece, ...]]:
    """Return (pieces to run, pieces whose time ran out while they waited) (BA17)."""
    live: list[Piece] = []
    late: list[Piece] = []
    for piece in batch.pieces:
        in_time = piece.deadline_s is None or piece.deadline_s > now_s
        (live if in_time else late).append(piece)
    return tuple(live), tuple(late)


def timed_out() -> Overloaded:
    """Return the answer to a request whose time ran out while it waited (BA17)."""
    return Overloaded(TIMED_OUT_IN_QUEUE)


def timeout_s(deadlines: Iterable[float | None], *, now_s: float) -> float | None:
    """Return how long a batch may run: the largest time left of one or more (BA18); None: no limit.

    Args:
        deadlines: of its requests, on the clock of `now_s`; None for none.
    """
    latest = max(math.inf if deadline is None else deadline for deadline in deadlines)
    return None if latest == math.inf else latest - now_s


def padded_rows(rows: int, allowed: Sequence[int]) -> int:
    """Return the rows that a batch is filled up to: the first allowed size that holds it (BA07)."""
    return next((size for size in allowed if size >= rows), rows)
