"""Losses against sums written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.train import losses

ATOL = 1e-5  # float32 sums of a few terms


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothing(smoothing: float) -> None:
    draw = np.random.default_rng(0)
    logits, targets = draw.normal(size=(5, 3)), np.array([0, 1, 2, 1, 0])
    wanted = np.eye(3)[targets] * (1 - smoothing) + smoothing / 3
    expected = -(wanted * log_softmax(logits)).sum(axis=1)
    found = losses.cross_entropy(tf.constant(logits, tf.float32), tf.constant(targets),
                                 label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, atol=ATOL)


def test_binary_cross_entropy_sums_over_the_classes() -> None:
    draw = np.random.default_rng(1)
    logits, targets = draw.normal(size=(4, 3)), draw.integers(0, 2, (4, 3))
    score = 1 / (1 + np.exp(-logits))
    expected = -(targets * np.log(score) + (1 - targets) * np.log(1 - score)).sum(axis=1)
    found = losses.binary_cross_entropy(tf.constant(logits, tf.float32),
                                        tf.constant(targets, tf.float32))
    np.testing.assert_allclose(found, expected, atol=ATOL)


def test_next_id_asks_for_real_ids_only_and_ignores_what_stands_in_the_padding() -> None:
    draw = np.random.default_rng(2)
    logits = draw.normal(size=(3, 4, 6))
    ids = np.array([[1, 2, 3, 4], [5, 0, 9, 9], [3, 9, 9, 9]])  # 9 is no id of 6: padding
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    nats = -log_softmax(logits)
    expected = [nats[0, 0, 2] + nats[0, 1, 3] + nats[0, 2, 4], nats[1, 0, 0], 0.0]
    sums, counts = losses.next_id(tf.constant(logits, tf.float32), tf.constant(ids),
                                  tf.constant(mask))
    np.testing.assert_allclose(sums, expected, atol=ATOL)
    assert counts.numpy().tolist() == [3, 1, 0]
