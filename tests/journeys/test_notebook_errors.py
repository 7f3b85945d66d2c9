"""The notebook of errors and explanations runs to its end and shows what it promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.journeys.notebookkit import execute, pictures, printed


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_notebook_of_errors_finds_them_mends_scores_and_explains_answers(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra `report`")
    cells = execute("05_errors_and_explanations.ipynb", monkeypatch, tmp_path)
    text = printed(cells)
    accuracy = re.search(r"([\d.]+)% of 169 messages are right", text)
    assert accuracy is not None and float(accuracy[1]) > 70
    mended = re.search(r"calibration error ([\d.]+) -> ([\d.]+), accuracy ([\d.]+)% -> ([\d.]+)%",
                       text)
    assert mended is not None
    assert float(mended[2]) < float(mended[1]) and mended[3] == mended[4]
    error = re.search(r"largest completeness error: ([\d.e-]+) nats", text)
    assert error is not None and float(error[1]) < 0.1
    assert pictures(cells) == 5
    coloured = [output["data"]["text/html"] for cell in cells for output in cell.outputs
                if "text/html" in output.get("data", {})]
    assert len(coloured) == 3 + 2 + 3
    assert all("rgba(" in one for one in coloured)
    assert sum("log-probability" in one for one in coloured) == 3
