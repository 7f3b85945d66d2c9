"""What a candidate answered, beside the reference's answers and the right labels. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from tf_infer import metrics
from tf_infer.tuning.trial import MetricKind

# What `measure.py` gives of all texts, by name:
LOGITS = "logits"        # of a classifier, [N, C] float32
LABELS = "labels"        # of a classifier, [N] str: names in order, joined by SEPARATOR
LOG_PROBS = "log_probs"  # of a decoder, [M] float32: of every given id of all texts, nats
COUNTS = "counts"        # of a decoder, [N] int64: how many of them each text has
SEPARATOR = "\x1f"

Answers = Mapping[str, np.ndarray]


class Judged(NamedTuple):
    """How good answers are.

    Attributes:
        worst: largest difference of any logit or log-probability from the reference's.
        metric: accuracy, agreement or loss.
        agreement: of a classifier, share of all texts with the reference's label.
        failed: why the candidate is out; empty when it is not.
    """

    worst: float = 0.0
    metric: float = 0.0
    agreement: float | None = None
    failed: str = ""


def joined(names: Sequence[str]) -> str:
    """Return labels as one string, whatever their order was."""
    return SEPARATOR.join(sorted(names))


def metric_kind(answers: Answers, truth: Sequence[str | None] | None) -> MetricKind:
    """Return what can be told of such answers."""
    if LOG_PROBS in answers:
        return "loss"
    return "agreement" if truth is None else "accuracy"


def judge(answers: Answers, reference: Answers, truth: Sequence[str | None] | None) -> Judged:
    """Hold answers against the reference's and, of a classifier, against the right labels.

    Args:
        answers: of the candidate.
        reference: of the reference, to the same texts; its own for itself.
        truth: `joined` labels of each text, None of one that is not labelled; at least one is.
            None where no text is: then the metric is agreement.
    """
    values = LOG_PROBS if LOG_PROBS in reference else LOGITS
    found, wanted = answers[values], reference[values]
    if found.shape != wanted.shape:
        return Judged(failed=f"{values}: expected {wanted.shape} as the reference has, got "
                             f"{found.shape}")
    bad = ~np.isfinite(found)
    if bad.any():
        return Judged(failed=_not_finite(values, bad, answers))
    worst = float(np.max(np.abs(found.astype(np.float64) - wanted), initial=0.0))
    if values == LOG_PROBS:
        return Judged(worst, float(-found.mean(dtype=np.float64)) if found.size else 0.0)
    agreement = metrics.accuracy(answers[LABELS], reference[LABELS])
    if truth is None:
        return Judged(worst, agreement, agreement)
    known = [place for place, labels in enumerate(truth) if labels is not None]
    right = np.array([labels for labels in truth if labels is not None])
    return Judged(worst, metrics.accuracy(answers[LABELS][known], right), agreement)


def _not_finite(name: str, bad: np.ndarray, answers: Answers) -> str:
    """Name the output and the first text whose value is NaN or infinite."""
    first = int(np.argwhere(bad)[0, 0])
    if name == LOG_PROBS:
        first = int(np.searchsorted(np.cumsum(answers[COUNTS]), first, side="right"))
    value = "NaN" if np.isnan(answers[name][bad]).any() else "an infinite number"
    return f"{name}: expected numbers, got {value} for text {first + 1}"


def save(answers: Answers, path: Path) -> None:
    """Write answers; none of them holds a text."""
    np.savez(path, **cast(Any, dict(answers)))


def read(path: Path) -> Answers:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
