"""The notebook of constraints and streams runs to its end, and says what it should."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.journeys.notebookkit import execute, pictures, printed


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_constraints_notebook_writes_nothing_but_valid_tickets(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("outlines_core", reason="needs the extra `constraints`")
    pytest.importorskip("openai", reason="needs the package openai")
    cells = execute("03_constrained_and_streaming.ipynb", monkeypatch, tmp_path)
    text = printed(cells)
    right = re.search(r"^(\d+)% of 85 unseen messages right, guessing: \d+%$", text, re.MULTILINE)
    assert right is not None
    assert float(right[1]) > 20  # guessing gives 8
    assert len(re.findall(r"^[A-Z]{2}-[0-9]{4}$", text, re.MULTILINE)) == 4
    assert re.search(r"^valid, schema: .*100%", text, re.MULTILINE)
    assert "['tickets']" in text
    assert pictures(cells) >= 2
