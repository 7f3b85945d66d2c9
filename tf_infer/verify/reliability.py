"""Make scores believable: fit a temperature, and thresholds of several labels, to labelled texts.

Fitting is pure NumPy over logits. What it brings is told of rows that it has not seen: each half of
them is judged with what the other half gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tf_infer import metrics
from tf_infer.errors import DataError

# Logits of trained networks span some tens: beyond 20 hardly any preference of theirs is left,
# below 0.05 hardly any doubt.
COLDEST, HOTTEST = 0.05, 20.0
STEPS = 60  # of the search; one keeps 0.618 of the range
AT_END = 1e-3  # from an end of the range, relative: what the search leaves
FEWEST_ROWS = 20  # fewer say nothing of a temperature
FEWEST_OF_CLASS = 5  # texts with and without a label, below which its threshold stays


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """How far scores can be believed.

    Attributes:
        error: expected calibration error, 0 to 1; of several labels over all decisions.
        nats: mean negative log-likelihood of the labels, of a row or of a decision.
        right: accuracy; of several labels F1 of all decisions.
        bins: the reliability diagram (`metrics.reliability`); of several labels that of the score
            of every class of every row, and how often the row has it.
    """

    error: float
    nats: float
    right: float
    bins: tuple[metrics.Bin, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What was found.

    Attributes:
        temperature: fitted to all rows; divides the logits.
        thresholds: of each class, fitted to all rows; None where they were not asked for.
        before: with the temperature and thresholds that the model has.
        after: with those that one half of the rows gives, on the other half.
        rows: how many.
        bounded: why another temperature would fit better and was not taken; empty where none would.
    """

    temperature: float
    thresholds: tuple[float, ...] | None
    before: Quality
    after: Quality
    rows: int
    bounded: str = ""


def fit(logits: np.ndarray, targets: np.ndarray, *, temperature: float = 1.0,
        thresholds: Sequence[float] = (0.5,), fit_thresholds: bool = False, seed: int = 0
        ) -> Fitted:
    """Fit a temperature, and thresholds if that is wanted.

    Args:
        logits: [N, C] float, before any temperature.
        targets: [N] int, the right class; or [N, C] of 0 and 1 where each class is decided for
            itself.
        temperature, thresholds: what the model has; one threshold for all classes, or one each.
        fit_thresholds: of several labels.
        seed: of the halves.

    Raises:
        DataError: fewer than 20 rows, or logits that are not finite.
    """
    rows, several = len(targets), targets.ndim == 2
    if rows < FEWEST_ROWS:
        raise DataError(f"expected at least {FEWEST_ROWS} labelled texts to fit a temperature, "
                        f"got {rows}. Label more.")
    if not np.isfinite(logits).all():
        row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
        raise DataError(f"row {row}: expected logits that are numbers, got NaN or infinity.")
    logits = logits.astype(np.float64)
    had = np.broadcast_to(np.asarray(thresholds, np.float64), logits.shape[1:])
    find = fit_several if several else fit_one

    def found(some: np.ndarray) -> tuple[float, np.ndarray]:
        warm = find(logits[some], targets[some])
        if not (several and fit_thresholds):
            return warm, had
        return warm, best_thresholds(_sigmoid(logits[some] / warm), targets[some], had)

    halves = np.array_split(np.random.default_rng(seed).permutation(rows), 2)
    scores = _scores(logits, temperature, several)
    limits = np.broadcast_to(had, logits.shape).copy()
    before = quality(scores, targets, limits)
    for own, other in (halves, halves[::-1]):
        warm, cut = found(other)
        scores[own], limits[own] = _scores(logits[own], warm, several), cut
    warm, cut = found(np.arange(rows))
    return Fitted(temperature=warm, before=before, after=quality(scores, targets, limits),
                  thresholds=tuple(cut.tolist()) if several and fit_thresholds else None,
                  rows=rows, bounded=bounded(warm, _right(logits, targets)))


def _right(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return which decisions are right: [N] bool, of several labels [N, C]."""
    if targets.ndim == 2:
        return np.asarray((logits > 0) == targets.astype(bool))
    return np.asarray(logits.argmax(axis=1) == targets)


def surest(decisions: int) -> float:
    """Return the target of each of so many decisions that are all right, in place of 1.

    Source: Platt 1999, "Probabilistic outputs for support vector machines"; Laplace's rule of
    succession.
    """
    return (decisions + 1) / (decisions + 2)


def bounded(temperature: float, right: np.ndarray) -> str:
    """Return why a fitted temperature is not the likeliest of all; empty where it is.

    Args:
        temperature: of `fit_one` or `fit_several`.
        right: whether each decision is.
    """
    if min(temperature / COLDEST, HOTTEST / temperature) <= 1 + AT_END:
        return f"it is an end of the range {COLDEST:g} to {HOTTEST:g} in which one is looked for"
    if right.all():
        return (f"all {right.size} decisions are right, so that the colder, the likelier: it is "
                f"fitted as if one of {right.size + 2} were not")
    return ""


def quality(scores: np.ndarray, targets: np.ndarray, limits: np.ndarray) -> Quality:
    """Return how far scores can be believed.

    Args:
        scores: [N, C].
        targets: as of `fit`.
        limits: [N, C], from which a class is given; of several labels.
    """
    safe = np.clip(scores, 1e-12, 1.0)
    if targets.ndim == 2:
        have = targets.astype(bool)
        sure, right = scores.reshape(-1), have.reshape(-1)
        nats = -np.where(have, np.log(safe), np.log1p(-np.clip(scores, 0.0, 1.0 - 1e-12))).mean()
        share = metrics.micro_f1((scores >= limits).astype(int), targets, targets.shape[1])
    else:
        sure, right = scores.max(axis=1), scores.argmax(axis=1) == targets
        nats = -np.log(safe[np.arange(len(targets)), targets]).mean()
        share = float(right.mean())
    return Quality(error=metrics.calibration_error(sure, right), nats=float(nats), right=share,
                   bins=tuple(metrics.reliability(sure, right)))


def fit_one(logits: np.ndarray, places: np.ndarray) -> float:
    """Return the temperature under which the right classes are likeliest.

    Args:
        logits: [N, C] float; of a softmax, so that log-probabilities do as well.
        places: [N] int, index of the right class.

    Returns:
        From COLDEST to HOTTEST. Where every answer is right there is no likeliest one (Albert and
        Anderson 1984, doi:10.1093/biomet/71.1.1): then the targets are those of `surest`, and the
        other classes share the rest.

    Source: Guo et al. 2017, arXiv:1706.04599.
    """
    rows = np.arange(len(places))
    target = surest(len(places)) if _right(logits, places).all() else 1.0
    given = logits[rows, places]
    wanted = target * given + (1.0 - target) * (logits.sum(axis=1) - given) / max(
        1, logits.shape[1] - 1)

    def loss(inverse: float) -> float:
        scaled = logits * inverse
        highest = scaled.max(axis=1)
        norm = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
        return float((norm - wanted * inverse).mean())

    return 1.0 / lowest(loss, 1.0 / HOTTEST, 1.0 / COLDEST)


def fit_several(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature under which all decisions together are likeliest.

    Args:
        logits: [N, C] float, each of a sigmoid.
        targets: [N, C] of 0 and 1.

    Returns:
        As `fit_one`; every decision counts for itself.
    """
    signed = np.where(targets.astype(bool), logits, -logits)
    target = surest(signed.size) if _right(logits, targets).all() else 1.0
    # -log of sigmoid(z) is logaddexp(0, -z), of sigmoid(-z) that and z more.
    return 1.0 / lowest(lambda inverse: float((
        np.logaddexp(0.0, -signed * inverse) + (1.0 - target) * signed * inverse).mean()),
        1.0 / HOTTEST, 1.0 / COLDEST)


def lowest(loss: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function with one minimum is lowest (golden section search).

    The negative log-likelihood is convex in 1 / temperature.
    """
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
    return (low + high) / 2.0


def best_thresholds(scores: np.ndarray, targets: np.ndarray, had: np.ndarray) -> np.ndarray:
    """Return the threshold of each class that gives its best F1: [C].

    Args:
        scores, targets: [N, C].
        had: [C], kept where a class has fewer than 5 rows with it or without, or none is better.

    A threshold lies halfway between two scores; of equally good ones the nearest to 0.5 is taken.
    """
    found = np.array(had, np.float64)
    for column, (given, have) in enumerate(zip(scores.T, targets.T.astype(bool))):
        if min(have.sum(), (~have).sum()) < FEWEST_OF_CLASS:
            continue
        values = np.unique(given)
        cuts = np.concatenate([[had[column]], (values[:-1] + values[1:]) / 2.0])
        order = np.sort(given[have])
        both = len(order) - np.searchsorted(order, cuts)  # have it, and are given it
        told = len(given) - np.searchsorted(np.sort(given), cuts)
        f1 = 2.0 * both / (told + len(order))
        best = np.flatnonzero(f1 >= f1.max() - 1e-12)
        found[column] = cuts[0] if 0 in best else cuts[best[np.abs(cuts[best] - 0.5).argmin()]]
    return found


def _scores(logits: np.ndarray, temperature: float, several: bool) -> np.ndarray:
    scaled = logits / temperature
    if several:
        return _sigmoid(scaled)
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))
