"""Weights that are smaller in a SavedModel than in use: kept in fewer bits, expanded at load.

A SavedModel's initialiser makes the float32 weights out of what was restored, in TensorFlow's
loaders and in TensorFlow Serving alike, as it fills tables from their files.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal

import tensorflow as tf

Storage = Literal["bfloat16", "int8"]


class Expanded(tf.saved_model.experimental.TrackableResource):
    """A float32 weight made of stored numbers; stands where a tensor does.

    Args:
        stored: tf.Variable, bfloat16 or int8. Not Keras's, of which a SavedModel restores a copy.
        scale: tf.Variable float32 of a shape that fits beside it, what 1 stands for; None for 1.
    """

    def __init__(self, stored: Any, scale: Any) -> None:
        super().__init__()
        self.stored, self.scale = self._track_trackable(stored, "stored"), scale
        if scale is not None:
            self._track_trackable(scale, "scale")
        self.shape = tf.TensorShape(stored.shape)
        self._name = f"expanded_{uuid.uuid4()}"
        self._initialize()

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=self.shape, shared_name=self._name)

    def _initialize(self) -> None:
        values = tf.cast(tf.convert_to_tensor(self.stored), tf.float32)
        if self.scale is not None:
            values *= tf.convert_to_tensor(self.scale)
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=values)

    def _destroy_resource(self) -> None:
        tf.raw_ops.DestroyResourceOp(resource=self.resource_handle, ignore_lookup_error=True)

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        """Read it."""
        del dtype, name
        read = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32)
        return tf.ensure_shape(read, self.shape)
