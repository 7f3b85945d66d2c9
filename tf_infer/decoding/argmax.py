"""Best class and classes above their thresholds, with ties decided."""

from __future__ import annotations

import tensorflow as tf


def best(scores: tf.Tensor) -> tf.Tensor:
    """Return the index of the largest value of each row; ties go to the lower index.

    Args:
        scores: [..., C] floating point; NaN counts as less than every number.

    Returns:
        [...] int32; 0 where a row holds nothing but NaN.

    `tf.argmax` promises no order among ties, so the order is made here.
    """
    lowest = tf.constant(scores.dtype.min, scores.dtype)
    return best_number(tf.where(tf.math.is_nan(scores), lowest, tf.maximum(scores, lowest)))


def best_number(numbers: tf.Tensor) -> tf.Tensor:
    """Return what `best` does of scores [..., C] that are all finite, in half of the passes."""
    top = tf.reduce_max(numbers, axis=-1, keepdims=True)
    places = tf.range(tf.unstack(tf.shape(numbers))[-1])
    return tf.reduce_min(tf.where(numbers >= top, places, tf.int32.max), axis=-1)


def above(scores: tf.Tensor, thresholds: tuple[float, ...]) -> tf.Tensor:
    """Return which classes reach their threshold.

    Args:
        scores: [B, C] float32, probabilities.
        thresholds: one for all classes or C of them, from 0 to 1.

    Returns:
        [B, C] bool, True where the score is at least the threshold; NaN never is.
    """
    return scores >= tf.constant(thresholds, scores.dtype)
