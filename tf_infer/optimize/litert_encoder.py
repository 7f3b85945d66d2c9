"""A classifier's weights -> the graphs of its LiteRT engine: rows of tokens in, logits out.

Axis letters: R rows of a graph, T tokens of a row, N = R T, Q texts of a row at most, D width,
H heads, d head size. A row holds one text, or several one after the other, each of which sees only
itself (`mask`). So the dense layers compute little padding, whatever the lengths of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from tf_infer.manifest import PACKED_TOKENS, row_texts
from tf_infer.networks.arrays import Dense, Norm
from tf_infer.networks.encoder_arrays import EncoderArrays
from tf_infer.networks.fast import folded, scaled
from tf_infer.optimize.litert_file import Constant, GraphWriter, ModelFile, Tensor
from tf_infer.optimize.litert_static import LayerRanges, StaticLayer

Precision: TypeAlias = Literal["int8", "float32"]
MASKED = -3e38
ANY_ORDER_TOKENS = 32  # a text of so many is added up alike wherever it stands in a row
LENGTH_SQUARED = 1e-12  # as tf.math.l2_normalize: shorter vectors are not scaled to length 1


@dataclass(frozen=True, slots=True)
class _Dense:
    kernel: Constant
    bias: Constant | None


@dataclass(frozen=True, slots=True)
class _Affine:
    """Scale and shift behind a normalisation, where something else than a dense layer reads it."""

    scale: Constant
    shift: Constant


@dataclass(frozen=True, slots=True)
class _FloatLayer:
    """Products that take and give floats, whatever their weights are.

    Attributes:
        query, keys, values: [H d, D]; queries are divided by the root of d.
    """

    query: _Dense
    keys: _Dense
    values: _Dense
    out: _Dense
    inner: _Dense
    outer: _Dense


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer; scales and shifts of norms are inside the dense layers that read them.

    Attributes:
        products: with the weights.
        residual, inner_residual: what the vectors that a sum begins with are multiplied with
            (post-norm, where they are a norm's); None for 1. Its shift is in the bias of what is
            added.
    """

    heads: int
    products: _FloatLayer | StaticLayer
    residual: Constant | None
    inner_residual: Constant | None
    epsilon: Constant
    inner_epsilon: Constant


class EncoderFile:
    """The constants of a classifier in a file, and its graphs.

    Args:
        arrays: the weights.
        precision: of kernels and word vectors. int8 has one scale for each output; inputs are
            quantised token by token while it runs. What comes behind pooling is float32.
        packed: rows may hold several texts; not with pooling "max".
        ranges: of int8, of each layer: what goes in and out of products has these. None quantises
            it token by token.
    """

    def __init__(self, arrays: EncoderArrays, precision: Precision, *, packed: bool = True,
                 ranges: Sequence[LayerRanges] | None = None) -> None:
        self.arrays = arrays
        self.precision, self.ranges = precision, ranges
        self.packed = packed and arrays.head.pooling != "max"
        self.file = ModelFile()
        self.words = (self.file.quantized(arrays.words) if precision == "int8"
                      else self.file.constant(arrays.words))
        # One row for each segment and position: one sum less.
        places = arrays.positions if arrays.segments is None else np.concatenate(
            [arrays.positions + segment for segment in arrays.segments])
        self.places = self.file.constant(places.astype(np.float32))
        self.first_epsilon = None if arrays.first_norm is None else self._epsilon(arrays.first_norm)
        self.layers = self._layers()
        last = arrays.last_norm or (None if arrays.norm_first or not arrays.layers
                                    else arrays.layers[-1].inner_norm)
        self.last_epsilon = None if arrays.last_norm is None else self._epsilon(arrays.last_norm)
        self.last_affine = None if last is None else _Affine(
            self.file.constant(last.scale), self.file.constant(_shift(last)))
        head = arrays.head
        self.pooler = None if head.pooler is None else self._float(head.pooler)
        self.dense = [self._float(dense) for dense in head.dense]
        self.logits = self._float(head.logits)
        self.shortest = self.file.constant(np.array([LENGTH_SQUARED], np.float32))

    def _layers(self) -> list[_Layer]:
        arrays = self.arrays
        before = arrays.first_norm  # the norm whose vectors a post-norm layer reads
        made = []
        for number, layer in enumerate(arrays.layers):
            if arrays.norm_first:
                made.append(self._layer(number, layer.norm, layer.inner_norm, None, None))
            else:
                made.append(self._layer(number, before, layer.norm, before, layer.norm))
                before = layer.inner_norm
        return made

    def _layer(self, number: int, read: Norm | None, inner_read: Norm,
               added: Norm | None, inner_added: Norm | None) -> _Layer:
        """Read a layer.

        Args:
            number: of the layer.
            read, inner_read: norms whose vectors, without scale and shift, are what attention and
                the feed-forward part read.
            added, inner_added: ... what their results are added to.
        """
        arrays = self.arrays
        layer = arrays.layers[number]
        heads, size = arrays.heads(layer), arrays.head_size
        width = heads * size
        qkv = scaled(_behind(read, layer.qkv), width, float(size) ** -0.5)
        parts = (*(Dense(qkv.kernel[begin:begin + width],
                         None if qkv.bias is None else qkv.bias[begin:begin + width])
                   for begin in (0, width, 2 * width)),
                 _beside_shift(added, layer.out), _behind(inner_read, layer.inner),
                 _beside_shift(inner_added, layer.outer))
        return _Layer(
            heads, _FloatLayer(*map(self._matrix, parts)) if self.ranges is None
            else StaticLayer(self.file, self.ranges[number], parts),
            None if added is None else self.file.constant(added.scale),
            None if inner_added is None else self.file.constant(inner_added.scale),
            self._epsilon(layer.norm), self._epsilon(layer.inner_norm))

    def _epsilon(self, norm: Norm) -> Constant:
        return self.file.constant(np.array([norm.epsilon], np.float32))

    def _matrix(self, dense: Dense) -> _Dense:
        kernel = (self.file.quantized(dense.kernel) if self.precision == "int8"
                  else self.file.constant(dense.kernel))
        return _Dense(kernel, None if dense.bias is None else self.file.constant(dense.bias))

    def _float(self, dense: Dense) -> _Dense:
        return _Dense(self.file.constant(dense.kernel),
                      None if dense.bias is None else self.file.constant(dense.bias))

    def add(self, name: str, rows: int, tokens: int) -> None:
        """Add the graph of R rows of T tokens, Q = `manifest.row_texts` texts in each.

        Inputs: `ids` [N] int32; `places` [N] int32, position + P segment; `mask` [R, 1, T, T],
        added to the scores of each token and what it sees, [R, 1, 1, T] where Q is 1; `pick`
        [R, Q, T], 1 on the tokens that are summed for a text: its first one, or all (mean); not
        there with "max"; `pick_mask` [R, 1, Q, T] as `mask`, of the first tokens, where only these
        go through the last layer; `factors` [R Q, 1], what pooled vectors are multiplied with,
        where that is not 1; with "max" `counted` [R, T, 1], 1 on tokens that count, 0 elsewhere,
        and `uncounted`, 0 on those that count, LOWEST elsewhere.
        Output: `logits` [R Q, C].
        """
        _Graph(self, self.file.graph(name), rows, tokens).run()


class _Graph:
    """One graph of R rows of T tokens."""

    def __init__(self, encoder: EncoderFile, writer: GraphWriter, rows: int, tokens: int) -> None:
        self.encoder, self.arrays, self.writer = encoder, encoder.arrays, writer
        self.rows, self.tokens = rows, tokens
        self.texts = row_texts(tokens) if encoder.packed else 1
        self.mask = writer.input(
            "mask", [rows, 1, tokens if self.texts > 1 else 1, tokens])

    def run(self) -> None:
        """Write all operations."""
        writer, encoder = self.writer, self.encoder
        count = self.rows * self.tokens
        hidden = writer.add(writer.lookup(writer.input("ids", [count], "int32"), encoder.words),
                            writer.lookup(writer.input("places", [count], "int32"), encoder.places))
        if encoder.first_epsilon is not None:
            hidden = self._normed(hidden, encoder.first_epsilon)
        first_only = self.arrays.head.pooling in ("first", "pooler")
        for layer in encoder.layers[:-1] if first_only else encoder.layers:
            hidden = self._layer(hidden, hidden, layer, self.mask)
        if first_only:
            seen, hidden = hidden, self._picked(hidden)
            if encoder.layers:
                mask = writer.input("pick_mask", [self.rows, 1, self.texts, self.tokens])
                hidden = self._layer(hidden, seen, encoder.layers[-1], mask)
        if encoder.last_epsilon is not None:
            hidden = self._normed(hidden, encoder.last_epsilon)
        if encoder.last_affine is not None:
            hidden = writer.add(writer.multiply(hidden, encoder.last_affine.scale),
                                encoder.last_affine.shift)
        self._to_logits(hidden if first_only else self._pooled(hidden))

    def _picked(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [R Q, D], sums of tokens."""
        writer, width = self.writer, hidden.shape[-1]
        pick = writer.input("pick", [self.rows, self.texts, self.tokens])
        hidden = writer.reshape(hidden, [self.rows, self.tokens, width])
        return writer.reshape(writer.batch_matmul(pick, hidden), [self.rows * self.texts, width])

    def _pooled(self, hidden: Tensor) -> Tensor:
        """[N, D] -> [R Q, D]: sums or maxima of tokens."""
        if self.arrays.head.pooling != "max":
            return self._picked(hidden)
        writer, width = self.writer, hidden.shape[-1]
        counted = writer.input("counted", [self.rows, self.tokens, 1])
        without = writer.input("uncounted", [self.rows, self.tokens, 1])
        hidden = writer.reshape(hidden, [self.rows, self.tokens, width])
        hidden = writer.add(writer.multiply(hidden, counted), without)
        return writer.reshape(writer.largest(hidden, 1), [self.rows, width])

    def _to_logits(self, pooled: Tensor) -> None:
        writer, encoder, head = self.writer, self.encoder, self.arrays.head
        if head.pooling in ("mean", "max") or self.arrays.zero_padding:
            pooled = writer.multiply(pooled, writer.input("factors", [pooled.shape[0], 1]))
        if encoder.pooler is not None:
            pooled = writer.activation(self._dense(pooled, encoder.pooler), "tanh")
        if head.normalize:
            power = writer.sum(writer.multiply(pooled, pooled), 1)
            pooled = writer.multiply(pooled, writer.rsqrt(
                writer.at_least(power, encoder.shortest)))
        for dense in encoder.dense:
            pooled = writer.activation(self._dense(pooled, dense), head.activation)
        writer.output("logits", self._dense(pooled, encoder.logits))

    # ------------------------------------------------------------------ layers

    def _layer(self, hidden: Tensor, seen: Tensor, layer: _Layer, mask: Tensor) -> Tensor:
        """Go through a layer: [M, D], and the [N, D] that attention looks at -> [M, D]."""
        writer = self.writer
        if self.arrays.norm_first:
            normed = self._normed(hidden, layer.epsilon)
            looked = normed if seen is hidden else self._normed(seen, layer.epsilon)
            hidden = writer.add(hidden, self._attended(normed, looked, layer, mask))
            return writer.add(hidden, self._inner(self._normed(hidden, layer.inner_epsilon), layer))
        attended = self._attended(hidden, seen, layer, mask)
        hidden = self._normed(self._sum(hidden, layer.residual, attended), layer.epsilon)
        inner = self._inner(hidden, layer)
        return self._normed(self._sum(hidden, layer.inner_residual, inner), layer.inner_epsilon)

    def _sum(self, hidden: Tensor, scale: Constant | None, added: Tensor) -> Tensor:
        return self.writer.add(
            hidden if scale is None else self.writer.multiply(hidden, scale), added)

    def _attended(self, hidden: Tensor, seen: Tensor, layer: _Layer, mask: Tensor) -> Tensor:
        """[M, D] looks at [N, D] -> [M, D], M = R Q or N."""
        writer, products = self.writer, layer.products
        if isinstance(products, StaticLayer):
            read = writer.to_int8(seen, products.read)
            looking = read if hidden == seen else writer.to_int8(hidden, products.read)
            query, keys, values = (
                writer.to_float(self._heads(dense.multiply(writer, tensor), layer.heads))
                for tensor, dense in ((looking, products.query), (read, products.keys),
                                      (read, products.values)))
        else:
            query, keys, values = (
                self._heads(self._dense(tensor, dense), layer.heads)
                for tensor, dense in ((hidden, products.query), (seen, products.keys),
                                      (seen, products.values)))
        scores = writer.add(writer.batch_matmul(query, keys, transposed=True), mask)
        found = writer.batch_matmul(self._softmax(scores), values)           # [R, H, M / R, d]
        if isinstance(products, StaticLayer):
            found = self._joined(writer.to_int8(found, products.attended))
            return products.out.floats(writer, found)
        return self._dense(self._joined(found), products.out)

    def _joined(self, found: Tensor) -> Tensor:
        """[R, H, M / R, d] -> [M, H d]."""
        rows, heads, count, size = found.shape
        return self.writer.reshape(self.writer.transpose(found, [0, 2, 1, 3]),
                                   [rows * count, heads * size])

    def _softmax(self, scores: Tensor) -> Tensor:
        """[R, H, M / R, T] -> the same, adding up in one order whatever row a text stands in.

        XNNPACK's kernels add 16 numbers at a time to one sum and from 64 on to several: up to two
        summands a place are the same in any order, more are only where they begin alike.
        """
        writer, (*shape, tokens) = self.writer, scores.shape
        if self.texts == 1 or tokens <= ANY_ORDER_TOKENS or tokens % PACKED_TOKENS == 0:
            return writer.softmax(scores)
        missing = writer.file.constant(
            np.full((*shape, PACKED_TOKENS - tokens), MASKED, np.float32))
        weights = writer.softmax(writer.concat([scores, missing], 3))
        return writer.part(weights, {3: (0, tokens)})

    def _heads(self, projected: Tensor, heads: int) -> Tensor:
        """[M, H d] -> [R, H, M / R, d]."""
        writer, count = self.writer, projected.shape[0] // self.rows
        parts = writer.reshape(projected, [self.rows, count, heads, self.arrays.head_size])
        return writer.transpose(parts, [0, 2, 1, 3])

    def _inner(self, hidden: Tensor, layer: _Layer) -> Tensor:
        products = layer.products
        if isinstance(products, StaticLayer):
            return products.feed(self.writer, hidden, self.arrays.activation)
        inner = self.writer.activation(self._dense(hidden, products.inner), self.arrays.activation)
        return self._dense(inner, products.outer)

    def _dense(self, tensor: Tensor, dense: _Dense) -> Tensor:
        return self.writer.dense(tensor, dense.kernel, dense.bias)

    def _normed(self, tensor: Tensor, epsilon: Constant) -> Tensor:
        """Normalise [M, D]; what reads it has the scale and the shift."""
        writer = self.writer
        tensor = writer.subtract(tensor, writer.mean(tensor, 1))
        power = writer.mean(writer.multiply(tensor, tensor), 1)
        return writer.multiply(tensor, writer.rsqrt(writer.add(power, epsilon)))


def _behind(norm: Norm | None, dense: Dense) -> Dense:
    """Let a dense layer read what a norm has before its scale and shift."""
    return dense if norm is None else folded(norm, dense)


def _beside_shift(norm: Norm | None, dense: Dense) -> Dense:
    """Add the shift of a norm to what a dense layer gives."""
    if norm is None:
        return dense
    return Dense(dense.kernel, _shift(norm) if dense.bias is None else dense.bias + _shift(norm))


def _shift(norm: Norm) -> np.ndarray:
    return np.zeros_like(norm.scale) if norm.shift is None else norm.shift
