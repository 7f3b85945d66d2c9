"""Classifiers as plain arrays: they are all that the network is made of; what is refused."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.networks.encoders import NETWORKS, classifier, rows
from tests.networks.encoders import logits as network_logits
from tests.oracles import encoder as oracle
from tf_infer.config import EmbeddingBagConfig
from tf_infer.errors import ConfigError
from tf_infer.networks.encoder_arrays import encoder_arrays_of


@pytest.mark.parametrize(("network", "head"), [
    ("bert", "pooler"), ("bert", "mean"), ("distilbert", "first"), ("roberta", "max"),
    ("small", "mean"), ("small", "first")])
def test_arrays_alone_give_the_logits_of_the_network(network: str, head: str) -> None:
    made = classifier(network, head)
    batch = rows([1, 9, 12, 40], 40)
    wanted = network_logits(made, batch)
    assert np.ptp(wanted, axis=0).min() > 0.05  # rows differ, so that something is compared
    # float32 sums of at most 40 numbers near 1, through two layers.
    np.testing.assert_allclose(oracle.logits(encoder_arrays_of(made), **batch), wanted, atol=2e-5)


def test_sizes_are_told() -> None:
    arrays = encoder_arrays_of(classifier("bert", "pooler"))
    assert (arrays.head_size, arrays.width, arrays.activation, arrays.norm_first) == (
        8, 16, "gelu", False)
    assert [arrays.heads(layer) for layer in arrays.layers] == [2, 2]
    assert arrays.positions.shape == (40, 16)
    assert arrays.segments is not None and arrays.head.pooler is not None
    assert encoder_arrays_of(classifier("distilbert", "first")).segments is None


def test_no_transformer_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match="got EmbeddingBag"):
        encoder_arrays_of(classifier(EmbeddingBagConfig(width=8, hash_buckets=16)))


def test_an_activation_without_a_counterpart_is_refused_by_its_layer() -> None:
    made = classifier(replace(NETWORKS["bert"], activation="selu"))
    with pytest.raises(ConfigError, match=r"network\.encoder\.layers\[0\]: expected an activation"):
        encoder_arrays_of(made)
    made = classifier("small", "first")
    made.dense[0].activation = keras.activations.softplus
    with pytest.raises(ConfigError, match=r"network\.dense_0\.activation: expected"):
        encoder_arrays_of(made)


def test_quantised_weights_are_refused() -> None:
    made = classifier("small")
    made.logits.quantize("int8")
    with pytest.raises(ConfigError, match="expected float weights"):
        encoder_arrays_of(made)
