"""Metrics against definitions written out row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tf_infer import metrics


def counted(found: list[int], targets: list[int], name: int) -> tuple[float, float, float, int]:
    """Precision, recall, F1, rows of one class, by counting."""
    pairs = list(zip(found, targets))
    true = sum(f == t == name for f, t in pairs)
    given = sum(f == name for f, _ in pairs)
    have = sum(t == name for _, t in pairs)
    precision = true / given if given else 0.0
    recall = true / have if have else 0.0
    f1 = 2 * precision * recall / (precision + recall) if true else 0.0
    return precision, recall, f1, have


def test_per_class_counts_agree_with_the_definition() -> None:
    draw = np.random.default_rng(3)
    found, targets = draw.integers(0, 4, 200), draw.integers(0, 4, 200)
    scores = metrics.per_class(found, targets, 5)  # class 4 has no row and is never given
    for name, score in enumerate(scores):
        assert score == pytest.approx(counted(found.tolist(), targets.tolist(), name))
    assert scores[4] == (0.0, 0.0, 0.0, 0)
    assert metrics.macro_f1(scores) == pytest.approx(sum(s.f1 for s in scores) / 5)
    # One class for each row: F1 over all decisions is the accuracy.
    assert metrics.micro_f1(found, targets, 5) == pytest.approx(metrics.accuracy(found, targets))


def test_several_labels_are_right_as_a_whole() -> None:
    found = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]])
    targets = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert metrics.accuracy(found, targets) == pytest.approx(2 / 3)
    assert metrics.micro_f1(found, targets, 3) == pytest.approx(2 * 3 / (4 + 3))
    assert metrics.per_class(found, targets, 3)[1] == (0.0, 0.0, 0.0, 0)


def test_calibration_error_by_hand() -> None:
    # two bins of 0.5: (0.4, wrong), (0.5, right) | (0.9, right), (1.0, wrong)
    error = metrics.calibration_error(
        np.array([0.4, 0.5, 0.9, 1.0]), np.array([False, True, True, False]), bins=2)
    assert error == pytest.approx((abs(0.45 - 0.5) * 2 + abs(0.95 - 0.5) * 2) / 4)


def test_perplexity() -> None:
    assert metrics.perplexity(math.log(7.0)) == pytest.approx(7.0)
    assert metrics.perplexity(1e6) == math.inf


def test_confusions_count_every_pair_of_label_and_answer() -> None:
    found, targets = np.array([1, 1, 0, 2]), np.array([1, 0, 0, 2])
    assert metrics.confusion(found, targets, 4).tolist() == [
        [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
