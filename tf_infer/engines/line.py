"""The positions of a cache's first row side by side, for a step that reads one row alone. Pure

Pages of the cache hold the same; what they got since is copied before such a step.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


class Line:
    """A copy of the first row of a cache.

    Args:
        pages: of the cache, of each kind [layers, slots, G, positions, x].
        memory: for all pages, of each kind [layers, 1, G, positions, x].
    """

    def __init__(self, pages: Sequence[Sequence[np.ndarray]], memory: Sequence[np.ndarray]) -> None:
        self._pages = pages
        self._memory = memory
        self._begins = np.cumsum([0, *(page[0].shape[3] for page in pages)]).tolist()
        self._seen = 0  # pages that it was last asked to show
        self._shown: tuple[np.ndarray, ...] = ()  # its arrays of these
        self._same = 0  # positions that are there as they are in the pages

    def arrays(self, pages: int) -> tuple[np.ndarray, ...]:
        """Return where the first `pages` are: one memory, whose layers lie apart, for any number.
        """
        places = self._begins[pages]
        return tuple(array.reshape(len(array), -1)[:, :array.shape[2] * places * array.shape[4]]
                     .reshape(len(array), 1, array.shape[2], places, array.shape[4])
                     for array in self._memory)

    def changed(self, begin: int) -> None:
        """Know that something came into the first row from position `begin` on."""
        self._same = min(self._same, begin)

    def follow(self, pages: int, length: int) -> None:
        """Hold the first `length` positions in the arrays of so many pages."""
        if pages != self._seen:
            self._seen, self._shown, self._same = pages, self.arrays(pages), 0
        while self._same < length:
            place = bisect.bisect_right(self._begins, self._same) - 1
            begin, last = self._begins[place], min(length, self._begins[place + 1])
            for array, kept in zip(self._shown, self._pages[place]):
                array[:, 0, :, self._same:last] = kept[:, 0, :, self._same - begin:last - begin]
            self._same = last
