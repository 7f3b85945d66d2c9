"""From the vectors of all positions to the logits of a text: pooling and dense layers."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_infer.config import ClassifierConfig
from tf_infer.errors import ConfigError


def pool(hidden: tf.Tensor, mask: tf.Tensor, how: str) -> tf.Tensor:
    """Make one vector of a row's real positions.

    Args:
        hidden: [B, T, D] float32.
        mask: [B, T] bool.
        how: "first", "mean" or "max".

    Returns:
        [B, D] float32; 0 for "mean" and "max" of a row without a real position.
    """
    if how == "first":
        return hidden[:, 0]
    real = tf.cast(mask, hidden.dtype)[..., None]  # [B, T, 1]
    if how == "mean":
        return tf.reduce_sum(hidden * real, axis=1) / tf.maximum(tf.reduce_sum(real, axis=1), 1.0)
    best = tf.reduce_max(tf.where(mask[..., None], hidden, hidden.dtype.min), axis=1)
    return tf.where(tf.reduce_any(mask, axis=1, keepdims=True), best, 0.0)


class ClassifierNetwork(keras.layers.Layer):
    """Backbone and head: ids, mask, segments [B, T] -> logits [B, C].

    Attributes:
        encoder: the backbone (contract Encoder).
        dense: the layers between the pooled vector and the logits.
        logits: the last layer.
    """

    def __init__(self, encoder: keras.layers.Layer, config: ClassifierConfig, *,
                 name: str = "classifier") -> None:
        super().__init__(name=name)
        if config.pooling == "pooler" and not encoder.has_pooler:
            raise ConfigError("ClassifierConfig.pooling: expected 'first', 'mean' or 'max' with a "
                              "backbone that has no pooler, got 'pooler'.")
        self.config = config
        self.encoder = encoder
        self.encoder.trainable = not config.frozen
        self.dense = [keras.layers.Dense(width, activation=config.activation, name=f"dense_{i}")
                      for i, width in enumerate(config.hidden)]
        self.logits = keras.layers.Dense(len(config.classes), name="logits")
        self.dropout = keras.layers.Dropout(config.dropout, name="dropout")

    def build(self, *_shapes: object) -> None:
        """Make all variables of the head, and of the backbone where it has none yet."""
        if not self.encoder.built:
            self.encoder.build()
        width = self.encoder.width
        for layer in (*self.dense, self.logits):
            layer.build((None, width))
            width = layer.units
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, training: bool = False,
             vectors: tf.Tensor | None = None) -> tf.Tensor:
        """ids, mask, segments [B, T] -> logits [B, C]; `vectors` as of the contract Encoder."""
        more = {} if vectors is None else {"vectors": vectors}
        hidden = self.encoder(ids, mask, segments, training=training and not self.config.frozen,
                              **more)
        return self.head(self.vector(hidden, mask), training=training)

    def vector(self, hidden: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """[B, T, D] -> the pooled vector [B, D], of length 1 where that is asked for."""
        pooling = self.config.pooling
        pooled = self.encoder.pool(hidden) if pooling == "pooler" else pool(hidden, mask, pooling)
        return tf.math.l2_normalize(pooled, axis=-1) if self.config.normalize else pooled

    def head(self, pooled: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """[B, D] -> logits [B, C]; frozen backbones are trained by this alone."""
        for layer in self.dense:
            pooled = layer(self.dropout(pooled, training=training))
        return self.logits(self.dropout(pooled, training=training))
