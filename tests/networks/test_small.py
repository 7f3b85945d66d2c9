"""tf_infer.networks.small and heads: shapes, padding, batches, training, weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_infer.config import (
    ClassifierConfig,
    ConvConfig,
    EmbeddingBagConfig,
    SmallTransformerConfig,
)
from tf_infer.errors import CheckpointError, ConfigError, ShapeError
from tf_infer.networks import build

VOCABULARY = 60
ATOL = 2e-6  # float32; another batch shape sums in another order
ENCODERS: dict[str, Any] = {
    "bag": EmbeddingBagConfig(width=16, ngrams=3, hash_buckets=500),
    "conv": ConvConfig(width=16, filters=8),
    "transformer": SmallTransformerConfig(width=16, heads=2, hidden=32, max_positions=24),
}
RATES = {"bag": 0.01, "conv": 0.01, "transformer": 0.001}
LENGTHS = [9, 4, 1, 0]


def rows(seed: int = 0, width: int = 12) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (len(LENGTHS), width))
    mask = tf.sequence_mask(LENGTHS, width)
    segments = tf.cast(tf.range(width)[None] > 2, tf.int32) * tf.cast(mask, tf.int32)
    return tf.constant(ids, tf.int32), mask, segments


def scrambled(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Give every weight a visible value, zeros of fresh biases too."""
    draw = np.random.default_rng(7)
    for variable in layer.weights:
        variable.assign(variable + draw.normal(size=variable.shape) * 0.3)
    return layer


@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_and_neighbours_change_nothing(kind: str) -> None:
    layer = scrambled(build.encoder(ENCODERS[kind], vocab_size=VOCABULARY))
    ids, mask, segments = rows()
    hidden = layer(ids, mask, segments)
    assert hidden.shape == (len(LENGTHS), 12, layer.width)
    other = layer(tf.where(mask, ids, 5), mask, segments)
    np.testing.assert_array_equal(hidden, other)
    for row, length in enumerate(LENGTHS[:3]):
        one = slice(row, row + 1)
        alone = layer(ids[one, :length], mask[one, :length], segments[one, :length])
        np.testing.assert_allclose(alone[0], hidden[row, :length], atol=ATOL)
        np.testing.assert_array_equal(hidden[row, length:], 0)


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("pooling", ["first", "mean", "max"])
def test_a_row_alone_gives_the_logits_it_gives_in_a_crowd(kind: str, pooling: str) -> None:
    config = ClassifierConfig(classes=("a", "b", "c"), network=ENCODERS[kind], pooling=pooling,
                              normalize=True, hidden=(8,))
    network = scrambled(build.classifier(config, vocab_size=VOCABULARY))
    ids, mask, segments = rows()
    logits = network(ids, mask, segments)
    if pooling == "max":  # the one with a branch for empty rows; a second of compiling each
        compiled = tf.function(network, jit_compile=True, autograph=False)
        np.testing.assert_allclose(compiled(ids, mask, segments), logits, atol=ATOL)
    assert np.isfinite(logits).all()
    for row, length in enumerate(LENGTHS[:3]):
        alone = network(*(t[row:row + 1, :length] for t in (ids, mask, segments)))
        np.testing.assert_allclose(alone[0], logits[row], atol=ATOL)


def test_segments_are_seen_by_the_transformer() -> None:
    layer = scrambled(build.encoder(ENCODERS["transformer"], vocab_size=VOCABULARY))
    ids, mask, segments = rows()
    changed = layer(ids, mask, tf.zeros_like(segments))
    assert np.abs(layer(ids, mask, segments) - changed).max() > 0.01


def test_the_order_of_words_is_seen_by_the_bag() -> None:
    layer = scrambled(build.encoder(ENCODERS["bag"], vocab_size=VOCABULARY))
    mask, segments = tf.ones([1, 3], tf.bool), tf.zeros([1, 3], tf.int32)
    sums = [tf.reduce_sum(layer(tf.constant([ids]), mask, segments), 1)
            for ids in ([1, 2, 3], [3, 2, 1])]
    assert np.abs(sums[0] - sums[1]).max() > 0.01


@pytest.mark.parametrize("kind", ENCODERS)
def test_it_learns_a_rule_in_seconds(kind: str) -> None:
    config = ClassifierConfig(classes=("no", "yes"), network=ENCODERS[kind])
    network = build.classifier(config, vocab_size=VOCABULARY)
    draw = np.random.default_rng(0)
    ids = draw.integers(1, VOCABULARY, (256, 8)).astype(np.int32)
    labels = (ids < 6).any(axis=1).astype(np.int32)
    mask, segments = tf.ones(ids.shape, tf.bool), tf.zeros(ids.shape, tf.int32)
    optimizer = keras.optimizers.Adam(RATES[kind])
    optimizer.build(network.trainable_variables)
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(autograph=False)
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = crossentropy(labels, network(ids, mask, segments, training=True))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables))
        return loss

    for _ in range(60):
        step()
    right = np.argmax(network(ids, mask, segments), axis=1) == labels
    assert right.mean() > 0.95


def test_a_frozen_backbone_is_not_trained() -> None:
    config = ClassifierConfig(classes=("a", "b"), network=ENCODERS["bag"], frozen=True)
    network = build.classifier(config, vocab_size=VOCABULARY)
    assert [v.path for v in network.trainable_variables] == [
        "classifier/logits/kernel", "classifier/logits/bias"]


def test_equal_seeds_give_equal_weights() -> None:
    one, same, other = (build.encoder(ENCODERS["transformer"], vocab_size=VOCABULARY, seed=seed)
                        for seed in (3, 3, 4))
    for a, b in zip(one.weights, same.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(one.weights, other.weights))


def test_weights_come_back_from_disk(tmp_path: Path) -> None:
    config = ClassifierConfig(classes=("a", "b"), network=ENCODERS["transformer"], hidden=(4,))
    saved = scrambled(build.classifier(config, vocab_size=VOCABULARY, seed=1))
    build.save_weights(saved, tmp_path)
    loaded = build.classifier(config, vocab_size=VOCABULARY, seed=2)
    build.load_weights(loaded, tmp_path)
    np.testing.assert_array_equal(saved(*rows()), loaded(*rows()))


def test_all_tensors_that_do_not_fit_are_named_at_once(tmp_path: Path) -> None:
    saved = ClassifierConfig(classes=("a", "b"), network=ENCODERS["bag"], hidden=(4,))
    build.save_weights(build.classifier(saved, vocab_size=VOCABULARY), tmp_path)
    other = ClassifierConfig(classes=("a", "b", "c"), network=ENCODERS["conv"])
    network = build.classifier(other, vocab_size=VOCABULARY)
    before = [variable.numpy() for variable in network.weights]
    with pytest.raises(CheckpointError) as caught:
        build.load_weights(network, tmp_path)
    text = str(caught.value)
    assert "encoder/filters_0_of_2/kernel is missing" in text
    assert "encoder/grams/embeddings is unexpected" in text
    assert "classifier/logits/bias has shape (2,) instead of (3,)" in text
    for variable, value in zip(network.weights, before):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.parametrize("keep", [0, 7, 300])
def test_a_cut_file_is_named(tmp_path: Path, keep: int) -> None:
    network = build.encoder(ENCODERS["bag"], vocab_size=VOCABULARY)
    build.save_weights(network, tmp_path)
    path = tmp_path / build.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot be read"):
        build.load_weights(network, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    network = build.encoder(ENCODERS["bag"], vocab_size=VOCABULARY)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: cannot be read"):
        build.load_weights(network, tmp_path)


def test_rows_wider_than_the_positions_are_refused() -> None:
    layer = build.encoder(ENCODERS["transformer"], vocab_size=VOCABULARY)
    with pytest.raises(ShapeError, match="at most 24 positions"):
        layer(*rows(width=25))


def test_small_networks_have_no_pooler() -> None:
    config = ClassifierConfig(classes=("a", "b"), network=ENCODERS["conv"], pooling="pooler")
    with pytest.raises(ConfigError, match="no pooler"):
        build.classifier(config, vocab_size=VOCABULARY)
    with pytest.raises(ConfigError, match="Conv"):
        build.encoder(ENCODERS["conv"], vocab_size=VOCABULARY).pool(tf.zeros([1, 2, 24]))


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="divisor of width = 16"):
        build.encoder(SmallTransformerConfig(width=16, heads=3), vocab_size=VOCABULARY)


def test_a_bag_is_no_decoder() -> None:
    with pytest.raises(ConfigError, match="EmbeddingBagConfig"):
        build.decoder(EmbeddingBagConfig(), vocab_size=VOCABULARY)
