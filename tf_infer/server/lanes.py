"""Lanes: TensorFlow pools of one thread each, of which a run of a decoder takes one. Pure.

In a pool of several threads a step of a decoder changes from thread to thread again and again, and
each of them has to wake up first (docs/runtime.md). A lane is no different but for that: a run ends
at its deadline. A run of many rows gains more by a second thread, here and there, than it loses by
waking it. The pools belong to the process, and so do the lanes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np

EVERY = 0  # number of the pool of all other runs
MOST_ROWS = 4  # of a run that has a lane


class Lanes:
    """Numbers of pools, each of which one run has at a time.

    Args:
        count: of lanes; they are numbered from 1 on.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count, 0, -1))
        self._lock = threading.Lock()

    @contextmanager
    def one(self, inputs: Mapping[str, np.ndarray]) -> Iterator[int]:
        """Have a lane for the time of a run; `EVERY` where all are taken, or of many rows."""
        few = all(len(array) <= MOST_ROWS for array in inputs.values() if array.ndim)
        with self._lock:
            number = self._free.pop() if self._free and few else EVERY
        try:
            yield number
        finally:
            if number != EVERY:
                with self._lock:
                    self._free.append(number)
