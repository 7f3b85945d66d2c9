"""The classifier: scores, labels, thresholds, pairs, ids from outside, tf.Examples."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tests.tasks.suite import as_arrays
from tf_infer.tasks.build import build
from tf_infer.tasks.classifier import Classifier
from tf_infer.tasks.examples import are_examples

ATOL = 1e-6  # one softmax in float32
TEXTS = ["", "hello", "中文", "x" * 200]


@pytest.fixture(scope="module")
def single() -> Classifier:
    return build(small.CLASSIFIER, seed=7)


@pytest.fixture(scope="module")
def several() -> Classifier:
    return build(small.MULTI_LABEL_PAIR, seed=7)


def ask(task: Classifier, signature: str, **inputs: Any) -> dict[str, np.ndarray]:
    return as_arrays(task.signatures()[signature].function(
        **{name: tf.constant(value) for name, value in inputs.items()}))


def test_scores_are_softmax_of_logits_by_temperature(single: Classifier) -> None:
    found = ask(single, "serving_default", text=TEXTS)
    calibrated = np.exp(found["logits"].astype(np.float64) / 0.5)
    exact = calibrated / calibrated.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["scores"], exact, atol=ATOL)
    best = exact.argmax(axis=1)
    names = [name.encode() for name in single.config.classes]
    assert found["label"].tolist() == [names[i] for i in best]
    np.testing.assert_array_equal(found["score"], found["scores"][range(4), best])


def test_labels_are_those_that_reach_their_thresholds(several: Classifier) -> None:
    found = ask(several, "serving_default", text=TEXTS, text_pair=TEXTS[::-1])
    exact = 1 / (1 + np.exp(-found["logits"].astype(np.float64)))
    np.testing.assert_allclose(found["scores"], exact, atol=ATOL)
    wanted = [[name if score >= threshold else b"" for name, score, threshold in
               zip((b"a", b"b"), row, (0.5, 0.4))] for row in exact]
    assert found["labels"].tolist() == wanted
    assert found["label"].tolist() == [(b"a", b"b")[i] for i in exact.argmax(axis=1)]


def test_labels_of_one_score_depend_on_the_threshold(several: Classifier) -> None:
    def labels(*thresholds: float) -> list[list[bytes]]:
        config = dataclasses.replace(several.config, thresholds=thresholds)
        task = Classifier(config, several.codec, several.network)
        return ask(task, "serving_default", text=["x"], text_pair=["y"])["labels"].tolist()

    assert labels(0.0) == [[b"a", b"b"]]
    assert labels(1.0) == [[b"", b""]]
    assert labels(1.0, 0.0) == [[b"", b"b"]]


def test_equal_logits_give_the_first_class(single: Classifier) -> None:
    task = build(small.CLASSIFIER, seed=7)
    task.network.logits.kernel.assign(tf.zeros_like(task.network.logits.kernel))
    assert set(ask(task, "serving_default", text=TEXTS)["label"]) == {b"parcel"}
    task.network.logits.bias.assign([0.0, 5.0, 5.0])
    assert set(ask(task, "serving_default", text=TEXTS)["label"]) == {"支付".encode()}


def test_ids_from_outside_give_the_logits_of_the_text(single: Classifier, several: Classifier
                                                      ) -> None:
    for task, texts in ((single, {"text": TEXTS}),
                        (several, {"text": TEXTS, "text_pair": TEXTS[::-1]})):
        encoded = ask(task, "encode", **texts)
        names = [spec.name for spec in task.signatures()["ids"].spec.inputs]
        found = ask(task, "ids", **{name: encoded[name] for name in names})
        wanted = ask(task, "serving_default", **texts)["logits"]
        np.testing.assert_allclose(found["logits"], wanted, atol=1e-5)


def test_ids_of_a_length_off_the_grid_are_padded(single: Classifier) -> None:
    ids = np.full((2, 5), 70, np.int32)
    found = ask(single, "ids", ids=ids, mask=np.ones_like(ids))
    wide = np.pad(ids, [[0, 0], [0, 3]])
    wanted = ask(single, "ids", ids=wide, mask=(wide > 0).astype(np.int32))
    np.testing.assert_allclose(found["logits"], wanted["logits"], atol=1e-6)
    assert ask(single, "ids", ids=ids[:, :0], mask=ids[:, :0])["logits"].shape == (2, 3)


@pytest.mark.parametrize(("ids", "mask", "message"), [
    ([[5, 259]], [[1, 1]], "ids: expected 0 <= id < 259."),
    ([[5, -1]], [[1, 1]], "ids: expected 0 <= id < 259."),
    ([[5] * 33], [[1] * 33], "ids: expected at most 32 tokens a row."),
    ([[5, 6]], [[1]], "mask: expected as many tokens a row as ids."),
    ([[5, 6]], [[1, 1], [1, 1]], "mask: expected as many rows as ids."),
])
def test_wrong_ids_are_refused(single: Classifier, ids: list, mask: list, message: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        ask(single, "ids", ids=ids, mask=mask)


def test_pairs_of_different_lengths_are_refused(several: Classifier) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError,
                       match="text_pair: expected as many rows as text"):
        ask(several, "serving_default", text=["a", "b"], text_pair=["c"])


def test_the_second_text_counts(several: Classifier) -> None:
    found = ask(several, "serving_default", text=["a", "a"], text_pair=["b", "c"])
    assert not np.allclose(found["logits"][0], found["logits"][1])
    encoded = ask(several, "encode", text=["ab"], text_pair=["c"])
    assert encoded["ids"].tolist() == [[1, 100, 101, 2, 102, 2, 0, 0]]
    assert encoded["segments"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
    assert encoded["mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert encoded["starts"].tolist() == [[0, 0, 1, 0, 0, 0, 0, 0]]
    assert encoded["ends"].tolist() == [[0, 1, 2, 0, 1, 0, 0, 0]]


def example(**features: bytes) -> bytes:
    return tf.train.Example(features=tf.train.Features(feature={
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in features.items()})).SerializeToString()


def test_examples_give_classes_and_scores(single: Classifier, several: Classifier) -> None:
    found = ask(single, "classify", inputs=[example(text=text.encode(), other=b"") for text in
                                            TEXTS])
    wanted = ask(single, "serving_default", text=TEXTS)
    np.testing.assert_allclose(found["scores"], wanted["scores"], atol=ATOL)
    assert found["classes"].tolist() == [[c.encode() for c in single.config.classes]] * 4
    pair = ask(several, "classify", inputs=[example(text=b"a", text_pair=b"b")])
    np.testing.assert_allclose(pair["scores"], ask(
        several, "serving_default", text=["a"], text_pair=["b"])["scores"], atol=ATOL)
    assert single.signatures()["classify"].spec.method_name == "tensorflow/serving/classify"


@pytest.mark.parametrize(("record", "message"), [
    (example(words=b"a"), "Feature: text"), (b"", "Feature: text"),
    (b"no example", r"inputs: expected serialized tf\.Examples"),
    (example(text=b"no example")[:-1], r"inputs: expected serialized tf\.Examples")])
@pytest.mark.parametrize("graph", [False, True])
def test_a_broken_example_is_refused_by_name(
        single: Classifier, record: bytes, message: str, graph: bool) -> None:
    ask = single.signatures()["classify"].function
    with pytest.raises(tf.errors.InvalidArgumentError, match=message) as caught:
        (tf.function(ask) if graph else ask)(inputs=tf.constant([example(text=b"a"), record]))
    assert "no example" not in str(caught.value)


def test_what_is_called_an_example_is_never_quoted_by_the_parser() -> None:
    """2,000 records with one or two bytes changed: whatever passes the check, TensorFlow parses."""
    draw, features = np.random.default_rng(0), {"text": tf.io.VarLenFeature(tf.string)}
    whole = example(text=b"x" * 140, other=b"zz")
    parts = example(a=b"") + whole  # protobuf joins them, as TensorFlow does
    records = [whole, parts, b""]
    for _ in range(2_000):
        changed = bytearray(whole)
        for place in draw.integers(0, len(whole), draw.integers(1, 3)):
            changed[place if draw.random() < 0.5 else place % 12] = draw.integers(256)
        records.append(bytes(changed))
    good = tf.function(are_examples)(tf.constant(records)).numpy()
    assert good[:3].all() and 500 < good.sum() < 1_900
    for record in np.array(records, object)[good]:
        try:
            tf.io.parse_example(tf.constant([record]), features)
        except tf.errors.InvalidArgumentError as error:
            assert "Could not parse example input" not in str(error)


def test_segments_of_another_width_are_refused(several: Classifier) -> None:
    ids = np.full((2, 5), 70, np.int32)
    for width in (1, 4, 7):
        with pytest.raises(tf.errors.InvalidArgumentError,
                           match="segments: expected as many tokens a row as ids"):
            ask(several, "ids", ids=ids, mask=ids, segments=np.zeros((2, width), np.int32))
