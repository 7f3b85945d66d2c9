"""Decoders as plain arrays: what is told of each family, and what is refused."""

from __future__ import annotations

import gc
from typing import Any

import keras
import numpy as np
import pytest

from tf_infer.config import HubConfig, SmallTransformerConfig
from tf_infer.errors import ConfigError
from tf_infer.networks import build
from tf_infer.networks.arrays import arrays_of

SIZES = {"vocabulary_size": 30, "num_layers": 1, "hidden_dim": 16, "intermediate_dim": 24}
GPT2 = HubConfig(backbone="GPT2Backbone", arguments={
    **SIZES, "num_heads": 2, "max_sequence_length": 20})
LLAMA = {**SIZES, "num_query_heads": 4, "num_key_value_heads": 2}


def made(config: Any) -> Any:
    return build.decoder(config, vocab_size=30, seed=1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_tells_shared_heads_angles_and_its_own_vocabulary(tied: bool) -> None:
    network = made(HubConfig(backbone="LlamaBackbone", max_positions=20, arguments={
        **LLAMA, "tie_word_embeddings": tied}))
    arrays = arrays_of(network, 12)
    assert (arrays.heads, arrays.groups, arrays.head_size, arrays.activation) == (4, 2, 4, "silu")
    assert arrays.layers[0].qkv.kernel.shape == ((4 + 2 * 2) * 4, 16)
    assert arrays.layers[0].gate is not None
    assert arrays.positions is None
    assert arrays.cosines is not None and arrays.cosines.shape == (12, 2)
    assert (arrays.vocabulary is arrays.words) == tied
    assert arrays.vocabulary.shape == (30, 16)
    hidden = np.random.default_rng(1).normal(size=(1, 3, 16)).astype(np.float32)
    normed = network.backbone.layer_norm(hidden)
    np.testing.assert_allclose(np.array(normed) @ arrays.vocabulary.T,
                               np.array(network.to_logits(hidden)), atol=1e-5)


@pytest.mark.parametrize(("activation", "told"), [
    (None, "gelu_tanh"), ("gelu", "gelu"), ("relu", "relu")])
def test_activations_are_told_by_what_they_do(activation: str | None, told: str) -> None:
    network = made(HubConfig(backbone="GPT2Backbone", arguments=GPT2.arguments,
                             activation=activation))
    assert arrays_of(network, 20).activation == told


def test_our_small_transformer_has_the_exact_gelu_and_a_tied_vocabulary() -> None:
    arrays = arrays_of(made(SmallTransformerConfig(width=16, layers=2, heads=2, hidden=24,
                                                   max_positions=20)), 8)
    assert (arrays.activation, len(arrays.layers)) == ("gelu", 2)
    assert arrays.vocabulary is arrays.words
    assert arrays.positions is not None and arrays.positions.shape == (8, 16)


def test_another_activation_is_refused() -> None:
    network = made(HubConfig(backbone="GPT2Backbone", arguments=GPT2.arguments, activation="tanh"))
    with pytest.raises(ConfigError, match="expected an activation of"):
        arrays_of(network, 20)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a .quantize. method")
def test_quantised_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = made(GPT2)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # Keras would, for each kernel that it lets go
    network.backbone.quantize("int8")
    with pytest.raises(ConfigError, match="expected float weights"):
        arrays_of(network, 20)


def test_another_network_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a GPT-2, a Llama or a small_transformer"):
        arrays_of(keras.layers.Dense(3), 20)
