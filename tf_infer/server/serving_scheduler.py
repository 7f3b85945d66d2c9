"""ServingScheduler: TensorFlow Serving's batching (`--enable_batching`), statements BA01 to BA26.

The queue and its rules are `serving_batching.py`; this is the loop around them. Every signature of
every version has a queue of its own; the threads are the server's (BA24).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable, Sequence

from tf_infer.errors import Code, DeadlineExceeded, InvalidRequest, ServingError
from tf_infer.server import rows
from tf_infer.server.contracts import Arrays
from tf_infer.server.scheduler import (
    Job,
    Observe,
    WaitingCounts,
    as_serving_error,
    run_for,
    unobserved,
)
from tf_infer.server.serving_batching import (
    BatchingParameters,
    Piece,
    Queue,
    QueuedBatch,
    drop_expired,
    enqueue,
    next_queue,
    padded_rows,
    ready_at,
    take,
    timed_out,
    timeout_s,
    withdraw,
)


class _Entry:
    """A job that waits or runs.

    Attributes:
        key, parameters: of its queue.
        rows: of the request; `taken` of them have left the queue.
        parts: what its pieces gave so far, by their first row.
        ended: whether its job has its outcome.
    """

    __slots__ = ("ended", "job", "key", "parameters", "parts", "rows", "taken")

    def __init__(self, job: Job, key: Hashable, parameters: BatchingParameters, count: int) -> None:
        self.job, self.key, self.parameters, self.rows = job, key, parameters, count
        self.parts: dict[int, Arrays] = {}
        self.taken, self.ended = 0, False


class ServingScheduler:
    """See the module.

    Args:
        threads: batches that run at once.
        name: begins the threads' names (BA26).
        counts: of the jobs that wait.
        observe: told of every batch.
    """

    def __init__(self, threads: int, counts: WaitingCounts, *, name: str = "batch_threads",
                 observe: Observe = unobserved) -> None:
        self._counts, self._observe = counts, observe
        self._tickets = itertools.count()
        self._entries: dict[int, _Entry] = {}
        self._numbers: dict[Job, int] = {}
        self._queues: dict[Hashable, Queue] = {}
        self._turn = 0
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        for number in range(threads):
            threading.Thread(target=self._work, daemon=True, name=f"{name}-{number}").start()

    def submit_with(self, job: Job, parameters: BatchingParameters) -> None:
        """Take a job of a version with these parameters; see `Scheduler.submit`."""
        count = rows.count_rows(job.run.inputs)
        key = (id(job.servable), job.run.signature, frozenset(job.run.outputs),
               rows.dtypes_of(job.run.inputs))
        self._counts.add(job.model)
        try:
            with self._changed:
                ticket = next(self._tickets)
                self._queues[key] = enqueue(
                    self._queues.get(key, Queue(parameters)),
                    Piece(ticket, 0, count, job.deadline_s), now_s=time.monotonic())
                self._entries[ticket] = _Entry(job, key, parameters, count)
                self._numbers[job] = ticket
                self._changed.notify()
        except ServingError:
            self._counts.remove(job.model)
            raise

    def give_up(self, job: Job, error: ServingError) -> bool:
        """See `Scheduler.give_up`; a deadline that passes in the queue is told as BA17 says."""
        with self._changed:
            ticket = self._numbers.pop(job, None)
            if ticket is None:
                return False
            entry = self._entries.pop(ticket)
            queue = withdraw(self._queues[entry.key], {ticket}) \
                if entry.key in self._queues else None
            self._keep(entry.key, queue)
        self._counts.remove(job.model)
        job.end(timed_out() if isinstance(error, DeadlineExceeded) else error)
        return True

    def close(self) -> None:
        """See `Scheduler.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _keep(self, key: Hashable, queue: Queue | None) -> None:
        """Store a queue, or forget it when it holds nothing; called with the lock held."""
        if queue is None or ready_at(queue) is None:
            self._queues.pop(key, None)
        else:
            self._queues[key] = queue

    def _work(self) -> None:
        while self._take_turn():
            pass

    def _take_turn(self) -> bool:
        """Run the next batch when it is due; False at the end.

        What a batch holds, its version too, goes with the frame of its turn: a thread that waits
        keeps nothing, and nothing large is freed while the lock is held.
        """
        with self._changed:
            found = self._wait()
        if found is None:
            return False
        self._run(*found)
        return True

    def _wait(self) -> tuple[QueuedBatch, dict[int, _Entry]] | None:
        """Wait for a batch that is due and take it; None at the end. Called with the lock held."""
        while True:
            now_s, keys = time.monotonic(), list(self._queues)
            queues = list(self._queues.values())
            index = 0 if self._closed and queues else next_queue(
                queues, self._turn % max(1, len(queues)), now_s=now_s)
            if index is not None:
                batch, rest = take(queues[index], now_s=now_s, closing=self._closed)
                assert batch is not None
                self._keep(keys[index], rest)
                self._turn = index + 1 if keys[index] in self._queues else index
                if self._queues:  # one submit can make several batches (BA21)
                    self._changed.notify()
                return batch, self._taken(batch)
            if self._closed:
                return None
            due = min((when for queue in queues if (when := ready_at(queue)) is not None),
                      default=None)
            self._changed.wait(None if due is None else max(0.0, due - now_s))

    def _taken(self, batch: QueuedBatch) -> dict[int, _Entry]:
        """Return the entries of a batch by ticket; called with the lock held."""
        found = {}
        for piece in batch.pieces:
            found[piece.ticket] = entry = self._entries[piece.ticket]
            entry.taken += piece.rows
            if self._numbers.pop(entry.job, None) is not None:
                self._counts.remove(entry.job.model)
            if entry.taken >= entry.rows:
                del self._entries[piece.ticket]
        return found

    def _run(self, batch: QueuedBatch, entries: dict[int, _Entry]) -> None:
        now_s = time.monotonic()
        pieces, late = drop_expired(batch, now_s=now_s)
        for piece in late:
            self._end(entries[piece.ticket], timed_out())
        if not pieces:
            return
        taken = [entries[piece.ticket] for piece in pieces]
        for entry in taken:
            entry.job.started_s = entry.job.started_s or now_s
        try:
            parts, size = _outputs(pieces, taken)
        except Exception as error:  # BA16
            failure = as_serving_error(error, "a batch")
            for entry in taken:
                self._end(entry, failure)
            return
        self._observe([entry.job for entry in taken], [piece.rows for piece in pieces], size)
        for entry, piece, part in zip(taken, pieces, parts):
            self._add(entry, piece.start, part, piece.rows)

    def _add(self, entry: _Entry, start: int, part: Arrays, count: int) -> None:
        """Note what one piece gave; the last one ends the job."""
        if count == entry.rows:
            self._end(entry, part)
            return
        with self._changed:
            entry.parts[start] = part
            ordered = [entry.parts[first] for first in sorted(entry.parts)]
        if sum(len(next(iter(one.values()))) for one in ordered) == entry.rows:
            self._end(entry, _put_together(ordered))

    def _end(self, entry: _Entry, outcome: Arrays | ServingError) -> None:
        with self._changed:
            ended, entry.ended = entry.ended, True
        if not ended:
            entry.job.end(outcome)


def _put_together(parts: Sequence[Arrays]) -> Arrays | ServingError:
    """Return the outputs of a request whose pieces ran apart (BA21)."""
    try:
        return rows.join(parts)
    except InvalidRequest:
        return InvalidRequest(
            "Outputs of the pieces of a split request differ in shape. Send fewer rows, or set "
            "enable_large_batch_splitting to false.", code=Code.FAILED_PRECONDITION)


def _outputs(pieces: Sequence[Piece], entries: Sequence[_Entry]) -> tuple[list[Arrays], int]:
    """Run pieces as one batch; return the outputs of each, and the rows that were run.

    Raises:
        Exception: whatever went wrong; it goes to every request of the batch.
    """
    parameters = entries[0].parameters
    total = sum(piece.rows for piece in pieces)
    size = padded_rows(total, parameters.allowed_batch_sizes)
    filled = size if size > total else None
    inputs = rows.join([rows.cut(entry.job.run.inputs, piece.start, piece.rows)
                        for entry, piece in zip(entries, pieces)], size=filled,
                       pad_variable_length=parameters.pad_variable_length_inputs)
    left = timeout_s([piece.deadline_s for piece in pieces], now_s=time.monotonic())
    outputs = run_for([entry.job for entry in entries], inputs,
                      None if left is None else max(0.001, left))
    return rows.split(outputs, [piece.rows for piece in pieces], size=filled), size

