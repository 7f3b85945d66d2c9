"""Attributions against closed forms and against a sum of many small steps."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.decoding.attribution import attribute

B, T, E = 3, 5, 4
COUNTED = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


def vectors(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(B, T, E)).astype(np.float32)


def linear(given: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(given * tf.constant([1.0, -2.0, 0.5, 3.0]), axis=[1, 2])


def curved(given: tf.Tensor) -> tf.Tensor:
    mixed = tf.tanh(tf.reduce_sum(given, axis=1))                            # [B, E]
    attention = tf.nn.softmax(tf.reduce_sum(given * mixed[:, None], axis=-1), axis=-1)
    return tf.reduce_sum(attention[..., None] * given**2, axis=[1, 2])


def test_of_a_linear_score_both_ways_give_each_tokens_own_share() -> None:
    given = vectors()
    found = attribute(linear, tf.constant(given), tf.constant(COUNTED))
    own = (given * [1.0, -2.0, 0.5, 3.0]).sum(axis=-1) * COUNTED
    np.testing.assert_allclose(found.gradients, own, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.left_out, own, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-5)


def test_gradients_add_up_and_equal_a_sum_of_many_steps() -> None:
    given = vectors(1)
    found = attribute(curved, tf.constant(given), tf.constant(COUNTED))
    kept, steps = np.where(COUNTED[..., None], 0.0, given), 800
    places = ((np.arange(steps) + 0.5) / steps)[:, None, None, None]
    here = tf.constant((kept + places * (given - kept)).reshape(-1, T, E).astype(np.float32))
    with tf.GradientTape() as tape:
        tape.watch(here)
        summed = tf.reduce_sum(curved(here))
    total = tape.gradient(summed, here).numpy().reshape(steps, B, T, E).mean(0, np.float64)
    oracle = ((given - kept) * total).sum(axis=-1)
    np.testing.assert_allclose(found.gradients, oracle, atol=2e-4)
    np.testing.assert_allclose(tf.reduce_sum(found.gradients, axis=-1),
                               found.score - found.baseline, atol=1e-3)
    np.testing.assert_allclose(found.error, 0.0, atol=1e-3)


def test_left_out_is_the_score_without_that_token() -> None:
    given = vectors(2)
    found = attribute(curved, tf.constant(given), tf.constant(COUNTED))
    for row, place in zip(*np.nonzero(COUNTED)):
        without = given.copy()
        without[row, place] = 0.0
        drop = curved(tf.constant(given))[row] - curved(tf.constant(without))[row]
        assert float(found.left_out[row, place]) == pytest.approx(float(drop), abs=1e-5)
    assert not np.asarray(found.left_out)[~COUNTED].any()
    assert not np.asarray(found.gradients)[~COUNTED].any()


def test_a_row_alone_is_a_row_in_a_crowd_and_too_few_points_are_told() -> None:
    given = vectors(3)
    crowd = attribute(curved, tf.constant(given), tf.constant(COUNTED))
    alone = attribute(curved, tf.constant(given[:1]), tf.constant(COUNTED[:1]))
    np.testing.assert_allclose(alone.gradients[0], crowd.gradients[0], atol=1e-6)
    np.testing.assert_allclose(alone.left_out[0], crowd.left_out[0], atol=1e-6)
    rough = attribute(curved, tf.constant(given), tf.constant(COUNTED), nodes=1)
    assert float(rough.error[0]) > 1e-3
    gap = tf.reduce_sum(rough.gradients, axis=-1) - (rough.score - rough.baseline)
    np.testing.assert_allclose(rough.error, tf.abs(gap), atol=1e-6)
