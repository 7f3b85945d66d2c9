"""An error analysis as one HTML page that needs nothing beside it: tables, pictures, texts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from importlib import resources

import jinja2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_infer import metrics
from tf_infer.verify.error_analysis import ErrorAnalysis

MOST_CLASSES = 40  # of the picture of confusions; those that are confused most
NUMBERED = 15  # with more classes their counts are not written into the cells
MOST_SLICES = 24
matplotlib.use("Agg", force=False)


def html(analysis: ErrorAnalysis, *, title: str, source: str) -> str:
    """Return the page.

    Args:
        analysis: what was found.
        title: name of the model.
        source: where model and texts come from, in words.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        resources.files("tf_infer").joinpath("data/report/error_analysis.html")
        .read_text(encoding="utf-8"))
    sections = [("pictures", "Pictures"), ("confusions", "Confusions"), ("classes", "Classes"),
                ("slices", "Slices"), ("worst", "Worst"), ("labels", "Labels")]
    if analysis.duplicates is not None:
        sections.append(("duplicates", "Duplicates"))
    pictures = [("reliability", _picture(analysis, _reliability, (4.2, 4.0))),
                ("slices", _picture(analysis, _slices, (5.0, 4.0)))]
    if analysis.confusion:
        size = 3.0 + 0.22 * min(MOST_CLASSES, len(analysis.classes))
        pictures.append(("confusion", _picture(analysis, _confusion, (size + 1.5, size))))
    return template.render(
        a=analysis, title=title, source=source, pictures=pictures, sections=sections,
        macro_f1=metrics.macro_f1([score for _, score in analysis.per_class]))


def _picture(analysis: ErrorAnalysis, draw: Callable[[ErrorAnalysis, Axes], None],
             inches: tuple[float, float]) -> str:
    figure = Figure(figsize=inches, layout="constrained")
    draw(analysis, figure.subplots())
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return base64.b64encode(data.getvalue()).decode("ascii")


def _reliability(analysis: ErrorAnalysis, axes: Axes) -> None:
    filled = [one for one in analysis.bins if one.rows]
    most = max(one.rows for one in filled)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--", label="as sure as right")
    axes.plot([one.confidence for one in filled], [one.accuracy for one in filled], color="#0969da")
    axes.scatter([one.confidence for one in filled], [one.accuracy for one in filled],
                 s=[20 + 180 * one.rows / most for one in filled], color="#0969da", alpha=0.7,
                 label="answers (area: rows)")
    axes.set(xlabel="score of the answer", ylabel="share that is right", xlim=(0, 1.02),
             ylim=(0, 1.02), title="Can the scores be believed?")
    axes.legend(loc="lower right", fontsize=8)


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


def _confusion(analysis: ErrorAnalysis, axes: Axes) -> None:
    counts = np.array(analysis.confusion)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST_CLASSES]
    chosen = np.sort(order)
    names = [analysis.classes[place] for place in chosen]
    counts = counts[np.ix_(chosen, chosen)]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        for row, column in zip(*np.nonzero(counts)):
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7,
                      color="white" if shares[row, column] > 0.5 else "black")
    size = 7 if len(names) <= NUMBERED else 6
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    few = f" ({len(names)} of {len(analysis.classes)}, the most confused)" if len(
        names) < len(analysis.classes) else ""
    axes.set(xlabel="answer", ylabel="label", title=f"Confusions, share of each label{few}")
    axes.figure.colorbar(image, ax=axes, shrink=0.7)
