"""The positions of a cache's first row side by side, for a step that reads one row alone. Pure

Pages of the cache hold the same; what they got since is copied before such a step.
"""

from __future__ import annotations

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
        self._seen = 0  # pages that its arrays were last asked to show
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
            self._seen, self._same = pages, 0
        for page, begin, end in zip(self._pages, self._begins, self._begins[1:]):
            first, last = max(self._same, begin), min(length, end)
            if first < last:
                for array, kept in zip(self.arrays(pages), page):
                    array[:, 0, :, first:last] = kept[:, 0, :, first - begin:last - begin]
        self._same = max(self._same, length)
