"""Which texts of a batch stand together in a graph of fixed shape: little padding, few calls."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tf_infer.manifest import row_texts

# What a call costs beside its tokens, in tokens: weights are read, threads are woken.
CALL_TOKENS = 12


class Placed(NamedTuple):
    """A text in a graph's rows.

    Attributes:
        text: number in the batch.
        row: of the graph.
        begin: its first token in that row.
        number: how many texts stand before it in that row.
    """

    text: int
    row: int
    begin: int
    number: int


class Group(NamedTuple):
    """One call: a graph of `rows` rows of `tokens` tokens, and the texts in it."""

    rows: int
    tokens: int
    texts: tuple[Placed, ...]


class Sizes:
    """The shapes that there are graphs for.

    Args:
        shapes: (rows, tokens).
        packed: rows hold as many texts as `row_texts` says, else one.
    """

    def __init__(self, shapes: Iterable[tuple[int, int]], *, packed: bool) -> None:
        self._rows: dict[int, tuple[int, ...]] = {}
        for rows, tokens in sorted(shapes):
            self._rows[tokens] = (*self._rows.get(tokens, ()), rows)
        self._tokens = tuple(sorted(self._rows))
        # Rows of this width hold several texts where there are many.
        self._shared = max((tokens for tokens in self._tokens if packed and row_texts(tokens) > 1),
                           default=0)

    def groups(self, lengths: Sequence[int]) -> list[Group]:
        """Place texts of these lengths, each >= 1 and at most the longest row, into calls."""
        order = sorted(range(len(lengths)), key=lambda text: -lengths[text])
        alone: dict[int, list[list[tuple[int, int]]]] = {}
        short = [text for text in order if lengths[text] <= self._shared]
        for text in order:
            if lengths[text] > self._shared:
                alone.setdefault(self._width(lengths[text]), []).append([(text, 0)])
        shared = joined([(text, lengths[text]) for text in short], self._shared,
                        row_texts(self._shared))
        if len(shared) == 1:  # a smaller row will do
            last, begin = shared[0][-1]
            width = next(tokens for tokens in self._tokens if tokens >= begin + lengths[last]
                         and row_texts(tokens) >= len(shared[0]))
            alone[width] = shared
        elif shared:
            alone[self._shared] = shared
        return [group for width, rows in alone.items() for group in self._calls(width, rows)]

    def _width(self, length: int) -> int:
        return next(tokens for tokens in self._tokens if tokens >= length)

    def _calls(self, width: int, rows: Sequence[Sequence[tuple[int, int]]]) -> list[Group]:
        """Cut rows of one width into calls."""
        found, done = [], 0
        for size in cover(len(rows), self._rows[width], CALL_TOKENS / width):
            part = rows[done:done + size]
            found.append(Group(size, width, tuple(
                Placed(text, row, begin, number) for row, texts in enumerate(part)
                for number, (text, begin) in enumerate(texts))))
            done += len(part)
        return found


def joined(texts: Iterable[tuple[int, int]], width: int, most: int
           ) -> list[list[tuple[int, int]]]:
    """Lay texts one after the other into rows, each where it fits first.

    Args:
        texts: (number, length), longest first.
        width: tokens of a row.
        most: texts of a row.

    Returns:
        rows of (number, first token).
    """
    rows: list[list[tuple[int, int]]] = []
    used: list[int] = []
    for text, length in texts:
        row = next((row for row, filled in enumerate(used)
                    if filled + length <= width and len(rows[row]) < most), len(rows))
        if row == len(rows):
            rows.append([])
            used.append(0)
        rows[row].append((text, used[row]))
        used[row] += length
    return rows


def cover(count: int, sizes: tuple[int, ...], call: float) -> tuple[int, ...]:
    """Return sizes whose sum is `count` or a little more, at the least cost.

    Args:
        count: rows to compute.
        sizes: of graphs, ascending.
        call: what each one costs beside its rows, in rows.
    """
    whole, left = divmod(count, sizes[-1])
    return (sizes[-1],) * whole + _cover(left, sizes, call)


@functools.lru_cache(maxsize=1024)
def _cover(count: int, sizes: tuple[int, ...], call: float) -> tuple[int, ...]:
    """Try every size for the first call: `count` is below the largest."""
    if count <= 0:
        return ()
    options = []
    for size in sizes:
        found = (size, *_cover(count - size, sizes, call))
        options.append((sum(found) + call * len(found), len(found), found))
        if size >= count:
            break
    return tuple(sorted(min(options)[2], reverse=True))


def lengths_of(mask: np.ndarray) -> np.ndarray:
    """Return how many tokens of each row are computed, [B] int: up to the last that counts.

    Of a row without any it is the first: there is no answer to such a row, but it is always the
    same.
    """
    width = mask.shape[1]
    last = width - np.argmax(mask[:, ::-1], axis=1) if width else np.zeros(len(mask), int)
    return np.where(mask.any(axis=1), last, 1)
