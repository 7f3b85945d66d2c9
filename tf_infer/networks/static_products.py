"""Products of whole numbers whose inputs have units that were set beforehand, from given texts.

An input's unit is one number, the same for every row, so that nothing has to be found out about a
row before it is multiplied: bias, activation and the rounding to 8 bits again are done by oneDNN
while the sums are still at hand. Only where TensorFlow has oneDNN; XLA cannot compile it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_infer.networks.arrays import Activation
from tf_infer.networks.packed import AFTERWARDS, product_int8
from tf_infer.networks.products import ACTIVATIONS, LEVELS, TINY, Traced, Weights


class StaticProduct(Weights):
    """x [M, K] -> activation(x @ kernel.T + bias) [M, N].

    Args:
        kernel: [N, K] float32.
        bias: [N] float32 or None.
        limit: what 127 stands for in the inputs; what lies outside is cut off.
        factor: [K] float32, multiplies the inputs before; None for 1.
        activation: name in ACTIVATIONS, or None.
        next_limit: what 127 stands for in the outputs, which are int8 then; None gives float32.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray | None, *, limit: float,
                 factor: np.ndarray | None = None, activation: Activation | None = None,
                 next_limit: float | None = None, name: str) -> None:
        super().__init__(name=name, trainable=False)
        self.precision = "int8"
        self.activation, self.limit, self.next_limit = activation, limit, next_limit
        largest = np.maximum(np.abs(kernel).max(axis=1), TINY)
        self.rows = self.keep("rows", np.rint(kernel * (LEVELS / largest)[:, None]), "int8")
        self.ends = self.keep("least", -largest), self.keep("most", largest)
        self.bias = self.keep("bias", np.zeros(len(kernel)) if bias is None else bias)
        steps = np.full(kernel.shape[1], LEVELS / limit) * (1.0 if factor is None else factor)
        self.steps = self.keep("steps", steps)
        self.alone = Traced(self._multiply, kernel.shape[1], tf.int8)
        self.built = True

    def multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        """[M, K] float32, or int8 in steps of this product -> [M, N] float32 or int8."""
        if inputs.dtype != tf.int8:
            inputs = in_whole_steps(inputs, tf.convert_to_tensor(self.steps))
        return self.alone(inputs) if tf.executing_eagerly() else self._multiply(inputs)

    def _multiply(self, inputs: tf.Tensor) -> tf.Tensor:
        # Without an activation oneDNN rounds 8 bits by a scale of its own.
        fits = self.activation in AFTERWARDS
        made = product_int8(
            inputs, tf.convert_to_tensor(self.rows), (tf.convert_to_tensor(self.ends[0]),
                                                      tf.convert_to_tensor(self.ends[1])),
            bias=tf.convert_to_tensor(self.bias), limit=self.limit,
            activation=self.activation if fits else None,
            next_limit=self.next_limit if fits else None)
        if fits:
            return made
        made = made if self.activation is None else ACTIVATIONS[self.activation](made)
        return made if self.next_limit is None else in_whole_steps(
            made, tf.constant(LEVELS / self.next_limit))


def in_whole_steps(inputs: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """[M, K] float32, steps [K] or [] for 1 -> [M, K] int8, cut off at 127 on either side."""
    whole = tf.round(tf.cast(inputs, tf.float32) * steps)
    return tf.cast(tf.clip_by_value(whole, -float(LEVELS), float(LEVELS)), tf.int8)
