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


def pictures(cells: list[Any]) -> int:
    """Return how many pictures the cells show."""
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_notebooks_are_stored_with_pictures_and_without_paths_of_a_machine() -> None:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        outputs = [output for cell in notebook.cells if cell.cell_type == "code"
                   for output in cell.outputs]
        assert any("image/png" in output.get("data", {}) for output in outputs), path.name
        assert "Traceback" not in path.read_text(encoding="utf-8"), path.name
        assert not re.search(r"/(home|root|work)/", path.read_text(encoding="utf-8")), path.name
