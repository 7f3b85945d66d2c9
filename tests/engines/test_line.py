"""The first row's positions side by side are those of the pages, whatever came into them since."""

from __future__ import annotations

import numpy as np
import pytest

from tf_infer.engines.line import Line

PAGES = (2, 2, 4)
SIZES = (3, 1)  # of a number and of its scale


def cache(slots: int = 3) -> list[list[np.ndarray]]:
    """Return pages of two kinds, [layers, slots, G, positions, x]."""
    random = np.random.default_rng(3)
    return [[random.normal(size=(2, slots, 2, page, size)) for size in SIZES] for page in PAGES]


def line(pages: list[list[np.ndarray]]) -> Line:
    return Line(pages, [np.full((2, 1, 2, sum(PAGES), size), np.nan) for size in SIZES])


def whole(pages: list[list[np.ndarray]], seen: int, length: int) -> list[np.ndarray]:
    """Return what the first row holds, of each kind."""
    return [np.concatenate([page[kind][:, :1] for page in pages[:seen]], 3)[:, :, :, :length]
            for kind in range(len(SIZES))]


def same(found: Line, pages: list[list[np.ndarray]], seen: int, length: int) -> bool:
    return all(np.array_equal(array[:, :, :, :length], wanted) for array, wanted in zip(
        found.arrays(seen), whole(pages, seen, length)))


@pytest.mark.parametrize(("seen", "length"), [(1, 0), (1, 2), (2, 3), (2, 4), (3, 5), (3, 8)])
def test_a_line_is_as_long_as_its_pages_and_holds_as_much_as_is_asked_for(
        seen: int, length: int) -> None:
    pages = cache()
    made = line(pages)
    made.follow(seen, length)
    for array, size in zip(made.arrays(seen), SIZES):
        assert array.shape == (2, 1, 2, sum(PAGES[:seen]), size)
        assert np.isnan(array[:, :, :, length:]).all(), "nothing more than asked for is copied"
    assert same(made, pages, seen, length)


def test_every_number_of_pages_is_the_same_memory() -> None:
    made = line(cache())
    for kind in range(len(SIZES)):
        assert all(np.shares_memory(made.arrays(3)[kind], made.arrays(seen)[kind])
                   for seen in (1, 2))


def test_what_came_into_the_row_is_copied_and_nothing_else() -> None:
    pages = cache()
    made = line(pages)
    made.follow(3, 6)
    pages[0][0][:, 0] = 7.0  # nobody said so
    pages[2][1][:, 0] = 8.0
    made.changed(5)
    made.follow(3, 7)
    assert not (made.arrays(3)[0] == 7.0).any()
    assert (made.arrays(3)[1][:, :, :, 5:7] == 8.0).all()
    made.changed(0)
    made.follow(3, 7)
    assert same(made, pages, 3, 7)


def test_a_line_of_other_pages_is_laid_anew() -> None:
    pages = cache()
    made = line(pages)
    for seen, length in ((1, 2), (2, 3), (3, 8), (2, 4), (1, 1), (3, 5)):
        made.follow(seen, length)
        assert same(made, pages, seen, length)
