"""A search as a picture, accuracy against latency, and as an HTML page that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from tf_infer import pages
from tf_infer.tuning.table import notes, partly_labelled

DPI = 120
AREA = 160.0           # of the mark of the largest file, points squared
UP = (9, -15, 20, -26, 31, -37, 42, -48)  # of a name over its mark, points, in the order tried
BEST, OTHER, OUT = "#1a7f37", "#0969da", "#8c959f"
METRICS = {"accuracy": "accuracy, %", "agreement": "same label as the reference, %",
           "loss": "perplexity (lower is better)"}
matplotlib.use("Agg", force=False)


def draw(told: Mapping[str, Any]) -> Figure:
    """Draw a summary (`table.summary`): a panel for the smallest and the largest batch, and sizes.

    In each panel up and to the left is better. The dashed line is the bound of the metric.
    """
    plans = told["plans"]
    batches = sorted({int(batch) for one in plans for batch in one["p50_ms"]})
    shown = sorted({batches[0], batches[-1]}) if batches else []
    figure = Figure(figsize=(5.2 * max(1, len(shown)) + 3.6, 4.6), layout="constrained")
    panels = figure.subplots(1, len(shown) + 1, squeeze=False)[0]
    for axes, batch in zip(panels, shown):
        _metric_against_time(axes, told, batch)
    _sizes(panels[-1], plans)
    figure.draw_without_rendering()  # only now is it known where a mark stands
    for axes, batch in zip(panels, shown):
        _name(axes, [(time_ms, height, one["plan"]) for time_ms, height, one in _seen(told, batch)])
    return figure


def png(told: Mapping[str, Any]) -> bytes:
    """Return the picture as PNG."""
    data = io.BytesIO()
    draw(told).savefig(data, format="png", dpi=DPI)
    return data.getvalue()


def html(told: Mapping[str, Any], *, title: str) -> str:
    """Return the page: what was chosen and why, the picture, the table."""
    batches = sorted({int(batch) for one in told["plans"] for batch in one["p50_ms"]})
    below = notes(told)
    return pages.html(
        "search.html", title=title, told=told, loss=_is_loss(told), partly=partly_labelled(told),
        batches=[str(batch) for batch in batches],
        metric="perplexity" if _is_loss(told) else told["metric"], notes=below,
        marks={name: number for number, note in enumerate(below, 1) for name in note.plans},
        picture=base64.b64encode(png(told)).decode("ascii"))


def _is_loss(told: Mapping[str, Any]) -> bool:
    return bool(told["metric"] == "loss")


def _height(one: Mapping[str, Any], told: Mapping[str, Any]) -> float | None:
    if _is_loss(told):
        return one.get("perplexity")
    share = one.get(told["metric"])
    return None if share is None else 100.0 * share


def _seen(told: Mapping[str, Any], batch: int) -> list[tuple[float, float, Mapping[str, Any]]]:
    """Return time, height and candidate of each mark in a panel."""
    return [(one["p50_ms"][str(batch)], height, one) for one in told["plans"]
            if str(batch) in one["p50_ms"] and (height := _height(one, told)) is not None]


def _metric_against_time(axes: Axes, told: Mapping[str, Any], batch: int) -> None:
    loss, seen = _is_loss(told), _seen(told, batch)
    most = max((one["megabytes"] or 0.0 for _, _, one in seen), default=1.0) or 1.0
    for time_ms, height, one in seen:
        low, high = one["spread_ms"][str(batch)]
        axes.errorbar(time_ms, height, xerr=[[max(0.0, time_ms - low)], [max(0.0, high - time_ms)]],
                      color=_color(one), linewidth=1, capsize=2, zorder=2)
        axes.scatter(time_ms, height, s=20 + AREA * (one["megabytes"] or 0.0) / most,
                     color=_color(one), alpha=0.75, zorder=4 if one["chosen"] else 3)
    _bound(axes, told)
    call = "a token" if loss else f"a call of {batch} text{'s' if batch > 1 else ''}"
    of = f", {batch} row{'s' if batch > 1 else ''} at once" if loss else ""
    axes.set(xscale="log", xlabel=f"median time of {call}{of}, ms", ylabel=METRICS[told["metric"]],
             title=f"batch {batch}")
    axes.margins(x=0.25, y=0.2)
    if loss:
        axes.invert_yaxis()
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.ticklabel_format(axis="y", useOffset=False)


def _name(axes: Axes, marks: Sequence[tuple[float, float, str]]) -> None:
    """Write names above or below marks, where no name stands yet."""
    taken: list[Bbox] = []
    for time_ms, height, name in sorted(marks):
        for up in UP:
            note = axes.annotate(name, (time_ms, height), textcoords="offset points",
                                 fontsize=8, xytext=(0, up), ha="center")
            box = note.get_window_extent()
            if not any(box.overlaps(other) for other in taken) or up == UP[-1]:
                break
            note.remove()
        taken.append(box)


def _bound(axes: Axes, told: Mapping[str, Any]) -> None:
    height = _height(told["plans"][0], told)
    if height is None:
        return
    allowed = told["max_drop"]
    edge = height * (1.0 + allowed / 100.0) if _is_loss(told) else height - allowed
    axes.axhline(edge, color="grey", linewidth=1, linestyle="--", label="bound")
    axes.legend(loc="lower left", fontsize=8)


def _color(one: Mapping[str, Any]) -> str:
    return BEST if one["chosen"] else OUT if one["why_not"] else OTHER


def _sizes(axes: Axes, plans: Sequence[Mapping[str, Any]]) -> None:
    built = [one for one in plans if one["megabytes"] is not None][::-1]
    axes.barh([one["plan"] for one in built], [one["megabytes"] for one in built],
              color=[_color(one) for one in built], alpha=0.75)
    axes.set(xlabel="MB on disk", title="size")
    axes.tick_params(axis="y", labelsize=8)
