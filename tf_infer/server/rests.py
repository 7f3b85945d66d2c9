"""How long the thread that loads a version rests after a piece of work, while others are answered.

A low priority is not enough: a load then takes all the processor time that is left, and memory and
caches from those who answer. A swap that rests takes longer, for which nobody waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_S = 0.1  # nobody asks any more when nobody has for so long
TIMES = 10.0  # as long as the piece took
MOST_S = 20.0
ALL_S = 120.0  # of all rests of a load: even a long one comes to its end
LOOK_S = 0.05  # how often a rest looks whether anybody still asks


def rest_s(worked_s: float, quiet_s: float, rested_s: float) -> float:
    """Return how long to rest after a piece of work.

    Args:
        worked_s: how long the piece took.
        quiet_s: for how long nobody has been asking; 0 while a call is answered.
        rested_s: what the load has rested before.
    """
    if quiet_s >= QUIET_S:
        return 0.0
    return max(0.0, min(MOST_S, TIMES * worked_s, ALL_S - rested_s))


class Rests:
    """Called after each piece of work, by one thread; rests and begins the next piece.

    Args:
        quiet_s: as of `rest_s`, now.
    """

    def __init__(self, quiet_s: Callable[[], float], *,
                 clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self._quiet_s, self._clock, self._sleep = quiet_s, clock, sleep
        self._began_s = clock()
        self._rested_s = 0.0

    def __call__(self) -> None:
        done_s = now_s = self._clock()
        until_s = now_s + rest_s(now_s - self._began_s, self._quiet_s(), self._rested_s)
        while now_s < until_s and self._quiet_s() < QUIET_S:
            self._sleep(min(LOOK_S, until_s - now_s))
            now_s = self._clock()
        self._rested_s += now_s - done_s
        self._began_s = now_s


def no_rest() -> None:
    """Go on at once: nobody is answered meanwhile."""
