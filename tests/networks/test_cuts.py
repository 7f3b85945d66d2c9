"""tf_infer.networks.cuts: what is useless can be removed and nothing changes, in every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    HubConfig,
    NetworkConfig,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
    from_json,
    to_json,
)
from tf_infer.errors import ConfigError
from tf_infer.networks import build, cuts
from tf_infer.networks.cuts import Axis, Kept, Layer

VOCABULARY, HEADS, NEURONS, LAYERS = 30, 4, 12, 2
ATOL = 1e-5  # float32; sums with fewer terms that are 0
SIZES = {"vocabulary_size": VOCABULARY, "num_layers": LAYERS, "intermediate_dim": NEURONS,
         "hidden_dim": 16}
ENCODERS: dict[str, NetworkConfig] = {
    "small": SmallTransformerConfig(width=16, layers=LAYERS, heads=HEADS, hidden=NEURONS,
                                    max_positions=24),
    **{name: HubConfig(backbone=name, arguments={
        **SIZES, "num_heads": HEADS, "max_sequence_length": 24}, activation="gelu",
        pooler=name == "BertBackbone")
        for name in ("BertBackbone", "DistilBertBackbone", "RobertaBackbone")}}
DECODERS: dict[str, NetworkConfig] = {
    "small": ENCODERS["small"],
    "GPT2Backbone": HubConfig(backbone="GPT2Backbone", arguments={
        **SIZES, "num_heads": HEADS, "max_sequence_length": 24}),
    "LlamaBackbone": HubConfig(backbone="LlamaBackbone", arguments={
        **SIZES, "num_query_heads": HEADS, "num_key_value_heads": 2,
        "tie_word_embeddings": False}, max_positions=24)}
HEAD, NEURON = 1, 5  # of the first layer, planted to be useless; of the other layers others


def task_of(config: NetworkConfig) -> ClassifierConfig:
    return ClassifierConfig(
        classes=("a", "b", "c"), network=config, packing=PackingConfig(max_tokens=16),
        grid=ShapeGrid(rows=(4,), tokens=(16,)),
        pooling="pooler" if isinstance(config, HubConfig) and config.pooler else "mean")


def network_of(kind: str, name: str, config: NetworkConfig | None = None) -> Any:
    if kind == "encoder":
        network = build.classifier(task_of(config or ENCODERS[name]), vocab_size=VOCABULARY)
    else:
        network = build.decoder(config or DECODERS[name], vocab_size=VOCABULARY)
    draw = np.random.default_rng(3)
    for weight in network.weights:
        weight.assign(weight + 0.2 * draw.normal(size=weight.shape))
    return network


def answers(network: Any, ids: np.ndarray) -> np.ndarray:
    mask = tf.sequence_mask([12, 7, 3, 1], ids.shape[1])
    segments = () if hasattr(network, "vocab_size") else (tf.zeros_like(ids),)
    return np.array(network(tf.constant(ids), mask, *segments))


def rows(vocabulary: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(1).integers(0, vocabulary, (4, 12)).astype(np.int32)


def silence(layer: Layer, unit: Any, number: int) -> None:
    """Make a layer ignore what one of its units finds."""
    kernel = layer.weights[layer.readers[unit]]
    array = kernel.numpy()
    array.reshape(layer.counts[unit], -1)[number] = 0.0
    kernel.assign(array)


def without(kept: Kept, unit: str) -> Kept:
    """Drop HEAD or NEURON of the first layer, and the next number of each other layer."""
    first = HEAD if unit == "heads" else NEURON
    lists = tuple(tuple(number for number in units if number != first + place)
                  for place, units in enumerate(getattr(kept, unit)))
    return replace(kept, **{unit: lists})


def planted(network: Any, *units: Any) -> None:
    for place, layer in enumerate(cuts.layers(network)):
        for unit in units:
            silence(layer, unit, (HEAD if unit == "heads" else NEURON) + place)


def cut(kind: str, name: str, network: Any, kept: Kept) -> Any:
    config = cuts.smaller((ENCODERS if kind == "encoder" else DECODERS)[name], kept)
    smaller = network_of(kind, name, from_json(NetworkConfig, to_json(config)))
    cuts.fill(smaller, network, kept)
    return smaller


QUICK = {("encoder", "small"), ("encoder", "BertBackbone"), ("decoder", "LlamaBackbone")}
ALL = [pytest.param(*one, marks=() if one in QUICK else pytest.mark.slow) for one in (
    *(("encoder", name) for name in ENCODERS), *(("decoder", name) for name in DECODERS))]


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_useless_heads_and_neurons_are_not_missed(kind: str, name: str) -> None:
    network = network_of(kind, name)
    heads = kind == "encoder" or name == "small"
    whole = cuts.everything(network)
    assert bool(whole.heads) == heads
    units = ("heads", "neurons") if heads else ("neurons",)
    planted(network, *units)
    kept = whole
    for unit in units:
        kept = without(kept, unit)
    smaller = cut(kind, name, network, kept)
    np.testing.assert_allclose(answers(smaller, rows()), answers(network, rows()), atol=ATOL)
    assert {layer.counts["neurons"] for layer in cuts.layers(smaller)} == {NEURONS - 1}
    assert smaller.count_params() < network.count_params()
    # Other units are missed.
    other = replace(kept, neurons=tuple(tuple(range(1, NEURONS)) for _ in kept.neurons))
    apart = np.abs(answers(cut(kind, name, network, other), rows()) - answers(network, rows()))
    assert apart.max() > 1e-3


@pytest.mark.parametrize(("kind", "name"), [("encoder", "BertBackbone"), ("decoder", "small")])
def test_all_that_is_kept_gives_the_same_bits(kind: str, name: str) -> None:
    network = network_of(kind, name)
    kept = cuts.everything(network)
    assert cuts.smaller((ENCODERS if kind == "encoder" else DECODERS)[name], kept) == (
        ENCODERS if kind == "encoder" else DECODERS)[name]
    np.testing.assert_array_equal(answers(cut(kind, name, network, kept), rows()),
                                  answers(network, rows()))


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_a_layer_that_adds_nothing_is_not_missed(kind: str, name: str) -> None:
    network = network_of(kind, name)
    first, second = cuts.layers(network)
    for layer in (first, second):
        for path, weight in layer.weights.items():
            if "norm" in path:  # a second normalisation of what is normalised changes nothing
                weight.assign(tf.ones_like(weight) if path.endswith(("gamma", "scale"))
                              else tf.zeros_like(weight))
    readers = {path.rsplit("/", 1)[0] for path in second.readers.values()}
    readers |= {"self_attention/attention_output", "self_attention_layer/attention_output"}
    for path, weight in second.weights.items():
        if path.rsplit("/", 1)[0] in readers:
            weight.assign(tf.zeros_like(weight))
    wanted = answers(network, rows())
    whole = cuts.everything(network)
    kept = cuts.only(whole, (0,))
    np.testing.assert_allclose(answers(cut(kind, name, network, kept), rows()), wanted, atol=ATOL)
    assert np.abs(answers(cut(kind, name, network, cuts.only(whole, (1,))), rows())
                  - wanted).max() > 1e-3


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_rows_of_ids_that_never_come_are_not_missed(kind: str, name: str) -> None:
    network = network_of(kind, name)
    ids = (0, 2, 3, 7, 11, 20, 29)
    kept = replace(cuts.everything(network), ids=ids)
    config = (ENCODERS if kind == "encoder" else DECODERS)[name]
    if kind == "encoder":
        smaller: Any = build.classifier(task_of(cuts.smaller(config, kept)), vocab_size=len(ids))
    else:
        smaller = build.decoder(cuts.smaller(config, kept), vocab_size=len(ids))
    cuts.fill(smaller, network, kept)
    new = rows(len(ids))
    wanted = answers(network, np.array(ids, np.int32)[new])
    if kind == "decoder":
        wanted = wanted[..., list(ids)]
    np.testing.assert_allclose(answers(smaller, new), wanted, atol=ATOL)


def test_a_pruned_network_is_saved_and_read_again(tmp_path: Path) -> None:
    network = network_of("encoder", "BertBackbone")
    smaller = cut("encoder", "BertBackbone", network,
                  without(without(cuts.everything(network), "heads"), "neurons"))
    build.save_weights(smaller, tmp_path)
    config = smaller.encoder.config
    assert (config.arguments["num_heads"], config.head_size) == (HEADS - 1, 4)
    again = build.classifier(task_of(config), vocab_size=VOCABULARY, seed=8)
    build.load_weights(again, tmp_path)
    np.testing.assert_array_equal(answers(again, rows()), answers(smaller, rows()))
    paths = {weight.path for weight in network.weights}
    assert {weight.path for weight in smaller.weights} == paths


def test_units_of_repeated_axes_are_taken_from_each_part() -> None:
    array = np.arange(12).reshape(1, 12)  # query, keys, values of two heads of two numbers
    found = cuts.taken(array, Axis("heads", 1, repeats=3), 2, [1])
    np.testing.assert_array_equal(found, [[2, 3, 6, 7, 10, 11]])
    np.testing.assert_array_equal(cuts.taken(array[0], Axis("heads", 0, repeats=3), 2, [0]),
                                  [0, 1, 4, 5, 8, 9])


def test_heads_of_their_own_size_are_for_encoders() -> None:
    config = replace(DECODERS["GPT2Backbone"], head_size=4)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="head_size: expected None with GPT2Backbone"):
        build.decoder(config, vocab_size=VOCABULARY)
    with pytest.raises(ConfigError, match="head_size: expected None or >= 1, got 0"):
        SmallTransformerConfig(head_size=0)
    with pytest.raises(ConfigError, match="head_size: expected None or >= 1, got 0"):
        HubConfig(backbone="BertBackbone", head_size=0)
    assert CausalLMConfig(network=SmallTransformerConfig(width=16, heads=3, head_size=4))
