"""Texts of a batch are placed into graphs of fixed shape: all of them once, with little padding."""

from __future__ import annotations

import numpy as np
import pytest

from tf_infer.engines.packing import Group, Sizes, cover, joined
from tf_infer.manifest import row_texts

SHAPES = ((1, 16), (1, 32), (1, 48), (1, 64), (2, 64), (4, 64), (8, 64), (1, 96), (2, 96),
          (1, 128), (4, 128))


def padding(groups: list[Group], lengths: list[int]) -> float:
    return sum(group.rows * group.tokens for group in groups) / sum(lengths) - 1.0


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7, 32, 200])
def test_every_text_stands_in_one_row_of_a_graph_that_there_is_beside_no_other(
        count: int, packed: bool) -> None:
    lengths = np.random.default_rng(count).integers(1, 129, count).tolist()
    seen = []
    shapes = SHAPES if packed else tuple((rows, tokens) for rows in (1, 2, 4)
                                         for tokens in (16, 32, 64, 128))
    for group in Sizes(shapes, packed=packed).groups(lengths):
        assert (group.rows, group.tokens) in shapes
        used = np.zeros((group.rows, group.tokens), int)
        numbers: dict[int, list[int]] = {}
        for placed in group.texts:
            seen.append(placed.text)
            end = placed.begin + lengths[placed.text]
            assert end <= group.tokens
            used[placed.row, placed.begin:end] += 1
            numbers.setdefault(placed.row, []).append(placed.number)
        assert used.max() <= 1
        for row in numbers.values():
            assert sorted(row) == list(range(len(row)))
            assert len(row) <= (row_texts(group.tokens) if packed else 1)
    assert sorted(seen) == list(range(count))


def test_short_texts_leave_little_padding_where_rows_hold_several() -> None:
    lengths = np.clip(np.random.default_rng(1).normal(26, 11, 256).astype(int), 4, 64).tolist()
    assert padding(Sizes(SHAPES, packed=True).groups(lengths), lengths) < 0.08
    assert padding(Sizes(SHAPES, packed=False).groups(lengths), lengths) > 0.2


def test_one_text_gets_the_smallest_row_that_holds_it() -> None:
    sizes = Sizes(SHAPES, packed=True)
    for length, tokens in ((1, 16), (16, 16), (17, 32), (48, 48), (49, 64), (65, 96), (128, 128)):
        group, = sizes.groups([length])
        assert (group.rows, group.tokens) == (1, tokens)


def test_no_text_is_no_call() -> None:
    assert Sizes(SHAPES, packed=True).groups([]) == []


def test_texts_are_laid_where_they_fit_first_and_no_row_holds_too_many() -> None:
    assert joined([(7, 40), (3, 30), (5, 20), (1, 4)], 64, 2) == [[(7, 0), (5, 40)],
                                                                 [(3, 0), (1, 30)]]


@pytest.mark.parametrize(("count", "call", "expected"), [
    (0, 0.1, ()), (1, 0.1, (1,)), (5, 0.1, (4, 1)), (7, 2.0, (8,)), (7, 0.1, (4, 2, 1)),
    (21, 0.5, (8, 8, 4, 1))])
def test_rows_are_covered_at_the_least_cost(count: int, call: float, expected: tuple[int, ...]
                                            ) -> None:
    assert cover(count, (1, 2, 4, 8), call) == expected
