"""A decoder's weights -> the graphs of the LiteRT engine: steps of some rows, reads of some ids.

Axis letters: N rows of a step, T ids of a read, H query heads, G key-value heads, R = H / G,
d head size, C positions of a page. The cache of a slot lies in pages; each graph sees the first
pages, as many as the longest of its rows fills. Keys and values of what is read come out, and the
host writes them where they belong (engines/litert.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tf_infer.networks.arrays import DecoderArrays, Dense, Norm
from tf_infer.optimize.litert_attention import Attention, Precision, block_places
from tf_infer.optimize.litert_file import Constant, GraphWriter, ModelFile, Tensor
from tf_infer.optimize.litert_several import Several


@dataclass(frozen=True, slots=True)
class _Dense:
    kernel: Constant
    bias: Constant | None


@dataclass(frozen=True, slots=True)
class _Norm:
    scale: Constant
    shift: Constant | None
    epsilon: Constant


@dataclass(frozen=True, slots=True)
class _Layer:
    epsilon: Constant
    qkv: _Dense
    out: _Dense
    inner_epsilon: Constant
    gate: _Dense | None
    inner: _Dense
    outer: _Dense


class DecoderFile:
    """The constants of a decoder in a file, and its graphs.

    Args:
        arrays: the weights.
        precision: of kernels and vocabulary. int8 has one scale for each output; inputs are
            quantised row by row while it runs.
        vocabulary_precision: of the word vectors and what logits are made with.
        cache: of keys and values.
    """

    def __init__(self, arrays: DecoderArrays, precision: Precision,
                 vocabulary_precision: Precision | None = None,
                 cache: Precision = "float32") -> None:
        self.arrays = arrays
        self.precision = precision
        self.cache: Precision = cache
        self.block_places = block_places(arrays.groups * arrays.head_size)
        self.joined_pages = arrays.heads > arrays.groups
        self.one_piece = not self.joined_pages
        self.file = ModelFile()
        self._scale = 1.0 / float(arrays.head_size) ** 0.5
        words_precision = vocabulary_precision or precision
        self.words = self._matrix(arrays.words, words_precision)
        self.vocabulary = self.words if arrays.vocabulary is arrays.words else self._matrix(
            arrays.vocabulary, words_precision)
        self.positions = None if arrays.positions is None else self.file.constant(arrays.positions)
        # For both numbers of a pair; the sine of the first is negative.
        self.cosines, self.sines = (
            None if table is None else self.file.constant(np.concatenate([sign * table, table], 1))
            for sign, table in ((1, arrays.cosines), (-1, arrays.sines)))
        # Turns pairs of a head round: (i, i + d / 2).
        self.other = self.file.constant(
            np.roll(np.eye(arrays.head_size, dtype=np.float32), arrays.head_size // 2, 0))
        self.norm = self._norm(arrays.norm)
        self.centred = arrays.norm.shift is not None
        self.layers = [_Layer(
            self._epsilon(layer.norm), self._dense(_behind(layer.norm, self._scaled(layer.qkv))),
            self._dense(self._centred(layer.out)), self._epsilon(layer.inner_norm),
            None if layer.gate is None else self._dense(_behind(layer.inner_norm, layer.gate)),
            self._dense(_behind(layer.inner_norm, layer.inner)),
            self._dense(self._centred(layer.outer))) for layer in arrays.layers]

    def _centred(self, dense: Dense) -> Dense:
        """Take the mean of its outputs from what a layer adds to hidden, where norms take it off.

        Then hidden has a mean of 0 from the embedding on, and no norm has to find it.
        """
        if not self.centred:
            return dense
        kernel = dense.kernel - dense.kernel.mean(axis=0, keepdims=True)
        return Dense(kernel, None if dense.bias is None else dense.bias - dense.bias.mean())

    def _scaled(self, qkv: Dense) -> Dense:
        """Divide queries by the square root of d once and for all."""
        factors = np.ones(len(qkv.kernel), np.float32)
        factors[:self.arrays.heads * self.arrays.head_size] = self._scale
        return Dense(qkv.kernel * factors[:, None],
                     None if qkv.bias is None else qkv.bias * factors)

    def _matrix(self, array: np.ndarray, precision: Precision) -> Constant:
        return self.file.quantized(array) if precision == "int8" else self.file.constant(array)

    def _dense(self, dense: Dense) -> _Dense:
        return _Dense(self._matrix(dense.kernel, self.precision),
                      None if dense.bias is None else self.file.constant(dense.bias))

    def _norm(self, norm: Norm) -> _Norm:
        return _Norm(self.file.constant(norm.scale),
                     None if norm.shift is None else self.file.constant(norm.shift),
                     self._epsilon(norm))

    def _epsilon(self, norm: Norm) -> Constant:
        return self.file.constant(np.array([norm.epsilon], np.float32))

    # ------------------------------------------------------------------ graphs

    def add_step(self, name: str, rows: int, pages: Sequence[int]) -> None:
        """Add the graph that reads one token of each of N rows.

        Inputs: `ids`, `positions` [N]; `mask` [N, 1, 1, sum of pages + 1], 0 on live positions and
        at the end, MASKED elsewhere; `keys_i_j_k`, `values_i_j_k` [rows, G, C, d] of layer i,
        page j, rows k (`manifest.row_blocks`). Of one row all pages are one; where heads share
        none, k are heads of it (`manifest.head_blocks`), and values lie in pieces, which are the
        same numbers: [rows, G, C / piece, piece, d].
        Outputs: `keys_i`, `values_i` [N, G, 1, d]; `logits` [N, V].
        """
        if rows == 1 and (self.joined_pages or self.one_piece):
            pages = (sum(pages),)  # its places lie side by side (engines/line.py)
        graph = _Graph(self, self.file.graph(name), rows, 1, pages)
        graph.to_logits(graph.run())

    def add_several(self, name: str, ids: int, pages: Sequence[int]) -> None:
        """Add the graph that reads K ids of one slot, each as `add_step` would, bit for bit.

        Inputs: those of a step of K rows, but of the cache one row only; `put_j` and `stay_j` of
        `litert_several.Several`.
        Outputs: as of a step of K rows.
        """
        graph = _Graph(self, self.file.graph(name), ids, 1, pages, several=True)
        graph.to_logits(graph.run())

    def add_read(self, name: str, rows: int, tokens: int, pages: Sequence[int]) -> None:
        """Add the graph that reads T ids into each of N slots; of several without pages.

        Inputs: `ids`, `positions` [N T]; `mask` [1, 1, 1, sum of pages] (absent without pages);
        `last` [N, 1, T], 1 on the last id of each row that counts, 0 elsewhere;
        `keys_i_j_0`, `values_i_j_0` [1, G, C, d].
        Outputs: `keys_i`, `values_i` [N, G, T, d]; `logits` [N, V].
        """
        assert rows == 1 or not pages
        graph = _Graph(self, self.file.graph(name), rows, tokens, pages)
        graph.to_logits(graph.run())


class _Graph:
    """One graph: N rows of T ids, or `several` ids of one slot as rows."""

    def __init__(self, decoder: DecoderFile, writer: GraphWriter, rows: int, tokens: int,
                 pages: Sequence[int], *, several: bool = False) -> None:
        self.decoder = decoder
        self.arrays = decoder.arrays
        self.writer = writer
        self.rows, self.tokens = rows, tokens
        count = rows * tokens
        self.ids = writer.input("ids", [count], "int32")
        self.positions = writer.input("positions", [count], "int32")
        self.attention = (
            Several(writer, rows, self.arrays.groups, pages, decoder.cache) if several
            else Attention(writer, rows, tokens, pages, decoder.cache, decoder.block_places))
        self.last = self.attention.last

    def run(self) -> Tensor:
        """Return hidden [N, D] behind all layers; keys and values become outputs.

        In a read the last layer finds that of the last id of each row alone.
        """
        writer, decoder = self.writer, self.decoder
        hidden = writer.lookup(self.ids, decoder.words)
        if decoder.positions is not None:
            hidden = writer.add(hidden, writer.lookup(self.positions, decoder.positions))
        if decoder.centred:
            hidden = writer.subtract(hidden, writer.mean(hidden, 1))
        angles = self._angles()
        for index, layer in enumerate(decoder.layers):
            projected = self._dense(self._standard(hidden, layer.epsilon), layer.qkv)
            if self.tokens == 1:
                query, pair = self._heads_of_one(projected, angles)
            else:
                query, pair = self._heads(projected, angles)
                if index == len(decoder.layers) - 1:
                    hidden, query = self._of_last(hidden), self._of_last(query)
                query = self._by_groups(query)
            attended = self.attention.layer(index, query, pair)
            hidden = writer.add(hidden, self._dense(attended, layer.out))
            normed = self._standard(hidden, layer.inner_epsilon)
            inner = self._dense(normed, layer.inner)
            if layer.gate is None:
                inner = writer.activation(inner, self.arrays.activation)
            else:
                gate = writer.activation(self._dense(normed, layer.gate), self.arrays.activation)
                inner = writer.multiply(gate, inner)
            hidden = writer.add(hidden, self._dense(inner, layer.outer))
        return hidden

    def _of_last(self, tensor: Tensor) -> Tensor:
        """[N T, ...] -> [N, ...] of the last id of each row that counts."""
        writer, (_, *shape) = self.writer, tensor.shape
        assert self.last is not None
        each = writer.reshape(tensor, [self.rows, self.tokens, math.prod(shape)])
        return writer.reshape(writer.batch_matmul(self.last, each), [self.rows, *shape])

    def to_logits(self, hidden: Tensor) -> None:
        """Make `logits` of hidden [N, D] an output."""
        writer, norm = self.writer, self.decoder.norm
        normed = writer.multiply(self._standard(hidden, norm.epsilon), norm.scale)
        if norm.shift is not None:
            normed = writer.add(normed, norm.shift)
        writer.output("logits", writer.dense(normed, self.decoder.vocabulary, None))

    def _angles(self) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines [N T, 1, d]; of a step [N, H + 2 G, 1, d], values unturned."""
        writer, arrays, decoder = self.writer, self.arrays, self.decoder
        if decoder.cosines is None or decoder.sines is None:
            return None
        shape = [self.positions.shape[0], *((1,) if self.tokens > 1 else (1, 1)), arrays.head_size]
        cosines, sines = (writer.reshape(writer.lookup(self.positions, table), shape)
                          for table in (decoder.cosines, decoder.sines))
        if self.tokens > 1:
            return cosines, sines
        turned = np.ones((1, arrays.heads + 2 * arrays.groups, 1, 1), np.float32)
        turned[:, -arrays.groups:] = 0.0
        some, others = writer.file.constant(turned), writer.file.constant(1.0 - turned)
        return writer.add(writer.multiply(cosines, some), others), writer.multiply(sines, some)

    def _heads_of_one(self, projected: Tensor, angles: tuple[Tensor, Tensor] | None
                      ) -> tuple[Tensor, Tensor]:
        """[N, (H + 2 G) d] -> query [N, G, R, d], keys then values [N, 2 G, 1, d]."""
        writer, heads, groups = self.writer, self.arrays.heads, self.arrays.groups
        size = self.arrays.head_size
        every = writer.reshape(projected, [self.rows, heads + 2 * groups, 1, size])
        if angles is not None:
            every = self._rotate(every, *angles)
        query = writer.part(every, {1: (0, heads)})
        pair = writer.part(every, {1: (heads, heads + 2 * groups)})
        return writer.reshape(query, [self.rows, groups, heads // groups, size]), pair

    def _heads(self, projected: Tensor, angles: tuple[Tensor, Tensor] | None
               ) -> tuple[Tensor, Tensor]:
        """[N T, (H + 2 G) d] -> query [N T, H, d], keys then values [N, 2 G, T, d]."""
        writer, heads, groups = self.writer, self.arrays.heads, self.arrays.groups
        size, count = self.arrays.head_size, self.rows * self.tokens
        border, end = heads + groups, heads + 2 * groups
        if angles is None:
            every = writer.reshape(projected, [count, end, size])
            query, pair = (writer.part(every, {1: side}) for side in ((0, heads), (heads, end)))
        else:
            turned, values = (
                writer.reshape(writer.part(projected, {1: (first * size, last * size)}),
                               [count, last - first, size])
                for first, last in ((0, border), (border, end)))
            turned = self._rotate(turned, *angles)
            query = writer.part(turned, {1: (0, heads)})
            pair = writer.concat([writer.part(turned, {1: (heads, border)}), values], 1)
        pair = writer.transpose(
            writer.reshape(pair, [self.rows, self.tokens, 2 * groups, size]), [0, 2, 1, 3])
        return query, pair

    def _by_groups(self, query: Tensor) -> Tensor:
        """[N T, H, d] -> [N, G, R, T, d]; T is 1 of last ids."""
        writer, groups, (count, heads, size) = self.writer, self.arrays.groups, query.shape
        query = writer.reshape(query, [self.rows, count // self.rows, groups, heads // groups,
                                       size])
        return writer.transpose(query, [0, 2, 3, 1, 4])

    def _rotate(self, tensor: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Turn pairs (i, i + d / 2) of [N T, heads, d] (networks.attention.rotate).

        The angles are for both of a pair, the sines of the first negative. Of a step the pairs are
        turned round by one product, which costs less than three operations that move them.
        """
        writer, half = self.writer, self.arrays.head_size // 2
        other = writer.dense(tensor, self.decoder.other, None) if self.tokens == 1 else (
            writer.concat([writer.part(tensor, {2: (half, 2 * half)}),
                           writer.part(tensor, {2: (0, half)})], 2))
        return writer.add(writer.multiply(tensor, cosines), writer.multiply(other, sines))

    def _dense(self, tensor: Tensor, dense: _Dense) -> Tensor:
        return self.writer.dense(tensor, dense.kernel, dense.bias)

    def _standard(self, tensor: Tensor, epsilon: Constant) -> Tensor:
        """Normalise [N, D], whose mean is 0 where it counts, up to scale and shift."""
        writer = self.writer
        power = writer.mean(writer.multiply(tensor, tensor), 1)
        return writer.multiply(tensor, writer.rsqrt(writer.add(power, epsilon)))


def _behind(norm: Norm, dense: Dense) -> Dense:
    """Return a product that does itself what a norm in front of it does last: scale and shift."""
    kernel = dense.kernel * norm.scale
    if norm.shift is None:
        return Dense(kernel, dense.bias)
    bias = dense.kernel @ norm.shift
    return Dense(kernel, bias if dense.bias is None else dense.bias + bias)
