"""Small networks of our own, trained from nothing in under a minute on two cores."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_infer.config import ConvConfig, EmbeddingBagConfig, SmallTransformerConfig
from tf_infer.errors import ConfigError
from tf_infer.networks.attention import attend, join_heads, split_heads
from tf_infer.networks.axes import over_last_axis
from tf_infer.networks.cached import Angles, CachedDecoder, Projected, check_width

SEGMENTS = 2
# A row is hashed modulo a prime below 2**31, so that every product fits int64.
HASH_PRIME = 2_147_483_647
HASH_FACTOR = 1_000_003


class SmallEncoder(keras.layers.Layer):
    """What the encoders here share: no pooler, and every position of padding is 0."""

    width: int
    has_pooler = False

    def pool(self, hidden: tf.Tensor) -> tf.Tensor:
        """Raise ConfigError: only checkpoints bring a pooler."""
        raise ConfigError(f"pooling: expected 'first', 'mean' or 'max' with {type(self).__name__}, "
                          "got 'pooler'. Only BERT checkpoints have a pooler.")


class EmbeddingBag(SmallEncoder):
    """Vectors of ids plus vectors of the hashed n-grams that end at them (fastText).

    Source: Joulin et al. 2016, arXiv:1607.01759.
    """

    def __init__(self, config: EmbeddingBagConfig, *, vocab_size: int, name: str = "encoder"
                 ) -> None:
        super().__init__(name=name)
        self.config = config
        self.width = config.width
        self.words = _embedding(vocab_size, config.width, "words")
        self.grams = _embedding(config.hash_buckets, config.width, "grams")
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")

    def build(self, *_shapes: object) -> None:
        """Make all variables."""
        self.words.build()
        self.grams.build()
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, training: bool = False,
             vectors: tf.Tensor | None = None) -> tf.Tensor:
        """ids, mask, segments [B, T] -> [B, T, width]."""
        del segments  # a bag of words does not know the order of a pair
        hidden = self.vectors(ids, mask) if vectors is None else vectors
        hidden *= tf.cast(mask, hidden.dtype)[..., None]
        return self.dropout(hidden, training=training)

    def vectors(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Look ids up, and the n-grams that end at them: [B, T] -> [B, T, width]."""
        hidden = self.words(ids)
        hashed, whole = tf.cast(ids, tf.int64), mask  # the n-gram that ends at each position
        for size in range(2, self.config.ngrams + 1):
            before = _shift(tf.cast(ids, tf.int64), size - 1)
            whole = whole & _shift(mask, size - 1)
            hashed = (hashed * HASH_FACTOR + before + size) % HASH_PRIME
            vectors = self.grams(tf.cast(hashed % self.config.hash_buckets, tf.int32))
            hidden += vectors * tf.cast(whole, hidden.dtype)[..., None]
        return hidden


class Conv(SmallEncoder):
    """Parallel convolutions of several widths over word vectors.

    Source: Kim 2014, arXiv:1408.5882.
    """

    def __init__(self, config: ConvConfig, *, vocab_size: int, name: str = "encoder") -> None:
        super().__init__(name=name)
        self.config = config
        self.width = config.filters * len(config.kernel_sizes)
        self.words = _embedding(vocab_size, config.width, "words")
        self.filters = [
            keras.layers.Conv1D(config.filters, size, padding="same", activation="relu",
                                name=f"filters_{index}_of_{size}")
            for index, size in enumerate(config.kernel_sizes)]
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")

    def build(self, *_shapes: object) -> None:
        """Make all variables."""
        self.words.build()
        for filters in self.filters:
            filters.build((None, None, self.config.width))
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, training: bool = False,
             vectors: tf.Tensor | None = None) -> tf.Tensor:
        """ids, mask, segments [B, T] -> [B, T, filters * len(kernel_sizes)]."""
        del segments
        real = tf.cast(mask, self.compute_dtype)[..., None]
        vectors = self.vectors(ids, mask) if vectors is None else vectors
        # Padding is 0 before and after: what a row's edge sees does not depend on its bucket.
        words = self.dropout(vectors, training=training) * real
        return tf.concat([filters(words) for filters in self.filters], axis=-1) * real

    def vectors(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Look ids up: [B, T] -> [B, T, width of a word]."""
        del mask
        return self.words(ids)


class TransformerBlock(keras.layers.Layer):
    """Pre-norm attention and feed-forward, cut where attention stands (contract Block)."""

    def __init__(self, config: SmallTransformerConfig, *, name: str) -> None:
        super().__init__(name=name)
        self.config = config
        self.norm = _norm("norm")
        self.qkv = keras.layers.Dense(3 * config.heads * config.size_of_heads, name="qkv")
        self.out = keras.layers.Dense(config.width, name="out")
        self.inner_norm = _norm("inner_norm")
        self.inner = keras.layers.Dense(config.hidden, activation="gelu", name="inner")
        self.outer = keras.layers.Dense(config.width, name="outer")
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")

    def build(self, *_shapes: object) -> None:
        """Make all variables."""
        config = self.config
        for layer in (self.norm, self.qkv, self.inner_norm, self.inner):
            layer.build((None, None, config.width))
        self.out.build((None, None, config.heads * config.size_of_heads))
        self.outer.build((None, None, config.hidden))
        self.built = True

    def project(self, hidden: tf.Tensor, angles: Angles = None) -> Projected:
        """Make query, keys and values out of [N, S, width]."""
        parts = tf.split(over_last_axis(self.qkv, self.norm(hidden), self.qkv.units), 3, axis=-1)
        return Projected(*(split_heads(part, self.config.heads) for part in parts))

    def finish(self, hidden: tf.Tensor, attended: tf.Tensor, *, training: bool = False
               ) -> tf.Tensor:
        """Add what attention found and the feed-forward part."""
        found = over_last_axis(self.out, join_heads(attended), self.out.units)
        hidden += self.dropout(found, training=training)
        outer = over_last_axis(lambda flat: self.outer(self.inner(flat)),
                               self.inner_norm(hidden), self.outer.units)
        return hidden + self.dropout(outer, training=training)


class SmallTransformer(SmallEncoder):
    """A pre-norm transformer that looks both ways."""

    def __init__(self, config: SmallTransformerConfig, *, vocab_size: int, name: str = "encoder"
                 ) -> None:
        super().__init__(name=name)
        self.config = config
        self.width = config.width
        self.words = _embedding(vocab_size, config.width, "words")
        self.positions = _embedding(config.max_positions, config.width, "positions")
        self.segments = _embedding(SEGMENTS, config.width, "segments")
        self.blocks = [TransformerBlock(config, name=f"block_{i}") for i in range(config.layers)]
        self.norm = _norm("norm")
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")

    def build(self, *_shapes: object) -> None:
        """Make all variables."""
        for layer in (self.words, self.positions, self.segments, *self.blocks):
            layer.build()
        self.norm.build((None, None, self.width))
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, training: bool = False,
             vectors: tf.Tensor | None = None) -> tf.Tensor:
        """ids, mask, segments [B, T] -> [B, T, width]."""
        check_width(ids, self.config.max_positions)
        places = tf.range(tf.shape(ids)[1])
        vectors = self.vectors(ids, mask) if vectors is None else vectors
        hidden = vectors + self.positions(places)[None] + self.segments(segments)
        hidden = self.dropout(hidden, training=training)
        allowed = mask[:, None, :]  # [B, 1, T]
        for block in self.blocks:
            attended = attend(*block.project(hidden), allowed)
            hidden = block.finish(hidden, attended, training=training)
        return self.norm(hidden) * tf.cast(mask, hidden.dtype)[..., None]

    def vectors(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Look ids up: [B, T] -> [B, T, width]."""
        del mask
        return self.words(ids)


class SmallDecoder(CachedDecoder):
    """A pre-norm transformer that looks backwards; the vocabulary shares the word vectors."""

    def __init__(self, config: SmallTransformerConfig, *, vocab_size: int, name: str = "decoder"
                 ) -> None:
        super().__init__(name=name)
        self.config = config
        self.vocab_size = vocab_size
        self.max_positions = config.max_positions
        self.words = _embedding(vocab_size, config.width, "words")
        self.positions = _embedding(config.max_positions, config.width, "positions")
        self.stack = [TransformerBlock(config, name=f"block_{i}") for i in range(config.layers)]
        self.norm = _norm("norm")
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")

    def build(self, *_shapes: object) -> None:
        """Make all variables."""
        for layer in (self.words, self.positions, *self.stack):
            layer.build()
        self.norm.build((None, None, self.config.width))
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, training: bool = False) -> tf.Tensor:
        """ids, mask [B, T] -> logits [B, T, V]."""
        allowed = _causal_and_real(mask)
        hidden, _ = self.read(ids, allowed, training=training)
        return self.to_logits(hidden)

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """ids [N, S] -> [N, S, width]."""
        return self.words(ids)

    def put(self, vectors: tf.Tensor, positions: tf.Tensor, *, training: bool = False
            ) -> tuple[tf.Tensor, Angles]:
        """Add position vectors."""
        hidden = vectors + self.positions(positions)
        return self.dropout(hidden, training=training), None

    def blocks(self) -> Sequence[TransformerBlock]:
        """Return the layers in order."""
        return self.stack

    def to_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., width] -> [..., V]."""
        table = tf.convert_to_tensor(self.words.embeddings)
        return tf.matmul(self.norm(hidden), table, transpose_b=True)


def _causal_and_real(mask: tf.Tensor) -> tf.Tensor:
    places = tf.range(tf.shape(mask)[1])
    return (places[None, :] <= places[:, None])[None] & mask[:, None, :]  # [B, T, T]


def _shift(tensor: tf.Tensor, places: int) -> tf.Tensor:
    """Move [B, T] to the right; what comes in is 0 or False."""
    return tf.pad(tensor, [[0, 0], [places, 0]])[:, :tf.shape(tensor)[1]]


def _embedding(rows: int, width: int, name: str) -> keras.layers.Embedding:
    return keras.layers.Embedding(
        rows, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name=name)


def _norm(name: str) -> keras.layers.LayerNormalization:
    return keras.layers.LayerNormalization(epsilon=1e-5, name=name)
