"""A recording and its load as lines of text, or as plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_infer.profiling.load import Load
from tf_infer.profiling.trace import Operation, Trace
from tf_infer.wire.timings import Timings

SHOWN_NAME = 60  # characters of an operation's name in a line; its end tells more than its scopes
NAMES: dict[str | None, str] = {"tokenize": "tokenizer", "model": "network",
                                "decode": "decoding", None: "other"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What there is to say.

    Attributes:
        path: of the trace.
        duration_s: how long was recorded.
        trace: what was recorded.
        load: what was sent meanwhile; None for what others sent.
        timings: where the server spent the time of calls of that load, some split into stages;
            empty of servers that do not tell.
    """

    path: Path
    duration_s: float
    trace: Trace
    load: Load | None = None
    timings: Sequence[Timings] = ()


def to_json(summary: Summary, *, top: int) -> dict[str, Any]:
    """Return plain values; shares are 0 to 1.

    Args:
        summary: what there is.
        top: operations to list.
    """
    trace = summary.trace
    operations = [{"name": one.name, "type": one.kind, "stage": NAMES[one.stage],
                   "count": one.count, "self_ms": round(1000 * one.self_s, 3),
                   "share": _share(one.self_s, trace.busy_s)} for one in trace.operations[:top]]
    stages = {name: _share(trace.by_stage_s().get(stage, 0.0), trace.busy_s)
              for stage, name in NAMES.items()}
    return {"trace": str(summary.path), "duration_s": summary.duration_s,
            "operations_busy_s": round(trace.busy_s, 6), "stages": stages,
            "operations": operations,
            "load": None if summary.load is None else summary.load.to_json(),
            "call": call_shares(summary.timings), "run": run_shares(summary.timings)}


def call_shares(timings: Iterable[Timings]) -> dict[str, float] | None:
    """Return where calls spent their time, those whose run was not traced; None of none.

    `rest` is what a server does beside: messages, and finding the version.
    """
    calls = [one for one in timings if one.tokenize_s is None]
    total_s = sum(one.total_s for one in calls)
    if not calls or not total_s:
        return None
    queue, run = (_share(sum(part), total_s) for part in (
        [one.queue_s for one in calls], [one.model_s for one in calls]))
    return {"calls": len(calls), "total_ms": round(1000 * total_s / len(calls), 3),
            "queue": queue, "run": run, "rest": round(max(0.0, 1.0 - queue - run), 4)}


def run_shares(timings: Iterable[Timings]) -> dict[str, float] | None:
    """Return how the operations of traced runs share their time; None of none."""
    split = [(one.tokenize_s, one.model_s, one.decode_s or 0.0) for one in timings
             if one.tokenize_s is not None]
    total_s = sum(map(sum, split))
    if not total_s:
        return None
    parts = (sum(part) for part in zip(*split))
    names = (NAMES[stage] for stage in ("tokenize", "model", "decode"))
    return {"calls": len(split), **{name: _share(part, total_s)
                                    for name, part in zip(names, parts)}}


def lines(summary: Summary, *, top: int) -> list[str]:
    """Return the summary as a person reads it."""
    values = to_json(summary, top=top)
    shown = [f"trace       {summary.path} ({summary.duration_s:g} s)",
             "            open it with: tensorboard --logdir "
             f"{summary.path.parents[3]}"]
    if summary.load is not None:
        shown += _load_lines(values["load"])
    if values["call"]:
        call = values["call"]
        shown.append(f"a call      {call['total_ms']:.2f} ms in the server: "
                     + _percents(call, ("queue", "run", "rest")))
    if values["run"]:
        shown.append("a run       " + _percents(values["run"], ("tokenizer", "network", "decoding"))
                     + f" (of {values['run']['calls']} traced ones)")
    if summary.trace.operations:
        shown.append(f"operations  {summary.trace.busy_s:.2f} s, all threads: "
                     + _percents(values["stages"], NAMES.values()))
        shown += [_operation_line(one, summary.trace.busy_s)
                  for one in summary.trace.operations[:top]]
    else:
        shown.append("operations  none was recorded: nothing was asked of the server meanwhile. "
                     "Send something, or let --load do it.")
    return shown


def _load_lines(load: dict[str, Any]) -> list[str]:
    kind = f"{load['rate']:g} calls/s due" if load["rate"] else "closed loop"
    shown = [f"load        {load['callers']} callers, {kind}: {load['calls_per_s']:.1f} answers/s, "
             f"{load['answered']} in {load['elapsed_s']:.1f} s"]
    if load["answered"]:
        shown.append("latency     " + ", ".join(
            f"p{percent} {load[f'p{percent}_ms']:.2f} ms" for percent in (50, 90, 99)))
    if load["failed"]:
        shown.append("failed      " + ", ".join(
            f"{count} {code}" for code, count in sorted(load["failed"].items())))
    if load["late"]:
        shown.append(f"late        {load['late']} calls found no free caller; take more --callers")
    return shown


def _operation_line(operation: Operation, busy_s: float) -> str:
    name = operation.name
    if len(name) > SHOWN_NAME:
        name = "…" + name[-SHOWN_NAME:]
    return (f"  {100 * _share(operation.self_s, busy_s):5.1f} %  {NAMES[operation.stage]:9}  "
            f"{1e6 * operation.self_s / operation.count:9.1f} us x {operation.count:<7} "
            f"{operation.kind}  {name}")


def _percents(shares: dict[str, float], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {100 * shares[name]:.1f} %" for name in names)


def _share(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0
