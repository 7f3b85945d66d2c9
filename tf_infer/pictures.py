"""Pictures of how good answers are: can scores be believed, what is taken for what. Matplotlib

Nothing here opens a window: figures are drawn into bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tf_infer.metrics import Bin

MOST_CLASSES = 40  # of the picture of confusions; those that are confused most
NUMBERED = 15  # with more classes their counts are not written into the cells
BLUE, ORANGE = "#0969da", "#bc4c00"


def png(draw: Callable[[Axes], None], inches: tuple[float, float], *, dpi: int = 110) -> bytes:
    """Return what is drawn as a PNG file."""
    figure = Figure(figsize=inches, layout="constrained")
    draw(figure.subplots())
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    return data.getvalue()


def reliability(axes: Axes, bins: Sequence[Bin], *, label: str = "answers", color: str = BLUE
                ) -> None:
    """Draw a reliability diagram (`metrics.reliability`); again into the same axes to compare."""
    filled = [one for one in bins if one.rows]
    most = max((one.rows for one in filled), default=1)
    sure, right = [one.confidence for one in filled], [one.accuracy for one in filled]
    if not axes.lines:
        axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--",
                  label="as sure as right")
    axes.plot(sure, right, color=color)
    axes.scatter(sure, right, s=[20 + 180 * one.rows / most for one in filled], color=color,
                 alpha=0.7, label=f"{label} (area: rows)")
    axes.set(xlabel="score of the answer", ylabel="share that is right", xlim=(0, 1.02),
             ylim=(0, 1.02), title="Can the scores be believed?")
    axes.legend(loc="best", fontsize=8)  # whichever corner the points leave free


def confusion_inches(classes: int) -> tuple[float, float]:
    """Return a size for the picture of confusions among so many classes."""
    size = 3.0 + 0.22 * min(MOST_CLASSES, classes)
    return size + 1.5, size


def confusion(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Draw what is taken for what.

    Args:
        axes: empty.
        counts: [C, C] int, rows of label i that were answered with j.
        classes: names in that order; of many those are shown that are confused most.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")[:MOST_CLASSES]
    chosen = np.sort(order)
    names = [classes[place] for place in chosen]
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
    few = f" ({len(names)} of {len(classes)}, the most confused)" if len(
        names) < len(classes) else ""
    axes.set(xlabel="answer", ylabel="label", title=f"Confusions, share of each label{few}")
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, shrink=0.7)
