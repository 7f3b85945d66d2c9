"""Our scheduler for texts, its decisions: which requests run together, and what after a failure.

Pure: the loop of `scheduler.py` calls `next_batch` whenever a worker is free and somebody waits, so
nothing ever waits for a timer, and batches fill while workers are busy.

A batch is the request that has waited longest and, in the order of their arrival, others of the
same key whose rows are padded to the same width. In a model of a server of one worker, fed with the
lengths of real texts (runs cost a constant plus their padded tokens), this did 1.3 to 2.0 times
what batches in the order of arrival did. Starting with the group that promises most instead, or
filling up with neighbouring widths, did no more and made the slowest wait longer.

Who waits how long. Let r be a request, a the requests of its key that wait when it comes.
 1. Every batch holds the request that has waited longest.
 2. So at most a batches of its key are formed before that of r: each takes at least one of the a.
 3. When every request has at least one row and `row_sizes` is empty, at most the sum of
    1 + floor(2 R_w / capacity_w) are, over the widths w of those a: R_w is the number of their rows
    of width w, capacity_w the rows that a batch of width w may have. For within a width requests
    leave in their order unless one is passed over that does not fit, which then comes first in the
    next batch of its width, and two such batches together hold more rows than the capacity.
Both bounds count only who came before: nobody who comes later makes r wait for one batch more.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from tf_infer.config import BytesConfig, CodecConfig, ShapeGrid, check
from tf_infer.errors import Code

# Failures that say nothing about a row: running the same rows again, fewer at once, cannot help.
_NOT_OF_A_ROW = frozenset({Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.ABORTED})


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request that waits.

    Attributes:
        ticket: its number, unlike that of any other request that waits.
        key: what it may share a batch with others of: servable, signature, outputs, and
            `rows.form_of` its inputs.
        rows: >= 0; a request of 0 rows runs alone.
        cost_tokens: estimated tokens of its longest row, >= 0; see `rows.longest_row`.
        deadline_s: on the clock of `expired`; None for none.
    """

    ticket: int
    key: Hashable
    rows: int
    cost_tokens: int
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimits:
    """What a batch of two or more requests may be; a request that is more runs alone.

    Attributes:
        max_rows: at most so many rows.
        max_tokens: rows x width at most. Beyond what keeps the machine busy, more only makes others
            wait: in the module's model 512 did as much as 4,096, with 0.6 to 0.8 of the p99.
        widths: lengths that rows are padded to, ascending; a longer text counts as the last one.
        row_sizes: numbers of rows that a compiled model pads a batch to, ascending; empty when it
            runs batches as they are.
    """

    max_rows: int = 32
    max_tokens: int = 1024
    widths: tuple[int, ...] = (16, 32, 64, 128)
    row_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where = "TextLimits"
        for name in ("max_rows", "max_tokens"):
            check(getattr(self, name) >= 1, f"{where}.{name}", ">= 1", getattr(self, name))
        check(bool(self.widths), f"{where}.widths", "one or more sizes", self.widths)
        for name in ("widths", "row_sizes"):
            sizes = getattr(self, name)
            check(list(sizes) == sorted(set(sizes)) and all(size > 0 for size in sizes),
                  f"{where}.{name}", "ascending sizes > 0", sizes)

    def capacity(self, width: int) -> int:
        """Return how many rows of `width` a batch of two or more requests may have."""
        rows = min(self.max_rows, self.max_tokens // width)
        return max((size for size in self.row_sizes if size <= rows), default=rows)


def limits_for(grid: ShapeGrid, *, compiled: bool, max_tokens: int = 1024) -> TextLimits:
    """Return the limits of a model with a manifest.

    Args:
        grid: of the manifest; rows beyond its largest size would run in slices.
        compiled: whether the model pads rows to a size of the grid.
        max_tokens: see `TextLimits`.
    """
    return TextLimits(max_rows=grid.rows[-1], max_tokens=max_tokens, widths=grid.tokens,
                      row_sizes=grid.rows if compiled else ())


def bytes_per_token(codec: CodecConfig) -> float:
    """Return what `rows.longest_row` should assume of a model's tokenizer."""
    return 1.0 if isinstance(codec, BytesConfig) else 4.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to run together.

    Attributes:
        tickets: their rows are joined in this order, which is that of their arrival.
        rows: of all of them.
        width: what their rows are padded to, as estimated.
    """

    tickets: tuple[int, ...]
    rows: int
    width: int


def next_batch(waiting: Iterable[Waiting], limits: TextLimits) -> Batch | None:
    """Choose what a free worker runs next; None only when nobody waits.

    Args:
        waiting: who waits, in the order of their arrival; of one key or of several.
        limits: what a batch may be.

    Cost: O(len(waiting)), less when the batch is full before.
    """
    others = iter(waiting)
    seed = next(others, None)
    if seed is None:
        return None
    width = _width_of(seed.cost_tokens, limits.widths)
    capacity = limits.capacity(width)
    if not 0 < seed.rows < capacity:
        return Batch((seed.ticket,), seed.rows, width)
    costs = _costs_of(width, limits.widths)
    chosen = _first_fit(seed, others, capacity, *costs)
    rows = sum(item.rows for item in chosen)
    smaller = _size_below(rows, limits.row_sizes)
    if smaller is not None and seed.rows <= smaller:
        chosen = _first_fit(seed, chosen[1:], smaller, *costs)
        rows = sum(item.rows for item in chosen)
    return Batch(tuple(item.ticket for item in chosen), rows, width)


def _width_of(cost_tokens: int, widths: Sequence[int]) -> int:
    return widths[min(bisect.bisect_left(widths, cost_tokens), len(widths) - 1)]


def _costs_of(width: int, widths: Sequence[int]) -> tuple[int, float]:
    """Return (least, most) estimated tokens that are padded to `width`."""
    place = widths.index(width)
    return (widths[place - 1] + 1 if place else 0,
            width if place < len(widths) - 1 else float("inf"))


def _first_fit(seed: Waiting, others: Iterable[Waiting], capacity: int, least: float, most: float,
               ) -> list[Waiting]:
    """Return the seed and, in order, the others of its key and width that fit beside it."""
    key, chosen, room = seed.key, [seed], capacity - seed.rows
    for item in others:
        if 0 < item.rows <= room and least <= item.cost_tokens <= most and item.key == key:
            chosen.append(item)
            room -= item.rows
            if not room:
                break
    return chosen


def _size_below(rows: int, sizes: Sequence[int]) -> int | None:
    """Return the size to cut `rows` down to where padding up would more than double them."""
    place = bisect.bisect_left(sizes, rows)
    if not 0 < place < len(sizes) or sizes[place] <= 2 * rows:
        return None
    return sizes[place - 1]


def expired(waiting: Iterable[Waiting], *, now_s: float) -> tuple[int, ...]:
    """Return the tickets whose deadline has passed."""
    return tuple(item.ticket for item in waiting
                 if item.deadline_s is not None and item.deadline_s <= now_s)


def after_failure(tickets: Sequence[int], code: Code) -> tuple[tuple[int, ...], ...]:
    """Return what to run after a batch has failed, so that a bad row fails alone.

    Args:
        tickets: of the batch, in its order.
        code: of the failure.

    Returns:
        Nothing: the failure is the answer to all of `tickets`. Else both halves, to be run as
        batches of their own, and asked about again when they fail.

    A batch of n requests, b of which fail by themselves whatever runs beside them, ends after at
    most 1 + 2 b ceil(log2 n) runs and never more than 2 n - 1, each request with the outcome that
    it has alone. Only for signatures without side effects: a row may run several times.
    """
    if len(tickets) < 2 or code in _NOT_OF_A_ROW:
        return ()
    middle = (len(tickets) + 1) // 2
    return tuple(tickets[:middle]), tuple(tickets[middle:])
