"""Our scheduler for texts, its decisions: which requests run together, and what after a failure.

Pure: the loop of `scheduler.py` asks `next_batch` whenever a worker is free and somebody waits, so
nothing ever waits for a timer. What a batch may be is in `TextLimits`, why it is chosen in
`next_batch`.
"""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from tf_infer.config import ShapeGrid, check
from tf_infer.errors import Code

# Failures that say nothing about a row: running the same rows again, fewer at once, cannot help.
_NOT_OF_A_ROW = frozenset({Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.ABORTED})


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request that waits.

    Attributes:
        ticket: its number, unlike that of any other request that waits.
        key: what it may share a batch with: servable, signature, outputs, form of its inputs.
        rows: >= 0; one of 0 rows runs alone.
        cost_tokens: estimated tokens of its longest row, >= 0; see `rows.longest_row`.
        arrived_s: on the clock of `now_s`.
        deadline_s: on the same clock; None for none.
    """

    ticket: int
    key: Hashable
    rows: int
    cost_tokens: int
    arrived_s: float
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimits:
    """What a batch of texts may be.

    Attributes:
        max_rows: of a batch of two or more requests.
        max_tokens: rows x width, of a batch of two or more requests.
        max_age_s: a request that has waited longer is overdue: nothing newer goes first.
        max_padding: share of a batch's rows x width that may be padding because shorter texts fill
            it up, 0 to 1; a group of one width may hold more, which its width decides.
        row_sizes: numbers of rows that a compiled model pads a batch to, ascending; empty when it
            runs batches as they are.
        widths: lengths that rows are padded to, ascending; a longer text counts as the last one.
    """

    max_rows: int = 32
    max_tokens: int = 4096
    max_age_s: float = 0.05
    max_padding: float = 0.25
    row_sizes: tuple[int, ...] = ()
    widths: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        where = "TextLimits"
        for name in ("max_rows", "max_tokens"):
            check(getattr(self, name) >= 1, f"{where}.{name}", ">= 1", getattr(self, name))
        check(self.max_age_s >= 0, f"{where}.max_age_s", "seconds >= 0", self.max_age_s)
        check(0 <= self.max_padding <= 1, f"{where}.max_padding", "0 to 1", self.max_padding)
        check(bool(self.widths), f"{where}.widths", "one or more ascending sizes", self.widths)


def limits_for(grid: ShapeGrid, *, compiled: bool, max_age_s: float = 0.05,
               max_tokens: int | None = None) -> TextLimits:
    """Return the limits of a model with a manifest.

    Args:
        grid: of the manifest; more rows than its largest size would run in slices.
        compiled: whether the model pads rows to a size of the grid.
        max_age_s: see `TextLimits`.
        max_tokens: None for the grid's largest shape, which warm-up has run.
    """
    most = grid.rows[-1] * grid.tokens[-1]
    return TextLimits(max_rows=grid.rows[-1], max_tokens=most if max_tokens is None else max_tokens,
                      max_age_s=max_age_s, row_sizes=grid.rows if compiled else (),
                      widths=grid.tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests to run together.

    Attributes:
        tickets: in the order of their rows; their rows are joined in this order.
        rows: of all of them.
        width_tokens: what their rows are padded to, as estimated.
    """

    tickets: tuple[int, ...]
    rows: int
    width_tokens: int


def next_batch(waiting: Sequence[Waiting], limits: TextLimits, *, now_s: float) -> Batch | None:
    """Choose what a free worker runs next; None only when nobody waits.

    Args:
        waiting: all of one key that wait, in the order of their arrival.
        limits: what a batch may be.
        now_s: on the clock of `arrived_s`.
    """
    if not waiting:
        return None
    groups: dict[int, list[Waiting]] = {}
    for item in waiting:
        groups.setdefault(width_of(item, limits), []).append(item)
    oldest = waiting[0]
    if now_s - oldest.arrived_s > limits.max_age_s:
        return _filled(oldest, groups, limits)
    heads = [group[0] for group in groups.values()]
    return max((_filled(head, groups, limits) for head in heads),
               key=lambda batch: batch.rows * batch.width_tokens)


def width_of(item: Waiting, limits: TextLimits) -> int:
    """Return the length that the rows of a request are padded to."""
    index = bisect.bisect_left(limits.widths, item.cost_tokens)
    return limits.widths[min(index, len(limits.widths) - 1)]


def _filled(seed: Waiting, groups: dict[int, list[Waiting]], limits: TextLimits) -> Batch:
    width = width_of(seed, limits)
    most = min(limits.max_rows, limits.max_tokens // width)
    chosen, rows = [seed], seed.rows
    if 0 < rows < most:
        for item in groups[width]:
            if item is not seed and 0 < item.rows <= most - rows:
                chosen.append(item)
                rows += item.rows
                if rows == most:
                    break
    return Batch(tuple(item.ticket for item in chosen), rows, width)


def expired(waiting: Iterable[Waiting], now_s: float) -> tuple[int, ...]:
    """Return the tickets whose deadline has passed."""
    return tuple(item.ticket for item in waiting
                 if item.deadline_s is not None and item.deadline_s <= now_s)


def after_failure(tickets: Sequence[int], code: Code) -> tuple[tuple[int, ...], ...]:
    """Return the smaller batches to run after a batch has failed, so that a bad row fails alone.

    None means: the failure is the answer to each of `tickets`. Else each of `tickets` is in exactly
    one of the two, in the same order.
    """
    if len(tickets) < 2 or code in _NOT_OF_A_ROW:
        return ()
    middle = len(tickets) // 2
    return tuple(tickets[:middle]), tuple(tickets[middle:])
