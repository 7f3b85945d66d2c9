"""The choice among forms that were measured: bounds, objective, ties. Pure, no TensorFlow.

Two forms are a tie when what the rounds say of their ratio does not exclude SAME: of the ratios of
their times, round by round (both saw the same texts at nearly the same moment), the interval of the
median is taken. A tie is decided by what does not depend on the clock, so that the same machine
and seed give the same choice, and it is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tf_infer.config import check
from tf_infer.errors import ConfigError
from tf_infer.metrics import binomial_tail
from tf_infer.tuning.trial import MetricKind, Times, Trial, drop, is_number

SAME = 0.02        # a lead that is none: two runs of one form differ by as much
UNSURE = 0.05      # chance that the median of a ratio lies outside its interval, at most
ROUNDING = 1e-9    # of a drop, which is a difference of shares
TOLD = 2           # decimals of a drop, in points or per cent

BATCHES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is to be best.

    Attributes:
        kind: the median time of a call, texts (tokens) a second, or bytes on disk.
        batch: texts of a call; 0 for "size".
    """

    kind: Literal["p50", "throughput", "size"]
    batch: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "size" else f"{self.kind}@{self.batch}"


def read_objective(word: str) -> Objective:
    """Return the objective of a word such as "p50@1", "throughput@32" or "size".

    Raises:
        ConfigError: it is none.
    """
    kind, _, batch = word.partition("@")
    if word == "size":
        return Objective(kind="size")
    fits = batch.isascii() and batch.isdecimal() and 1 <= int(batch) <= 1024
    if kind == "p50" and fits:
        return Objective(kind="p50", batch=int(batch))
    if kind == "throughput" and fits:
        return Objective(kind="throughput", batch=int(batch))
    raise ConfigError("--objective: expected p50@N, throughput@N (N from 1 to 1024) or size, "
                      f"got {word!r}.")


def batches_for(objective: Objective) -> tuple[int, ...]:
    """Return the batch sizes that are measured."""
    return tuple(sorted({*BATCHES, *([objective.batch] if objective.batch else [])}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What was chosen.

    Attributes:
        name: of the candidate.
        objective: by what.
        tied: names of those that the rounds cannot tell from the best, the best first; empty when
            it stands alone.
        refused: name -> why it could not be chosen.
        reason: all of it in one sentence.
        not_faster: name of a form that rounds -> that in float32 which takes no longer.
    """

    name: str
    objective: str
    tied: tuple[str, ...]
    refused: Mapping[str, str]
    reason: str
    not_faster: Mapping[str, str] = field(default_factory=dict)


def seconds(trial: Trial, objective: Objective) -> tuple[float, ...]:
    """Return what each round says of a candidate, lower is better."""
    of_batch: Sequence[Times] = trial.rounds.get(objective.batch, ())
    if objective.kind == "throughput":
        return tuple(one.mean_s for one in of_batch)
    return tuple(one.median_s for one in of_batch)


def value(trial: Trial, objective: Objective) -> float:
    """Return the value of a candidate, lower is better: bytes, or the median of its rounds."""
    if objective.kind == "size":
        return float(trial.size_bytes or 0)
    return statistics.median(seconds(trial, objective))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return an interval in which the median of a distribution lies, whatever that is like.

    From the k-th lowest to the k-th highest of the draws, k as large as UNSURE allows; all of them
    where they are too few for that.
    """
    ordered, count = sorted(values), len(values)
    place = 0
    while 2 * (place + 1) < count and 2 * binomial_tail(place + 1, count, 0.5) <= UNSURE:
        place += 1
    return ordered[place], ordered[count - 1 - place]


def lead(best: Trial, other: Trial, objective: Objective) -> tuple[float, float]:
    """Return the interval of by how much `other` takes longer than `best`: 0.1 is a tenth."""
    if objective.kind == "size":
        share = value(other, objective) / max(1.0, value(best, objective)) - 1.0
        return share, share
    pairs = list(zip(seconds(best, objective), seconds(other, objective)))
    low, high = median_interval([theirs / ours for ours, theirs in pairs])
    return low - 1.0, high - 1.0


def refusal(trial: Trial, reference: Trial, kind: MetricKind, objective: Objective,
            max_drop: float) -> str:
    """Return why a candidate cannot be chosen; empty when it can."""
    if trial.failed:
        return trial.failed
    if objective.kind != "size" and not seconds(trial, objective):
        return f"not measured at batch {objective.batch}"
    if trial is reference:
        return ""
    if not is_number(trial.metric) or not is_number(reference.metric):
        return f"its {kind} is no number"
    assert trial.metric is not None and reference.metric is not None
    lost = drop(kind, reference.metric, trial.metric)
    if lost > max_drop + ROUNDING:
        what = "perplexity is" if kind == "loss" else f"{kind} is"
        how = f"{lost:.{TOLD}f} % higher" if kind == "loss" else f"{lost:.{TOLD}f} points lower"
        return f"{what} {how}, {max_drop:g} are allowed"
    return ""


def choose(trials: Sequence[Trial], *, kind: MetricKind, objective: Objective, max_drop: float
           ) -> Choice:
    """Choose the best candidate inside the bounds.

    Args:
        trials: the reference first; it may always be chosen.
        kind: of their metric.
        objective: what is to be best.
        max_drop: points of 100 that the metric may be worse than the reference's; of a decoder per
            cent that the perplexity may be higher.

    Raises:
        ConfigError: the reference was not measured, or `max_drop` is no such number.

    Ties: the reference, where it is among them and time is the objective (a form that is not faster
    is no gain); else the smallest drop as it is told, then float32 before forms that round, then
    the fewest bytes, then the order given.
    """
    check(0.0 <= max_drop <= 100.0, "--max-drop", "0 to 100 points", max_drop)
    reference = trials[0]
    reasons = {one.name: refusal(one, reference, kind, objective, max_drop) for one in trials}
    check(not reasons[reference.name], "reference", "one that could be measured",
          reasons[reference.name])
    eligible = [one for one in trials if not reasons[one.name]]
    best = min(eligible, key=lambda one: (value(one, objective), trials.index(one)))
    tied = [best] + [one for one in eligible
                     if one is not best and lead(best, one, objective)[0] <= SAME]
    if reference in tied and objective.kind != "size":
        chosen = reference
    else:
        chosen = min(tied, key=lambda one: (
            _lost(one, reference, kind), one.candidate.rounds, one.size_bytes or 0,
            trials.index(one)))
    told = tuple(one.name for one in tied) if len(tied) > 1 else ()
    return Choice(name=chosen.name, objective=str(objective), tied=told,
                  refused={name: reason for name, reason in reasons.items() if reason},
                  reason=_sentence(chosen, best, told, reference, eligible, objective),
                  not_faster=not_faster(eligible, objective))


def not_faster(trials: Sequence[Trial], objective: Objective) -> dict[str, str]:
    """Return of each form that rounds and gains no time by it: its name -> that in float32.

    Of those in float32 that run on the same engine or on none, cut alike, the fastest counts.

    Args:
        trials: that were measured.
        objective: says by what; by "size" there are none.
    """
    found = {}
    for one in trials if objective.kind != "size" else ():
        form = one.candidate
        exact = [other for other in trials if not other.candidate.rounds
                 and other.candidate.prune == form.prune
                 and other.candidate.engine_kind in ("", form.engine_kind)]
        if form.rounds and exact:
            fastest = min(exact, key=lambda other: value(other, objective))
            if value(one, objective) >= value(fastest, objective):
                found[one.name] = fastest.name
    return found


def _lost(trial: Trial, reference: Trial, kind: MetricKind) -> float:
    """Return its drop as it is told; a better metric than the reference's is luck.

    Two drops that are told alike are equal: a loss moves with the order of a sum already.
    """
    if trial.metric is None or reference.metric is None:
        return 0.0
    return max(0.0, round(drop(kind, reference.metric, trial.metric), TOLD))


def _sentence(chosen: Trial, best: Trial, tied: Sequence[str], reference: Trial,
              eligible: Sequence[Trial], objective: Objective) -> str:
    gain = value(reference, objective) / max(value(chosen, objective), 1e-12)
    what = "smaller" if objective.kind == "size" else "faster"
    head = (f"{chosen.name}: {gain:.2f} times {what} than the reference by {objective}"
            if chosen is not reference else
            f"{chosen.name}: nothing inside the bounds is {what} by {objective}")
    if tied:
        why = ("the reference goes first" if chosen is reference else
               "the smallest drop goes first, then float32, then the smallest file")
        return f"{head}; a tie of {', '.join(tied)}: {why}."
    others = [one for one in eligible if one is not best]
    if not others:
        return f"{head}; nothing else could be chosen."
    low, second = min((lead(best, one, objective)[0], one.name) for one in others)
    return f"{head}; {second} comes next, {100 * low:.0f} % or more behind."
