"""The notebook of profiles runs to its end: TensorBoard's files are read, a server is recorded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.journeys.notebookkit import execute, pictures, printed


@pytest.mark.notebook
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_notebook_of_profiles_trains_records_and_reads_back(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = printed(cells := execute("06_profile_with_tensorboard.ipynb", monkeypatch, tmp_path))
    accuracy = re.search(r"accuracy on 169 unseen messages: ([\d.]+)%", text)
    assert accuracy is not None and float(accuracy[1]) > 45  # eight epochs alone
    for tag in ("train/step_loss", "validation/accuracy", "validation/confusion", "samples"):
        assert re.search(rf"^{tag} +\d+ steps$", text, re.MULTILINE), tag
    assert "| text | answer | score |" in text
    share = re.search(r"^a run +tokenizer ([\d.]+) %, network ([\d.]+) %", text, re.MULTILINE)
    assert share is not None and float(share[2]) > 10
    assert re.search(r"^load +8 callers, closed loop: [\d.]+ answers/s", text, re.MULTILINE)
    assert ".xplane.pb" in text
    assert pictures(cells) == 3
