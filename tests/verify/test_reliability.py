"""Fitting on planted scores: the temperature that was put in comes out, thresholds too."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tf_infer.errors import DataError
from tf_infer.verify.reliability import (
    COLDEST,
    HOTTEST,
    best_thresholds,
    fit,
    fit_one,
    fit_several,
    lowest,
    surest,
)

ROWS = 4_000


def drawn(temperature: float, *, classes: int = 4, rows: int = ROWS, seed: int = 0
          ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits `temperature` times too large, and classes drawn from what they should have been."""
    generator = np.random.default_rng(seed)
    true = generator.normal(scale=1.5, size=(rows, classes))
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    targets = (shares.cumsum(axis=1) > generator.random((rows, 1))).argmax(axis=1)
    return true * temperature, targets


@pytest.mark.parametrize("planted", [0.4, 1.0, 3.0])
def test_the_planted_temperature_is_found(planted: float) -> None:
    logits, targets = drawn(planted)
    found = fit(logits, targets)
    assert found.temperature == pytest.approx(planted, rel=0.08)
    assert found.thresholds is None
    assert found.after.error < 0.03
    assert found.after.nats <= found.before.nats + 1e-3
    assert found.after.right == found.before.right  # no answer changes
    assert sum(one.rows for one in found.after.bins) == found.rows == ROWS


def test_a_temperature_that_the_model_has_is_replaced_and_not_multiplied() -> None:
    logits, targets = drawn(3.0)
    found = fit(logits, targets, temperature=3.0)
    assert found.temperature == pytest.approx(3.0, rel=0.08)
    assert found.before.error == pytest.approx(found.after.error, abs=0.01)


def test_several_labels_share_one_temperature() -> None:
    generator = np.random.default_rng(1)
    true = generator.normal(scale=2.0, size=(ROWS, 3))
    targets = (generator.random(true.shape) < 1 / (1 + np.exp(-true))).astype(np.float32)
    found = fit(true * 2.5, targets)
    assert found.temperature == pytest.approx(2.5, rel=0.08)
    assert found.before.error > 0.05 > found.after.error


def test_what_is_told_comes_from_rows_that_the_fit_has_not_seen() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(40, 30))
    targets = (generator.random(logits.shape) < 0.5).astype(np.float32)  # nothing to learn
    found = fit(logits, targets, fit_thresholds=True)
    assert found.thresholds is not None
    scores = 1 / (1 + np.exp(-logits / found.temperature))
    seen = _f1(scores >= np.array(found.thresholds), targets)
    assert seen > found.after.right + 0.02  # the same rows would have flattered it


def _f1(given: NDArray[np.bool_], have: NDArray[np.float32]) -> float:
    return float(2 * (given * have).sum() / (given.sum() + have.sum()))


def test_thresholds_are_the_best_of_all_cuts_and_stay_where_little_is_known() -> None:
    generator = np.random.default_rng(3)
    scores = generator.random((60, 3)).round(2)
    targets = (generator.random(scores.shape) < scores).astype(float)
    targets[:, 2] = 0.0
    targets[0, 2] = 1.0
    had = np.array([0.5, 0.5, 0.3])
    found = best_thresholds(scores, targets, had)
    assert found[2] == 0.3
    for column in (0, 1):
        every = [_f1(scores[:, column] >= cut, targets[:, column])
                 for cut in np.linspace(0.0, 1.0, 401)]
        own = _f1(scores[:, column] >= found[column], targets[:, column])
        assert own == pytest.approx(max(every), abs=1e-12)


def test_an_answer_as_good_as_before_keeps_its_threshold() -> None:
    scores = np.array([[0.1]] * 5 + [[0.9]] * 5)
    targets = (scores > 0.5).astype(float)
    assert best_thresholds(scores, targets, np.array([0.7]))[0] == 0.7
    assert best_thresholds(scores, targets, np.array([0.95]))[0] == 0.5


@pytest.mark.parametrize("rows", [20, 200, 2_000])
def test_where_every_text_is_right_it_is_fitted_as_if_one_more_were_not(rows: int) -> None:
    alike = np.zeros((rows, 3))
    alike[:, 1] = 2.0
    found = fit(alike, np.ones(rows, int))
    score = 1 / (1 + 2 * np.exp(-2.0 / found.temperature))
    assert score == pytest.approx((rows + 1) / (rows + 2), abs=1e-6)
    assert found.bounded == (f"all {rows} decisions are right, so that the colder, the likelier: "
                             f"it is fitted as if one of {rows + 2} were not")


def test_a_text_that_was_nearly_wrong_leaves_all_right_ones_believable() -> None:
    logits, _ = drawn(1.0, rows=40)
    found = fit(logits, logits.argmax(axis=1))
    assert 0.1 < found.temperature < 1.0 and "all 40 decisions are right" in found.bounded


def test_where_every_decision_about_several_labels_is_right_it_is_the_same() -> None:
    logits = np.random.default_rng(4).normal(size=(100, 3))
    logits += np.where(logits > 0, 2.0, -2.0)
    found = fit(logits, (logits > 0).astype(float))
    sizes = np.abs(logits)
    wrong = 1 / (1 + np.exp(sizes / found.temperature))
    assert (wrong * sizes).sum() == pytest.approx((1 - surest(300)) * sizes.sum(), rel=1e-4)
    assert "as if one of 302 were not" in found.bounded


def test_a_temperature_stays_in_its_range_and_says_when_it_is_at_an_end() -> None:
    generator = np.random.default_rng(5)
    noise = generator.normal(size=(400, 3)) * 1000.0
    targets = generator.integers(0, 3, 400)  # the logits say nothing: the hotter, the better
    found = fit(noise, targets)
    assert found.temperature == pytest.approx(HOTTEST, rel=1e-6)
    assert found.bounded == "it is an end of the range 0.05 to 20 in which one is looked for"
    assert fit_several(noise, (noise < 0).astype(float)) == pytest.approx(HOTTEST, rel=1e-6)
    tiny = np.array([[1e-6, 0.0]] * 50)  # always right, and never sure
    assert fit_one(tiny, np.zeros(50, int)) == pytest.approx(COLDEST, rel=1e-6)
    assert fit(*drawn(1.0)).bounded == ""


def test_the_lowest_point_of_a_convex_function_is_found() -> None:
    assert lowest(lambda x: (x - 2.5) ** 2, 0.01, 100.0) == pytest.approx(2.5, abs=1e-5)
    assert lowest(lambda x: x, 0.01, 100.0) == pytest.approx(0.01, abs=1e-5)


def test_too_few_rows_and_numbers_that_are_none_are_told() -> None:
    logits, targets = drawn(1.0, rows=30)
    with pytest.raises(DataError, match="at least 20 labelled texts to fit a temperature, got 19"):
        fit(logits[:19], targets[:19])
    logits[7, 1] = np.nan
    with pytest.raises(DataError, match="row 7: expected logits that are numbers"):
        fit(logits, targets)
