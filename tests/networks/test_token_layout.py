"""Rows without their padding: which cells they fall into, and there and back again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.networks.attention import MASKED
from tf_infer.networks.token_layout import (
    FINEST,
    STEPS,
    Joined,
    Padded,
    cells_of,
    rounded_up,
    token_sizes,
)

WIDTHS = (8, 16, 40)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), max_size=40), st.integers(1, 100))
def test_every_row_is_in_one_cell_of_its_own_width(lengths: list[int], most: int) -> None:
    order, starts, width = (array.numpy() for array in cells_of(
        tf.constant(lengths, tf.int32), WIDTHS, most))
    assert sorted(order) == list(range(len(lengths)))
    assert starts[0] == 0 and starts[-1] == len(lengths) and len(starts) == len(width) + 1 >= 2
    for first, end, size in zip(starts, starts[1:], width):
        assert size in WIDTHS
        cell = [lengths[row] for row in order[first:end]]
        assert bool(cell) == bool(lengths)
        assert all(length <= size for length in cell)
        assert all(length > smaller for length in cell for smaller in WIDTHS if smaller < size)
        assert len(cell) == 1 or len(cell) * size <= most
    # No cell more than are needed.
    for size in WIDTHS:
        count = sum(1 for length in lengths if min(w for w in WIDTHS if w >= length) == size)
        assert (width == size).sum() == (-(-count // max(1, most // size)) if lengths else (
            size == WIDTHS[0]))


@settings(deadline=None)
@given(st.integers(1, 5000))
def test_sizes_are_few_and_near(most: int) -> None:
    sizes = token_sizes(most)
    assert list(sizes) == sorted(set(sizes)) and sizes[-1] == most
    assert len(sizes) <= 16 + STEPS * 6
    for below, above in itertools.pairwise(sizes):
        assert above - below <= max(FINEST, below / STEPS)


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 16), (16, 16), (17, 32), (129, 144),
                                             (257, 288), (499, 512), (500, 512)])
def test_a_count_is_rounded_up(count: int, size: int) -> None:
    assert int(rounded_up(tf.constant(count), 512)) == size
    assert int(rounded_up(tf.constant(500), 500)) == 500


MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 0]], bool)
COUNTS = [3, 1, 5, 2]  # the second row keeps its first place


def test_tokens_are_joined_without_padding_and_pooled_by_row() -> None:
    layout = Joined(tf.constant(MASK), tf.constant(8), 100)
    padded = np.arange(20).reshape(4, 5)
    wanted = [0, 1, 2, 5, 10, 11, 12, 13, 14, 15, 17]
    tokens = layout.tokens(tf.constant(padded)).numpy()
    assert tokens.tolist() == wanted + [0] * 5
    assert layout.positions.numpy().tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4, 0, 2] + [0] * 5
    assert ((layout.hidden.numpy()[:, 0, 0] == 0).sum(axis=1) == COUNTS).all()
    assert set(np.unique(layout.hidden)) == {0.0, np.float32(MASKED)}
    hidden = tf.constant(tokens[:, None], tf.float32)
    assert layout.pool(hidden, "first").numpy()[:, 0].tolist() == [0, 5, 10, 15]
    assert layout.pool(hidden, "mean").numpy()[:, 0].tolist() == [1, 0, 12, 16]
    assert layout.pool(hidden, "max").numpy()[:, 0].tolist() == [2, 0, 14, 17]


@pytest.mark.parametrize("kind", [Joined, Padded])
def test_heads_are_split_and_joined_again(kind: type) -> None:
    layout = (Joined(tf.constant(MASK), tf.constant(8), 100) if kind is Joined
              else Padded(tf.constant(MASK)))
    count, heads, size = int(layout.positions.shape[0]), 2, 3
    projected = np.random.default_rng(0).normal(size=(count, 3 * heads * size)).astype(np.float32)
    parts = layout.split(tf.constant(projected), heads)
    real = {Joined: sum(COUNTS), Padded: count}[kind]
    for part, wanted in zip(parts, np.split(projected, 3, axis=1)):
        np.testing.assert_array_equal(layout.join(part)[:real], wanted[:real])
        # Head h of a row's first token.
        first = layout.pool(tf.constant(wanted), "first").numpy()
        np.testing.assert_array_equal(part[:, 1, 0], first[:, size:])


def test_what_attention_does_not_see_is_its_row_s_own_last_token() -> None:
    layout = Joined(tf.constant(MASK), tf.constant(8), 100)
    projected = tf.reshape(tf.range(16.0), [16, 1]) * tf.ones([1, 6])
    keys = layout.split(projected, 2)[1].numpy()[:, 0, :, 0]
    assert keys.tolist()[0] == [0, 1, 2, 2, 2, 2, 2, 2] and keys.tolist()[1] == [3] * 8
