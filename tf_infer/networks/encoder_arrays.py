"""The weights of a classifier as plain arrays: fast forms and engines are made of them"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

from tf_infer.errors import ConfigError
from tf_infer.networks.arrays import (
    KNOWN,
    Activation,
    Dense,
    LayerArrays,
    Norm,
    activation_of,
    array_of,
    block_of,
    dense_of,
    layer_norm_of,
    require_float,
    transformer_layer_of,
)
from tf_infer.networks.heads import ClassifierNetwork
from tf_infer.networks.hub import HubEncoder
from tf_infer.networks.small import SmallTransformer

HeadActivation: TypeAlias = Literal[
    "gelu", "gelu_tanh", "relu", "silu", "tanh", "sigmoid", "linear"]
HEAD_KNOWN: Mapping[HeadActivation, Any] = {
    "gelu": KNOWN["gelu"], "gelu_tanh": KNOWN["gelu_tanh"], "relu": KNOWN["relu"],
    "silu": KNOWN["silu"], "tanh": keras.activations.tanh, "sigmoid": keras.activations.sigmoid,
    "linear": keras.activations.linear}


@dataclass(frozen=True, slots=True)
class HeadArrays:
    """What makes logits of [B, T, D]: pooling, then dense layers.

    Attributes:
        pooling: "first", "mean" or "max" of the real positions (networks/heads.py), or "pooler":
            tanh of the dense layer `pooler` over the first one.
        pooler: [D, D]; None with every other pooling.
        normalize: the pooled vector is scaled to length 1.
        dense: the layers before the last one, each followed by `activation`.
        activation: of those.
        logits: [C, D'] the last layer.
    """

    pooling: Literal["first", "mean", "max", "pooler"]
    pooler: Dense | None
    normalize: bool
    dense: tuple[Dense, ...]
    activation: HeadActivation
    logits: Dense


@dataclass(frozen=True, slots=True)
class EncoderArrays:
    """A whole classifier with a transformer for an encoder.

    It adds the vectors of words, positions and segments, normalises the sum by `first_norm`, goes
    through the layers, normalises by `last_norm`, and pools.

    A layer with `norm_first` is x + out(attend(qkv(norm(x)))), then x + outer(inner(
    inner_norm(x))); one without is norm(x + out(attend(qkv(x)))), then inner_norm(x +
    outer(inner(x))). Scores are divided by the root of d; no query looks at padding. Layers may
    have different numbers of heads, all of the same size.

    Attributes:
        head_size: d.
        words: [V, D] float32.
        positions: [P, D] float32, of positions 0 .. P - 1.
        segments: [S, D] float32; None where the encoder does not look at them.
        first_norm: None where there is none.
        layers: in order; none has a gate.
        norm_first: where a layer normalises.
        last_norm: None where there is none.
        zero_padding: positions of padding are 0 behind the last layer.
        activation: inside the feed-forward part.
        head: what makes logits of it.
    """

    head_size: int
    words: np.ndarray
    positions: np.ndarray
    segments: np.ndarray | None
    first_norm: Norm | None
    layers: tuple[LayerArrays, ...]
    norm_first: bool
    last_norm: Norm | None
    zero_padding: bool
    activation: Activation
    head: HeadArrays

    @property
    def width(self) -> int:
        """D, numbers of a position."""
        return int(self.words.shape[1])

    def heads(self, layer: LayerArrays) -> int:
        """H, heads of a layer."""
        return layer.out.kernel.shape[1] // self.head_size


def encoder_arrays_of(network: ClassifierNetwork) -> EncoderArrays:
    """Return the weights of a classifier's network.

    Raises:
        ConfigError: its encoder is no transformer, a layer has an activation that is not in the
            table (the message names it), or weights are quantised.
    """
    require_float(network)
    encoder, head = network.encoder, _head(network)
    if isinstance(encoder, SmallTransformer):
        return _small(encoder, head)
    if isinstance(encoder, HubEncoder):
        return _hub(encoder, head)
    raise ConfigError("network.encoder: expected a BERT, a DistilBERT, a RoBERTa or a "
                      f"small_transformer, got {type(encoder).__name__}, which no engine and no "
                      "fast form is made of. Export it as it is.")


def _head(network: ClassifierNetwork) -> HeadArrays:
    config = network.config
    activation: HeadActivation = "linear"
    if network.dense:
        activation = activation_of(network.dense[0].activation, HEAD_KNOWN,
                                   where=f"network.{network.dense[0].name}.activation")
    pooler = None
    if config.pooling == "pooler":
        pooler = dense_of(network.encoder.backbone.pooled_dense)
    return HeadArrays(config.pooling, pooler, config.normalize,
                      tuple(dense_of(layer) for layer in network.dense), activation,
                      dense_of(network.logits))


def _small(encoder: SmallTransformer, head: HeadArrays) -> EncoderArrays:
    return EncoderArrays(
        encoder.config.size_of_heads, array_of(encoder.words.embeddings),
        array_of(encoder.positions.embeddings), array_of(encoder.segments.embeddings), None,
        tuple(map(block_of, encoder.blocks)), True, layer_norm_of(encoder.norm), True,
        _activation(block.inner for block in encoder.blocks), head)


def _hub(encoder: HubEncoder, head: HeadArrays) -> EncoderArrays:
    backbone = encoder.backbone
    lookup = backbone if encoder.takes_segments else backbone.embeddings
    first = backbone.transformer_layers[0]._self_attention_layer
    return EncoderArrays(
        int(first.key_dim), array_of(lookup.token_embedding.embeddings),
        array_of(lookup.position_embedding.position_embeddings)[:encoder.max_positions],
        array_of(backbone.segment_embedding.embeddings) if encoder.takes_segments else None,
        layer_norm_of(backbone.embeddings_layer_norm),
        tuple(map(transformer_layer_of, backbone.transformer_layers)), False, None, False,
        _activation(layer._feedforward_intermediate_dense
                    for layer in backbone.transformer_layers), head)


def _activation(layers: Any) -> Activation:
    """Return the activation that all feed-forward parts share."""
    found: list[Activation] = []
    for number, layer in enumerate(layers):
        found.append(activation_of(layer.activation, KNOWN,
                                   where=f"network.encoder.layers[{number}]"))
    if len(set(found)) != 1:
        raise ConfigError("network.encoder: expected one activation in all layers, got "
                          f"{sorted(set(found))}.")
    return found[0]
