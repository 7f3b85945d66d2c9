"""Send a server a load, closed or open loop, and say how long the answers took.

    load = closed_loop(lambda number: client.predict(...), callers=16, duration_s=5.0)
    print(load.calls_per_s, load.percentile_s(99))

Closed loop: each caller asks again as soon as it has its answer, so a slow server is asked less.
Open loop: calls are due at random times of a given rate, whatever the server does, and a latency
counts from the moment a call was due: waiting for a free caller is not left out.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_infer.errors import ConfigError, ServingError

Ask = Callable[[int], object]  # takes the number of the call
Watch = Callable[[float, int], object]  # takes the seconds since the start and the answers so far

WATCH_S = 0.2  # how often a watcher is told
LATE_S = 0.001  # a call that begins later than it was due, by more than the clock's grain


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Load:
    """What came of a load.

    Attributes:
        callers: that asked at the same time, at most.
        rate: calls a second that were due; None for a closed loop.
        elapsed_s: from the first call until the last answer.
        latencies_s: of the calls that were answered, ascending.
        failed: name of the status code -> calls that ended so.
        late: calls of an open loop that no caller was free for when they were due. Many of them
            mean that `callers` is too small for the rate.
        interrupted: by Ctrl-C; what had been asked until then was awaited.
    """

    callers: int
    rate: float | None = None
    elapsed_s: float
    latencies_s: np.ndarray
    failed: Mapping[str, int]
    late: int = 0
    interrupted: bool = False

    @property
    def calls_per_s(self) -> float:
        """Answered calls a second."""
        return len(self.latencies_s) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def percentile_s(self, percent: float) -> float:
        """Return the latency that `percent` of the answered calls did not exceed; NaN of none."""
        if not len(self.latencies_s):
            return float("nan")
        return float(np.percentile(self.latencies_s, percent, method="inverted_cdf"))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; seconds are in milliseconds."""
        times = {f"p{percent}_ms": round(1000 * self.percentile_s(percent), 3)
                 for percent in (50, 90, 99)} if len(self.latencies_s) else {}
        return {"callers": self.callers, "rate": self.rate, "elapsed_s": round(self.elapsed_s, 3),
                "answered": len(self.latencies_s), "failed": dict(self.failed), "late": self.late,
                "calls_per_s": round(self.calls_per_s, 1), **times}


def closed_loop(ask: Ask, *, callers: int, duration_s: float, watch: Watch | None = None) -> Load:
    """Let `callers` ask one call after the other for `duration_s`; those under way are awaited.

    Args:
        ask: sends call number n and waits for its answer; called by several threads at once. A
            ServingError is counted, anything else ends the load and is raised.
        callers: threads.
        duration_s: > 0.
        watch: is told how far it is, on the calling thread.

    In the main thread Ctrl-C ends the load early, and what came of it is returned.
    """
    _check(callers=callers, duration_s=duration_s)
    end_s = time.monotonic() + duration_s
    numbers = itertools.count()

    def now() -> Iterator[tuple[int, float]]:
        while (moment := time.monotonic()) < end_s:
            yield next(numbers), moment

    return _run(ask, [now() for _ in range(callers)], rate=None, watch=watch)


def open_loop(ask: Ask, *, callers: int, rate: float, duration_s: float, seed: int = 0,
              watch: Watch | None = None) -> Load:
    """Send calls at random times, `rate` a second in the mean, for `duration_s`.

    Args:
        ask: as of `closed_loop`.
        callers: threads; more than rate x latency of them.
        rate: > 0, calls a second.
        duration_s: > 0.
        seed: of the times.
        watch: as of `closed_loop`.
    """
    _check(callers=callers, duration_s=duration_s, rate=rate)
    started_s = time.monotonic()
    due = iter(enumerate(arrivals(rate, duration_s, seed=seed)))
    lock = threading.Lock()

    def shared() -> Iterator[tuple[int, float]]:
        while True:
            with lock:
                following = next(due, None)
            if following is None:
                return
            number, offset_s = following
            yield number, started_s + offset_s

    return _run(ask, [shared() for _ in range(callers)], rate=rate, watch=watch)


def arrivals(rate: float, duration_s: float, *, seed: int) -> np.ndarray:
    """Return ascending times in [0, duration_s) of a Poisson process, `rate` a second."""
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate * duration_s)
    return np.sort(generator.uniform(0.0, duration_s, count))


class _Caller:
    """One caller: asks what its calls tell it to, and notes what came of them."""

    def __init__(self, ask: Ask, calls: Iterator[tuple[int, float]], broken: threading.Event
                 ) -> None:
        self._ask, self._calls, self._broken = ask, calls, broken
        self.latencies_s: list[float] = []
        self.failed: Counter[str] = Counter()
        self.late = 0
        self.ended_s = 0.0
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            for number, due_s in self._calls:
                if self._broken.is_set():
                    return
                wait_s = due_s - time.monotonic()
                if wait_s > 0:
                    if self._broken.wait(wait_s):
                        return
                elif wait_s < -LATE_S:
                    self.late += 1
                self._one(number, due_s)
        except BaseException as fault:
            self.fault = fault
            self._broken.set()

    def _one(self, number: int, due_s: float) -> None:
        try:
            self._ask(number)
        except ServingError as error:
            self.failed[error.code.name] += 1
        else:
            self.latencies_s.append(time.monotonic() - due_s)
        self.ended_s = time.monotonic()


def _run(ask: Ask, calls: list[Iterator[tuple[int, float]]], *, rate: float | None,
         watch: Watch | None) -> Load:
    broken, started_s = threading.Event(), time.monotonic()
    callers = [_Caller(ask, own, broken) for own in calls]
    threads = [threading.Thread(target=caller.run, daemon=True) for caller in callers]
    interrupted = False
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(WATCH_S)
                if watch is not None:
                    watch(time.monotonic() - started_s,
                          sum(len(caller.latencies_s) for caller in callers))
    except KeyboardInterrupt:
        interrupted = True
        broken.set()
        for thread in threads:
            thread.join()
    for caller in callers:
        if caller.fault is not None:
            raise caller.fault
    failed: Counter[str] = Counter()
    for caller in callers:
        failed += caller.failed
    return Load(
        callers=len(callers), rate=rate, failed=failed,
        elapsed_s=max(max(caller.ended_s for caller in callers) - started_s, 0.0),
        latencies_s=np.sort([one for caller in callers for one in caller.latencies_s]),
        late=sum(caller.late for caller in callers) if rate is not None else 0,
        interrupted=interrupted)


def _check(*, callers: int, duration_s: float, rate: float = 1.0) -> None:
    if callers < 1:
        raise ConfigError(f"callers: expected at least 1, got {callers}.")
    for name, value in (("duration_s", duration_s), ("rate", rate)):
        if not 0 < value < float("inf"):
            raise ConfigError(f"{name}: expected a number > 0, got {value!r}.")
