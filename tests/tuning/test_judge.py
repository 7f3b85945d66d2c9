"""Answers beside the reference's: differences, metrics, and NaN by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tf_infer.tuning.judge import Judged, joined, judge, metric_kind, read, save

LOGITS = np.array([[1.0, 2.0], [3.0, 0.0], [0.5, 0.25]], np.float32)


def classified(logits: np.ndarray, *labels: str) -> dict[str, np.ndarray]:
    return {"logits": logits, "labels": np.array(labels)}


def scored(counts: list[int], *values: float) -> dict[str, np.ndarray]:
    return {"log_probs": np.array(values, np.float32), "counts": np.array(counts)}


def test_accuracy_goes_by_labels_and_the_difference_by_logits() -> None:
    reference = classified(LOGITS, "b", "a", "a")
    moved = LOGITS.copy()
    moved[1, 1] -= 0.5
    found = judge(classified(moved, "b", "b", "a"), reference, ["b", "a", "b"])
    assert found == Judged(worst=0.5, metric=pytest.approx(1 / 3), agreement=pytest.approx(2 / 3))
    assert judge(reference, reference, ["b", "a", "b"]).metric == pytest.approx(2 / 3)


def test_without_labels_agreement_is_told() -> None:
    reference = classified(LOGITS, "b", "a", "a")
    assert judge(classified(LOGITS, "b", "b", "a"), reference, None).metric == pytest.approx(2 / 3)
    assert judge(reference, reference, None) == Judged(0.0, 1.0, 1.0)
    assert metric_kind(reference, None) == "agreement"
    assert metric_kind(reference, ["a"] * 3) == "accuracy"


def test_of_partly_labelled_texts_accuracy_goes_by_those_and_agreement_by_all() -> None:
    reference = classified(LOGITS, "b", "a", "a")
    found = judge(classified(LOGITS, "b", "a", "b"), reference, ["b", None, "a"])
    assert found == Judged(0.0, metric=0.5, agreement=pytest.approx(2 / 3))


def test_several_labels_are_a_set() -> None:
    assert joined(["b", "a"]) == joined(["a", "b"]) != joined(["a"])
    reference = classified(LOGITS, joined(["a", "b"]), "", "a")
    assert judge(reference, reference, [joined(["b", "a"]), "", "b"]).metric == pytest.approx(2 / 3)


def test_a_decoder_is_judged_by_the_mean_loss_of_given_ids() -> None:
    reference = scored([2, 1], -1.0, -2.0, -3.0)
    found = judge(scored([2, 1], -1.5, -2.0, -4.0), reference, None)
    assert found == Judged(worst=1.0, metric=2.5)
    assert metric_kind(reference, None) == "loss"
    assert judge(scored([0]), scored([0]), None) == Judged(0.0, 0.0)


def test_nan_is_named_with_output_and_text() -> None:
    broken = LOGITS.copy()
    broken[1, 0] = np.nan
    found = judge(classified(broken, "b", "a", "a"), classified(LOGITS, "b", "a", "a"), None)
    assert found.failed == "logits: expected numbers, got NaN for text 2"
    broken[1, 0] = np.inf
    found = judge(classified(broken, "b", "a", "a"), classified(LOGITS, "b", "a", "a"), None)
    assert found.failed == "logits: expected numbers, got an infinite number for text 2"
    # the third id is the first of the second text
    found = judge(scored([2, 0, 2], -1, -1, np.nan, -1), scored([2, 0, 2], -1, -1, -1, -1), None)
    assert found.failed == "log_probs: expected numbers, got NaN for text 3"


def test_answers_of_another_shape_are_out() -> None:
    found = judge(scored([3], -1, -1, -1), scored([2], -1, -1), None)
    assert found.failed == "log_probs: expected (2,) as the reference has, got (3,)"


def test_answers_come_back_from_disk(tmp_path: Path) -> None:
    answers = classified(LOGITS, joined(["ä", "b"]), "", "中文")
    save(answers, tmp_path / "answers.npz")
    found = read(tmp_path / "answers.npz")
    assert set(found) == set(answers)
    np.testing.assert_array_equal(found["logits"], LOGITS)
    assert found["labels"].tolist() == answers["labels"].tolist()
