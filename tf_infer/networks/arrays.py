"""The weights of a decoder as plain arrays, in one form for all families: engines are made of it"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tf_infer.errors import ConfigError
from tf_infer.networks.hub import GPT2Decoder, LlamaDecoder
from tf_infer.networks.small import SmallDecoder

Activation: TypeAlias = Literal["gelu", "gelu_tanh", "relu", "silu"]
ActivationT = TypeVar("ActivationT", bound=str)
KNOWN: Mapping[Activation, Any] = {
    "gelu": lambda x: keras.activations.gelu(x, approximate=False),
    "gelu_tanh": lambda x: keras.activations.gelu(x, approximate=True),
    "relu": keras.activations.relu, "silu": keras.activations.silu}


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation over the last axis.

    Attributes:
        scale: [D] float32.
        shift: [D] float32; None for RMS normalisation, which does not subtract the mean either.
        epsilon: added to the variance, or to the mean square.
    """

    scale: np.ndarray
    shift: np.ndarray | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class Dense:
    """x @ kernel.T + bias: kernel [outputs, inputs] float32, bias [outputs] float32 or None."""

    kernel: np.ndarray
    bias: np.ndarray | None


@dataclass(frozen=True, slots=True)
class LayerArrays:
    """One layer: attention, then the feed-forward part; that of a decoder is pre-norm.

    Attributes:
        norm: before attention.
        qkv: query, keys and values in one, [(H + 2 G) d, D]; heads one after the other.
        out: of attention, [D, H d].
        inner_norm: before the feed-forward part.
        gate: [F, D]; None where the feed-forward part has no gate.
        inner: [F, D].
        outer: [D, F].
    """

    norm: Norm
    qkv: Dense
    out: Dense
    inner_norm: Norm
    gate: Dense | None
    inner: Dense
    outer: Dense


@dataclass(frozen=True, slots=True)
class DecoderArrays:
    """A whole decoder; what it computes is `CachedDecoder`'s forward pass.

    Attributes:
        heads: H, query heads.
        groups: G, key-value heads.
        words: [V, D] float32, word vectors.
        vocabulary: [V, D] float32, what logits are products with; `words` itself where tied.
        positions: [P, D] float32, added to word vectors; None with rotary positions.
        cosines, sines: [P, d / 2] float32, rotary angles; None without.
        layers: in order.
        norm: before the vocabulary.
        activation: inside the feed-forward part; of the gate where there is one.
    """

    heads: int
    groups: int
    words: np.ndarray
    vocabulary: np.ndarray
    positions: np.ndarray | None
    cosines: np.ndarray | None
    sines: np.ndarray | None
    layers: tuple[LayerArrays, ...]
    norm: Norm
    activation: Activation

    @property
    def head_size(self) -> int:
        """d, numbers of a head."""
        return self.layers[0].out.kernel.shape[1] // self.heads


def arrays_of(decoder: Any, positions: int) -> DecoderArrays:
    """Return the weights of a decoder.

    Args:
        decoder: GPT-2, Llama or our small transformer.
        positions: P, rows of the position tables.

    Raises:
        ConfigError: another network, an activation that is not in the table, or quantised weights.
    """
    require_float(decoder)
    if isinstance(decoder, SmallDecoder):
        return _small(decoder, positions)
    if isinstance(decoder, GPT2Decoder):
        return _gpt2(decoder, positions)
    if isinstance(decoder, LlamaDecoder):
        return _llama(decoder, positions)
    raise ConfigError("network: expected a GPT-2, a Llama or a small_transformer, got "
                      f"{type(decoder).__name__}.")


def require_float(network: Any) -> None:
    """Raise ConfigError where any layer of a network holds quantised weights."""
    for layer in network._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ConfigError("network: expected float weights, got quantised ones. Build the "
                              "engine from the network before it is quantised.")


def _small(decoder: SmallDecoder, positions: int) -> DecoderArrays:
    layers = tuple(map(block_of, decoder.stack))
    words = array_of(decoder.words.embeddings)
    heads = decoder.config.heads
    return DecoderArrays(
        heads, heads, words, words, array_of(decoder.positions.embeddings)[:positions], None, None,
        layers, layer_norm_of(decoder.norm),
        activation_of(decoder.stack[0].inner.activation, KNOWN))


def _gpt2(decoder: GPT2Decoder, positions: int) -> DecoderArrays:
    backbone = decoder.backbone
    first = backbone.transformer_layers[0]
    heads = first.num_heads
    return DecoderArrays(
        heads, heads, *_vocabulary(backbone.token_embedding),
        array_of(backbone.position_embedding.position_embeddings)[:positions], None, None,
        tuple(map(transformer_layer_of, backbone.transformer_layers)),
        layer_norm_of(backbone.layer_norm),
        activation_of(first._feedforward_intermediate_dense.activation, KNOWN))


def _llama(decoder: LlamaDecoder, positions: int) -> DecoderArrays:
    backbone = decoder.backbone
    layers = []
    for layer in backbone.transformer_layers:
        attention = layer._self_attention_layer
        layers.append(LayerArrays(
            _rms_norm(layer._self_attention_layernorm),
            joined(*(dense_of(dense) for dense in (
                attention._query_dense, attention._key_dense, attention._value_dense))),
            dense_of(attention._output_dense, inputs=2),
            _rms_norm(layer._feedforward_layernorm),
            dense_of(layer._feedforward_gate_dense),
            dense_of(layer._feedforward_intermediate_dense),
            dense_of(layer._feedforward_output_dense)))
    # The angles come from the network itself, so that every form of scaling is in them.
    places = tf.range(positions)[None, :]
    _, angles = decoder.embed(tf.zeros_like(places), places)
    assert angles is not None
    return DecoderArrays(
        backbone.num_query_heads, backbone.num_key_value_heads,
        *_vocabulary(backbone.token_embedding), None,
        array_of(angles[0])[0], array_of(angles[1])[0],
        tuple(layers), _rms_norm(backbone.layer_norm),
        activation_of(backbone.transformer_layers[0].activation, KNOWN))


def block_of(block: Any) -> LayerArrays:
    """Read a block of our small transformer."""
    return LayerArrays(
        layer_norm_of(block.norm), dense_of(block.qkv), dense_of(block.out),
        layer_norm_of(block.inner_norm), None, dense_of(block.inner), dense_of(block.outer))


def transformer_layer_of(layer: Any) -> LayerArrays:
    """Read a TransformerEncoder or TransformerDecoder of KerasHub, as BERT and GPT-2 have them."""
    attention = layer._self_attention_layer
    return LayerArrays(
        layer_norm_of(layer._self_attention_layer_norm),
        joined(*(dense_of(dense) for dense in (
            attention.query_dense, attention.key_dense, attention.value_dense))),
        dense_of(attention.output_dense, inputs=2),
        layer_norm_of(layer._feedforward_layer_norm), None,
        dense_of(layer._feedforward_intermediate_dense),
        dense_of(layer._feedforward_output_dense))


def array_of(variable: Any) -> np.ndarray:
    """Return a variable's numbers, float32."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float32)


def _vocabulary(embedding: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return word vectors and what makes logits of a ReversibleEmbedding, both [V, D]."""
    words = array_of(embedding.embeddings)
    return words, words if embedding.tie_weights else array_of(embedding.reverse_embeddings).T


def dense_of(layer: Any, *, inputs: int = 1) -> Dense:
    """Read a Dense or EinsumDense layer, the first `inputs` axes of whose kernel are summed."""
    kernel = array_of(layer.kernel)
    width = int(np.prod(kernel.shape[:inputs]))
    bias = getattr(layer, "bias", None)
    return Dense(np.ascontiguousarray(kernel.reshape(width, -1).T),
                 None if bias is None else array_of(bias).reshape(-1))


def joined(*parts: Dense) -> Dense:
    """Return several dense layers of the same input as one, their outputs one after the other."""
    biases = [part.bias for part in parts if part.bias is not None]
    return Dense(np.concatenate([part.kernel for part in parts]),
                 np.concatenate(biases) if biases else None)


def layer_norm_of(layer: Any) -> Norm:
    """Read a LayerNormalization."""
    return Norm(array_of(layer.gamma), array_of(layer.beta), float(layer.epsilon))


def _rms_norm(layer: Any) -> Norm:
    return Norm(array_of(layer.scale), None, float(layer.epsilon))


def activation_of(function: Any, known: Mapping[ActivationT, Any],
                  *, where: str = "network") -> ActivationT:
    """Return which activation a function is: it is asked, since its name may be anybody's.

    Args:
        function: takes and gives a tensor.
        known: name -> what it computes.
        where: the layer, for the message.

    Raises:
        ConfigError: none of `known`.
    """
    points = tf.linspace(-6.0, 6.0, 97)
    wanted = np.array(function(points))
    for name, candidate in known.items():
        # The two forms of GELU differ by 5e-4.
        if np.abs(np.array(candidate(points)) - wanted).max() < 1e-5:
            return name
    raise ConfigError(f"{where}: expected an activation of {sorted(known)}, got another one.")
