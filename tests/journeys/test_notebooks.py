"""The notebook of a classifier runs to its end; all notebooks are stored as they should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.journeys.notebookkit import ROOT, execute, nbformat, printed


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_classifier_notebook_trains_proves_serves_and_asks(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cells = execute("01_text_classifier.ipynb", monkeypatch, tmp_path)
    text = printed(cells)
    accuracy = re.search(r"accuracy on 169 unseen messages: ([\d.]+)%", text)
    assert accuracy is not None
    assert float(accuracy[1]) > 75
    for path in ("graph", "saved_model", "session", "grpc"):
        assert re.search(rf"^{path}\s.*\bok\b", text, re.MULTILINE), f"{path} is not in the table"
    assert "saved_model.pb" in text
    assert "    delivery_status 0." in text
    assert "    login_problem 0." in text
    assert "    refund 0." in text
    assert "[b'product_defect']" in text
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_notebooks_are_stored_with_pictures_and_without_paths_of_a_machine() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code"
                   for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) for output in outputs), path.name
        assert "Traceback" not in path.read_text(encoding="utf-8"), path.name
        assert not re.search(r"/(home|root|work)/", path.read_text(encoding="utf-8")), path.name
