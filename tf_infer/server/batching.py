"""Our scheduler for texts, its decisions: which requests run together, and what after a failure.

Pure: the loop of `text_scheduler.py` calls `next_batch` whenever a worker is free and somebody
waits, so nothing waits for a timer, and batches fill while workers are busy.

A batch is the request that has waited longest and, in the order of their arrival, others of the
same key whose rows are padded to the same width; all of another width run along when their padding
costs less than half of the run that it saves. In a model of a server of one worker, fed with the
lengths of real texts (`benchmarks/scheduling.py`), 64 callers get 1.4 to 1.9 times what batches in
the order of arrival give them, 1.2 to 1.5 times of a network so small that a run costs more than
its tokens. To start with the group that promises most instead, or to fill up
with part of a neighbouring width, gave no more and made the slowest wait longer.

Who waits how long. Let r be a request, and A the requests of its key that wait when it comes.
 1. Every batch holds the request that has waited longest.
 2. So at most |A| batches of its key are formed before that of r: each takes at least one of A.
 3. If each of A has a row or more and `row_sizes` is empty, at most the sum of
    1 + floor(2 R_w / capacity_w) are, over the widths w in A: R_w is the number of rows of that
    width in A, capacity_w the rows that a batch of it may have. For within a width a request is
    passed over only when it does not fit; then it is the first of the next batch that starts with
    its width, and two such batches together hold more rows of that width than the capacity.
Both bounds count only who came before: nobody who comes later makes r wait for one batch more.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from tf_infer.config import BytesConfig, CodecConfig, ShapeGrid, check
from tf_infer.errors import Code

RUN_TOKENS = 64.0  # what a run costs beside its tokens, until it has been seen: see pace.py
LEAST_TOKENS = 512  # of a full batch

# Failures that say nothing about a row: running the same rows again, fewer at once, cannot help.
_NOT_OF_A_ROW = frozenset({Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE, Code.ABORTED})


@dataclass(frozen=True, slots=True)
class Waiting:
    """One request that waits.

    Attributes:
        ticket: its number; who comes later has a higher one.
        key: what it may share a batch with others of: servable, signature, outputs, and
            `rows.form_of` its inputs.
        rows: >= 0; a request of 0 rows runs alone.
        cost_tokens: estimated tokens of its longest row, >= 0; see `rows.longest_row`.
    """

    ticket: int
    key: Hashable
    rows: int
    cost_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLimits:
    """What a batch of two or more requests may be; a request that is more runs alone.

    Attributes:
        max_rows: at most so many rows.
        max_tokens: rows x width at most.
        run_tokens: what a run costs beside its padded tokens, counted in such tokens; see
            `pace.py`. All of another width run along when that saves half of it or more.
        widths: lengths that rows are padded to, ascending; a longer text counts as the last one.
        row_sizes: numbers of rows that a compiled model pads a batch to, ascending; empty when it
            runs batches as they are.
    """

    max_rows: int = 32
    max_tokens: int = 512
    run_tokens: float = RUN_TOKENS
    widths: tuple[int, ...] = (16, 32, 64, 128)
    row_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where = "TextLimits"
        for name in ("max_rows", "max_tokens"):
            check(getattr(self, name) >= 1, f"{where}.{name}", ">= 1", getattr(self, name))
        check(self.run_tokens >= 0, f"{where}.run_tokens", ">= 0", self.run_tokens)
        check(bool(self.widths), f"{where}.widths", "one or more sizes", self.widths)
        for name in ("widths", "row_sizes"):
            sizes = getattr(self, name)
            check(list(sizes) == sorted(set(sizes)) and all(size > 0 for size in sizes),
                  f"{where}.{name}", "ascending sizes > 0", sizes)

    def capacity(self, width: int) -> int:
        """Return how many rows of `width` a batch of two or more requests may have."""
        rows = min(self.max_rows, self.max_tokens // width)
        return max((size for size in self.row_sizes if size <= rows), default=rows)

    def cost(self, rows: int, width: int) -> float:
        """Return what a run of so many rows costs, in tokens."""
        padded = next((size for size in self.row_sizes if size >= rows), rows)
        return self.run_tokens + padded * width


def limits_for(grid: ShapeGrid, *, compiled: bool, run_tokens: float = RUN_TOKENS) -> TextLimits:
    """Return the limits of a model with a manifest.

    A full batch is large enough that all but 6 % of its time goes to its tokens, and not much
    larger: that only makes others wait. It never leaves the grid, whose largest shape warm-up has
    run.

    Args:
        grid: of the manifest; rows beyond its largest size would run in slices.
        compiled: whether the model pads rows to a size of the grid.
        run_tokens: see `TextLimits`.
    """
    most = grid.rows[-1] * grid.tokens[-1]
    return TextLimits(max_rows=grid.rows[-1],
                      max_tokens=min(most, max(LEAST_TOKENS, int(16 * run_tokens))),
                      run_tokens=run_tokens, widths=grid.tokens,
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
    groups = _groups(seed, others, width, capacity, limits.widths)
    chosen = groups.pop(width)
    rows = sum(item.rows for item in chosen)
    smaller = _cheaper_size(rows, width, limits)
    if smaller is not None and seed.rows <= smaller:
        chosen = _first_fit(chosen, smaller)
        rows = sum(item.rows for item in chosen)
    else:
        for other in sorted(groups, key=lambda size: abs(size - width)):
            more = sum(item.rows for item in groups[other])
            wide = max(width, other)
            saved = (limits.cost(rows, width) + limits.cost(more, other)
                     - limits.cost(rows + more, wide))
            if rows + more <= limits.capacity(wide) and 2 * saved >= limits.run_tokens:
                chosen += groups[other]
                rows, width = rows + more, wide
        chosen.sort(key=lambda item: item.ticket)
    return Batch(tuple(item.ticket for item in chosen), rows, width)


def _groups(seed: Waiting, others: Iterable[Waiting], width: int, capacity: int,
            widths: tuple[int, ...]) -> dict[int, list[Waiting]]:
    """Return by width who may run with the seed: of its own width as many as fit, first come first.

    Of other widths all, and none once somebody of its own was left out.
    """
    width_at, last = _width_at(widths), widths[-1]
    key, room, own, full = seed.key, capacity - seed.rows, [seed], False
    groups = {width: own}
    for item in others:
        # The same object is the usual case, and comparing keys is what costs most here.
        if (item.key is not key and item.key != key) or not item.rows:
            continue
        other = width_at[item.cost_tokens if item.cost_tokens < last else last]
        if other != width:
            groups.setdefault(other, []).append(item)
        elif item.rows <= room:
            own.append(item)
            room -= item.rows
            if not room:
                return {width: own}
        else:
            full = True
    return {width: own} if full else groups


def _width_of(cost_tokens: int, widths: tuple[int, ...]) -> int:
    return _width_at(widths)[min(cost_tokens, widths[-1])]


@functools.lru_cache(maxsize=256)
def _width_at(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the width of each number of tokens from 0 to the last width."""
    return tuple(next(width for width in widths if width >= tokens)
                 for tokens in range(widths[-1] + 1))


def _cheaper_size(rows: int, width: int, limits: TextLimits) -> int | None:
    """Return the size to cut a batch down to when two runs cost less than padding up; or None."""
    smaller = max((size for size in limits.row_sizes if size < rows), default=None)
    if smaller is None:
        return None
    apart = limits.cost(smaller, width) + limits.cost(rows - smaller, width)
    return smaller if apart < limits.cost(rows, width) else None


def _first_fit(items: Sequence[Waiting], room: int) -> list[Waiting]:
    chosen = []
    for item in items:
        if item.rows <= room:
            chosen.append(item)
            room -= item.rows
    return chosen


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
