"""How good answers are. NumPy only; rates are 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Above it e**x overflows a float64; a perplexity that large says nothing anyway.
MOST_NATS = 700.0


class ClassScore(NamedTuple):
    """One class of an evaluation.

    Attributes:
        precision: share of the rows given this class that have it; 0 where none was given it.
        recall: share of the rows of this class that were given it; 0 where there are none.
        f1: harmonic mean of the two; 0 where both are.
        rows: how many rows have the class.
    """

    precision: float
    recall: float
    f1: float
    rows: int


def accuracy(found: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of rows that are right.

    Args:
        found, targets: [N] indices, or [N, C] of 0 and 1, where a row is right as a whole.
    """
    same = found == targets
    return float(np.mean(same if same.ndim == 1 else same.all(axis=1)))


def per_class(found: np.ndarray, targets: np.ndarray, classes: int) -> list[ClassScore]:
    """Return precision, recall, F1 and rows of each class.

    Args:
        found, targets: [N] indices below `classes`, or [N, classes] of 0 and 1.
        classes: C.
    """
    found, targets = _hot(found, classes), _hot(targets, classes)  # [N, C]
    both = (found & targets).sum(axis=0)
    given, have = found.sum(axis=0), targets.sum(axis=0)
    return [ClassScore(_share(b, g), _share(b, h), _share(2 * b, g + h), int(h))
            for b, g, h in zip(both.tolist(), given.tolist(), have.tolist())]


def confusion(found: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """Return [classes, classes] int: how many rows of class i were answered with class j.

    Args:
        found, targets: [N] indices below `classes`.
        classes: C.
    """
    flat = np.asarray(targets).astype(int) * classes + np.asarray(found).astype(int)
    return np.bincount(flat, minlength=classes**2).reshape(classes, classes)


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Return the mean F1 of the classes, each counting once, those without any row too."""
    return float(np.mean([score.f1 for score in scores]))


def micro_f1(found: np.ndarray, targets: np.ndarray, classes: int) -> float:
    """Return the F1 of all decisions together; arguments as of `per_class`."""
    found, targets = _hot(found, classes), _hot(targets, classes)
    return _share(2 * int((found & targets).sum()), int(found.sum() + targets.sum()))


class Bin(NamedTuple):
    """The rows whose confidence lies in one interval.

    Attributes:
        rows: how many.
        confidence, accuracy: their mean confidence and the share that is right; 0 without rows.
    """

    rows: int
    confidence: float
    accuracy: float


def reliability(confidences: np.ndarray, right: np.ndarray, *, bins: int = 15) -> list[Bin]:
    """Return a reliability diagram: how often answers of each confidence are right.

    Args:
        confidences: [N], score of the answer given, 0 to 1.
        right: [N] bool.
        bins: of equal width; bin i holds i / bins < confidence <= (i + 1) / bins.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    place = np.clip(np.ceil(confidences * bins).astype(int) - 1, 0, bins - 1)
    rows, sure, good = (np.bincount(place, weights=weights, minlength=bins).tolist()
                        for weights in (None, confidences, right))
    return [Bin(int(n), s / n if n else 0.0, g / n if n else 0.0)
            for n, s, g in zip(rows, sure, good)]


def calibration_error(confidences: np.ndarray, right: np.ndarray, *, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence and accuracy lie apart.

    Arguments and source as of `reliability`.
    """
    found = reliability(confidences, right, bins=bins)
    return sum(one.rows * abs(one.confidence - one.accuracy) for one in found) / len(confidences)


def binomial_tail(most: int, rows: int, share: float) -> float:
    """Return how likely at most `most` of `rows` are right when each is with chance `share`.

    By logarithms of the coefficients: those of thousands of rows would overflow.
    """
    if share >= 1.0:
        return float(most >= rows)
    if share <= 0.0:
        return 1.0
    return math.fsum(math.exp(
        math.lgamma(rows + 1) - math.lgamma(k + 1) - math.lgamma(rows - k + 1)
        + k * math.log(share) + (rows - k) * math.log1p(-share)) for k in range(most + 1))


def perplexity(nats: float) -> float:
    """Return e to the mean loss of an id; infinite where that overflows."""
    return math.exp(nats) if nats < MOST_NATS else math.inf


def _hot(values: np.ndarray, classes: int) -> np.ndarray:
    return values.astype(bool) if values.ndim == 2 else np.eye(classes, dtype=bool)[values]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
