"""Row numbers of ragged values, in memory that grows with the values alone."""

from __future__ import annotations

import tensorflow as tf


def row_ids(splits: tf.Tensor) -> tf.Tensor:
    """Return the row of each value [N] of a ragged tensor with row splits [R + 1]; dtype as given.

    `RaggedTensor.value_rowids` and `tf.repeat` do the same over R times the longest row: one long
    text among many short ones would take gigabytes.
    """
    size = tf.reshape(splits[-1] + 1, [1])
    ends = tf.scatter_nd(splits[1:, None], tf.ones_like(splits[1:]), size)
    return tf.cumsum(ends)[:-1]


def spread(counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return, for each of sum(counts) places, which of the [N] items it is of and its number in it.

    Both have the dtype of `counts`.
    """
    splits = tf.concat([tf.zeros([1], counts.dtype), tf.cumsum(counts)], axis=0)
    index = row_ids(splits)
    return index, tf.range(tf.size(index, counts.dtype)) - tf.gather(splits, index)
