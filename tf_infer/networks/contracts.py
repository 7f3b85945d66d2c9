"""What a network promises to a task: Encoder, Decoder, and the Cache that is handed around."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf


class Encoder(Protocol):
    """Looks at a whole text at once. A `keras.layers.Layer`.

    Attributes:
        width: D, size of a token's vector.
        has_pooler: `pool` may be called.
    """

    width: int
    has_pooler: bool

    def __call__(
        self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, *, training: bool = False,
        vectors: tf.Tensor | None = None
    ) -> tf.Tensor:
        """ids [B, T] int32, mask [B, T] bool, segments [B, T] int32 -> [B, T, D] float32.

        With `vectors` [B, T, E] these stand for what the ids are looked up as, and the answer
        depends on the ids no more (attributions walk between them: decoding/attribution.py).
        """

    def vectors(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Look the ids up: [B, T], [B, T] bool -> [B, T, E], all that the answer takes of them."""

    def pool(self, hidden: tf.Tensor) -> tf.Tensor:
        """[B, T, D] -> [B, D], the checkpoint's own pooled output (BERT's pooler)."""


class Cache(NamedTuple):
    """What a decoder remembers of the rows it has read. Plain tensors, passed in and handed back.

    Attributes:
        layers: keys and values of each layer, each [N, heads, capacity, head size] float32 (the
            number of key-value heads where queries share them).
        lengths: [N] int32, positions in use; a row's live positions are 0 .. length - 1, what lies
            behind them may hold anything.
    """

    layers: tuple[tuple[tf.Tensor, tf.Tensor], ...]
    lengths: tf.Tensor


class Decoder(Protocol):
    """Reads from left to right. A `keras.layers.Layer`; rows are padded on the right.

    Every row has its own position, so rows may join, leave and be rolled back for themselves
    (beam search, speculation, continuous batching). No method changes the object.

    Attributes:
        vocab_size: V.
        max_positions: longest row it may read.
    """

    vocab_size: int
    max_positions: int

    def __call__(self, ids: tf.Tensor, mask: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """Whole rows at once, for training and scoring: [B, T], [B, T] bool -> [B, T, V] logits."""

    def prefill(
        self, ids: tf.Tensor, lengths: tf.Tensor, *, capacity: tf.Tensor | int
    ) -> tuple[tf.Tensor, Cache]:
        """Read prompts once: ids [B, T], lengths [B] >= 1 -> logits [B, V] of each row's next id.

        The cache has room for `capacity` positions (>= T); a static one keeps the shapes static,
        which XLA needs.
        """

    def extend(self, ids: tf.Tensor, counts: tf.Tensor, cache: Cache, *, owned: bool = False
               ) -> tuple[tf.Tensor, Cache]:
        """Read S more ids of each row, of which `counts` [N] (0 .. S) are real.

        ids [N, S] int32 -> logits [N, S, V], position s holding those of the id after ids[:, s].
        A decoding step is S = 1; speculation and chunked prefill use more. A row whose count is 0
        keeps its cache and its length. `owned` says that nobody will look at the tensors of `cache`
        any more, so that they may be written into.
        """

    def rollback(self, cache: Cache, lengths: tf.Tensor) -> Cache:
        """Forget all positions from `lengths` [N] on."""
