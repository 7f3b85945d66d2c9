"""Prompts are cut and joined where it costs least: every part is read once, in a graph it fits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.engines.reading import READ_IDS, Shape, cuts, groups

SHAPES = ((1, 16), (1, 32), (1, 64), (2, 16), (4, 16), (2, 32))


@pytest.mark.parametrize(("count", "sizes", "wanted"), [
    (1, (16, 64), (1,)), (64, (16, 64, 256), (64,)), (100, (16, 64, 256), (64, 36)),
    (128, (16, 64, 256), (64, 64)), (200, (16, 64, 256), (200,)), (256, (16, 64, 256), (256,)),
    (17, (16, 64), (16, 1)), (40, (16, 64), (40,)), (300, (16, 64, 256), (256, 44)),
    (513, (16, 64, 256), (256, 256, 1)), (512, (16, 64, 256), (256, 256))])
def test_a_prompt_is_cut_where_padding_costs_least(
        count: int, sizes: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    assert cuts(count, sizes) == wanted


@pytest.mark.parametrize(("counts", "wanted"), [
    ((), []),
    ((40,), [((1, 64), (0,))]),
    ((16, 16), [((2, 16), (0, 1))]),
    ((1, 30, 2, 31), [((2, 16), (0, 2)), ((2, 32), (1, 3))]),
    ((5, 64, 5, 5), [((4, 16), (0, 2, 3)), ((1, 64), (1,))])])
def test_short_parts_are_joined_with_those_of_their_length(
        counts: tuple[int, ...], wanted: list[tuple[Shape, tuple[int, ...]]]) -> None:
    assert [(group.shape, group.places) for group in groups(counts, SHAPES)] == wanted


def partitions(places: Sequence[int]) -> Iterator[list[list[int]]]:
    """Yield every way to put things into groups."""
    if not places:
        yield []
        return
    first, rest = places[0], places[1:]
    for size in range(len(rest) + 1):
        for others in itertools.combinations(rest, size):
            left = [place for place in rest if place not in others]
            for found in partitions(left):
                yield [[first, *others], *found]


def cost(counts: Sequence[int], group: Sequence[int]) -> float:
    """Return what a group costs in the cheapest graph that holds it."""
    return min((READ_IDS + rows * tokens for rows, tokens in SHAPES if rows >= len(group)
                and tokens >= max(counts[place] for place in group)), default=float("inf"))


@given(st.lists(st.integers(1, 64), max_size=5))
def test_no_other_way_to_join_parts_costs_less(counts: list[int]) -> None:
    found = groups(tuple(counts), SHAPES)
    assert sorted(place for group in found for place in group.places) == list(range(len(counts)))
    for (rows, tokens), places in found:
        assert len(places) <= rows and all(counts[place] <= tokens for place in places)
    spent = sum(READ_IDS + rows * tokens for (rows, tokens), _ in found)
    assert spent == min(sum(cost(counts, group) for group in way)
                        for way in partitions(range(len(counts))))
