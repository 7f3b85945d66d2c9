"""Two models on the same texts: against definitions, brute force and planted faults."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.errors import DataError
from tf_infer.verify.comparison import (
    Answers,
    bootstrap_interval,
    compare,
    fit_temperature,
    mcnemar,
    softened,
)


def said(*labels: str, scores: list[float] | None = None) -> Answers:
    return Answers(labels=[frozenset(label.split("|")) for label in labels],
                   scores=np.array(scores or [0.5] * len(labels)))


def names(*labels: str) -> list[frozenset[str]]:
    return [frozenset(label.split("|")) for label in labels]


def test_flips_name_row_labels_scores_and_who_was_right() -> None:
    found = compare(said("a", "b", "a", "c", scores=[0.9, 0.8, 0.7, 0.6]),
                    said("a", "c", "b", "d", scores=[0.5, 0.4, 0.3, 0.2]),
                    names("a", "b", "b", "a"))
    assert [(flip.row, flip.labels, flip.scores, flip.right) for flip in found.flips] == [
        (1, (("b",), ("c",)), (0.8, 0.4), "first"), (2, (("a",), ("b",)), (0.7, 0.3), "second"),
        (3, (("c",), ("d",)), (0.6, 0.2), "neither")]
    assert (found.rows, found.agreement) == (4, 0.25)
    assert found.accuracy == (0.5, 0.5)
    assert (found.difference, found.p_value) == (0.0, 1.0)


def test_without_labels_there_is_agreement_alone() -> None:
    found = compare(said("a", "a", "a", "b"), said("a", "b", "b", "b"))
    assert found.changes == ((("a", "b"), 2),)
    assert found.agreement == 0.5
    assert (found.accuracy, found.interval, found.p_value, found.calibration) == (None,) * 4
    assert {flip.right for flip in found.flips} == {""}


def test_several_labels_are_a_set() -> None:
    found = compare(said("a|b", "b"), said("b|a", "a|b"), names("a|b", "a|b"))
    assert found.accuracy == (0.5, 1.0)
    assert found.changes == ((("b", "a|b"), 1),)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(worse: int, better: int) -> None:
    rows = worse + better
    exact = min(Fraction(1), 2 * sum((Fraction(math.comb(rows, k), 2**rows)
                                      for k in range(min(worse, better) + 1)), Fraction(0)))
    expected = 1.0 if worse == better else float(exact)
    assert mcnemar(worse, better) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(worse, better) == mcnemar(better, worse)


def test_mcnemar_survives_large_counts() -> None:
    assert mcnemar(10_000, 12_000) < 1e-30
    assert mcnemar(10_000, 10_050) == pytest.approx(0.7295, abs=2e-3)  # normal approximation


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    generator, covered = np.random.default_rng(5), 0
    for seed in range(300):
        gains = generator.choice([-1, 0, 1], size=400, p=[0.05, 0.85, 0.10])
        low, high = bootstrap_interval(gains, seed=seed, draws=400)
        covered += low <= 0.05 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_an_interval_is_reproducible_and_narrow_without_flips() -> None:
    gains = np.array([0, 1, -1, 0, 0, 1])
    assert bootstrap_interval(gains, seed=3) == bootstrap_interval(gains, seed=3)
    assert bootstrap_interval(np.zeros(9, int)) == (0.0, 0.0)


def test_the_planted_temperature_is_found_and_mends_the_scores() -> None:
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(6000, 4)) * 2.0
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    places = np.array([generator.choice(4, p=row) for row in true])
    sharp = softened(true, 1 / 3.0)  # as of a model three times too sure of itself
    assert fit_temperature(sharp, places) == pytest.approx(3.0, rel=0.05)
    classes = ("a", "b", "c", "d")
    answers = Answers(labels=[frozenset(classes[place]) for place in sharp.argmax(axis=1)],
                      scores=sharp.max(axis=1), probabilities=sharp, classes=classes)
    found = compare(answers, answers, [frozenset(classes[place]) for place in places])
    assert found.calibration is not None
    told = found.calibration[0]
    assert told.error > 0.1
    assert told.error_fitted is not None and told.error_fitted < 0.02
    assert told.temperature == pytest.approx(3.0, rel=0.05)
    assert sum(one.rows for one in told.bins) == 6000


def test_an_unknown_class_in_the_truth_leaves_the_temperature_out() -> None:
    answers = Answers(labels=names("a"), scores=np.array([0.8]), classes=("a", "b"),
                      probabilities=np.array([[0.8, 0.2]]))
    found = compare(answers, answers, names("z"))
    assert found.calibration is not None
    assert found.calibration[0].temperature is None


@pytest.mark.parametrize(("first", "second", "truth"), [
    ((), (), None), (("a",), ("a", "b"), None), (("a",), ("a",), ())])
def test_answers_to_other_texts_are_refused(
        first: tuple[str, ...], second: tuple[str, ...], truth: tuple[str, ...] | None) -> None:
    with pytest.raises(DataError, match="expected answers to the same texts"):
        compare(said(*first), said(*second), None if truth is None else names(*truth))
