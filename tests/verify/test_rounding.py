"""Rounded logits are judged by their spread: what rounding does passes, what a fault does fails."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tf_infer.verify.rounding import judged, spread

ROWS, CLASSES, ATOL = 200, 77, 1.0
NAMES = {"signature": "logits", "output": "logits", "label": "label"}
draw = np.random.default_rng(0)
# As of a classifier of 77 classes that learned its texts: the best logit 20 above the worst.
WANTED = draw.normal(0, 3.0, (ROWS, CLASSES)).astype(np.float32)
WANTED[np.arange(ROWS), draw.integers(0, CLASSES, ROWS)] += 9.0
NOISE = draw.normal(0, 0.26, WANTED.shape).astype(np.float32)  # what int8 did to banking77's


def faults(found: np.ndarray, wanted: np.ndarray = WANTED) -> set[str]:
    return {one.output for one in judged(wanted, found, atol=ATOL, **NAMES)[1]
            if one.first_sample is not None}


def test_what_rounding_does_to_many_classes_passes_although_some_logit_moves_by_more() -> None:
    assert np.abs(NOISE).max() > ATOL
    bound, found = judged(WANTED, WANTED + NOISE, atol=ATOL, **NAMES)
    assert bound == pytest.approx(0.1 * spread(WANTED)) and 1.5 < bound < 2.5
    assert [one.output for one in found] == ["logits", "logits, root mean square", "label"]
    assert all(one.first_sample is None and one.mismatches == 0 for one in found)
    assert found[0].max_abs == pytest.approx(float(np.abs(NOISE).max()), rel=1e-5)
    assert found[1].max_abs == pytest.approx(0.26, rel=0.02)


def test_a_class_that_nothing_ever_gets_widens_no_bound() -> None:
    wanted = WANTED.copy()
    wanted[:, 5] = -300.0
    assert spread(WANTED) == pytest.approx(np.ptp(WANTED, axis=1).mean(), rel=0.02)
    assert spread(wanted) < 1.5 * spread(WANTED)
    assert "logits" in faults(one_row_is_another(wanted.copy()), wanted)
    two = np.array([[5.0, 4.9, -5.0], [1.0, -2.0, 0.5]])
    assert spread(two) == pytest.approx(6.5)


def one_row_is_another(found: np.ndarray) -> np.ndarray:
    found[17] = np.roll(found[17], 1)
    return found


def a_clear_label_changed(found: np.ndarray) -> np.ndarray:
    """Move the two best of a row that leads clearly by less than the bound of a logit."""
    row = int(np.argmin(np.abs(lead() - 0.08 * spread(WANTED))))
    first, second = np.argsort(WANTED[row])[-1:-3:-1]
    found[row, [first, second]] = found[row, [second, first]] * 0.5 + found[row].max() * 0.5
    found[row, second] = found[row, first] + 0.01
    return found


def lead() -> np.ndarray:
    ordered = np.sort(WANTED, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


@pytest.mark.parametrize(("fault", "where"), [
    (one_row_is_another, "logits"), (a_clear_label_changed, "label"),
    (lambda found: found + 1.2 * NOISE, "logits, root mean square"),
    (lambda found: 1.2 * found, "logits, root mean square"),
    (lambda found: found[::-1], "label")], ids=[
        "one row", "a clear label", "more noise", "a scale", "other rows"])
def test_a_fault_fails(fault: Callable[[np.ndarray], np.ndarray], where: str) -> None:
    assert where in faults(fault(WANTED + NOISE))


def test_few_labels_that_were_not_clear_may_change_and_no_more() -> None:
    wanted = WANTED.copy()
    places = np.argsort(wanted, axis=1)
    for row in range(8):  # as good as tied
        wanted[row, places[row, -2]] = wanted[row, places[row, -1]] - 0.01
    few, many = wanted.copy(), wanted.copy()
    for row in range(8):
        many[row, places[row, -2]] += 0.02
        if row < 6:
            few[row, places[row, -2]] += 0.02
    assert faults(few, wanted) == set() and faults(many, wanted) == {"label"}
    found = judged(wanted, many, atol=ATOL, **NAMES)[1][-1]
    assert found.reason == "first in row 0; 8 labels changed, 0 of them clear ones"


def test_logits_that_lie_close_keep_the_fixed_bound() -> None:
    assert judged(WANTED / 10, WANTED / 10, atol=ATOL, **NAMES)[0] == ATOL
    one_class = np.ones((3, 1), np.float32)
    assert faults(one_class + 2.0, one_class) == {"logits", "logits, root mean square"}
    assert spread(np.zeros((0, 3))) == 0.0
