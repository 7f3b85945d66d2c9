"""The one path of every request, whatever its protocol: resolve, admit, run, answer.

A protocol turns its message into a `Call`; `Pipeline.answer` finds the version, lends it, and lets
the call's own work run signatures on it within the deadline and the limit of runs at once. Later
parts (who may call, batching, metrics) have their places here and nowhere else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from tf_infer.errors import DeadlineExceeded, ServerUnavailable
from tf_infer.server.contracts import Arrays, RunFn, Servable
from tf_infer.server.versions import Lease, ModelRef, Versions

log = logging.getLogger("tf_infer.server")
T = TypeVar("T")

TIMED_OUT = "Timed out waiting for notification"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, free of its protocol.

    Attributes:
        method: its name in logs ("Predict").
        model: which model and version.
        work: what to do with the version: gets its signatures and a `run`, returns the answer.
        deadline_s: on the clock of `time.monotonic`; None for none (LI05).
    """

    method: str
    model: ModelRef
    work: Callable[[Mapping[str, Any], RunFn], T]
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What came of a call, and the version that computed it (VR07, GE09)."""

    name: str
    version: int
    value: T


class Gate:
    """At most `running` inside at once and `waiting` before it; 0 running means no limit."""

    def __init__(self, running: int, waiting: int) -> None:
        self._running, self._waiting = running, waiting
        self._inside = self._before = 0
        self._freed = threading.Condition()

    @contextmanager
    def enter(self, deadline_s: float | None) -> Iterator[None]:
        """Wait for a place until `deadline_s`, hold it while the context is open.

        Raises:
            ServerUnavailable: too many wait already (the code of BA06).
            DeadlineExceeded: no place came free in time.
        """
        if not self._running:
            yield
            return
        with self._freed:
            if self._inside >= self._running:
                if self._before >= self._waiting:
                    raise ServerUnavailable("The queue of this server is full: "
                                            f"{self._before} requests wait. Try again later.")
                self._wait(deadline_s)
            self._inside += 1
        try:
            yield
        finally:
            with self._freed:
                self._inside -= 1
                self._freed.notify()

    def _wait(self, deadline_s: float | None) -> None:
        self._before += 1
        try:
            left = None if deadline_s is None else deadline_s - time.monotonic()
            if not self._freed.wait_for(lambda: self._inside < self._running, left):
                self._freed.notify()  # a place that was offered to this one goes to the next
                raise DeadlineExceeded(TIMED_OUT)
        finally:
            self._before -= 1


class Pipeline:
    """Answers calls from the versions that are loaded.

    Args:
        versions: where loaded versions are lent from.
        max_running, max_waiting: of the `Gate`.
    """

    def __init__(self, versions: Versions, *, max_running: int = 0,
                 max_waiting: int = 1000) -> None:
        self.versions = versions
        self._gate = Gate(max_running, max_waiting)
        self._inside = 0
        self._left = threading.Condition()

    def answer(self, call: Call[T]) -> Answer[T]:
        """Answer one call.

        Raises:
            ServingError: with the code and text that go back to the caller.
        """
        with self._counted(), self.versions.lease(call.model) as lease:
            def run(signature: str, inputs: Mapping[str, np.ndarray],
                    outputs: Sequence[str]) -> Arrays:
                return self._run(lease, signature, inputs, outputs, call.deadline_s)

            return Answer(lease.name, lease.version, call.work(lease.servable.signatures, run))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._left:
            self._inside += 1
        try:
            yield
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no call is being answered; return whether that came true in time."""
        with self._left:
            return self._left.wait_for(lambda: self._inside == 0, timeout_s)

    def _run(self, lease: Lease, signature: str, inputs: Mapping[str, np.ndarray],
             outputs: Sequence[str], deadline_s: float | None) -> Arrays:
        servable: Servable = lease.servable
        with self._gate.enter(deadline_s):
            left = None if deadline_s is None else deadline_s - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(TIMED_OUT)
            return servable.run(signature, inputs, outputs=outputs, timeout_s=left)
