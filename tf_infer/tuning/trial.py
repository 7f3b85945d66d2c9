"""Trial: all that a search knows of one candidate, and how a metric's drop is counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tf_infer.metrics import perplexity
from tf_infer.tuning.candidates import Candidate

# accuracy: share of labelled texts that are right. agreement: share of texts with the reference's
# label, where no text is labelled. loss: nats of an id of a decoder.
MetricKind = Literal["accuracy", "agreement", "loss"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What one round found for one candidate and one batch size, in seconds.

    Of a text, or of a new token of a decoder: a call's time over how many it gave.

    Attributes:
        median_s: of its calls.
        mean_s: of its calls.
    """

    median_s: float
    mean_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One candidate, as far as the search has got.

    Attributes:
        candidate: what it is.
        size_bytes: of its version directory but for the prepared graph; None before it is built.
        rounds: batch size -> what each round found, in their order.
        worst: largest difference of a logit (of a decoder: of a given id's log-probability) from
            the reference's; None before it has answered.
        metric: of the search's kind; None before it has answered.
        agreement: of a classifier, share of all texts with the reference's label; None before it
            has answered.
        failed: why it is out; empty while it is not.
    """

    candidate: Candidate
    size_bytes: int | None = None
    rounds: Mapping[int, tuple[Times, ...]] = field(default_factory=dict)
    worst: float | None = None
    metric: float | None = None
    agreement: float | None = None
    failed: str = ""

    @property
    def name(self) -> str:
        """Return what a table calls it."""
        return self.candidate.name


def drop(kind: MetricKind, reference: float, metric: float) -> float:
    """Return by how many points (of 100) a candidate is worse; negative when it is better.

    Of a loss: by how many per cent its perplexity is higher.
    """
    if kind == "loss":
        return 100.0 * (perplexity(metric - reference) - 1.0)
    return 100.0 * (reference - metric)


def is_number(value: float | None) -> bool:
    """Return whether a metric can be compared."""
    return value is not None and math.isfinite(value)
