"""Ctrl-C in the middle of commands that take minutes: what they made for themselves goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tasks import small
from tf_infer.tasks import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEXTS = ("where is my parcel", "支付 失败", "something else", "late", "a b c d e f g h")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.save(build.build(small.CLASSIFIER, seed=1),
                      tmp_path_factory.mktemp("models") / "model")


def interrupted(folder: Path, reached: Callable[[], bool], *words: str) -> str:
    """Run a command, press Ctrl-C once it has reached something; return what it said."""
    (folder / "tmp").mkdir()
    (folder / "texts.txt").write_text("\n".join(TEXTS))
    process = subprocess.Popen([sys.executable, "-m", "tf_infer", *words], text=True,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               env={**os.environ, "TMPDIR": str(folder / "tmp")})
    try:
        until = time.monotonic() + 200
        while not reached():
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    return said


def test_an_export_leaves_no_folder(model: Path, tmp_path: Path) -> None:
    base = tmp_path / "saved"
    interrupted(tmp_path, lambda: bool(list((tmp_path / "tmp").glob("tf-infer-*/model"))),
                "export", str(model), "--base-dir", str(base), "--texts",
                str(tmp_path / "texts.txt"), "--no-xla", "--max-rows", "1")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in base.iterdir()] == [".last_version"]


def test_a_search_leaves_no_folder_beside_what_is_done(model: Path, tmp_path: Path) -> None:
    search = tmp_path / "search"
    interrupted(tmp_path, lambda: bool(list(search.rglob(".tmp-*"))),
                "optimize", str(model), "--texts", str(tmp_path / "texts.txt"), "--output",
                str(search), "--plans", "plan float32", "--no-xla", "--no-picture")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not list(search.rglob(".tmp-*"))
