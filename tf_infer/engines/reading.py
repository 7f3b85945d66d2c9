"""How prompts are cut and joined for an engine that reads ids in graphs of some sizes. Pure.

A graph reads R parts of up to T ids each. What it costs is counted in ids: one for each place in
it, filled or not, and READ_IDS for the weights, which pass through memory once a call.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeAlias

READ_IDS = 32  # what a read costs beside its ids, at the GPT-2-small shape in int8

Shape: TypeAlias = tuple[int, int]  # rows, ids of each


class Group(NamedTuple):
    """Parts that are read in one call, by their places in what was given, and the graph's size."""

    shape: Shape
    places: tuple[int, ...]


@functools.lru_cache(maxsize=4096)
def cuts(count: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return how `count` ids are best cut for an engine that pads each read to one of some sizes.

    Neighbours do not count here: where a prompt is cut may be seen in its last bits.

    Args:
        count: >= 1; beyond the largest size that is read as often as it fits.
        sizes: ascending.
    """
    whole = max(-(-count // sizes[-1]) - 1, 0)
    return (sizes[-1],) * whole + _cheapest(count - whole * sizes[-1], sizes)[1]


@functools.lru_cache(maxsize=4096)
def _cheapest(count: int, sizes: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Return the cost, in ids, and the cuts."""
    options: list[tuple[int, tuple[int, ...]]] = [
        (READ_IDS + min(size for size in sizes if size >= count), (count,))]
    for size in sizes:
        if size < count:
            cost, rest = _cheapest(count - size, sizes)
            options.append((READ_IDS + size + cost, (size, *rest)))
    return min(options)


@functools.lru_cache(maxsize=4096)
def groups(counts: tuple[int, ...], shapes: tuple[Shape, ...]) -> tuple[Group, ...]:
    """Return which parts are best read together.

    Args:
        counts: ids of each part, each at most the largest size of one row.
        shapes: of the graphs; for every size of a row there is one of a single row.
    """
    order = sorted(range(len(counts)), key=lambda place: counts[place])
    # Of the shortest n parts: the least cost, and the last group of it. Longer ones never cost
    # less, so a group takes as many as it holds.
    best: list[tuple[int, Shape, int]] = [(0, (0, 0), 0)]
    for end in range(1, len(order) + 1):
        longest = counts[order[end - 1]]
        best.append(min((best[max(end - rows, 0)][0] + READ_IDS + rows * tokens, (rows, tokens),
                         max(end - rows, 0)) for rows, tokens in shapes if tokens >= longest))
    found, end = [], len(order)
    while end:
        _, shape, begin = best[end]
        found.append(Group(shape, tuple(order[begin:end])))
        end = begin
    return tuple(reversed(found))
