"""The result of a search as plain values: for JSON, report.json, and whatever shows a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tf_infer.config import to_json
from tf_infer.metrics import perplexity
from tf_infer.tuning.choice import Choice, Objective, median_interval, seconds, value
from tf_infer.tuning.trial import MetricKind, Trial, drop

MB = 1e6
NOT_TRIED = "not tried"


def rows(trials: Sequence[Trial], choice: Choice, kind: MetricKind, batches: Sequence[int]
         ) -> list[dict[str, Any]]:
    """Return one object for each candidate, the reference first.

    Keys: `plan` (its name), `key` (its folder's), `candidate` (as JSON has it), `chosen`, `tied`,
    `megabytes`, `p50_ms` and `per_s` (batch size -> of a call, and texts, of decoders new tokens, a
    second), `spread_ms` (interval of the median of the rounds), `ratio` (batch size -> speed over
    the reference's), `worst_difference`, the metric by its name, of classifiers `agreement` (of all
    texts), `drop`, `why_not`, and `not_faster` (the form in float32 that takes no longer; "" where
    there is none).
    """
    reference = trials[0]
    return [{
        "plan": one.name, "key": one.candidate.key, "candidate": to_json(one.candidate),
        "chosen": one.name == choice.name, "tied": one.name in choice.tied,
        "megabytes": None if one.size_bytes is None else one.size_bytes / MB,
        "p50_ms": _each(one, batches, lambda trial, batch: 1000 * value(trial, _p50(batch)) * _of(
            batch, kind)),
        "spread_ms": _each(one, batches, lambda trial, batch: [
            1000 * edge * _of(batch, kind) for edge in median_interval(
                seconds(trial, _p50(batch)))]),
        "per_s": _each(one, batches, lambda trial, batch: 1.0 / value(trial, _mean(batch))),
        "ratio": _each(one, batches, lambda trial, batch: value(reference, _p50(batch)) / value(
            trial, _p50(batch))),
        "worst_difference": one.worst, **({} if kind == "loss" else {"agreement": one.agreement}),
        kind: one.metric,
        **({"perplexity": perplexity(one.metric)} if kind == "loss" and one.metric is not None
           else {}),
        "drop": None if one.metric is None or reference.metric is None else drop(
            kind, reference.metric, one.metric),
        "why_not": choice.refused.get(one.name, ""),
        "not_faster": choice.not_faster.get(one.name, "")} for one in trials]


def _p50(batch: int) -> Objective:
    return Objective(kind="p50", batch=batch)


def _mean(batch: int) -> Objective:
    return Objective(kind="throughput", batch=batch)


def _of(batch: int, kind: MetricKind) -> int:
    """Return how many of what was timed make the call that a table tells: texts, or one token."""
    return 1 if kind == "loss" else batch


def _each(trial: Trial, batches: Sequence[int], found: Any) -> dict[str, Any]:
    return {str(batch): found(trial, batch) for batch in batches if trial.rounds.get(batch)}


def summary(trials: Sequence[Trial], choice: Choice, kind: MetricKind, batches: Sequence[int], *,
            max_drop: float, left_out: Mapping[str, str], machine: Mapping[str, str], texts: int,
            answered: int, labelled: int, seed: int) -> dict[str, Any]:
    """Return all that is told of a search, for JSON.

    Beside what `choose` was given: `left_out` (plan that was not tried -> why), how many `texts`
    there are, how many of them were `answered` for the metric, and of these are `labelled`.
    """
    return {"chosen": choice.name, "objective": choice.objective, "reason": choice.reason,
            "tied": list(choice.tied), "metric": kind, "max_drop": max_drop, "texts": texts,
            "answered": answered, "labelled": labelled, "seed": seed,
            "rounds": max((len(found) for one in trials for found in one.rounds.values()),
                          default=0),
            "machine": dict(machine), "left_out": dict(left_out),
            "plans": rows(trials, choice, kind, batches)}


class Note(NamedTuple):
    """Why some forms are out, or gain nothing; it stands below the table, numbered as their rows.
    """

    plans: tuple[str, ...]
    text: str


def notes(told: Mapping[str, Any]) -> list[Note]:
    """Return the notes of a summary, in the order of its rows; one reason is told once."""
    found: dict[str, list[str]] = {}
    for one in told["plans"]:
        if one["why_not"]:
            found.setdefault(one["why_not"], []).append(one["plan"])
        elif one["not_faster"]:
            found.setdefault(f"not faster than {one['not_faster']} by {told['objective']}", []
                             ).append(one["plan"])
    for name, reason in told["left_out"].items():
        found.setdefault(f"{NOT_TRIED}: {reason}", []).append(name)
    return [Note(tuple(names), text) for text, names in found.items()]


def partly_labelled(told: Mapping[str, Any]) -> bool:
    """Return whether the metric is told of some of the texts alone."""
    return bool(0 < told["labelled"] < told["answered"])
