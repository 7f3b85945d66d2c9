"""TextScheduler: our own batching, for models with our manifest. A caller sees only speed.

The decisions are `batching.py`; this is the loop around them. A batch is sent whenever a worker is
free and somebody waits, and fills while all are busy. What cannot be joined without a caller
noticing (an output whose width depends on the rows beside it, inputs that do not fit the manifest)
goes to the direct scheduler, alone.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from tf_infer.errors import DeadlineExceeded, ServingError
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server import rows
from tf_infer.server.batching import (
    TextLimits,
    Waiting,
    after_failure,
    bytes_per_token,
    limits_for,
    next_batch,
)
from tf_infer.server.scheduler import (
    TIMED_OUT,
    Job,
    Observe,
    Scheduler,
    WaitingCounts,
    as_serving_error,
    run_alone,
    run_for,
    unobserved,
)


class _Place(NamedTuple):
    """A job that waits, as the decisions see it, and the limits of its model."""

    job: Job
    waiting: Waiting
    limits: TextLimits


class TextScheduler:
    """See the module.

    Args:
        workers: batches that run at once.
        counts: of the jobs that wait.
        alone: takes what is not to be joined.
        observe: told of every batch.
    """

    def __init__(self, workers: int, counts: WaitingCounts, alone: Scheduler,
                 observe: Observe = unobserved) -> None:
        self._counts, self._alone, self._observe = counts, alone, observe
        self._tickets = itertools.count()
        self._places: dict[int, _Place] = {}  # by ticket, in the order of arrival
        self._numbers: dict[Job, int] = {}
        self._changed = threading.Condition(threading.Lock())
        self._closed = False
        for number in range(workers):
            threading.Thread(target=self._work, daemon=True,
                             name=f"tf-infer-batch-{number}").start()

    def submit(self, job: Job) -> None:
        """See `Scheduler.submit`."""
        form = joinable(job)
        if form is None:
            self._alone.submit(job)
            return
        key, count, limits = form
        self._counts.add(job.model)
        ticket = next(self._tickets)
        place = _Place(job, Waiting(ticket, key, count, cost_of(job), job.deadline_s), limits)
        with self._changed:
            self._places[ticket] = place
            self._numbers[job] = ticket
            self._changed.notify()

    def give_up(self, job: Job, error: ServingError) -> bool:
        """See `Scheduler.give_up`."""
        with self._changed:
            ticket = self._numbers.pop(job, None)
            if ticket is not None:
                del self._places[ticket]
        if ticket is None:
            return self._alone.give_up(job, error)
        self._counts.remove(job.model)
        job.end(error)
        return True

    def close(self) -> None:
        """See `Scheduler.close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._places and not self._closed:
                    self._changed.wait()
                if not self._places:
                    return
                taken = self._take()
            for place in taken:
                self._counts.remove(place.job.model)
            self._run([place.job for place in taken],
                      [place.waiting.rows for place in taken])

    def _take(self) -> list[_Place]:
        """Take the next batch out of those that wait; called with the lock held."""
        first = next(iter(self._places.values()))
        batch = next_batch((place.waiting for place in self._places.values()), first.limits)
        assert batch is not None
        taken = [self._places.pop(ticket) for ticket in batch.tickets]
        for place in taken:
            del self._numbers[place.job]
        return taken

    def _run(self, jobs: Sequence[Job], counts: Sequence[int]) -> None:
        now_s = time.monotonic()
        late = [job for job in jobs if job.expired(now_s)]
        for job in late:
            job.end(DeadlineExceeded(TIMED_OUT))
        left = [(job, count) for job, count in zip(jobs, counts) if job not in late]
        if left:
            jobs, counts = zip(*left)
            for job in jobs:
                job.started_s = now_s
            self._run_together(jobs, counts)
            self._observe(jobs, counts, sum(counts))

    def _run_together(self, jobs: Sequence[Job], counts: Sequence[int]) -> None:
        """Run jobs as one; when that fails, as halves, so that a bad row fails alone."""
        if len(jobs) == 1:
            jobs[0].end(run_alone(jobs[0]))
            return
        try:
            outputs = run_for(jobs, rows.join([job.run.inputs for job in jobs]),
                              most_time([job.deadline_s for job in jobs]))
            parts = rows.split(outputs, counts)
        except Exception as error:
            failure = as_serving_error(error, "a batch")
            halves = after_failure(range(len(jobs)), failure.code)
            for half in halves:
                self._run_together([jobs[i] for i in half], [counts[i] for i in half])
            if not halves:
                for job in jobs:
                    job.end(failure)
            return
        for job, part in zip(jobs, parts):
            job.end(part)


def most_time(deadlines: Sequence[float | None]) -> float | None:
    """Return how long a batch may run: the largest time left; None for no limit."""
    if None in deadlines:
        return None
    return max(0.001, max(d for d in deadlines if d is not None) - time.monotonic())


def joinable(job: Job) -> tuple[Hashable, int, TextLimits] | None:
    """Return (what its companions must share, its rows, limits), or None when it must run alone."""
    manifest = job.servable.manifest
    spec = None if manifest is None else _spec(manifest, job.run.signature)
    if manifest is None or spec is None:
        return None
    wanted = set(job.run.outputs)
    if any(None in output.shape[1:] for output in spec.outputs if output.name in wanted):
        return None
    inputs = job.run.inputs
    if len(inputs) != len(spec.inputs) or not all(
            tensor.name in inputs and _fits(inputs[tensor.name], tensor) for tensor in spec.inputs):
        return None
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) != 1 or not wanted:
        return None
    key = (id(job.servable), job.run.signature, job.run.outputs, rows.form_of(inputs))
    return key, sizes.pop(), limits_for(manifest.grid, compiled=manifest.compiled == "xla")


def _spec(manifest: ModelManifest, name: str) -> SignatureSpec | None:
    return next((spec for spec in manifest.signatures if spec.name == name), None)


def _fits(array: np.ndarray, tensor: TensorSpec) -> bool:
    shape, dtype = array.shape, array.dtype
    return (len(shape) == len(tensor.shape) > 0
            and (dtype.kind == "O" if tensor.dtype == "string" else dtype.name == tensor.dtype)
            and all(want in (None, have) for want, have in zip(tensor.shape[1:], shape[1:])))


def cost_of(job: Job) -> int:
    """Return the estimated tokens of a job's longest row."""
    manifest = job.servable.manifest
    assert manifest is not None
    return rows.longest_row(job.run.inputs,
                            bytes_per_token=bytes_per_token(manifest.task.codec))
