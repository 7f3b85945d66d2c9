"""The one path of every request, whatever its protocol: resolve, plan, schedule, answer.

A protocol turns its message into a `Call`. `Pipeline.submit` finds the version, lends it, plans the
runs and hands them to a scheduler; no thread is held while they wait or run. Later parts (who may
call) have their places here and nowhere else.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tf_infer.errors import Cancelled, ServingError
from tf_infer.server.contracts import Arrays, Plan, Run, Servable, Signatures, StageTimes
from tf_infer.server.metrics import Metrics
from tf_infer.server.scheduler import Job, Scheduler, as_serving_error
from tf_infer.server.versions import Lease, ModelRef, Versions

T = TypeVar("T")

TAKES_EXAMPLES = frozenset({"Classify", "Regress", "MultiInference"})


@dataclass(slots=True)
class Progress:
    """How far a call got, for metrics and logs of calls that fail.

    Attributes:
        version: that was lent, None before.
        signature: of its first run, empty before the runs are planned.
        rows: of its runs.
    """

    version: int | None = None
    signature: str = ""
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, free of its protocol.

    Attributes:
        method: its name in logs ("Predict").
        model: which model and version.
        plan: what to run, given the version's signatures, and what to make of it.
        deadline_s: on the clock of `time.monotonic`; None for none (LI05).
        entrypoint: the protocol, "GRPC" or "REST".
        traced: whether the answer shall tell the stages of its runs.
        progress: written by the pipeline.
    """

    method: str
    model: ModelRef
    plan: Callable[[Signatures], Plan[T]]
    deadline_s: float | None = None
    entrypoint: str = "GRPC"
    traced: bool = False
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came of a call, and the version that computed it (VR07, GE09).

    Attributes:
        queue_s: how long its runs waited, the longest of them.
        run_s: how long they ran, the longest of them.
        stages: what they spent in each stage, all of them; None unless asked for, or not known.
    """

    name: str
    version: int
    value: T
    queue_s: float = 0.0
    run_s: float = 0.0
    stages: StageTimes | None = None


class Ticket:
    """A call that was submitted; `give_up` ends it for its caller."""

    def __init__(self, giving_up: Callable[[ServingError | None], bool]) -> None:
        self._giving_up = giving_up

    def give_up(self, error: ServingError | None = None) -> bool:
        """Answer the call with an error now; return False when it has been answered already.

        Runs that wait are dropped; one that runs goes on for its neighbours, or until its deadline.
        """
        return self._giving_up(error)


class _Request(Generic[T]):
    """One call on its way: lends a version, schedules the runs, answers exactly once."""

    def __init__(self, pipeline: Pipeline, call: Call[T],
                 done: Callable[[Answer[T] | ServingError], None]) -> None:
        self._pipeline, self._call = pipeline, call
        self._done = [done]  # popped by whoever answers: a list's pop is atomic
        self._lock = threading.Lock()
        self._jobs: list[Job] = []
        self._outcomes: dict[int, Arrays] = {}
        self._open = 1  # what still holds the lease: `start` itself, then the jobs
        self._lease: Lease | None = None
        self._plan: Plan[T] | None = None
        self._scheduler: Scheduler | None = None

    def start(self) -> None:
        """Find, plan, schedule; what fails answers the call."""
        try:
            self._lease = lease = self._pipeline.versions.borrow(self._call.model)
            self._call.progress.version = lease.version
            self._plan = plan = self._call.plan(lease.servable.signatures)
            if plan.runs:
                self._call.progress.signature = plan.runs[0].signature
                self._call.progress.rows = sum(map(_rows, plan.runs))
            self._scheduler = scheduler = self._pipeline.scheduler_for(lease.servable)
            for run in plan.runs:
                self._jobs.append(Job(lease.name, lease.servable, run, self._call.deadline_s,
                                      self._job_ended, traced=self._call.traced))
            for job in self._jobs:
                with self._lock:
                    self._open += 1
                try:
                    scheduler.submit(job)
                except BaseException:
                    self._close_one()
                    raise
            if not plan.runs:
                self._finish()
        except Exception as error:
            self._answer(as_serving_error(error, self._call.method))
        finally:
            self._close_one()

    def _job_ended(self, job: Job, outcome: Arrays | ServingError) -> None:
        try:
            if isinstance(outcome, ServingError):
                self._answer(outcome)
                return
            with self._lock:
                self._outcomes[id(job)] = outcome
                whole = len(self._outcomes) == len(self._jobs)
            if whole:
                self._finish()
        finally:
            self._close_one()

    def _finish(self) -> None:
        assert self._plan is not None and self._lease is not None
        if not self._done:
            return
        try:
            jobs = self._jobs
            value = self._plan.finish([self._outcomes[id(job)] for job in jobs])
            answer = Answer(
                self._lease.name, self._lease.version, value,
                max([job.started_s - job.queued_s for job in jobs], default=0.0),
                max([job.run_s for job in jobs], default=0.0), _all_stages(jobs))
            if jobs:
                self._measure(answer)
        except Exception as error:
            self._answer(as_serving_error(error, self._call.method))
            return
        self._answer(answer)

    def _measure(self, answer: Answer[T]) -> None:
        metrics, signature = self._pipeline.metrics, self._call.progress.signature
        metrics.runtime(answer.name, self._call.method, answer.queue_s + answer.run_s)
        metrics.stage(answer.name, answer.version, signature, "queue", answer.queue_s)
        metrics.stage(answer.name, answer.version, signature, "run", answer.run_s)
        if answer.stages is not None:
            for stage, seconds in (("tokenize", answer.stages.tokenize_s),
                                   ("model", answer.stages.model_s),
                                   ("decode", answer.stages.decode_s)):
                metrics.stage(answer.name, answer.version, signature, stage, seconds)
        if self._call.method in TAKES_EXAMPLES:
            metrics.examples(answer.name, _rows(self._jobs[0].run))

    def _answer(self, outcome: Answer[T] | ServingError) -> bool:
        try:
            done = self._done.pop()
        except IndexError:
            return False
        try:
            done(outcome)
        except Exception as error:
            as_serving_error(error, f"the answer of {self._call.method}")
        return True

    def give_up(self, error: ServingError | None) -> bool:
        """See `Ticket.give_up`; a scheduler may have its own text for a job that waits (BA17)."""
        if not self._done:  # so ends every call over gRPC
            return False
        error = error or Cancelled("The caller has gone, or its deadline has passed.")
        for job in self._jobs:
            if self._scheduler is not None:
                self._scheduler.give_up(job, error)
        self._answer(error)
        return True

    def _close_one(self) -> None:
        with self._lock:
            self._open -= 1
            last = self._open == 0
        if last:
            self._jobs, self._outcomes = [], {}  # jobs know us: arrays would wait for a collection
            if self._lease is not None:
                self._pipeline.versions.give_back(self._lease)
            self._pipeline.left()


def _rows(run: Run) -> int:
    """Return how many rows a run has, going by its first input."""
    first = next(iter(run.inputs.values()), None)
    return 0 if first is None or not first.ndim else len(first)


def _all_stages(jobs: Sequence[Job]) -> StageTimes | None:
    known = [job.stages for job in jobs if job.stages is not None]
    return functools.reduce(operator.add, known) if known else None


class Pipeline:
    """Answers calls from the versions that are loaded.

    Args:
        versions: where loaded versions are lent from.
        scheduler_for: which scheduler a version's runs go to.
        metrics: hears of every answer's times; the protocols tell it of the requests.
    """

    def __init__(self, versions: Versions, scheduler_for: Callable[[Servable], Scheduler],
                 metrics: Metrics | None = None) -> None:
        self.versions = versions
        self.scheduler_for = scheduler_for
        self.metrics = metrics or Metrics(page=False)
        self._inside = 0
        self._lock = threading.Lock()  # taken for each call: a condition's own way costs more
        self._left = threading.Condition(self._lock)

    def submit(self, call: Call[T], done: Callable[[Answer[T] | ServingError], None]) -> Ticket:
        """Start answering a call; `done` gets the answer, or the error with code and text.

        `done` is called exactly once: on this thread when the call fails early or needs no run,
        else on a scheduler's thread, or in `Ticket.give_up`. It must not block.
        """
        with self._lock:
            self._inside += 1
        request = _Request(self, call, done)
        request.start()
        return Ticket(request.give_up)

    def in_flight(self) -> int:
        """Return how many calls are being answered."""
        return self._inside

    def left(self) -> None:
        """Count a call that has given back all it held."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._left.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no call is being answered; return whether that came true in time."""
        with self._left:
            return self._left.wait_for(lambda: self._inside == 0, timeout_s)
