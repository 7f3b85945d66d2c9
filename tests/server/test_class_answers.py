"""What logits mean, told by NumPy: ties, NaN, large numbers, several labels."""

from __future__ import annotations

import numpy as np

from tf_infer.config import ClassifierConfig
from tf_infer.server.class_answers import ClassAnswers, best_of

NAMES = ("no", "yes", "über")


def test_scores_are_shares_and_the_label_is_the_best_one_the_first_of_several() -> None:
    found = ClassAnswers(ClassifierConfig(classes=NAMES, temperature=2.0)).serving_default(
        np.array([[0, 2, 2], [1000, -1000, 0], [-5, -5, -3]], np.float32))
    assert found["label"].tolist() == [b"yes", b"no", "über".encode()]
    assert found["scores"].dtype == np.float32
    np.testing.assert_allclose(found["scores"].sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_allclose(found["scores"][0], np.exp([0, 1, 1]) / np.exp([0, 1, 1]).sum(),
                               atol=1e-6)
    np.testing.assert_array_equal(found["score"], found["scores"].max(axis=1))
    assert "labels" not in found


def test_of_several_labels_those_are_told_that_reach_their_threshold() -> None:
    answers = ClassAnswers(ClassifierConfig(classes=NAMES, multi_label=True,
                                            thresholds=(0.5, 0.9, 0.0)))
    found = answers.serving_default(np.array([[0, 2, -50], [-0.1, 3, 4]], np.float32))
    assert found["labels"].tolist() == [[b"no", b"", "über".encode()],
                                        [b"", b"yes", "über".encode()]]
    np.testing.assert_allclose(found["scores"][0, :2], [0.5, 1 / (1 + np.exp(-2))], atol=1e-6)
    assert np.isfinite(answers.scores(np.array([[-1e4, 1e4, 0]], np.float32))).all()


def test_classify_names_the_classes_in_every_row() -> None:
    found = ClassAnswers(ClassifierConfig(classes=NAMES)).classify(np.zeros((2, 3), np.float32))
    assert found["classes"].tolist() == [[name.encode() for name in NAMES]] * 2
    assert found["scores"].shape == (2, 3)


def test_no_row_has_no_answer() -> None:
    found = ClassAnswers(ClassifierConfig(classes=NAMES)).serving_default(
        np.zeros((0, 3), np.float32))
    assert {name: array.shape for name, array in found.items()} == {
        "label": (0,), "score": (0,), "scores": (0, 3), "logits": (0, 3)}


def test_nan_is_never_the_best() -> None:
    assert best_of(np.array([[np.nan, -3, -4], [np.nan] * 3])).tolist() == [1, 0]
