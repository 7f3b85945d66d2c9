"""What a benchmark of a server found: its loads as lines, JSON, an HDR percentile distribution.

A latency is told exactly, from every call. The HDR form is the text that HdrHistogram's own tools
plot: value, percentile, count, 1 / (1 - percentile) (hdrhistogram.org, "percentile distribution").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_infer.errors import ConfigError
from tf_infer.profiling.load import Load

FORMAT = 1
PERCENTS = (50.0, 90.0, 99.0, 99.9, 100.0)
TICKS_PER_HALF = 5  # rows of the distribution for each halving of what is left


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bench:
    """Some loads that one server was sent, one after the other.

    Attributes:
        model: name and, where it was asked for, version.
        rows: texts in one call.
        seed: of the arrival times.
        loads: in the order they were sent.
    """

    model: str
    rows: int
    seed: int
    loads: Sequence[Load]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; times in milliseconds."""
        return {"format": FORMAT, "model": self.model, "rows": self.rows, "seed": self.seed,
                "loads": [{"name": name_of(load), **load.to_json(), "percentiles_ms": {
                    f"{percent:g}": round(1000 * load.percentile_s(percent), 3)
                    for percent in PERCENTS} if len(load.latencies_s) else {}}
                    for load in self.loads]}


def name_of(load: Load) -> str:
    """Return how a load is called: "closed 16", "open 200/s"."""
    return f"closed {load.callers}" if load.rate is None else f"open {load.rate:g}/s"


def lines(bench: Bench) -> Iterator[str]:
    """Yield a table, a line a load."""
    yield (f"{'load':>14} {'calls/s':>9} {'texts/s':>9} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} "
           f"{'p99.9 ms':>9} {'max ms':>9}  failed")
    for load in bench.loads:
        times = " ".join(f"{1000 * load.percentile_s(percent):9.2f}" for percent in PERCENTS)
        failed = ", ".join(f"{count} {code}" for code, count in load.failed.items()) or "0"
        yield (f"{name_of(load):>14} {load.calls_per_s:9.1f} {load.calls_per_s * bench.rows:9.1f} "
               f"{times}  {failed}{' (interrupted)' if load.interrupted else ''}")
        if load.late > len(load.latencies_s) / 100:
            yield (f"{'':>14} {load.late} calls found no free caller when they were due: raise "
                   "--concurrency, or this machine cannot send more.")


def compared(bench: Bench, earlier: Mapping[str, Any]) -> Iterator[str]:
    """Yield the loads that both have, now by then; above 1 is better for calls, worse for times.

    Args:
        earlier: what `read` gave.
    """
    before = {load["name"]: load for load in earlier["loads"]}
    now = [load for load in bench.to_json()["loads"] if load["name"] in before]
    if not now:
        yield f"nothing to compare: the earlier loads are {', '.join(before) or 'none'}"
        return
    yield f"{'now / earlier':>14} {'calls/s':>9} {'p50':>9} {'p90':>9} {'p99':>9}"
    for load in now:
        old = before[load["name"]]
        ratios = [_ratio(load["calls_per_s"], old["calls_per_s"])] + [
            _ratio(load["percentiles_ms"].get(percent), old["percentiles_ms"].get(percent))
            for percent in ("50", "90", "99")]
        yield f"{load['name']:>14} " + " ".join(f"{ratio:9.3f}" for ratio in ratios)


def _ratio(now: float | None, then: float | None) -> float:
    return now / then if now is not None and then else math.nan


def read(path: Path) -> dict[str, Any]:
    """Return what `to_json` wrote.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected what `tf-infer bench --output` wrote, and it cannot "
                          f"be read: {error}.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or not all(
            isinstance(load, dict) and {"name", "calls_per_s", "percentiles_ms"} <= set(load)
            for load in found.get("loads", [None])):
        raise ConfigError(f"{path}: expected what `tf-infer bench --output` wrote (format "
                          f"{FORMAT}).")
    return found


def distribution(load: Load) -> Iterator[str]:
    """Yield the percentile distribution of a load, latencies in milliseconds.

    Raises:
        ConfigError: no call was answered.
    """
    times = 1000 * load.latencies_s
    if not len(times):
        raise ConfigError(f"{name_of(load)}: expected answered calls, got none to distribute.")
    yield f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}"
    yield ""
    seen = 0
    for share in shares(len(times)):
        count = min(len(times), max(1, math.ceil(share * len(times))))
        if seen < count < len(times) or share == 1.0:  # the slowest call stands in the last row
            seen = count
            inverse = f"{1 / (1 - share):14.2f}" if share < 1 else f"{'inf':>14}"
            yield f"{times[count - 1]:12.3f} {share:14.12f} {count:10d} {inverse}"
    yield f"#[Mean    = {times.mean():12.3f}, StdDeviation   = {times.std():12.3f}]"
    yield f"#[Max     = {times[-1]:12.3f}, Total count    = {len(times):12d}]"


def shares(count: int) -> Iterator[float]:
    """Yield ascending shares from 0 to 1, `TICKS_PER_HALF` for each halving of what is left."""
    share, half = 0.0, 0.5
    while half * TICKS_PER_HALF * count >= 0.5:
        for tick in range(TICKS_PER_HALF):
            yield share + half * tick / TICKS_PER_HALF
        share, half = share + half, half / 2
    yield 1.0


def curve(load: Load) -> tuple[np.ndarray, np.ndarray]:
    """Return how many of a load's calls took longer than so many milliseconds: times, shares."""
    times = 1000 * load.latencies_s
    return times, 1.0 - np.arange(len(times)) / max(1, len(times))
