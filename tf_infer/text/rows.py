"""Row numbers of ragged values, in memory that grows with the values alone."""

from __future__ import annotations

import tensorflow as tf


def row_ids(splits: tf.Tensor) -> tf.Tensor:
    """Return the row of each value [N] int64 of a ragged tensor with row splits [R + 1] int64.

    `RaggedTensor.value_rowids` and `tf.repeat` do the same over R times the longest row: one long
    text among many short ones would take gigabytes.
    """
    size = tf.reshape(splits[-1] + 1, [1])
    ends = tf.scatter_nd(splits[1:, None], tf.ones_like(splits[1:]), size)
    return tf.cumsum(ends)[:-1]
