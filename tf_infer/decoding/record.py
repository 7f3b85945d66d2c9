"""Keep the log-probability of every token, and of the likeliest others, as far as rows ask."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_infer.decoding.contracts import Choice, Watcher
from tf_infer.decoding.score import finite


class Record(NamedTuple):
    """What was kept of each row's tokens.

    Attributes:
        log_probs: [N, L] float32, nats, of each produced token under the model; 0 behind them.
        top_ids: [N, L, A] int32, the likeliest tokens at each place, best first, as many as the row
            asked for; -1 behind them.
        top_log_probs: [N, L, A] float32, nats; 0 where top_ids is -1.
    """

    log_probs: tf.Tensor
    top_ids: tf.Tensor
    top_log_probs: tf.Tensor


def watcher(wanted: tf.Tensor, capacity: int, most: int) -> Watcher:
    """Return a watcher that records.

    Args:
        wanted: [N] int32, alternatives of each token that a row asks for, 0 .. `most`.
        capacity: L, fixed when traced.
        most: A, fixed when traced.
    """
    rows = tf.shape(wanted)[0]
    state = Record(tf.zeros([rows, capacity]), tf.fill([rows, capacity, most], -1),
                   tf.zeros([rows, capacity, most]))
    anybody = tf.reduce_any(wanted > 0)

    def watch(choice: Choice, state: Record) -> tuple[tf.Tensor, Record]:
        place = tf.where(choice.kept, choice.produced, -1)
        here = tf.range(capacity) == tf.expand_dims(place, 1)                # [N, L]

        def with_top() -> tuple[tf.Tensor, tf.Tensor]:
            ids, log_probs = top(choice.logits, most, wanted)
            return (tf.where(here[..., None], tf.expand_dims(ids, 1), state.top_ids),
                    tf.where(here[..., None], tf.expand_dims(log_probs, 1), state.top_log_probs))

        ids, log_probs = state.top_ids, state.top_log_probs
        if most:
            ids, log_probs = tf.cond(anybody, with_top, lambda: (ids, log_probs))
        told = tf.where(here, finite(choice.log_probs)[:, None], state.log_probs)
        return tf.zeros_like(choice.kept), Record(told, ids, log_probs)

    return Watcher(state, watch)


def top(logits: tf.Tensor, most: int, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the likeliest tokens of each row.

    Args:
        logits: [N, V] float32; infinities and NaN count as in `sampling.choose`.
        most: A, fixed when traced.
        wanted: [N] int32, 0 .. A.

    Returns:
        ids [N, A] int32, best first, ties by id, -1 from place `wanted` (or V) on; and
        log-probabilities [N, A] float32, nats, 0 there.
    """
    logits = finite(logits)
    size = tf.shape(logits)[1]
    # As many columns as are asked for, should the vocabulary hold fewer.
    low = tf.constant(logits.dtype.min, logits.dtype)
    padded = tf.pad(logits, [[0, 0], [0, most]], constant_values=low)
    values, ids = tf.math.top_k(padded, k=most)
    best = values[:, :1]
    log_probs = values - best - tf.math.log(
        tf.reduce_sum(tf.exp(logits - best), axis=-1, keepdims=True))
    told = (tf.range(most) < tf.expand_dims(wanted, 1)) & (ids < size)
    return tf.where(told, ids, -1), tf.where(told, finite(log_probs), 0.0)
