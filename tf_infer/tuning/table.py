"""The result of a search as a table: lines of text, or plain values for JSON and report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tf_infer.config import to_json
from tf_infer.metrics import perplexity
from tf_infer.tuning.candidates import REFERENCE
from tf_infer.tuning.choice import Choice, Objective, median_interval, seconds, value
from tf_infer.tuning.trial import MetricKind, Trial, drop

MB = 1e6


def rows(trials: Sequence[Trial], choice: Choice, kind: MetricKind, batches: Sequence[int]
         ) -> list[dict[str, Any]]:
    """Return one object for each candidate, the reference first.

    Keys: `plan` (its name), `key` (its folder's), `candidate` (as JSON has it), `chosen`, `tied`,
    `megabytes`, `p50_ms` and `per_s` (batch size -> of a call, and texts, of decoders new tokens, a
    second), `spread_ms` (interval of the median of the rounds), `ratio` (batch size -> speed over
    the reference's), `worst_difference`, the metric by its name, of classifiers `agreement` (of all
    texts), `drop` and `why_not`.
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
        "why_not": choice.refused.get(one.name, "")} for one in trials]


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


def lines(told: Mapping[str, Any]) -> list[str]:
    """Return a summary as a table and the sentence of the choice."""
    kind, plans = told["metric"], told["plans"]
    batches = sorted({int(batch) for one in plans for batch in one["p50_ms"]})
    by = told["objective"].partition("@")[2]
    unit = "tok/s" if kind == "loss" else "ms"
    names = {"accuracy": "accuracy", "agreement": "agrees", "loss": "perplexity"}
    partly = partly_labelled(told)
    header = ["", "plan", "MB", *(f"{unit} @{batch}" for batch in batches),
              *(f"ratio @{batch}" for batch in _told(by, batches)), "difference", names[kind],
              *([names["agreement"]] if partly else []), ""]
    table = [header, *(_cells(one, kind, batches, _told(by, batches), partly=partly)
                       for one in plans)]
    table += [["", name, *[""] * (len(header) - 3), f"not tried: {reason}"]
              for name, reason in told["left_out"].items()]
    widths = [max(len(row[place]) for row in table) for place in range(len(header))]
    found = ["  ".join(cell.ljust(width) if place in (1, len(header) - 1) else cell.rjust(width)
                       for place, (cell, width) in enumerate(zip(row, widths))).rstrip()
             for row in table]
    found.insert(1, "  ".join("-" * width for width in widths).rstrip())
    if partly:
        found += ["", f"accuracy: of the {told['labelled']} labelled texts; agrees: with the "
                      f"reference, of all {told['answered']}"]
    return [*found, "", told["reason"]]


def partly_labelled(told: Mapping[str, Any]) -> bool:
    """Return whether the metric is told of some of the texts alone."""
    return bool(0 < told["labelled"] < told["answered"])


def _told(by: str, batches: Sequence[int]) -> list[int]:
    """Return the batch sizes whose ratio has a column: that of the objective, else all."""
    return [int(by)] if by and int(by) in batches else list(batches)


def _cells(one: Mapping[str, Any], kind: str, batches: Sequence[int], ratios: Sequence[int], *,
           partly: bool) -> list[str]:
    mark = ">" if one["chosen"] else "=" if one["tied"] else ""
    times = [_number(one["per_s"].get(str(batch)), "{:,.0f}") if kind == "loss"
             else _time(one["p50_ms"].get(str(batch))) for batch in batches]
    shown = one.get("perplexity" if kind == "loss" else kind)
    metric = _number(shown, "{:.4g}") if kind == "loss" else _share(shown)
    same = one["plan"] == REFERENCE
    return [mark, one["plan"], _number(one["megabytes"], "{:.1f}"), *times,
            *(_number(one["ratio"].get(str(batch)), "{:.2f}") for batch in ratios),
            "" if same else _number(one["worst_difference"], "{:.2g}"), metric,
            *([_share(one["agreement"])] if partly else []), one["why_not"]]


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return ""
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:.1f}"


def _share(share: float | None) -> str:
    return _number(None if share is None else 100 * share, "{:.2f} %")


def _number(number: float | None, form: str) -> str:
    return "" if number is None else form.format(number)
