"""The notebook of optimisation runs to its end: forms are tried, told, and compared."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.journeys.notebookkit import execute, pictures, printed


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_optimisation_notebook_tries_forms_and_compares_them(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `notebooks`")
    cells = execute("04_optimise_and_compare.ipynb", monkeypatch, tmp_path)
    text = printed(cells)
    accuracy = re.search(r"accuracy on 169 unseen messages: ([\d.]+)%", text)
    assert accuracy is not None
    assert float(accuracy[1]) > 35  # 13 intents
    for name in ("reference", "plan (int8|float32)"):  # a row of the table, times and a ratio
        assert re.search(rf"^[>= ] +{name} +[\d.]+( +[\d.]+){{3}} +[\d.]+ ", text, re.M), name
    shares = re.findall(r"times the reference, ([\d.]+) % right", text)
    assert len(shares) == 2
    assert float(shares[0]) == pytest.approx(float(accuracy[1]), abs=0.1)
    assert re.search(r"169 texts, [\d.]+ % with the same label", text)
    assert re.search(r"exit code [01]", text)
    assert pictures(cells) == 2
