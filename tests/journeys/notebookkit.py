"""What the tests of notebooks share: run one to its end as a user would, and read what it said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# Who imports this is skipped without them.
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


def pictures(cells: list[Any]) -> int:
    """Return how many pictures the cells show."""
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
