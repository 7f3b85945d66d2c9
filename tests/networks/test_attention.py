"""tf_infer.networks.attention against plain NumPy, eagerly, in a graph and under XLA."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import attention as oracle
from tf_infer.networks import attention

PATHS: dict[str, Any] = {
    "eager": lambda function: function,
    "graph": lambda function: tf.function(function, autograph=False),
    "xla": lambda function: tf.function(function, jit_compile=True, autograph=False),
}
ATOL = 1e-5  # float32, sums of a few dozen products


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (4, 1)])
def test_attention_is_the_plain_one(path: str, heads: int, groups: int) -> None:
    draw = np.random.default_rng(0)
    query = draw.normal(size=(3, heads, 2, 8)).astype(np.float32)
    keys, values = draw.normal(size=(2, 3, groups, 7, 8)).astype(np.float32)
    allowed = draw.random((3, 2, 7)) < 0.5
    allowed[..., 0] = True
    got = PATHS[path](attention.attend)(query, keys, values, tf.constant(allowed))
    np.testing.assert_allclose(got, oracle.attend(query, keys, values, allowed), atol=ATOL)


def test_what_is_not_allowed_may_hold_anything_finite() -> None:
    draw = np.random.default_rng(1)
    query = draw.normal(size=(2, 2, 1, 4)).astype(np.float32)
    keys, values = draw.normal(size=(2, 2, 2, 5, 4)).astype(np.float32)
    allowed = tf.sequence_mask([2, 5], 5)[:, None]
    clean = attention.attend(query, keys, values, allowed)
    keys[0, :, 2:], values[0, :, 2:] = 1e28, -1e28
    np.testing.assert_array_equal(clean, attention.attend(query, keys, values, allowed))


def test_a_query_that_may_look_nowhere_gives_finite_numbers() -> None:
    ones = tf.ones([1, 1, 1, 4])
    assert np.isfinite(attention.attend(ones, ones, ones, tf.constant([[[False]]]))).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [1, 3])
def test_writing_puts_each_row_at_its_own_place(path: str, steps: int) -> None:
    draw = np.random.default_rng(2)
    buffer = draw.normal(size=(5, 2, 6, 4)).astype(np.float32)
    new = draw.normal(size=(5, 2, steps, 4)).astype(np.float32)
    lengths = np.array([0, 3, 2, 5, 6], np.int32)
    counts = np.minimum([steps, 2, 0, steps, 1], steps).astype(np.int32)
    got = PATHS[path](attention.write)(buffer, new, lengths, counts)
    np.testing.assert_array_equal(got, oracle.write(buffer, new, lengths, counts))


def test_rotation_turns_each_pair_by_its_angle() -> None:
    tensor = np.random.default_rng(3).normal(size=(1, 1, 2, 4)).astype(np.float32)
    angles = np.array([[[0.3, 1.1], [2.0, -0.7]]], np.float32)
    got = attention.rotate(tensor, (tf.cos(angles), tf.sin(angles)))
    turned = (tensor[..., :2] + 1j * tensor[..., 2:]) * np.exp(1j * angles[:, None])
    np.testing.assert_allclose(got, np.concatenate([turned.real, turned.imag], -1), atol=ATOL)
