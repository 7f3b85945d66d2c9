"""Log-probability of given tokens under the model."""

from __future__ import annotations

import tensorflow as tf


def token_log_probs(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Return the natural-log probability of one token in each place.

    Args:
        logits: [..., V] float32; infinities and NaN count as in `sampling.choose`.
        tokens: [...] int32, 0 .. V - 1.

    Returns:
        [...] float32, nats, <= 0.
    """
    logits = finite(logits)
    below = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
    taken = tf.gather(below, tokens, batch_dims=tokens.shape.rank)
    return taken - tf.math.log(tf.reduce_sum(tf.exp(below), axis=-1))


def finite(logits: tf.Tensor) -> tf.Tensor:
    """Return logits with NaN as the least finite number and infinities as the extreme ones."""
    low, high = logits.dtype.min, logits.dtype.max
    # Two passes; `tf.clip_by_value` takes two for itself.
    return tf.raw_ops.ClipByValue(t=tf.where(tf.math.is_nan(logits), low, logits),
                                  clip_value_min=low, clip_value_max=high)


def place_scores(logits: tf.Tensor, ids: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """Return the log-probability of each counted id of each row, given all ids before it.

    Args:
        logits: [B, T, V] float32, place t holding those of the id behind ids[:, t].
        ids: [B, T] int32.
        counted: [B, T] bool; place 0 is never counted, since nothing stands before it.

    Returns:
        [B, T] float32, nats, 0 where an id is not counted.
    """
    log_probs = token_log_probs(logits[:, :-1], ids[:, 1:])                  # [B, T - 1]
    return tf.pad(tf.where(counted[:, 1:], log_probs, 0.0), [[0, 0], [1, 0]])


def sequence_scores(logits: tf.Tensor, ids: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """Return the sum of `place_scores` of each row: [B] float32, nats."""
    return tf.reduce_sum(place_scores(logits, ids, counted), axis=-1)
