"""Every notebook runs to its end, as a user would run it, and says what it should."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebooks`")
nbclient = pytest.importorskip("nbclient", reason="needs the extra `notebooks`")


def execute(name: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Any]:
    """Run a notebook in `folder`; return its code cells with their outputs."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3",
                            resources={"metadata": {"path": str(folder)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells: list[Any]) -> str:
    """Return all that the cells wrote to standard output."""
    return "".join(output.text for cell in cells for output in cell.outputs
                   if output.output_type == "stream" and output.name == "stdout")


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
