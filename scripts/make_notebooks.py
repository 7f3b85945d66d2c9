"""Run notebooks and store them with their outputs: python scripts/make_notebooks.py [NAME ...]

Each runs in an empty folder, as the tests run it, so that no path of this machine is stored; what a
cell writes to standard error is left out.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parent.parent


def run(path: Path) -> float:
    """Execute a notebook and write it back; return the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False,
                                resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return time.perf_counter() - began


def main() -> None:
    """Run those named, or all."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for name in sys.argv[1:] or sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb")):
        print(f"{name}: {run(ROOT / 'notebooks' / name):.1f} s", flush=True)


if __name__ == "__main__":
    main()
