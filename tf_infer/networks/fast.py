"""FastDecoder: a decoder's weights laid out anew, for the speed of its steps on a CPU.

Query, keys and values come from one product, gate and inner of a gated block from another;
normalisations keep no scale of their own; and everything that the layers of a step share (places,
mask, angles) is made once. Only TensorFlow's own operations, so that the SavedModel runs in
TensorFlow Serving. Softmax, normalisations, residual stream, cache and logits are float32 in every
precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_infer.networks.arrays import DecoderArrays, Dense, LayerArrays, Norm, arrays_of
from tf_infer.networks.attention import MASKED, causal, rotate
from tf_infer.networks.axes import over_last_axis
from tf_infer.networks.cached import Angles, CachedDecoder, Projected
from tf_infer.networks.contracts import Cache
from tf_infer.networks.products import ACTIVATIONS, Precision, Product, Table, Weights


class FastDecoder(CachedDecoder, Weights):
    """A decoder (contract Decoder) that computes what another one does; it cannot be trained.

    Args:
        decoder: the reference; its weights are read now.
        precision: of the weights of the products and of the embedding.
        xla: only operations that XLA compiles; without, those that are fastest in a graph:
            products that keep packed weights (`packed`) and a cache that is written in place.
    """

    def __init__(self, decoder: Any, precision: Precision = "float32", *, xla: bool = False,
                 name: str = "decoder") -> None:
        super().__init__(name=name, trainable=False)
        arrays = arrays_of(decoder, getattr(decoder, "max_positions", 1))
        self.precision, self.xla = precision, xla
        self.packed = packed = precision != "float32" and not xla
        self.vocab_size, self.max_positions = decoder.vocab_size, decoder.max_positions
        self.words = Table(arrays.words, precision, packed=packed, name="words")
        self.head = self.words if arrays.vocabulary is arrays.words else Table(
            arrays.vocabulary, precision, packed=packed, name="head")
        self.tables = {name: self.keep(name, table) for name, table in (
            ("positions", arrays.positions), ("cosines", arrays.cosines), ("sines", arrays.sines))
            if table is not None}
        self.norm = Normalize(arrays.norm)
        self.head_scale = self.keep("head_scale", arrays.norm.scale)
        self.head_shift = (None if arrays.norm.shift is None
                           else self.keep("head_shift", arrays.norm.shift))
        self.stack = [FastBlock(layer, arrays, precision, packed=packed, name=f"block_{i}")
                      for i, layer in enumerate(arrays.layers)]
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, training: bool = False) -> tf.Tensor:
        """ids, mask [B, T] -> logits [B, T, V]; padding stands on the right, where nobody looks."""
        del mask, training
        hidden, _ = self.read(ids, causal(tf.shape(ids)[1]))
        return self.to_logits(hidden)

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """ids [N, S] -> [N, S, D]."""
        return self.words.look_up(ids)

    def put(self, vectors: tf.Tensor, positions: tf.Tensor, *, training: bool = False
            ) -> tuple[tf.Tensor, Angles]:
        """Put [N, S, D] at positions [N or 1, S]: hidden [N, S, D], and rotary angles, if any."""
        del training
        found = {name: tf.gather(tf.convert_to_tensor(table), positions)
                 for name, table in self.tables.items()}
        if "positions" in found:
            return vectors + found["positions"], None
        return vectors, (found["cosines"], found["sines"])                   # [N or 1, S, d/2]

    def blocks(self) -> Sequence[FastBlock]:
        """Return the layers in order."""
        return self.stack

    def to_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., D] -> [..., V]."""
        normed = self.norm(hidden) * tf.convert_to_tensor(self.head_scale)
        if self.head_shift is not None:
            normed += tf.convert_to_tensor(self.head_shift)
        return over_last_axis(self.head.logits, normed, self.head.count)

    def extend(self, ids: tf.Tensor, counts: tf.Tensor, cache: Cache, *, owned: bool = False
               ) -> tuple[tf.Tensor, Cache]:
        """Read S more ids of each row; S = 1, the step of a loop, goes the short way."""
        if ids.shape[1] != 1:
            return super().extend(ids, counts, cache, owned=owned)
        counts = tf.cast(counts, tf.int32)
        places = cache.lengths[:, None]                                      # [N, 1]
        hidden, angles = self.embed(ids, tf.minimum(places, self.max_positions - 1))
        slots = Slots(cache.lengths, counts, cache.layers[0][0], xla=self.xla, owned=owned)
        hidden = tf.squeeze(hidden, axis=1)                                  # [N, D]
        layers = []
        for block, (keys, values) in zip(self.stack, cache.layers):
            hidden, keys, values = block.step(hidden, angles, slots, keys, values)
            layers.append((keys, values))
        return self.to_logits(hidden)[:, None], Cache(tuple(layers), cache.lengths + counts)


class Slots:
    """Where the one new position of each row goes, and where it may look: for all layers.

    Args:
        lengths: [N] int32, positions in use.
        counts: [N] int32, 0 or 1 new ones.
        buffer: [N, G, C, d], a layer's keys.
        xla: write by an operation that XLA has.
        owned: write into the buffers that are given. Without, they are copied where somebody else
            may still need them.
    """

    def __init__(self, lengths: tf.Tensor, counts: tf.Tensor, buffer: tf.Tensor, *, xla: bool,
                 owned: bool) -> None:
        shape = tf.shape(buffer)
        groups, room = buffer.shape[1], shape[2]
        first = tf.range(shape[0] * groups) * room                           # [N * G]
        self.shape, self.xla, self.owned = shape, xla, owned
        self.rows = first + tf.repeat(tf.minimum(lengths, room - 1), groups)  # [N * G]
        written = tf.cast((counts > 0) & (lengths < room), tf.float32)
        self.written = tf.expand_dims(tf.repeat(written, groups), 1)         # [N * G, 1], 0 or 1
        visible = tf.range(room) <= tf.expand_dims(lengths, 1)
        self.hidden = tf.reshape(tf.where(visible, 0.0, MASKED), [-1, 1, 1, room])

    def write(self, buffer: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
        """Put [N, G, 1, d] into [N, G, C, d]; a row without a new position keeps what it has."""
        size = buffer.shape[3]
        flat, new = tf.reshape(buffer, [-1, size]), tf.reshape(new, [-1, size])
        old = tf.gather(flat, self.rows)                                     # [N * G, d]
        if self.owned and not self.xla:
            kept = tf.where(self.written > 0.0, new, old)
            flat = tf.raw_ops.InplaceUpdate(x=flat, i=self.rows, v=kept)
        else:
            flat = self._put(flat, old, new, tf.expand_dims(self.rows, 1))
        result = tf.reshape(flat, self.shape)
        result.set_shape(buffer.shape)
        return result

    def _put(self, flat: tf.Tensor, old: tf.Tensor, new: tf.Tensor, rows: tf.Tensor
                 ) -> tf.Tensor:
        if self.xla:
            return tf.tensor_scatter_nd_update(
                flat, rows, tf.where(self.written > 0.0, new, old))
        # TensorFlow's other updates copy the whole buffer on a CPU. Adding what makes 0 and then
        # the new values is exact, whatever stood there.
        flat = _added(flat, rows, old * -self.written)
        return _added(flat, rows, new * self.written)


def _added(buffer: tf.Tensor, rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ScatterNdNonAliasingAdd(input=buffer, indices=rows, updates=values)


def _product(left: tf.Tensor, right: tf.Tensor, *, transpose: bool = False) -> tf.Tensor:
    """Multiply stacks of small matrices; oneDNN, which tf.matmul asks, takes longer for them."""
    return tf.raw_ops.BatchMatMulV3(x=left, y=right, Tout=tf.float32, adj_y=transpose)


class FastBlock(keras.layers.Layer):
    """One layer (contract Block), and its step for one new position of each row."""

    def __init__(self, layer: LayerArrays, arrays: DecoderArrays, precision: Precision, *,
                 packed: bool, name: str) -> None:
        super().__init__(name=name, trainable=False)
        self.heads, self.groups, self.size = arrays.heads, arrays.groups, arrays.head_size
        self.gated = layer.gate is not None
        self.activation = ACTIVATIONS[arrays.activation]  # of the gate
        self.norm, self.inner_norm = Normalize(layer.norm), Normalize(layer.inner_norm)
        width = self.heads * self.size
        products = {
            "qkv": scaled(folded(layer.norm, layer.qkv), width, self.size ** -0.5),
            "out": layer.out, "outer": layer.outer,
            "inner": folded(layer.inner_norm, beside(layer.gate, layer.inner))}
        self.products = {
            name: Product(dense.kernel, dense.bias, precision, packed=packed, name=name,
                          activation=(arrays.activation if name == "inner" and not self.gated
                                      else None))
            for name, dense in products.items()}
        self.built = True

    def project(self, hidden: tf.Tensor, angles: Angles) -> Projected:
        """[N, S, D] -> query [N, H, S, d], keys and values [N, G, S, d]."""
        shape = tf.shape(hidden)
        split = tf.reshape(self.products["qkv"].multiply(self._normed(hidden)),
                           [shape[0], shape[1], self.heads + 2 * self.groups, self.size])
        query, keys, values = self._parts(tf.transpose(split, [0, 2, 1, 3]), angles)
        # `attend` divides by the root of d, which the kernel has done already.
        return Projected(query * float(self.size) ** 0.5, keys, values)

    def finish(self, hidden: tf.Tensor, attended: tf.Tensor, *, training: bool = False
               ) -> tf.Tensor:
        """Add what attention found, [N, H, S, d], and the feed-forward part to [N, S, D]."""
        del training
        shape = tf.shape(hidden)
        flat = tf.reshape(hidden, [-1, hidden.shape[-1]])
        joined = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [-1, self.heads * self.size])
        return tf.reshape(self._finish(flat, joined), shape)

    def step(self, hidden: tf.Tensor, angles: Angles, slots: Slots, keys: tf.Tensor,
             values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Read one position of each row: [N, D], a layer's cache -> the same, one position on."""
        split = tf.reshape(self.products["qkv"].multiply(self._normed(hidden)),
                           [-1, self.heads + 2 * self.groups, 1, self.size])
        query, new_keys, new_values = self._parts(split, angles)
        keys, values = slots.write(keys, new_keys), slots.write(values, new_values)
        # Heads that share keys are rows of one product: [N, G, H / G, d].
        query = tf.reshape(query, [-1, self.groups, self.heads // self.groups, self.size])
        scores = _product(query, keys, transpose=True) + slots.hidden        # [N, G, H / G, C]
        attended = _product(tf.nn.softmax(scores), values)
        joined = tf.reshape(attended, [-1, self.heads * self.size])
        return self._finish(hidden, joined), keys, values

    def _parts(self, split: tf.Tensor, angles: Angles
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[N, H + 2 G, S, d] -> query, keys, values; the first two are turned."""
        heads, groups = self.heads, self.groups
        if angles is None:
            query, keys, values = tf.split(split, [heads, groups, groups], axis=1)
            return query, keys, values
        turned = rotate(split[:, :heads + groups], angles)
        return turned[:, :heads], turned[:, heads:], split[:, heads + groups:]

    def _normed(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., D] -> [M, D]."""
        return self.norm(tf.reshape(hidden, [-1, hidden.shape[-1]]))

    def _finish(self, hidden: tf.Tensor, joined: tf.Tensor) -> tf.Tensor:
        hidden += self.products["out"].multiply(joined)
        inner = self.products["inner"].multiply(self.inner_norm(hidden))
        if self.gated:
            gate, inner = tf.split(inner, 2, axis=-1)
            inner *= self.activation(gate)
        return hidden + self.products["outer"].multiply(inner)


class Normalize:
    """[..., D] -> [..., D], without the scale and shift, which the next product has taken in."""

    def __init__(self, norm: Norm) -> None:
        self.centred, self.epsilon = norm.shift is not None, norm.epsilon

    def __call__(self, hidden: tf.Tensor) -> tf.Tensor:
        """Divide by the deviation, or by the root of the mean square (RMS)."""
        if self.centred:
            hidden -= tf.reduce_mean(hidden, axis=-1, keepdims=True)
        square = tf.reduce_mean(tf.square(hidden), axis=-1, keepdims=True)
        # In float64: of a few float32 numbers some are computed together and others alone, by
        # another approximation, so that a row would depend on how many there are.
        root = tf.math.rsqrt(tf.cast(square, tf.float64) + self.epsilon)
        return hidden * tf.cast(root, tf.float32)


def folded(norm: Norm, dense: Dense) -> Dense:
    """Take scale and shift of the normalisation before a product into it."""
    kernel, bias = dense.kernel * norm.scale, dense.bias
    if norm.shift is not None:
        # In float64, so that a sum of a thousand terms is rounded once.
        moved = dense.kernel.astype(np.float64) @ norm.shift.astype(np.float64)
        bias = (moved + (0.0 if bias is None else bias)).astype(np.float32)
    return Dense(kernel, bias)


def scaled(dense: Dense, outputs: int, factor: float) -> Dense:
    """Multiply the first outputs of a product."""
    factors = np.ones(len(dense.kernel), np.float32)
    factors[:outputs] = factor
    return Dense(dense.kernel * factors[:, None],
                 None if dense.bias is None else dense.bias * factors)


def beside(*parts: Dense | None) -> Dense:
    """Return one product of several; those that are None are not there."""
    real = [part for part in parts if part is not None]
    biases = [part.bias for part in real if part.bias is not None]
    return Dense(np.concatenate([part.kernel for part in real]),
                 np.concatenate(biases) if biases else None)
