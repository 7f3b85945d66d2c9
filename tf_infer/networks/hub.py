"""Backbones of KerasHub seen through the contracts Encoder and Decoder.

KerasHub gives the layers, the weights and the forward pass for training; reading with a cache goes
through the same sub-layers, so that what changes them (training, LoRA, int8) changes both.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_infer.config import HubConfig
from tf_infer.errors import ConfigError
from tf_infer.networks.attention import rotate
from tf_infer.networks.cached import Angles, CachedDecoder, Projected, check_width

ENCODERS = ("BertBackbone", "DistilBertBackbone", "RobertaBackbone")
DECODERS = ("GPT2Backbone", "LlamaBackbone", "Llama3Backbone")


def backbone(config: HubConfig) -> Any:
    """Build the backbone of a configuration, with what its constructor cannot say set afterwards.

    Raises:
        ConfigError: the class is not one of ENCODERS and DECODERS, or refuses its arguments.
    """
    import keras_hub  # takes seconds; the small networks do without

    if config.backbone not in ENCODERS + DECODERS:
        raise ConfigError(f"HubConfig.backbone: expected one of {list(ENCODERS + DECODERS)}, got "
                          f"{config.backbone!r}.")
    try:
        built = getattr(keras_hub.models, config.backbone)(**config.arguments, name="backbone")
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"HubConfig.arguments: {config.backbone} refuses them: {error}.") from error
    if config.activation is not None:
        activation = activation_named(config.activation)
        for block in built.transformer_layers:
            # Llama's gate calls `activation` itself; the others put it into their dense layer.
            block.activation = activation
            if not hasattr(block, "_feedforward_gate_dense"):
                block._feedforward_intermediate_dense.activation = activation
    if config.epsilon is not None:
        for layer in built._flatten_layers():
            if hasattr(layer, "epsilon"):
                layer.epsilon = config.epsilon
    if config.head_size is not None:
        if config.backbone not in ENCODERS:
            raise ConfigError(f"HubConfig.head_size: expected None with {config.backbone}, got "
                              f"{config.head_size}. Only encoders lose single heads.")
        for block in built.transformer_layers:
            _resize_heads(block, config.head_size, built.hidden_dim)
    return built


def _resize_heads(block: Any, size: int, width: int) -> None:
    """Give a TransformerEncoder heads of `size` numbers, where KerasHub has width / heads."""
    old = block._self_attention_layer
    attention = type(old).from_config({**old.get_config(), "key_dim": size, "value_dim": size})
    shape = (None, None, width)
    with block._open_name_scope():  # the paths of its weights are those of the old one
        attention.build(shape, shape)
    # A built layer of Keras takes no other layer in, and would keep the old one's weights.
    block._tracker.unlock()
    block._tracker.untrack(old)
    block._self_attention_layer = attention
    block._tracker.lock()


def activation_named(name: str) -> Any:
    """Return the activation of a HubConfig.

    Raises:
        ConfigError: neither "gelu_tanh" nor a name that Keras knows.
    """
    if name == "gelu_tanh":
        return _gelu_tanh
    try:
        return keras.activations.get(name)
    except ValueError as error:
        raise ConfigError(f"HubConfig.activation: expected 'gelu', 'gelu_tanh' or a name of "
                          f"keras.activations, got {name!r}.") from error


def _gelu_tanh(x: Any) -> Any:
    return keras.activations.gelu(x, approximate=True)


class HubEncoder(keras.layers.Layer):
    """A BERT, DistilBERT or RoBERTa backbone as an Encoder.

    Attributes:
        backbone: KerasHub's model.
        max_positions: longest row it may read.
    """

    def __init__(self, config: HubConfig, *, name: str = "encoder") -> None:
        super().__init__(name=name)
        if config.backbone not in ENCODERS:
            raise ConfigError(f"network.backbone: expected an encoder, one of {list(ENCODERS)}, "
                              f"got {config.backbone!r}.")
        self.config = config
        self.backbone = backbone(config)
        self.width = int(self.backbone.hidden_dim)
        self.max_positions = positions_of(config, self.backbone)
        self.has_pooler = config.pooler and hasattr(self.backbone, "pooled_dense")
        self.takes_segments = config.backbone == "BertBackbone"

    def build(self, *_shapes: object) -> None:
        """Do nothing: the backbone came with its variables."""
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor, training: bool = False,
             vectors: tf.Tensor | None = None) -> tf.Tensor:
        """ids, mask, segments [B, T] -> [B, T, width]."""
        check_width(ids, self.max_positions)
        inputs = {"padding_mask": tf.cast(mask, tf.int32)}
        if self.takes_segments:
            inputs["segment_ids"] = segments
        if vectors is None:
            outputs = self.backbone({**inputs, "token_ids": ids}, training=training)
        else:
            if not self.takes_segments:  # its first layer adds the positions itself
                vectors = vectors + self._lookup.position_embedding(vectors)
            outputs = self._behind_lookup([*inputs.values(), vectors], training=training)
        return outputs["sequence_output"] if isinstance(outputs, dict) else outputs

    @property
    def _lookup(self) -> Any:
        """The layer of the backbone that takes ids."""
        return self.backbone.token_embedding if self.takes_segments else self.backbone.embeddings

    @functools.cached_property  # past Keras, which would count its weights twice
    def _behind_lookup(self) -> Any:
        """The backbone without that layer, the same weights: inputs, vectors -> outputs."""
        names = ("padding_mask", "segment_ids") if self.takes_segments else ("padding_mask",)
        given = [self.backbone.input[name] for name in names]
        return keras.Model([*given, self._lookup.output], self.backbone.output)

    def vectors(self, ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Look ids up: [B, T] -> [B, T, width]."""
        del mask
        return self._lookup(ids) if self.takes_segments else self._lookup.token_embedding(ids)

    def pool(self, hidden: tf.Tensor) -> tf.Tensor:
        """[B, T, D] -> [B, D]: tanh of a dense layer over the first position (BERT's pooler)."""
        if not self.has_pooler:
            raise ConfigError("pooling: expected 'first', 'mean' or 'max', got 'pooler', which "
                              f"this {self.config.backbone} does not have.")
        return self.backbone.pooled_dense(hidden[:, 0])


class HubDecoder(CachedDecoder):
    """A decoder backbone of KerasHub; families differ in `put` and in their blocks.

    Attributes:
        backbone: KerasHub's model.
    """

    block_type: Any

    def __init__(self, config: HubConfig, *, name: str = "decoder") -> None:
        super().__init__(name=name)
        self.config = config
        self.backbone = backbone(config)
        self.vocab_size = int(self.backbone.vocabulary_size)
        self.max_positions = positions_of(config, self.backbone)

    def build(self, *_shapes: object) -> None:
        """Do nothing: the backbone came with its variables."""
        self.built = True

    def call(self, ids: tf.Tensor, mask: tf.Tensor, training: bool = False) -> tf.Tensor:
        """ids, mask [B, T] -> logits [B, T, V], through KerasHub's own forward pass."""
        check_width(ids, self.max_positions)
        inputs = {"token_ids": ids, "padding_mask": tf.cast(mask, tf.int32)}
        hidden = self.backbone(inputs, training=training)
        return self.backbone.token_embedding(hidden, reverse=True)

    def look_up(self, ids: tf.Tensor) -> tf.Tensor:
        """ids [N, S] -> [N, S, D]."""
        return self.backbone.token_embedding(ids)

    def blocks(self) -> Sequence[Any]:
        """Return the layers in order."""
        return [self.block_type(layer) for layer in self.backbone.transformer_layers]

    def to_logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """[..., D] -> [..., V]."""
        return self.backbone.token_embedding(self.backbone.layer_norm(hidden), reverse=True)


class GPT2Block:
    """A TransformerDecoder of KerasHub as a Block: pre-norm, biases, no shared heads."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def project(self, hidden: tf.Tensor, angles: Angles) -> Projected:
        """Make query, keys and values out of [N, S, D]."""
        del angles  # positions were added to the embeddings
        normed = self.layer._self_attention_layer_norm(hidden)
        attention = self.layer._self_attention_layer
        return Projected(*(heads_first(dense(normed)) for dense in (
            attention.query_dense, attention.key_dense, attention.value_dense)))

    def finish(self, hidden: tf.Tensor, attended: tf.Tensor, *, training: bool = False
               ) -> tf.Tensor:
        """Add what attention found and the feed-forward part."""
        layer = self.layer
        hidden += layer._self_attention_layer.output_dense(heads_last(attended))
        inner = layer._feedforward_intermediate_dense(layer._feedforward_layer_norm(hidden))
        return hidden + layer._feedforward_output_dense(inner)


class GPT2Decoder(HubDecoder):
    """GPT2Backbone as a Decoder."""

    block_type = GPT2Block

    def put(self, vectors: tf.Tensor, positions: tf.Tensor, *, training: bool = False
            ) -> tuple[tf.Tensor, Angles]:
        """Add position vectors."""
        table = self.backbone.position_embedding.position_embeddings
        return vectors + tf.gather(table, positions), None


class LlamaBlock:
    """A LlamaTransformerDecoder of KerasHub as a Block: RMS norm, rotary positions, gated inner."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def project(self, hidden: tf.Tensor, angles: Angles) -> Projected:
        """Make query, keys and values out of [N, S, D]; query and keys are turned."""
        assert angles is not None
        normed = self.layer._self_attention_layernorm(hidden)
        attention = self.layer._self_attention_layer
        query, keys, values = (heads_first(dense(normed)) for dense in (
            attention._query_dense, attention._key_dense, attention._value_dense))
        return Projected(rotate(query, angles), rotate(keys, angles), values)

    def finish(self, hidden: tf.Tensor, attended: tf.Tensor, *, training: bool = False
               ) -> tf.Tensor:
        """Add what attention found and the gated feed-forward part."""
        layer = self.layer
        hidden += layer._self_attention_layer._output_dense(heads_last(attended))
        normed = layer._feedforward_layernorm(hidden)
        gate = layer.activation(layer._feedforward_gate_dense(normed))
        inner = layer._feedforward_intermediate_dense(normed) * gate
        return hidden + layer._feedforward_output_dense(inner)


class LlamaDecoder(HubDecoder):
    """LlamaBackbone as a Decoder."""

    block_type = LlamaBlock

    def put(self, vectors: tf.Tensor, positions: tf.Tensor, *, training: bool = False
            ) -> tuple[tf.Tensor, Angles]:
        """Turn positions into the angles of the backbone's own rotary layer."""
        attention = self.backbone.transformer_layers[0]._self_attention_layer
        size = self.backbone.hidden_dim // self.backbone.num_query_heads
        frequencies = attention.rotary_embedding_layer._get_inverse_freq(size)  # [d/2]
        turns = tf.cast(positions, tf.float32)[..., None] * frequencies  # [N or 1, S, d/2]
        return vectors, (tf.cos(turns), tf.sin(turns))


def decoder(config: HubConfig) -> HubDecoder:
    """Build the decoder of a configuration.

    Raises:
        ConfigError: the backbone is no decoder.
    """
    if config.backbone not in DECODERS:
        raise ConfigError(f"network.backbone: expected a decoder, one of {list(DECODERS)}, got "
                          f"{config.backbone!r}.")
    return GPT2Decoder(config) if config.backbone == "GPT2Backbone" else LlamaDecoder(config)


def positions_of(config: HubConfig, built: Any) -> int:
    """Return the longest row: of the configuration, else of the backbone's position table."""
    table = getattr(built, "max_sequence_length", None)
    if config.max_positions is None and table is None:
        raise ConfigError(f"HubConfig.max_positions: expected a number with {config.backbone}, "
                          "whose rotary positions have no end, got None.")
    if config.max_positions is not None and table is not None and config.max_positions > table:
        raise ConfigError(f"HubConfig.max_positions: expected at most the backbone's {table} "
                          f"positions, got {config.max_positions}.")
    return int(config.max_positions or table or 0)


def heads_first(tensor: tf.Tensor) -> tf.Tensor:
    """[N, S, H, d] -> [N, H, S, d]."""
    return tf.transpose(tensor, [0, 2, 1, 3])


def heads_last(tensor: tf.Tensor) -> tf.Tensor:
    """[N, H, S, d] -> [N, S, H, d]."""
    return tf.transpose(tensor, [0, 2, 1, 3])
