"""The signature `explain`: planted keywords, offsets, targets, pairs, every kind of network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tests.tasks.suite import as_arrays
from tf_infer.config import (
    ClassifierConfig,
    ConvConfig,
    EmbeddingBagConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.tasks.build import build
from tf_infer.tasks.classifier import Classifier

KEY = ord("#")  # a byte whose vector alone decides


@lru_cache(maxsize=1)
def traced(task: Classifier) -> Callable[..., dict[str, tf.Tensor]]:
    """Return the signature with free rows: a second to trace, for any number of them."""
    found = task.signatures()["explain"]
    return tf.function(found.function, autograph=False).get_concrete_function(
        **found.input_specs())


def explain(task: Classifier, texts: list[str], *, target: list[str] | None = None,
            pairs: list[str] | None = None) -> dict[str, np.ndarray]:
    more = {} if pairs is None else {"text_pair": tf.constant(pairs)}
    return as_arrays(traced(task)(
        text=tf.constant(texts), target=tf.constant(target or [""] * len(texts)), **more))


def planted() -> Classifier:
    """Return a bag of bytes in which one byte makes class "b", and all others nearly nothing."""
    network = EmbeddingBagConfig(width=8, ngrams=1, hash_buckets=2)
    grid = ShapeGrid(rows=(400,), tokens=(32,))
    task = build(replace(small.BAG, network=network, grid=grid), seed=3)
    words = task.network.encoder.words.embeddings
    table = np.random.default_rng(0).normal(scale=0.02, size=words.shape)
    ids = as_arrays(task.signatures()["encode"].function(text=tf.constant(["#"])))
    key = ids["ids"][0][ids["ends"][0] > ids["starts"][0]][0]
    table[key] = 0.0
    table[key, 0] = 5.0
    words.assign(table)
    task.network.logits.kernel.assign([[0.0, 4.0], *[[0.1, -0.1]] * 7])
    return task


def test_the_planted_keyword_gets_the_top_attribution_both_ways() -> None:
    task, generator = planted(), np.random.default_rng(1)
    texts, places = [], []
    for _ in range(400):
        letters = generator.choice(list("abcdefgh ijkl"), size=generator.integers(3, 28)).tolist()
        places.append(int(generator.integers(len(letters))))
        letters[places[-1]] = "#"
        texts.append("".join(letters))
    found = explain(task, texts)
    assert set(found["label"].tolist()) == {b"b"}
    for name in ("attributions", "left_out"):
        best = found[name].argmax(axis=1)
        starts = found["starts"][np.arange(len(texts)), best]
        assert (starts == places).mean() >= 0.99, name
    assert found["completeness_error"].max() < 1e-3


@pytest.mark.parametrize("network", [
    SmallTransformerConfig(width=16, layers=1, heads=2, hidden=32, max_positions=36),
    ConvConfig(width=8, filters=8), EmbeddingBagConfig(width=8, hash_buckets=100)])
def test_attributions_add_up_to_what_the_text_adds(network: object) -> None:
    task = build(replace(small.CLASSIFIER, network=network, explain=True), seed=5)
    texts = ["hello there", "中文", "", "x" * 200]
    found = explain(task, texts)
    answer = as_arrays(task.signatures()["serving_default"].function(text=tf.constant(texts)))
    assert found["label"].tolist() == answer["label"].tolist()
    np.testing.assert_allclose(found["score"], answer["logits"].max(axis=1), atol=1e-5)
    np.testing.assert_allclose(found["attributions"].sum(axis=1),
                               found["score"] - found["baseline"], atol=2e-3)
    assert found["completeness_error"].max() < 2e-3
    inside = (found["mask"] > 0) & (found["ends"] > found["starts"])
    assert not found["attributions"][~inside].any() and not found["left_out"][~inside].any()
    assert not found["attributions"][2].any()  # an empty text did nothing


def test_another_class_may_be_explained_and_an_unknown_one_is_refused() -> None:
    task = build(replace(small.BAG, classes=("a", "b", "c")), seed=5)
    found = explain(task, ["one text"] * 3, target=["a", "c", ""])
    answer = as_arrays(task.signatures()["serving_default"].function(
        text=tf.constant(["one text"])))
    logits = answer["logits"][0]
    assert found["label"].tolist() == [b"a", b"c", answer["label"][0]]
    np.testing.assert_allclose(found["score"], [logits[0], logits[2], logits.max()], atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="target: expected"):
        explain(task, ["x", "y"], target=["a", "secret"])


def test_pairs_tell_whose_text_an_offset_belongs_to() -> None:
    config: ClassifierConfig = replace(small.MULTI_LABEL_PAIR, explain=True)
    found = explain(build(config, seed=2), ["first"], pairs=["second one"])
    inside = found["ends"][0] > found["starts"][0]
    assert found["segments"][0][inside].tolist() == [0] * 5 + [1] * 10
    assert found["ends"][0][inside].max() == 10


def test_without_the_setting_there_is_no_such_signature() -> None:
    assert "explain" not in build(small.CLASSIFIER, seed=1).signatures()
