"""Pictures say what they are given: lines, areas, names; and become PNG files."""

from __future__ import annotations

import io

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib", reason="needs the extra `report`")

from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from tf_infer import pictures  # noqa: E402
from tf_infer.metrics import Bin  # noqa: E402

BINS = (Bin(0, 0.0, 0.0), Bin(10, 0.3, 0.2), Bin(40, 0.9, 0.7))


def test_a_reliability_diagram_shows_filled_bins_and_can_hold_two() -> None:
    axes = Figure().subplots()
    pictures.reliability(axes, BINS, label="before")
    pictures.reliability(axes, BINS[1:], label="after", color=pictures.ORANGE)
    diagonal, before, after = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert before.get_xydata().tolist() == after.get_xydata().tolist() == [[0.3, 0.2], [0.9, 0.7]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["as sure as right", "before (area: rows)", "after (area: rows)"]


def test_of_many_classes_the_most_confused_are_shown() -> None:
    count = pictures.MOST_CLASSES + 5
    counts = np.eye(count, dtype=int) * 9
    counts[-1, -2] = 7
    axes = Figure().subplots()
    pictures.confusion(axes, counts, [f"class {number}" for number in range(count)])
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert len(shown) == pictures.MOST_CLASSES
    assert {"class 43", "class 44"} <= set(shown)
    assert f"({pictures.MOST_CLASSES} of {count}, the most confused)" in axes.get_title()


def test_few_classes_have_their_counts_in_the_cells() -> None:
    axes = Figure().subplots()
    pictures.confusion(axes, np.array([[3, 1], [0, 2]]), ["a", "b"])
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "3"]
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_a_picture_is_a_png_of_the_size_asked_for() -> None:
    made = pictures.png(lambda axes: pictures.reliability(axes, BINS), (3.0, 2.0), dpi=50)
    picture = Image.open(io.BytesIO(made))
    assert (picture.format, picture.size) == ("PNG", (150, 100))
    assert len(np.unique(np.asarray(picture))) > 10
