"""An error analysis as one HTML page that needs nothing beside it: tables, pictures, texts."""

from __future__ import annotations

import base64
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes

from tf_infer import metrics, pages, pictures
from tf_infer.verify.error_analysis import ErrorAnalysis

MOST_SLICES = 24


def html(analysis: ErrorAnalysis, *, title: str, source: str) -> str:
    """Return the page.

    Args:
        analysis: what was found.
        title: name of the model.
        source: where model and texts come from, in words.
    """
    sections = [("pictures", "Pictures"), ("confusions", "Confusions"), ("classes", "Classes"),
                ("slices", "Slices"), ("worst", "Worst"), ("labels", "Labels")]
    if analysis.duplicates is not None:
        sections.append(("duplicates", "Duplicates"))
    drawn = [("reliability", _picture(
        lambda axes: pictures.reliability(axes, analysis.bins), (4.2, 4.0))),
        ("slices", _picture(lambda axes: _slices(analysis, axes), (5.0, 4.0)))]
    if analysis.confusion:
        drawn.append(("confusion", _picture(
            lambda axes: pictures.confusion(axes, np.array(analysis.confusion), analysis.classes),
            pictures.confusion_inches(len(analysis.classes)))))
    return pages.html(
        "error_analysis.html", title=title, a=analysis, source=source, pictures=drawn,
        sections=sections,
        macro_f1=metrics.macro_f1([score for _, score in analysis.per_class]))


def _picture(draw: Callable[[Axes], None], inches: tuple[float, float]) -> str:
    return base64.b64encode(pictures.png(draw, inches)).decode("ascii")


def _slices(analysis: ErrorAnalysis, axes: Axes) -> None:
    shown = [one for one in analysis.slices if one.kind != "label"][:MOST_SLICES][::-1]
    places = np.arange(len(shown))
    values = np.array([one.accuracy for one in shown])
    low, high = (np.array([getattr(one, edge) for one in shown]) for edge in ("low", "high"))
    axes.barh(places, values, color=["#cf222e" if one.weak else "#2da44e" for one in shown],
              alpha=0.75, xerr=[values - low, high - values], error_kw={"linewidth": 1})
    axes.axvline(analysis.accuracy, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(places, [f"{one.kind}: {one.name} ({one.rows})" for one in shown], fontsize=7)
    axes.set(xlim=(0, 1), xlabel="share that is right", title="Slices (dashed: all rows)")
