"""The notebook of text generation runs to its end, and says what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.journeys.notebookkit import execute, pictures, printed


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_generation_notebook_draws_what_it_computes(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = execute("02_text_generation.ipynb", monkeypatch, tmp_path)
    text = printed(cells)
    losses = re.search(r"loss by epoch, nats a token: (.*)", text)
    assert losses is not None
    first, *_, last = map(float, losses[1].split())
    assert last < 0.5 * first
    apart = re.search(r"largest difference: ([\d.]+)", text)
    assert apart is not None
    assert float(apart[1]) < 0.1  # 512 draws of 0.5: 0.022 of standard error
    alone, crowd = (re.search(rf"^{name}: +(.*)$", text, re.MULTILINE)
                    for name in ("alone", "between strangers"))
    assert alone is not None and crowd is not None
    assert alone[1] and alone[1] == crowd[1]
    assert pictures(cells) >= 3
