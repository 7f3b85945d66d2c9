"""Where a classifier errs: confusions, slices, worst rows, likely label errors. NumPy only.

Everything is counted from what a model answered on labelled texts; no model is run here.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tf_infer import metrics
from tf_infer.errors import DataError

WORST = 50
LENGTH_SLICES = 5
CONFIDENCE = 0.95
COMMON = 1.96  # standard deviations that hold it
FEW_LETTERS = "no letters"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One labelled text and what the model said of it.

    Attributes:
        place: "file:line".
        text: as it was sent.
        truth, answer: names of classes; one each, or any number of several labels.
        score: of the best answer, 0 to 1.
        probabilities: of each class, in the order of `classes` of `analyse`; empty: not told.
        tokens: how many ids the text has; 0 where nobody told.
        unknown: how many of them stand for something that the vocabulary does not have.
    """

    place: str
    text: str
    truth: frozenset[str]
    answer: frozenset[str]
    score: float
    probabilities: tuple[float, ...] = ()
    tokens: int = 0
    unknown: int = 0

    @property
    def right(self) -> bool:
        """Whether the answer is the truth as a whole."""
        return self.truth == self.answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows that have something in common.

    Attributes:
        kind, name: such as "script", "CYRILLIC".
        rows: how many.
        accuracy: share that is right.
        low, high: its 95 % interval (Wilson 1927, doi:10.1080/01621459.1927.10502953).
        weak: whether so few right ones have a chance under 2.5 % among rows like all others.
    """

    kind: str
    name: str
    rows: int
    accuracy: float
    low: float
    high: float
    weak: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class WorstRow:
    """A wrong answer.

    Attributes:
        place, text, truth, answer, score: as of `Item`.
        truth_score: what the model gave the right class; None where it does not tell.
    """

    place: str
    text: str
    truth: tuple[str, ...]
    answer: tuple[str, ...]
    score: float
    truth_score: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicate:
    """A test text that training has almost seen.

    Attributes:
        place, text: of the test row.
        train_place, train_text: of the training row that is most like it.
        similarity: cosine, 0 to 1.
        same_labels: whether both rows have the same labels.
    """

    place: str
    text: str
    train_place: str
    train_text: str
    similarity: float
    same_labels: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorAnalysis:
    """What was found.

    Attributes:
        rows: labelled texts.
        accuracy: share that is right as a whole; low, high: its interval.
        classes: names.
        per_class: (name, score) of each.
        confusion: [C, C] counts, row = truth, column = answer; empty with several labels.
        confusions: (truth, answer, count) of the wrong ones, most first.
        worst: wrong answers, the surest first.
        slices: of every kind.
        calibration_error: expected; bins: the reliability diagram; both of the rows whose score is
            a number, NaN where there is none.
        label_errors: rows whose label the model doubts with reason.
        duplicates: see `NearDuplicate`; None where no training texts were given.
        unknown_rate: share of unknown ids among all; None where nobody told.
    """

    rows: int
    accuracy: float
    low: float
    high: float
    classes: tuple[str, ...]
    per_class: tuple[tuple[str, metrics.ClassScore], ...]
    confusion: tuple[tuple[int, ...], ...]
    confusions: tuple[tuple[str, str, int], ...]
    worst: tuple[WorstRow, ...]
    slices: tuple[Slice, ...]
    calibration_error: float
    bins: tuple[metrics.Bin, ...]
    label_errors: tuple[WorstRow, ...]
    duplicates: tuple[NearDuplicate, ...] | None = None
    unknown_rate: float | None = field(default=None)


def analyse(items: Sequence[Item], classes: Sequence[str], *, worst: int = WORST,
            duplicates: Sequence[NearDuplicate] | None = None) -> ErrorAnalysis:
    """Count where the answers are wrong.

    Args:
        items: at least one.
        classes: C names, in the order of the items' probabilities; classes that only labels have
            follow.
        worst: most rows of each list.
        duplicates: of these items, where training texts are known.

    Raises:
        DataError: there are no items.
    """
    if not items:
        raise DataError("expected at least one labelled text, got none.")
    told = list(classes)
    names = told + sorted(set().union(*(item.truth | item.answer for item in items)) - set(told))
    index = {name: place for place, name in enumerate(names)}
    found, targets = (_hot([getattr(item, which) for item in items], index)
                      for which in ("answer", "truth"))
    right = np.array([item.right for item in items])
    single = all(len(item.truth) == len(item.answer) == 1 for item in items)
    confusion = (targets.T.astype(int) @ found.astype(int)) if single else np.zeros((0, 0), int)
    scores = np.clip([item.score for item in items], 0.0, 1.0)
    known = ~np.isnan(scores)
    low, high = wilson(int(right.sum()), len(items))
    tokens = sum(item.tokens for item in items)
    return ErrorAnalysis(
        rows=len(items), accuracy=float(right.mean()), low=low, high=high, classes=tuple(names),
        per_class=tuple(zip(names, metrics.per_class(found, targets, len(names)))),
        confusion=tuple(map(tuple, confusion.tolist())), confusions=_confusions(confusion, names),
        worst=_worst(items, index, worst), slices=tuple(slices(items)),
        calibration_error=(metrics.calibration_error(scores[known], right[known]) if known.any()
                           else math.nan),
        bins=tuple(metrics.reliability(scores[known], right[known])),
        label_errors=label_errors(items, told, most=worst) if single else (),
        duplicates=None if duplicates is None else tuple(duplicates),
        unknown_rate=sum(item.unknown for item in items) / tokens if tokens else None)


def _hot(labels: Sequence[frozenset[str]], index: dict[str, int]) -> np.ndarray:
    hot = np.zeros((len(labels), len(index)), bool)
    for row, names in enumerate(labels):
        hot[row, [index[name] for name in names]] = True
    return hot


def _confusions(confusion: np.ndarray, names: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    found = [(names[true], names[given], int(confusion[true, given]))
             for true, given in zip(*np.nonzero(confusion)) if true != given]
    return tuple(sorted(found, key=lambda one: (-one[2], one[0], one[1])))


def _row(item: Item, index: dict[str, int]) -> WorstRow:
    truth = next(iter(item.truth), "")
    place = index.get(truth, len(item.probabilities))
    return WorstRow(
        place=item.place, text=item.text, truth=tuple(sorted(item.truth)),
        answer=tuple(sorted(item.answer)), score=item.score,
        truth_score=item.probabilities[place] if place < len(item.probabilities) else None)


def _worst(items: Sequence[Item], index: dict[str, int], most: int) -> tuple[WorstRow, ...]:
    wrong = sorted((item for item in items if not item.right),
                   key=lambda item: (math.isnan(item.score), -item.score))
    return tuple(_row(item, index) for item in wrong[:most])


def wilson(right: int, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share: `right` of `rows` >= 1."""
    share, spread = right / rows, COMMON**2 / rows
    middle = (share + spread / 2) / (1 + spread)
    half = COMMON / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / rows / 4)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


# ---------------------------------------------------------------------------- slices


def slices(items: Sequence[Item]) -> list[Slice]:
    """Return the rows by length, script, label and unknown ids, each kind in its own order."""
    overall = sum(item.right for item in items) / len(items)
    kinds: list[tuple[str, Callable[[Item], str]]] = [
        ("length", _length_of(items)), ("script", lambda item: script(item.text)),
        ("label", lambda item: "|".join(sorted(item.truth)))]
    if any(item.tokens for item in items):
        kinds.append(("unknown ids", lambda item: "none" if not item.unknown else
                      "up to 10 %" if item.unknown <= 0.1 * item.tokens else "over 10 %"))
    found = []
    for kind, name_of in kinds:
        groups: dict[str, list[bool]] = {}
        for item in items:
            groups.setdefault(name_of(item), []).append(item.right)
        order = sorted(groups, key=_natural) if kind == "length" else sorted(
            groups, key=lambda name: (-len(groups[name]), name))
        found += [_slice(kind, name, groups[name], overall) for name in order]
    return found


def _slice(kind: str, name: str, right: Sequence[bool], overall: float) -> Slice:
    low, high = wilson(sum(right), len(right))
    return Slice(kind=kind, name=name, rows=len(right), accuracy=sum(right) / len(right), low=low,
                 high=high, weak=metrics.binomial_tail(
                     sum(right), len(right), overall) < (1 - CONFIDENCE) / 2)


def _natural(name: str) -> int:
    return int(name.split(" ")[0])


def _length_of(items: Sequence[Item]) -> Callable[[Item], str]:
    """Return what names the fifth of all rows that a text belongs to, by its bytes."""
    sizes = np.array([len(item.text.encode()) for item in items])
    shares = np.linspace(0, 1, LENGTH_SLICES + 1)[1:]
    edges = sorted(set(np.quantile(sizes, shares, method="inverted_cdf").tolist()))
    lows = [int(sizes.min()), *(edge + 1 for edge in edges[:-1])]

    def name(item: Item) -> str:
        place = int(np.searchsorted(edges, len(item.text.encode())))
        return f"{lows[place]} to {edges[place]} bytes"

    return name


def script(text: str) -> str:
    """Return the script that most letters of a text have: "LATIN", "CJK", "CYRILLIC", ..."""
    counts = Counter(unicodedata.name(character, "UNKNOWN").split(" ")[0].split("-")[0]
                     for character in text if character.isalpha())
    return counts.most_common(1)[0][0] if counts else FEW_LETTERS


# ---------------------------------------------------------------------------- label errors


def label_errors(items: Sequence[Item], classes: Sequence[str], *, most: int = WORST
                 ) -> tuple[WorstRow, ...]:
    """Return rows whose label is probably wrong, the least believed first.

    A class is believed of a row when its probability reaches the mean that rows with that label
    have; a row is doubted when another class is believed and its own is not. Texts that the model
    was trained on prove nothing: give others.

    Args:
        items: with one label each, and probabilities.
        classes: C names, in the order of the probabilities.
        most: rows at most.

    Source: confident learning, Northcutt et al. 2021, arXiv:1911.00068.
    """
    index = {name: place for place, name in enumerate(classes)}
    usable = [item for item in items if len(item.probabilities) == len(classes)
              and next(iter(item.truth)) in index and np.isfinite(item.probabilities).all()]
    if not usable:
        return ()
    shares = np.array([item.probabilities for item in usable])               # [N, C]
    labels = np.array([index[next(iter(item.truth))] for item in usable])
    means = np.array([shares[labels == place, place].mean() if (labels == place).any() else np.inf
                      for place in range(len(classes))])
    own = shares[np.arange(len(usable)), labels]
    believed = shares >= means
    others = believed.copy()
    others[np.arange(len(usable)), labels] = False
    doubted = np.flatnonzero(others.any(axis=1) & (own < means[labels]))
    order = doubted[np.argsort(own[doubted], kind="stable")]
    return tuple(_row(usable[place], index) for place in order[:most].tolist())
