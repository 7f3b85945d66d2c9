"""Two classifiers on the same texts: where they differ, and whether the difference is real.

`compare` is pure: it takes what both answered and, where they are known, the right labels.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tf_infer import metrics
from tf_infer.errors import DataError
from tf_infer.verify.reliability import bounded, fit_one

DRAWS = 2000  # of the bootstrap
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answers:
    """What one model said.

    Attributes:
        labels: of each text, the names it was given; one, or any number of several.
        scores: [N] float, of the best label.
        probabilities: [N, C] float, softmax of all classes, or None where they are not told or
            several labels are decided for themselves.
        classes: C names, in the order of `probabilities`.
    """

    labels: Sequence[frozenset[str]]
    scores: np.ndarray
    probabilities: np.ndarray | None = None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Flip:
    """A text to which the two gave different labels.

    Attributes:
        row: its number in the file, from 0.
        labels, scores: of the first model and of the second.
        right: which of the two was right, "first", "second" or "neither"; "" where it is unknown.
    """

    row: int
    labels: tuple[tuple[str, ...], tuple[str, ...]]
    scores: tuple[float, float]
    right: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How far a model's scores can be believed.

    Attributes:
        error: expected calibration error, 0 to 1 (`metrics.calibration_error`).
        bins: the reliability diagram.
        temperature: what its logits would have to be divided by to fit these labels best; None
            where not all scores are told.
        error_fitted: the error then.
        bounded: why another temperature would fit better and was not taken; empty where none would.
    """

    error: float
    bins: tuple[metrics.Bin, ...]
    temperature: float | None = None
    error_fitted: float | None = None
    bounded: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What the comparison found; accuracies are those of rows right as a whole.

    Attributes:
        rows: texts.
        labelled: of them, those whose right labels are known; all that is told of accuracy and
            calibration is told of these.
        agreement: share with the same labels.
        flips: the others, in order.
        changes: (label of the first, of the second) -> how often, most first.
        accuracy: of the first and of the second, or None without right labels.
        difference: second - first.
        interval: 95 % of the bootstrap for the difference.
        p_value: McNemar's exact test: how likely so uneven flips are of two equal models.
        calibration: of both.
    """

    rows: int
    agreement: float
    flips: tuple[Flip, ...]
    changes: tuple[tuple[tuple[str, str], int], ...]
    labelled: int = 0
    accuracy: tuple[float, float] | None = None
    difference: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    calibration: tuple[Calibration, Calibration] | None = None


def compare(first: Answers, second: Answers, truth: Sequence[frozenset[str] | None] | None = None,
            *, seed: int = 0) -> Comparison:
    """Compare what two models said of the same texts.

    Args:
        first, second: of N >= 1 texts each.
        truth: the right labels of each text, None of one where they are not known; None where none
            are.
        seed: of the bootstrap's draws.

    Raises:
        DataError: the numbers of texts differ, or there are none.
    """
    rows = len(first.labels)
    if not rows or len(second.labels) != rows or (truth is not None and len(truth) != rows):
        raise DataError(f"expected answers to the same texts, at least one, got {rows}, "
                        f"{len(second.labels)}" + (f", {len(truth)}" if truth is not None else "")
                        + ".")
    apart = [row for row in range(rows) if first.labels[row] != second.labels[row]]
    flips = tuple(_flip(row, first, second, truth) for row in apart)
    changes = Counter(("|".join(flip.labels[0]), "|".join(flip.labels[1])) for flip in flips)
    found = Comparison(rows=rows, agreement=1.0 - len(apart) / rows, flips=flips,
                       changes=tuple(changes.most_common()))
    known = [row for row in range(rows) if truth is not None and truth[row] is not None]
    if not known:
        return found
    wanted = [labels for labels in truth or () if labels is not None]
    first, second = _only(first, known), _only(second, known)
    right = [np.array([given == right for given, right in zip(answers.labels, wanted)])
             for answers in (first, second)]
    gains = right[1].astype(int) - right[0].astype(int)
    return dataclasses.replace(
        found, labelled=len(known), accuracy=(float(right[0].mean()), float(right[1].mean())),
        difference=float(gains.mean()), interval=bootstrap_interval(gains, seed=seed),
        p_value=mcnemar(int((gains < 0).sum()), int((gains > 0).sum())),
        calibration=(calibration(first, wanted, right[0]), calibration(second, wanted, right[1])))


def _only(answers: Answers, rows: Sequence[int]) -> Answers:
    """Return the answers to some of the texts."""
    shares = answers.probabilities
    return dataclasses.replace(
        answers, labels=[answers.labels[row] for row in rows], scores=answers.scores[rows],
        probabilities=None if shares is None else shares[rows])


def _flip(row: int, first: Answers, second: Answers,
          truth: Sequence[frozenset[str] | None] | None) -> Flip:
    right = "" if truth is None or truth[row] is None else next(
        (name for name, answers in (("first", first), ("second", second))
         if answers.labels[row] == truth[row]), "neither")
    return Flip(row=row, right=right, scores=(float(first.scores[row]), float(second.scores[row])),
                labels=(tuple(sorted(first.labels[row])), tuple(sorted(second.labels[row]))))


def mcnemar(worse: int, better: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        worse: rows that only the first model had right.
        better: rows that only the second had right.

    Of two equally good models each such row is a fair coin. Source: McNemar 1947,
    doi:10.1007/BF02295996; exact form: the binomial test.
    """
    return min(1.0, 2.0 * metrics.binomial_tail(min(worse, better), worse + better, 0.5))


def bootstrap_interval(gains: np.ndarray, *, seed: int = 0, draws: int = DRAWS,
                       confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval in which the mean gain of other such texts would lie.

    Args:
        gains: [N] int, second right minus first right: -1, 0 or 1.
        seed: of the draws.
        draws: how many samples of N rows.
        confidence: share of them inside.

    Source: Efron 1979, doi:10.1214/aos/1176344552, percentile form, paired by row.
    """
    generator, rows = np.random.default_rng(seed), len(gains)
    shares = np.array([(gains < 0).sum(), (gains == 0).sum(), (gains > 0).sum()]) / rows
    counts = generator.multinomial(rows, shares, size=draws)  # rows of a sample, by their gain
    means = (counts[:, 2] - counts[:, 0]) / rows
    edge = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, (edge, 1.0 - edge))
    return float(low), float(high)


def calibration(answers: Answers, truth: Sequence[frozenset[str]], right: np.ndarray
                ) -> Calibration:
    """Return how far scores can be believed, and the temperature that would mend them.

    Args:
        answers: of N texts.
        truth: the right labels of each.
        right: [N] bool, whether the answer is.
    """
    scores = np.clip(answers.scores, 0.0, 1.0)
    bins, error = metrics.reliability(scores, right), metrics.calibration_error(scores, right)
    places = _places(answers, truth)
    if answers.probabilities is None or places is None:
        return Calibration(error=error, bins=tuple(bins))
    fitted = fit_temperature(answers.probabilities, places)
    cooled = softened(answers.probabilities, fitted).max(axis=1)
    return Calibration(error=error, bins=tuple(bins), temperature=fitted,
                       bounded=bounded(fitted, answers.probabilities.argmax(axis=1) == places),
                       error_fitted=metrics.calibration_error(cooled, right))


def _places(answers: Answers, truth: Sequence[frozenset[str]]) -> np.ndarray | None:
    """[N] index of each right class, or None where one is unknown or a text has several."""
    index = {name: place for place, name in enumerate(answers.classes)}
    found = [index.get(next(iter(names))) if len(names) == 1 else None for names in truth]
    return None if None in found else np.array(found)


def softened(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return what softmax gives when its logits are divided by `temperature`: [N, C] -> [N, C]."""
    logits = np.log(np.maximum(probabilities, 1e-12)) / temperature
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: np.ndarray, places: np.ndarray) -> float:
    """Return the temperature under which the right classes are likeliest.

    Args:
        probabilities: [N, C] float.
        places: [N] int, index of the right class.
    """
    return fit_one(np.log(np.maximum(probabilities, 1e-12)), places)
