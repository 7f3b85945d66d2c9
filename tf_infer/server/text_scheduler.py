"""TextScheduler: our own batching, for models with our manifest. A caller sees only speed.

The decisions are `batching.py`; this is the loop around them. A batch is sent whenever a worker is
free and somebody waits, and fills while all are busy. What cannot be joined without a caller
noticing (an output whose width depends on the rows beside it, inputs that do not fit the manifest)
goes to the direct scheduler, alone.

To tell 32 callers takes milliseconds, in which a version that computes one batch at a time computes
none. So where as many others wait, another thread tells, and the worker takes its next batch. Where
fewer do, that would be a small one: callers who have been told ask again. Versions that compute two
batches at once are busy with the other one meanwhile.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

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
from tf_infer.server.contracts import Arrays, Exclusive, Servable
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
from tf_infer.server.threads import ElasticThreads

MAX_KINDS = 1000
LEAST_TIME_S = 0.001
FEW = 4  # callers, whom to tell takes less than to wake a thread for it
MOST_TELLERS = 16  # one, unless a caller is told by what waits: replies.py

Outcomes = Sequence["Arrays | ServingError"]


class _Kind:
    """What the jobs of a batch have in common: version, signature, outputs, form of their inputs.

    Attributes:
        manifest: of the version.
        bytes_per_token: of its texts; see `rows.longest_row`.
        exclusive: whether no two batches of the version run at once.
        limits: of a batch, as far as its runs have shown what they cost.
    """

    __slots__ = ("_pace", "bytes_per_token", "exclusive", "limits", "manifest")

    def __init__(self, manifest: ModelManifest, *, exclusive: bool) -> None:
        self.manifest, self.exclusive, self._pace = manifest, exclusive, Pace()
        self.bytes_per_token = bytes_per_token(manifest.task.codec)
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
        self._held: dict[Servable, _Place] = {}  # run the batch of that one, and no other
        self._kinds: weakref.WeakKeyDictionary[Servable, dict[Hashable, _Kind]] = (
            weakref.WeakKeyDictionary())
        self._lock = threading.Lock()  # taken for each call: a condition's own way costs more
        self._changed = threading.Condition(self._lock)
        self._idle = 0  # workers that wait for a change
        self._closed = False
        self._tellers = ElasticThreads(1, MOST_TELLERS, name="tf-infer-tell")
        self._working = workers
        for number in range(workers):
            threading.Thread(target=self._work, daemon=True,
                             name=f"tf-infer-batch-{number}").start()

    def submit(self, job: Job) -> None:
        """See `Scheduler.submit`."""
        run, servable = job.run, job.servable
        key = run.signature, run.outputs, rows.form_of(run.inputs)
        kind = self._kinds.get(servable, {}).get(key)  # there is one: what is like it was joinable
        if kind is None:
            manifest = joinable(job)
            if manifest is not None:
                with self._lock:
                    kind = self._kind(servable, manifest, key)
        count = None if kind is None else _common_rows(run.inputs)
        if kind is None or count is None:
            self._alone.submit(job)
            return
        cost = rows.longest_row(run.inputs, bytes_per_token=kind.bytes_per_token)
        self._counts.add(job.model)
        with self._lock:
            ticket = next(self._tickets)
            self._places[ticket] = _Place(job, Waiting(ticket, kind, count, cost))
            self._numbers[job] = ticket
            # Of a version that is held, who releases it wakes a worker.
            if self._idle and servable not in self._held:
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
        while self._take_turn():
            pass

    def _take_turn(self) -> bool:
        """Run the next batch when there is one; False at the end.

        What a batch holds, its version too, goes with the frame of its turn: a worker that waits
        keeps nothing, and nothing large is freed while the lock is held.
        """
        with self._changed:
            while (first := self._first()) is None and not (self._closed and not self._places):
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            if first is None:
                self._working -= 1
                if not self._working:  # nobody has anything to tell any more
                    self._tellers.close(wait=False)
                return False
            taken, batch = self._take(first)
        self._counts.remove(first.job.model, len(taken))
        try:
            self._run(first, taken, batch)
        finally:
            self._let_go(first, wake=False)  # this thread itself takes the next batch
        return True

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
            self._held[first.job.servable] = first
        return taken, batch

    def _let_go(self, first: _Place, *, wake: bool) -> None:
        """Let a version take a batch again unless it does already, and wake a worker for it."""
        servable = first.job.servable
        if self._held.get(servable) is first:
            with self._changed:
                del self._held[servable]
                if self._closed:
                    self._changed.notify_all()
                elif wake and self._places:
                    self._changed.notify()

    def _run(self, first: _Place, taken: Sequence[_Place], batch: Batch) -> None:
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
        seconds = _run_together(jobs, counts, functools.partial(self._tell, first))
        if seconds is not None and len(left) == len(taken):
            _kind_of(left[0]).seen(batch.rows * batch.width, seconds)
        observed = jobs, counts, sum(counts)
        teller = self._teller(first, jobs)
        if teller is None:
            self._observe(*observed)
        else:
            teller(self._observe, *observed)

    def _tell(self, first: _Place, jobs: Sequence[Job], outcomes: Outcomes, *, last: bool) -> None:
        """Tell callers of the batch of `first` what came of their jobs; see `_Tell`."""
        now_s = time.monotonic()
        for job in jobs:
            job.run_s = now_s - job.started_s
        teller = self._teller(first, jobs)
        if teller is not None:
            teller(_end, jobs, outcomes)
            return
        if last:
            self._let_go(first, wake=True)
        _end(jobs, outcomes)

    def _teller(self, first: _Place, jobs: Sequence[Job]) -> Callable[..., None] | None:
        """Return what lets another thread call a function; None where that is not worth it."""
        wanted = _kind_of(first).exclusive and FEW < len(jobs) <= len(self._places)
        return self._tellers.start if wanted else None


def _kind_of(place: _Place) -> _Kind:
    kind = place.waiting.key
    assert isinstance(kind, _Kind)
    return kind


class _Tell(Protocol):
    def __call__(self, jobs: Sequence[Job], outcomes: Outcomes, *, last: bool) -> None:
        """Tell callers.

        Args:
            jobs: that have run together.
            outcomes: of each.
            last: whether no other run of their batch is to come.
        """


def _run_together(jobs: Sequence[Job], counts: Sequence[int], tell: _Tell, *, last: bool = True,
                  ) -> float | None:
    """Run jobs as one; when that fails, as halves, so that a bad row fails alone.

    Args:
        jobs: of one batch.
        counts: rows of each.
        tell: what came of them.
        last: whether no run of their batch is to come.

    Returns:
        How long the run took, in seconds; None when it failed.
    """
    began_s = time.monotonic()
    if len(jobs) == 1:
        outcome = run_alone(jobs[0])
        seconds = time.monotonic() - began_s
        tell(jobs, [outcome], last=last)
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
            _run_together([jobs[i] for i in half], [counts[i] for i in half], tell,
                          last=last and half is halves[-1])
        if not halves:
            tell(jobs, [failure] * len(jobs), last=last)
        return None
    seconds = time.monotonic() - began_s
    tell(jobs, parts, last=last)
    return seconds


def _end(jobs: Sequence[Job], outcomes: Outcomes) -> None:
    for job, outcome in zip(jobs, outcomes):
        job.end(outcome)


def joinable(job: Job) -> ModelManifest | None:
    """Return the manifest of a job's version; None where it must run alone.

    What has the signature, outputs and form of inputs of a job that may be joined may be, too, if
    its inputs have rows, and all of them as many.
    """
    manifest = job.servable.manifest
    spec = None if manifest is None else _spec(manifest, job.run.signature)
    if manifest is None or spec is None:
        return None
    wanted = set(job.run.outputs)
    if any(None in output.shape[1:] for output in spec.outputs if output.name in wanted):
        return None
    inputs = job.run.inputs
    if len(inputs) != len(spec.inputs) or not wanted or not all(
            tensor.name in inputs and _fits(inputs[tensor.name], tensor) for tensor in spec.inputs):
        return None
    return manifest


def _common_rows(inputs: Mapping[str, np.ndarray]) -> int | None:
    """Return how many rows inputs have; None where one has no dimension, or another number."""
    sizes = {array.shape[:1] for array in inputs.values()}
    only = sizes.pop() if len(sizes) == 1 else ()
    return only[0] if only else None


def _spec(manifest: ModelManifest, name: str) -> SignatureSpec | None:
    return next((spec for spec in manifest.signatures if spec.name == name), None)


def _fits(array: np.ndarray, tensor: TensorSpec) -> bool:
    shape, dtype = array.shape, array.dtype
    return (len(shape) == len(tensor.shape) > 0
            and (dtype.kind == "O" if tensor.dtype == "string" else dtype.name == tensor.dtype)
            and all(want in (None, have) for want, have in zip(tensor.shape[1:], shape[1:])))
