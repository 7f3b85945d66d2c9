"""A picture of a benchmark: how latencies are spread, and what throughput costs."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from tf_infer.profiling.bench import Bench, curve, name_of

DPI = 120
matplotlib.use("Agg", force=False)


def draw(bench: Bench, path: Path) -> None:
    """Write a picture; its form follows the ending of `path` (PNG, SVG, PDF)."""
    answered = [load for load in bench.loads if len(load.latencies_s)]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    spread, cost = figure.subplots(1, 2)
    for load in answered:
        times, shares = curve(load)
        spread.step(times, shares, where="post", label=name_of(load))
    spread.set(xscale="log", yscale="log", xlabel="latency, ms", ylabel="share of calls above",
               title=f"{bench.model}: latencies")
    spread.grid(visible=True, which="both", alpha=0.25)
    for percent, marker in ((50, "o"), (99, "s")):
        cost.plot([load.calls_per_s for load in answered],
                  [1000 * load.percentile_s(percent) for load in answered],
                  marker=marker, label=f"p{percent}")
    for load in answered:
        cost.annotate(name_of(load), (load.calls_per_s, 1000 * load.percentile_s(50)),
                      textcoords="offset points", xytext=(0, 6), ha="center", fontsize=8)
    cost.set(xlabel="answered calls a second", ylabel="latency, ms", title="throughput and latency")
    cost.margins(x=0.15, y=0.15)
    cost.set_ylim(bottom=0)
    cost.grid(visible=True, alpha=0.25)
    for axes in (spread, cost):
        if answered:
            axes.legend()
    figure.savefig(path, dpi=DPI)
