"""Layers of a classifier's LiteRT engine whose numbers have set ranges: products in 8 bits alone.

A product takes and gives whole numbers of units that were set when the file was made, so that the
widest tensor is never float: XNNPACK makes one table of 256 bytes of what stands between the two
products of the feed-forward part. One unit for a whole tensor is coarse where a few channels are
much larger than the others. So the channels are made alike first, where that costs nothing:
queries' against keys', those of values inside the product behind attention. What is added to the
residual stream is multiplied by a vector when it is float again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tf_infer.networks.arrays import Activation, Dense
from tf_infer.optimize.litert_file import Constant, GraphWriter, ModelFile, Scales, Tensor

# Below this an activation gives what 8 bits do not tell from 0.
LEAST: Mapping[Activation, float] = {"gelu": -4.0, "gelu_tanh": -4.0, "relu": 0.0, "silu": -8.0}
UNITS = 2**20  # of a bias, at most: a float32 tells them apart with a sum beside them
EVEN = 1 / 127.0  # unit of channels that were divided by the largest number of each


@dataclass(frozen=True, slots=True)
class LayerRanges:
    """What 8 bits reach to in one layer: +- each number, > 0.

    Attributes:
        read: of what queries, keys and values are made of.
        scores: of queries and keys, whose channels were made alike.
        queries: [H d] what queries are divided by for that, and keys multiplied.
        values: [H d] each channel of values.
        attended: of what the product behind attention takes, divided by `values`.
        out: [D] each channel of what that gives.
        inner_read: of what the feed-forward part takes.
        inner: (least, most) before the activation.
        active: (least, most) behind it.
        outer: [D] each channel of what the feed-forward part gives.
    """

    read: float
    scores: float
    queries: np.ndarray
    values: np.ndarray
    attended: float
    out: np.ndarray
    inner_read: float
    inner: tuple[float, float]
    active: tuple[float, float]
    outer: np.ndarray


@dataclass(frozen=True, slots=True)
class WholeDense:
    """A product of whole numbers: units of what it takes and gives, a constant behind it."""

    kernel: Constant
    bias: Constant
    read: Scales
    given: Scales
    factors: Constant | None = None

    def multiply(self, writer: GraphWriter, tensor: Tensor) -> Tensor:
        """[M, K] int8 -> [M, N] int8."""
        return writer.whole_dense(tensor, self.kernel, self.bias, self.given)

    def floats(self, writer: GraphWriter, tensor: Tensor) -> Tensor:
        """[M, K] int8 -> [M, N] float32."""
        made = writer.to_float(self.multiply(writer, tensor))
        return made if self.factors is None else writer.multiply(made, self.factors)


class StaticLayer:
    """The products of one layer.

    Args:
        file: they are added to.
        ranges: of the layer.
        parts: query, keys, values [H d, D], out, inner, outer; queries are divided by the root of
            d, and scales and shifts of norms are inside.
    """

    def __init__(self, file: ModelFile, ranges: LayerRanges, parts: tuple[Dense, ...]) -> None:
        query, keys, values, out, inner, outer = parts
        read, inner_read = _even(ranges.read), _even(ranges.inner_read)
        scores, attended, one = _even(ranges.scores), _even(ranges.attended), _even(1.0)
        self.read, self.inner_read, self.attended = read, inner_read, attended
        self.active = between(*ranges.active)
        self.query = _product(file, _divided(query, ranges.queries), read, scores)
        self.keys = _product(file, _divided(keys, 1.0 / ranges.queries), read, scores)
        self.values = _product(file, _divided(values, ranges.values), read, one)
        self.out = _product(file, _divided(Dense(out.kernel * ranges.values, out.bias), ranges.out),
                            attended, one, ranges.out)
        self.inner = _product(file, inner, inner_read, between(*ranges.inner))
        self.outer = _product(file, _divided(outer, ranges.outer), self.active, one, ranges.outer)

    def feed(self, writer: GraphWriter, hidden: Tensor, activation: Activation) -> Tensor:
        """[M, D] -> what the feed-forward part adds to it, [M, D]."""
        inner = self.inner.multiply(writer, writer.to_int8(hidden, self.inner_read))
        active = writer.to_int8(writer.activation(writer.to_float(inner), activation), self.active)
        return self.outer.floats(writer, active)


def between(least: float, most: float) -> Scales:
    """Return the unit of numbers from `least`, -128, to `most`, 127; 0 is a whole number."""
    least, most = min(least, 0.0), max(most, 0.0)
    scale = (most - least) / 255.0
    return Scales(np.array([scale], np.float32), round(-128.0 - least / scale))


def _even(limit: float) -> Scales:
    return Scales(np.array([limit * EVEN], np.float32))


def _divided(dense: Dense, channels: np.ndarray) -> Dense:
    """Divide what a product gives."""
    factors = (1.0 / channels).astype(np.float32)
    return Dense(dense.kernel * factors[:, None],
                 None if dense.bias is None else dense.bias * factors)


def _product(file: ModelFile, dense: Dense, read: Scales, given: Scales,
             factors: np.ndarray | None = None) -> WholeDense:
    bias = np.zeros(len(dense.kernel), np.float32) if dense.bias is None else dense.bias
    # The bias counts in units of the row: those of weights near 0 would be too small for it.
    kernel = file.quantized(dense.kernel, np.abs(bias) / (UNITS * read.scale))
    return WholeDense(kernel, file.whole_bias(bias, kernel, read), read, given,
                      None if factors is None else file.constant(factors.astype(np.float32)))
