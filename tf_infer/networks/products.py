"""Dense products with weights in the precision of a plan; what goes in and out is float32.

    float32     as the reference multiplies
    bfloat16    weights, inputs and outputs with 8 bits of mantissa, sums in float32
    int8        weights of 8 bits with a scale for each output, inputs of 8 bits with a scale for
                each row; sums are exact whole numbers

The vectors of ids, which make the logits, are whole numbers in bfloat16, too, but of 15 bits:
logits are float32, and a product in bfloat16 would round them to 8 bits.

A row of a product depends on that row alone, to the last bit, in each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_infer.networks.arrays import Activation
from tf_infer.networks.packed import AFTERWARDS, product_bfloat16, product_int8
from tf_infer.networks.stored import Expanded, Storage

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

    def keep_small(self, name: str, array: np.ndarray, storage: Storage | None, *, axis: int
                   ) -> Any:
        """Return a float32 weight that is stored in fewer bits.

        Args:
            name: of it.
            array: its values before they are rounded.
            storage: in what; None in float32.
            axis: along it, numbers share the scale of int8.
        """
        if storage is None:
            return self.keep(name, array)
        if storage == "bfloat16":
            return Expanded(self.keep(name, array, "bfloat16").value, None)
        largest = np.maximum(np.abs(array).max(axis=axis, keepdims=True), TINY)
        return Expanded(self.keep(name, np.rint(array * (LEVELS / largest)), "int8").value,
                        self.keep(f"{name}_scale", largest / LEVELS).value)


class Product(Weights):
    """x [M, K] -> activation(x @ kernel.T + bias) [M, N].

    Args:
        kernel: [N, K] float32.
        bias: [N] float32 or None.
        precision: of the kernel.
        activation: name in ACTIVATIONS, or None.
        packed: multiply by the operations of `packed`, which XLA cannot compile.
        rounded: give bfloat16 where that is what the product makes, for another product.
        factor: [K] float32, multiplies the inputs before; None for 1.
        storage: of a kernel in float32, in the SavedModel; None for float32.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray | None, precision: Precision, *,
                 activation: Activation | None = None, packed: bool, rounded: bool = False,
                 factor: np.ndarray | None = None, storage: Storage | None = None, name: str
                 ) -> None:
        super().__init__(name=name, trainable=False)
        self.factor = None if factor is None else self.keep("factor", factor)
        self.precision, self.activation = precision, activation
        self.outputs = "bfloat16" if rounded and precision == "bfloat16" else "float32"
        # oneDNN's fused product wants a bias; without one it adds zeros.
        self.fused = precision == "bfloat16" and packed
        if self.fused and bias is None:
            bias = np.zeros(len(kernel), np.float32)
        self.bias = None if bias is None else self.keep(
            "bias", bias, "bfloat16" if self.fused else "float32")
        self.table = Int8(kernel, packed=packed, name="kernel") if precision == "int8" else None
        self.kernel = None
        if self.table is None:
            across = np.ascontiguousarray(kernel.T)                          # [K, N]
            self.kernel = (self.keep_small("kernel", across, storage, axis=0)
                           if precision == "float32" else self.keep("kernel", across, precision))
        self.alone = Traced(self._multiply, kernel.shape[1]) if packed else None
        self.built = True

    def multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        """[M, K] float32 or bfloat16 -> [M, N] float32, or bfloat16 where it is `rounded`."""
        if self.alone is not None and tf.executing_eagerly():
            return self.alone(tf.cast(inputs, tf.float32))
        return self._multiply(inputs)

    def _multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.factor is not None:
            inputs = tf.cast(inputs, tf.float32) * tf.convert_to_tensor(self.factor)
        if self.fused:
            fits = self.activation is None or self.activation in AFTERWARDS
            product = product_bfloat16(
                tf.cast(inputs, tf.bfloat16), tf.convert_to_tensor(self.kernel),
                tf.convert_to_tensor(self.bias), activation=self.activation if fits else None)
            return tf.cast(product if fits else self._activated(product), self.outputs)
        if self.table is not None:
            product = self.table.multiply(tf.cast(inputs, tf.float32))
        else:
            kernel = tf.convert_to_tensor(self.kernel)
            product = tf.cast(tf.matmul(tf.cast(inputs, kernel.dtype), kernel), tf.float32)
        if self.bias is not None:
            # Not by `+`: TensorFlow's optimiser changes the order of plain sums that follow each
            # other, and the last bit decides what the next product rounds to 8 bits.
            product = tf.nn.bias_add(product, tf.convert_to_tensor(self.bias))
        return tf.cast(self._activated(product), self.outputs)

    def _activated(self, product: tf.Tensor) -> tf.Tensor:
        """Apply the activation, in float32."""
        if self.activation is None:
            return product
        return ACTIVATIONS[self.activation](tf.cast(product, tf.float32))


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
        largest = np.maximum(np.abs(rows).max(axis=1), TINY)
        steps = rows * (LEVELS / largest)[:, None]
        first = np.rint(steps)
        self.rows = self.keep("rows", first, "int8")
        self.fine = self.keep("fine", np.rint((steps - first) * FINER), "int8") if fine else None
        self.least, self.most = self.keep("least", -largest), self.keep("most", largest)
        self.built = True

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """[...] int32 -> rows [..., K] float32."""
        rows = tf.cast(tf.gather(tf.convert_to_tensor(self.rows), ids), tf.float32)
        if self.fine is not None:
            fine = tf.cast(tf.gather(tf.convert_to_tensor(self.fine), ids), tf.float32)
            rows += fine * (1.0 / FINER)
        return rows * (tf.gather(tf.convert_to_tensor(self.most), ids) * (1.0 / LEVELS))[..., None]

    def multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        """[M, K] float32, which are rounded to 8 bits, or 15 where rows are -> [M, N] float32."""
        if not self.packed:
            return self._emulated(inputs)
        steps, unit = in_steps(inputs)
        first = tf.round(steps)
        if self.fine is None:
            return self._product(tf.cast(first, tf.int8), self.rows) * unit
        rest = tf.cast(tf.round((steps - first) * FINER), tf.int8)           # [M, K]
        first = tf.cast(first, tf.int8)
        both = self._product(tf.concat([first, rest], axis=0), self.rows)    # [2 M, N]
        count = tf.shape(inputs)[0]
        upper, lower = both[:count], both[count:]  # tf.split would copy
        lower += self._product(first, self.fine)
        return (upper + lower * (1.0 / FINER)) * unit

    def _product(self, inputs: tf.Tensor, rows: Any) -> tf.Tensor:
        return product_int8(inputs, tf.convert_to_tensor(rows), (
            tf.convert_to_tensor(self.least), tf.convert_to_tensor(self.most)))

    def _emulated(self, inputs: tf.Tensor) -> tf.Tensor:
        whole = tf.cast(tf.convert_to_tensor(self.rows), tf.float32)
        if self.fine is not None:
            whole += tf.cast(tf.convert_to_tensor(self.fine), tf.float32) * (1.0 / FINER)
        scale = tf.convert_to_tensor(self.most) * (1.0 / LEVELS)
        return tf.matmul(inputs, whole, transpose_b=True) * scale


def in_steps(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """[M, K] -> [M, K] between -127 and 127, and the unit [M, 1] that they count."""
    unit = tf.reduce_max(tf.abs(inputs), axis=-1, keepdims=True) * (1.0 / LEVELS)
    return tf.math.divide_no_nan(inputs, unit), unit


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
        self.alone = None
        if self.table is not None and packed:
            self.alone = Traced(self.table.multiply, rows.shape[1])
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


def gelu_tanh(x: tf.Tensor) -> tf.Tensor:
    """GELU by its tanh approximation, in the fewest operations: (1 + tanh u) / 2 = sigmoid(2 u)."""
    return x * tf.sigmoid(x * (1.5957691216057308 + 0.07135481282553496 * tf.square(x)))


# Keras spends more operations on them, each of which a graph on a CPU runs for itself.
ACTIVATIONS: Mapping[Activation, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": lambda x: tf.nn.gelu(x, approximate=False), "gelu_tanh": gelu_tanh,
    "relu": tf.nn.relu, "silu": lambda x: x * tf.sigmoid(x)}


class Traced:
    """A product [M, inputs] as a function of its own, for calls outside any graph."""

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor], inputs: int,
                 dtype: tf.DType = tf.float32) -> None:
        self._function = tf.function(function, autograph=False, input_signature=[
            tf.TensorSpec([None, inputs], dtype)])
        self._traced: Callable[[tf.Tensor], tf.Tensor] | None = None

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """Trace at the first call."""
        if self._traced is None:
            self._traced = self._function.get_concrete_function()
        return self._traced(inputs)
