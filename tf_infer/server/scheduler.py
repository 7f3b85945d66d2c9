"""Schedulers: what stands between a request's runs and the servable that runs them.

A `Job` is one run on its way. A scheduler takes it, never blocks the giver, and ends it exactly
once: on one of its own threads, in `give_up`, or in `submit` where the run takes next to nothing.
`DirectScheduler` runs every job by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, cast

import numpy as np

from tf_infer.errors import Code, DeadlineExceeded, Overloaded, ServerFailure, ServingError
from tf_infer.server.contracts import Arrays, Quick, Run, Servable, StageTimes, Traceable
from tf_infer.server.logs import event, place
from tf_infer.server.threads import ElasticThreads

TIMED_OUT = "Timed out waiting for notification"

# jobs that ran as one, the rows of each, and the rows that were run
Observe = Callable[["Sequence[Job]", "Sequence[int]", int], None]


def unobserved(jobs: Sequence[Job], counts: Sequence[int], padded_rows: int) -> None:
    """Tell nobody of a batch."""


# outputs, or what went wrong instead
Ended = Callable[["Job", "Arrays | ServingError"], None]


class Job:
    """One run on its way.

    Attributes:
        model: name of the model, for limits and metrics.
        servable, run: what runs where.
        deadline_s: on the clock of `time.monotonic`; None for none (LI05).
        queued_s, started_s: when it came, and when its run began (0.0: not yet), on that clock.
        run_s: how long its run took.
        traced: whether its caller wants to know the stages of the run.
        stages: how long they took; None where nobody asked, or the servable cannot tell.
    """

    __slots__ = ("_ended", "deadline_s", "model", "queued_s", "run", "run_s", "servable",
                 "stages", "started_s", "traced")

    def __init__(self, model: str, servable: Servable, run: Run, deadline_s: float | None,
                 ended: Ended, *, traced: bool = False) -> None:
        self.model, self.servable, self.run, self.deadline_s = model, servable, run, deadline_s
        self.queued_s, self.started_s, self.run_s = time.monotonic(), 0.0, 0.0
        self.traced = traced
        self.stages: StageTimes | None = None
        self._ended = ended

    def end(self, outcome: Arrays | ServingError) -> None:
        """Tell the outcome; only the scheduler that has the job calls it, once."""
        if self.started_s and not self.run_s:  # else it was told before
            self.run_s = time.monotonic() - self.started_s
        self._ended(self, outcome)

    def expired(self, now_s: float) -> bool:
        """Whether its deadline has passed."""
        return self.deadline_s is not None and now_s >= self.deadline_s


class Scheduler(Protocol):
    """See the module."""

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            ServingError: it is refused (the queue is full, it can never be run).
        """

    def give_up(self, job: Job, error: ServingError) -> bool:
        """End a job that still waits, and return True; False when it runs or has ended."""

    def close(self) -> None:
        """End the threads when what they have is done."""


def run_alone(job: Job, quick: Callable[[], Arrays] | None = None) -> Arrays | ServingError:
    """Run one job in the time it has left, by `quick` if given; return what came of it."""
    job.started_s = time.monotonic()
    left = None if job.deadline_s is None else job.deadline_s - job.started_s
    if left is not None and left <= 0:
        return DeadlineExceeded(TIMED_OUT)
    try:
        return run_for([job], job.run.inputs, left) if quick is None else quick()
    except Exception as error:
        return as_serving_error(error, "a run")


def run_for(jobs: Sequence[Job], inputs: Mapping[str, np.ndarray], timeout_s: float | None,
            ) -> Arrays:
    """Run what `jobs` have in common once, for all of them; traced when one of them asks for it.

    Args:
        jobs: of the same signature and outputs.
        inputs: of them all.
        timeout_s: see `Servable.run`.
    """
    servable, run = jobs[0].servable, jobs[0].run
    asking = [job for job in jobs if job.traced]
    if not asking or not isinstance(servable, Traceable):
        return servable.run(run.signature, inputs, outputs=run.outputs, timeout_s=timeout_s)
    outputs, stages = servable.run_traced(run.signature, inputs, outputs=run.outputs,
                                          timeout_s=timeout_s)
    for job in asking:  # a job may run in several pieces
        job.stages = stages if job.stages is None else job.stages + stages
    return outputs


def as_serving_error(error: BaseException, what: str) -> ServingError:
    """Return the error that goes back to the caller; it forgets where it was raised.

    One that is none of ours is logged by type and place: its text may hold the caller's data.
    """
    found = error if isinstance(error, ServingError) else ServerFailure(
        f"{type(error).__name__} in the server; see its log.")
    if found is not error:
        event("fault", logging.ERROR, where=what, error=type(error).__name__, at=place(error))
    _forget_frames(error)
    return found


def _forget_frames(error: BaseException) -> None:
    """Let go of the frames that an error, and what it came from, went through.

    They hold the jobs of a batch and their texts, and are held by what they hold: all of it would
    stay until a collection.
    """
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            chain += [one.__cause__, one.__context__]


def quick_run(job: Job) -> Callable[[], Arrays] | None:
    """Return what does a run that takes less than handing it over; see `contracts.Quick`."""
    if job.traced or not hasattr(job.servable, "quick"):
        return None
    return cast(Quick, job.servable).quick(
        job.run, None if job.deadline_s is None else job.deadline_s - time.monotonic())


class WaitingCounts:
    """Counts the jobs that wait, by model, and refuses more than a model may have.

    Args:
        most: of one model; 0 for no limit.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, model: str) -> None:
        """Count one more.

        Raises:
            Overloaded: RESOURCE_EXHAUSTED, the model has as many as it may.
        """
        with self._lock:
            if self._most and self._counts[model] >= self._most:
                raise Overloaded(f"The queue of model {model} is full: {self._most} requests wait. "
                                 "Try again later.", code=Code.RESOURCE_EXHAUSTED)
            self._counts[model] += 1

    def remove(self, model: str, count: int = 1) -> None:
        """Count one less, or some."""
        with self._lock:
            self._counts[model] -= count
            if not self._counts[model]:
                del self._counts[model]

    def count(self, model: str) -> int:
        """Return how many wait for a model."""
        with self._lock:
            return self._counts[model]


class DirectScheduler:
    """Every job in a thread of its own turn, in the order they come, but for quick ones.

    Args:
        core, most: threads that stay, and threads at most: see threads.py.
        waiting: counts those that no thread has yet.
    """

    def __init__(self, core: int, most: int, waiting: WaitingCounts) -> None:
        self._pool = ElasticThreads(core, most, name="tf-infer-run")
        self._waiting = waiting
        self._lock = threading.Lock()
        self._queued: set[Job] = set()

    def submit(self, job: Job) -> None:
        """See `Scheduler.submit`."""
        quick = quick_run(job)
        if quick is not None:
            job.end(run_alone(job, quick))
            return
        self._waiting.add(job.model)
        with self._lock:
            self._queued.add(job)
        self._pool.start(self._work, job)

    def _take(self, job: Job) -> bool:
        with self._lock:
            if job not in self._queued:
                return False
            self._queued.discard(job)
        self._waiting.remove(job.model)
        return True

    def _work(self, job: Job) -> None:
        if self._take(job):
            job.end(run_alone(job))

    def give_up(self, job: Job, error: ServingError) -> bool:
        """See `Scheduler.give_up`."""
        if not self._take(job):
            return False
        job.end(error)
        return True

    def close(self) -> None:
        """See `Scheduler.close`."""
        self._pool.close(wait=False)
