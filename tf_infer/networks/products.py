"""Dense products with weights in the precision of a plan; what goes in and out is float32.

    float32     as the reference multiplies
    bfloat16    weights, inputs and outputs with 8 bits of mantissa, sums in float32
    int8        weights of 8 bits with a scale for each output; inputs of 15 bits with a scale for
                each row, as two numbers of 8 bits; sums are exact whole numbers

The vectors of ids, which make the logits, are whole numbers in bfloat16, too, but of 15 bits:
logits are float32, and a product in bfloat16 would round them to 8 bits.

A row of a product depends on that row alone, to the last bit, in each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_infer.networks.packed import product_bfloat16, product_int8

Precision = Literal["float32", "bfloat16", "int8"]
LEVELS = 127       # of int8 on either side of 0
FINER = 2 * LEVELS  # steps of the second number within one of the first
TINY = 1e-30       # instead of 0, to divide by


class Weights(keras.layers.Layer):
    """Weights that are not trained, in exactly the dtype they are given."""

    def keep(self, name: str, array: np.ndarray, dtype: str = "float32") -> Any:
        """Return a new weight with the values of `array`."""
        weight = self.add_weight(shape=array.shape, dtype=dtype, initializer="zeros", name=name,
                                 trainable=False, autocast=False)
        weight.assign(tf.cast(array, dtype))
        return weight


class Product(Weights):
    """x [M, K] -> x @ kernel.T + bias [M, N].

    Args:
        kernel: [N, K] float32.
        bias: [N] float32 or None.
        precision: of the kernel.
        packed: multiply by the operations of `packed`, which XLA cannot compile.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray | None, precision: Precision, *,
                 packed: bool, name: str) -> None:
        super().__init__(name=name, trainable=False)
        self.precision, self.packed = precision, packed
        if precision == "int8":
            self.table: Int8 | None = Int8(kernel, packed=packed, name="kernel")
        else:
            self.table = None
            self.kernel = self.keep("kernel", np.ascontiguousarray(kernel.T), precision)
        # oneDNN's fused product wants a bias; without one it adds zeros.
        self.fused = precision == "bfloat16" and packed
        if self.fused and bias is None:
            bias = np.zeros(len(kernel), np.float32)
        self.bias = None if bias is None else self.keep(
            "bias", bias, "bfloat16" if self.fused else "float32")
        self.alone = Traced(self._multiply, kernel.shape[1]) if packed else None
        self.built = True

    def multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        """[M, K] float32 -> [M, N] float32."""
        if self.alone is not None and tf.executing_eagerly():
            return self.alone(inputs)
        return self._multiply(inputs)

    def _multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        bias = None if self.bias is None else tf.convert_to_tensor(self.bias)
        if self.table is not None:
            product = self.table.multiply(inputs)
        elif self.precision == "float32":
            product = tf.matmul(inputs, tf.convert_to_tensor(self.kernel))
        else:
            kernel, inputs = tf.convert_to_tensor(self.kernel), tf.cast(inputs, tf.bfloat16)
            if self.fused:
                return tf.cast(product_bfloat16(inputs, kernel, bias), tf.float32)
            product = tf.cast(tf.matmul(inputs, kernel), tf.float32)
        return product if bias is None else product + bias


class Int8(Weights):
    """Rows of whole numbers, -127 .. 127, with a scale for each row.

    Args:
        rows: [N, K] float32.
        fine: keep a second whole number of each value, FINER steps of which make one of the first.
        packed: see Product.
    """

    def __init__(self, rows: np.ndarray, *, packed: bool, name: str, fine: bool = False) -> None:
        super().__init__(name=name, trainable=False)
        self.packed = packed
        scale = np.maximum(np.abs(rows).max(axis=1), TINY) / LEVELS
        steps = rows / scale[:, None]
        first = np.rint(steps)
        self.rows = self.keep("rows", first, "int8")
        self.fine = self.keep("fine", np.rint((steps - first) * FINER), "int8") if fine else None
        self.scale = self.keep("scale", scale)
        self.built = True

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """[...] int32 -> rows [..., K] float32."""
        rows = tf.cast(tf.gather(tf.convert_to_tensor(self.rows), ids), tf.float32)
        if self.fine is not None:
            fine = tf.cast(tf.gather(tf.convert_to_tensor(self.fine), ids), tf.float32)
            rows += fine * (1.0 / FINER)
        return rows * tf.gather(tf.convert_to_tensor(self.scale), ids)[..., None]

    def multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        """[M, K] float32 -> [M, N] float32."""
        rows, scale = tf.convert_to_tensor(self.rows), tf.convert_to_tensor(self.scale)
        fine = None if self.fine is None else tf.convert_to_tensor(self.fine)
        if not self.packed:
            whole = tf.cast(rows, tf.float32)
            if fine is not None:
                whole += tf.cast(fine, tf.float32) * (1.0 / FINER)
            return tf.matmul(inputs, whole, transpose_b=True) * scale
        coarse, rest, unit = in_two_numbers(inputs)
        coarse = tf.cast(coarse, tf.int8)                                    # [M, K]
        both = tf.concat([coarse, tf.cast(rest, tf.int8)], axis=0)           # [2 M, K]
        upper, lower = tf.split(product_int8(both, rows, scale), 2, axis=0)
        if fine is not None:
            lower += product_int8(coarse, fine, scale)
        return (upper + lower * (1.0 / FINER)) * unit


def in_two_numbers(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """[M, K] -> whole numbers -127 .. 127 in float32, twice, and unit [M, 1].

    inputs = (first + second / FINER) * unit, within half a second number.
    """
    largest = tf.reduce_max(tf.abs(inputs), axis=-1, keepdims=True)
    unit = tf.maximum(largest, TINY) * (1.0 / LEVELS)
    steps = inputs / unit
    first = tf.round(steps)
    return first, tf.round((steps - first) * FINER), unit


class Table(Weights):
    """Vectors of ids, which are also the rows that give the logits: stored once.

    Args:
        rows: [V, D] float32.
        precision: of the rows.
        packed: see Product.
    """

    def __init__(self, rows: np.ndarray, precision: Precision, *, packed: bool, name: str) -> None:
        super().__init__(name=name, trainable=False)
        self.count = len(rows)
        self.table = None if precision == "float32" else Int8(
            rows, fine=precision == "bfloat16", packed=packed, name="rows")
        self.rows = None if self.table is not None else self.keep("rows", rows)
        self.alone = Traced(self.table.multiply, rows.shape[1]) if self.table and packed else None
        self.built = True

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """[...] int32 -> [..., D] float32."""
        if self.table is not None:
            return self.table.look_up(ids)
        return tf.gather(tf.convert_to_tensor(self.rows), ids)

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[M, D] float32 -> [M, V] float32."""
        if self.table is None:
            return tf.matmul(hidden, tf.convert_to_tensor(self.rows), transpose_b=True)
        if self.alone is not None and tf.executing_eagerly():
            return self.alone(hidden)
        return self.table.multiply(hidden)


class Traced:
    """A product [M, inputs] as a function of its own, for calls outside any graph."""

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor], inputs: int) -> None:
        self._function = tf.function(function, autograph=False, input_signature=[
            tf.TensorSpec([None, inputs], tf.float32)])
        self._traced: Callable[[tf.Tensor], tf.Tensor] | None = None

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """Trace at the first call."""
        if self._traced is None:
            self._traced = self._function.get_concrete_function()
        return self._traced(inputs)
