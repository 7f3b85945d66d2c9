"""Sizes of axes, and functions over the last one, in few operations: graphs stay small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def sizes(tensor: tf.Tensor) -> list[Any]:
    """Return the size of each axis: a number where it is known while tracing, else a tensor.

    Two operations for all of them; `tf.shape(tensor)[0]` alone takes five.
    """
    tensor = tf.convert_to_tensor(tensor)
    known: list[Any] = tensor.shape.as_list()
    if None not in known:
        return known
    dynamic = tf.unstack(tf.shape(tensor), num=len(known))
    return [size if number is None else number for number, size in zip(known, dynamic)]


def over_last_axis(function: Callable[[tf.Tensor], tf.Tensor], tensor: tf.Tensor, width: int
                   ) -> tf.Tensor:
    """Apply [M, D] -> [M, width] to [..., D]; a dense layer of Keras takes twenty operations."""
    if tensor.shape.rank == 2:
        return function(tensor)
    *outer, inner = sizes(tensor)
    return tf.reshape(function(tf.reshape(tensor, [-1, inner])), [*outer, width])
