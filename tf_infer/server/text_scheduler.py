"""TextScheduler: our own batching, for models with our manifest. A caller sees only speed.

The decisions are `batching.py`; this is the loop around them. A batch is sent whenever a worker is
free and somebody waits, and fills while all are busy. What cannot be joined without a caller
noticing (an output whose width depends on the rows beside it, inputs that do not fit the manifest)
goes to the direct scheduler, alone.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from tf_infer.errors import DeadlineExceeded, ServingError
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server import rows
from tf_infer.server.batching import (
    RUN_TOKENS,
    Batch,
    TextLimits,
    Waiting,
    after_failure,
    bytes_per_token,
    limits_for,
    next_batch,
)
from tf_infer.server.contracts import Exclusive, Servable
from tf_infer.server.pace import Pace
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
from tf_infer.server.serving_batching import timeout_s

MAX_KINDS = 1000
LEAST_TIME_S = 0.001


class _Kind:
    """What the jobs of a batch have in common: version, signature, outputs, form of their inputs.

    Attributes:
        manifest: of the version.
        exclusive: whether no two batches of the version run at once.
        limits: of a batch, as far as its runs have shown what they cost.
    """

    __slots__ = ("_pace", "exclusive", "limits", "manifest")

    def __init__(self, manifest: ModelManifest, *, exclusive: bool) -> None:
        self.manifest, self.exclusive, self._pace = manifest, exclusive, Pace()
        self.limits = self._limits()

    def _limits(self) -> TextLimits:
        return limits_for(self.manifest.grid, compiled=self.manifest.compiled == "xla",
                          run_tokens=self._pace.run_tokens(RUN_TOKENS))

    def seen(self, tokens: int, seconds: float) -> None:
        """Learn from a run; calls from several threads may lose one."""
        self._pace = self._pace.seen(tokens, seconds)
        self.limits = self._limits()


class _Place(NamedTuple):
    """A job that waits, and how the decisions see it; its key is its `_Kind`."""

    job: Job
    waiting: Waiting


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
        self._held: set[Servable] = set()  # that run a batch and take no other meanwhile
        self._kinds: weakref.WeakKeyDictionary[Servable, dict[Hashable, _Kind]] = (
            weakref.WeakKeyDictionary())
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
        manifest, key, count = form
        cost = rows.longest_row(job.run.inputs,
                                bytes_per_token=bytes_per_token(manifest.task.codec))
        self._counts.add(job.model)
        with self._changed:
            kind = self._kind(job.servable, manifest, key)
            ticket = next(self._tickets)
            self._places[ticket] = _Place(job, Waiting(ticket, kind, count, cost))
            self._numbers[job] = ticket
            if job.servable not in self._held:  # else who releases it wakes a worker
                self._changed.notify()

    def _kind(self, servable: Servable, manifest: ModelManifest, key: Hashable) -> _Kind:
        kinds = self._kinds.setdefault(servable, {})
        if key not in kinds:
            if len(kinds) >= MAX_KINDS:  # the forms of inputs are the callers' choice
                kinds.clear()
            kinds[key] = _Kind(manifest, exclusive=isinstance(servable, Exclusive))
        return kinds[key]

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
                while (first := self._first()) is None and not (self._closed and not self._places):
                    self._changed.wait()
                if first is None:
                    return
                taken, batch = self._take(first)
            for place in taken:
                self._counts.remove(place.job.model)
            let_go = _Once(functools.partial(self._let_go, first.job.servable))
            try:
                self._run(taken, batch, let_go)
            finally:
                let_go()

    def _first(self) -> _Place | None:
        """Return who has waited longest of those whose version takes a batch now; None for nobody.

        Called with the lock held, as `_take` is.
        """
        return next((place for place in self._places.values()
                     if place.job.servable not in self._held), None)

    def _take(self, first: _Place) -> tuple[list[_Place], Batch]:
        """Take the next batch out of those that wait, `first` in it."""
        kind = _kind_of(first)
        batch = next_batch((place.waiting for ticket, place in self._places.items()
                            if ticket >= first.waiting.ticket), kind.limits)
        assert batch is not None
        taken = [self._places.pop(ticket) for ticket in batch.tickets]
        for place in taken:
            del self._numbers[place.job]
        if kind.exclusive:
            self._held.add(first.job.servable)
        return taken, batch

    def _let_go(self, servable: Servable) -> None:
        """Let a version take a batch again; the worker that had it has its callers to tell."""
        if servable in self._held:
            with self._changed:
                self._held.discard(servable)
                if self._closed:
                    self._changed.notify_all()
                elif self._places:
                    self._changed.notify()

    def _run(self, taken: Sequence[_Place], batch: Batch, ran: Callable[[], None]) -> None:
        now_s = time.monotonic()
        for place in taken:
            if place.job.expired(now_s):
                place.job.end(DeadlineExceeded(TIMED_OUT))
            else:
                place.job.started_s = now_s
        left = [place for place in taken if place.job.started_s]
        if not left:
            return
        jobs, counts = [place.job for place in left], [place.waiting.rows for place in left]
        seconds = _run_together(jobs, counts, ran)
        if seconds is not None and len(left) == len(taken):
            _kind_of(left[0]).seen(batch.rows * batch.width, seconds)
        self._observe(jobs, counts, sum(counts))


def _kind_of(place: _Place) -> _Kind:
    kind = place.waiting.key
    assert isinstance(kind, _Kind)
    return kind


class _Once:
    """A function that is called at most once."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._left = [function]

    def __call__(self) -> None:
        if self._left:
            self._left.pop()()


def _run_together(jobs: Sequence[Job], counts: Sequence[int], ran: Callable[[], None],
                  ) -> float | None:
    """Run jobs as one; when that fails, as halves, so that a bad row fails alone.

    Args:
        jobs: of one batch.
        counts: rows of each.
        ran: called when all runs are done, before their callers are told: that takes a while.

    Returns:
        How long the run took, in seconds; None when it failed.
    """
    began_s = time.monotonic()
    if len(jobs) == 1:
        outcome = run_alone(jobs[0])
        seconds = time.monotonic() - began_s
        ran()
        jobs[0].end(outcome)
        return None if isinstance(outcome, ServingError) else seconds
    try:
        left = timeout_s([job.deadline_s for job in jobs], now_s=began_s)
        outputs = run_for(jobs, rows.join([job.run.inputs for job in jobs]),
                          None if left is None else max(LEAST_TIME_S, left))
        parts = rows.split(outputs, counts)
    except Exception as error:
        failure = as_serving_error(error, "a batch")
        halves = after_failure(range(len(jobs)), failure.code)
        for half in halves:
            _run_together([jobs[i] for i in half], [counts[i] for i in half], _nothing)
        ran()
        if not halves:
            for job in jobs:
                job.end(failure)
        return None
    seconds = time.monotonic() - began_s
    ran()
    for job, part in zip(jobs, parts):
        job.end(part)
    return seconds


def _nothing() -> None:
    """Some runs of a batch are done, and more are to come."""


def joinable(job: Job) -> tuple[ModelManifest, Hashable, int] | None:
    """Return (manifest, what its companions must share, rows), or None when it must run alone."""
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
    return manifest, (job.run.signature, job.run.outputs, rows.form_of(inputs)), sizes.pop()


def _spec(manifest: ModelManifest, name: str) -> SignatureSpec | None:
    return next((spec for spec in manifest.signatures if spec.name == name), None)


def _fits(array: np.ndarray, tensor: TensorSpec) -> bool:
    shape, dtype = array.shape, array.dtype
    return (len(shape) == len(tensor.shape) > 0
            and (dtype.kind == "O" if tensor.dtype == "string" else dtype.name == tensor.dtype)
            and all(want in (None, have) for want, have in zip(tensor.shape[1:], shape[1:])))
