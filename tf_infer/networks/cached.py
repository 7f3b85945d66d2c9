"""CachedDecoder: prefill, extend and rollback, written once for every decoder family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import keras
import tensorflow as tf

from tf_infer.errors import ShapeError
from tf_infer.networks.attention import attend, causal, places, put
from tf_infer.networks.axes import sizes
from tf_infer.networks.contracts import Cache

# Cosines and sines of rotary positions, each [N or 1, S, d/2]; None where a family has none.
Angles: TypeAlias = tuple[tf.Tensor, tf.Tensor] | None


class Projected(NamedTuple):
    """What a block asks and offers: query [N, H, S, d], keys and values [N, G, S, d]."""

    query: tf.Tensor
    keys: tf.Tensor
    values: tf.Tensor


class Block(Protocol):
    """One layer of a decoder, cut where attention stands."""

    def project(self, hidden: tf.Tensor, angles: Angles) -> Projected:
        """Make query, keys and values out of [N, S, D]."""

    def finish(self, hidden: tf.Tensor, attended: tf.Tensor, *, training: bool = False
               ) -> tf.Tensor:
        """Add what attention found, [N, H, S, d], and the feed-forward part to [N, S, D]."""


class CachedDecoder(keras.layers.Layer):
    """The cached half of the contract Decoder.

    A family gives `look_up`, `put`, `blocks` and `to_logits`.

    Attributes:
        vocab_size: V.
        max_positions: longest row it may read; behind it positions repeat the last one.
    """

    vocab_size: int
    max_positions: int

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """ids [N, S] -> [N, S, D], all that the answer takes of them."""
        raise NotImplementedError

    def put(self, vectors: tf.Tensor, positions: tf.Tensor, *, training: bool = False
            ) -> tuple[tf.Tensor, Angles]:
        """Put [N, S, D] at positions [N or 1, S]: hidden [N, S, D], and rotary angles, if any."""
        raise NotImplementedError

    def embed(self, ids: tf.Tensor, positions: tf.Tensor, *, training: bool = False
              ) -> tuple[tf.Tensor, Angles]:
        """ids [N, S], positions [N or 1, S] -> hidden [N, S, D] and the rotary angles, if any."""
        return self.put(self.look_up(ids), positions, training=training)

    def blocks(self) -> Sequence[Block]:
        """Return the layers in order."""
        raise NotImplementedError

    def to_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., D] -> [..., V]: the last normalisation and the vocabulary."""
        raise NotImplementedError

    def read(self, ids: tf.Tensor, allowed: tf.Tensor, *, training: bool = False
             ) -> tuple[tf.Tensor, list[Projected]]:
        """Read whole rows: ids [B, T], allowed [B or 1, T, T] -> hidden [B, T, D], every layer."""
        check_width(ids, self.max_positions)
        return self.read_vectors(self.look_up(ids), allowed, training=training)

    def read_vectors(self, vectors: tf.Tensor, allowed: tf.Tensor, *, training: bool = False
                     ) -> tuple[tf.Tensor, list[Projected]]:
        """Read rows that are looked up already, [B, T, D], as `read` does."""
        positions = tf.expand_dims(tf.range(tf.shape(vectors)[1]), 0)
        hidden, angles = self.put(vectors, positions, training=training)
        layers = []
        for block in self.blocks():
            projected = block.project(hidden, angles)
            attended = attend(*projected, allowed)
            hidden = block.finish(hidden, attended, training=training)
            layers.append(projected)
        return hidden, layers

    def prefill(self, ids: tf.Tensor, lengths: tf.Tensor, *, capacity: tf.Tensor | int
                ) -> tuple[tf.Tensor, Cache]:
        """Read prompts once, as the contract Decoder says.

        Raises:
            ShapeError: the prompt is wider than `capacity` or `max_positions` (where both widths
                are known while tracing).
        """
        width = ids.shape[1]
        if width is not None and isinstance(capacity, int) and width > capacity:
            raise ShapeError(f"capacity: expected at least the prompt's width {width}, got "
                             f"{capacity}. Give room for the prompt and the new tokens.")
        hidden, layers = self.read(ids, causal(tf.shape(ids)[1]))
        lengths = tf.cast(lengths, tf.int32)
        # Only the last real position meets the vocabulary: [B, D], not [B, T, V].
        last = tf.gather(hidden, tf.maximum(lengths, 1) - 1, axis=1, batch_dims=1)
        kept = Cache(tuple((p.keys, p.values) for p in layers), lengths)
        return self.to_logits(last), grown(kept, capacity)

    def extend(self, ids: tf.Tensor, counts: tf.Tensor, cache: Cache, *, owned: bool = False
               ) -> tuple[tf.Tensor, Cache]:
        """Read S more ids of each row, as the contract Decoder says.

        The caller leaves room: what would stand behind the cache's capacity is dropped.
        """
        del owned
        counts = tf.cast(counts, tf.int32)
        positions = tf.expand_dims(cache.lengths, 1) + tf.range(tf.shape(ids)[1])  # [N, S]
        room = tf.range(sizes(cache.layers[0][0])[2])
        allowed = room <= tf.expand_dims(positions, 2)  # [N, S, C]
        hidden, angles = self.embed(ids, tf.minimum(positions, self.max_positions - 1))
        where = places(cache.layers[0][0], sizes(ids)[1], cache.lengths, counts)
        layers = []
        for block, (keys, values) in zip(self.blocks(), cache.layers):
            projected = block.project(hidden, angles)
            keys, values = (put(keys, projected.keys, where), put(values, projected.values, where))
            attended = attend(projected.query, keys, values, allowed)
            hidden = block.finish(hidden, attended)
            layers.append((keys, values))
        return self.to_logits(hidden), Cache(tuple(layers), cache.lengths + counts)

    def rollback(self, cache: Cache, lengths: tf.Tensor) -> Cache:
        """Forget all positions from `lengths` [N] on; a row never grows by it."""
        return Cache(cache.layers, tf.minimum(cache.lengths, tf.cast(lengths, tf.int32)))


def grown(cache: Cache, room: tf.Tensor | int) -> Cache:
    """Give every row room for `room` positions, zeros in the new ones; never less than it has."""
    positions = sizes(cache.layers[0][0])[2]
    more = (max(room - positions, 0) if isinstance(room, int) and isinstance(positions, int)
            else tf.maximum(room - positions, 0))
    paddings = tf.convert_to_tensor([[0, 0], [0, 0], [0, more], [0, 0]])

    def padded(part: tf.Tensor) -> tf.Tensor:
        found = tf.pad(part, paddings)
        found.set_shape([*part.shape[:2], None, part.shape[3]])
        return found

    return Cache(tf.nest.map_structure(padded, cache.layers), cache.lengths)


def own(cache: Cache) -> Cache:
    """Copy a cache, so that whoever has the copy may write into it."""
    return Cache(tf.nest.map_structure(lambda part: tf.raw_ops.DeepCopy(x=part), cache.layers),
                 cache.lengths)


def check_width(ids: Any, max_positions: int) -> None:
    """Raise ShapeError where rows are known to be wider than the network can read."""
    width = ids.shape[1]
    if width is not None and width > max_positions:
        raise ShapeError(f"ids: expected at most {max_positions} positions, got shape "
                         f"{tuple(ids.shape)}. Cut the text, or build a network with more "
                         "positions.")
