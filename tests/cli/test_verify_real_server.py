"""`tf-infer verify` asks tensorflow_model_server where that is on PATH; here a stand-in for it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.fakes import model_server
from tf_infer.cli.main import main
from tf_infer.cli.real_server import RealServer
from tf_infer.errors import InvalidRequest, ServerUnavailable
from tf_infer.manifest import EXTRA_FOLDER, GOLDEN_FILE, Sample, write_samples
from tf_infer.server.launcher import BINARY

TEXTS = np.array([b"a", b"a secret"], object)


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SavedModel that gives its texts back, and a stand-in on PATH that does the same."""
    module = tf.Module()
    echo = tf.function(lambda text: {"text": tf.identity(text)}, autograph=False,
                       input_signature=[tf.TensorSpec([None], tf.string, "text")])
    folder = tmp_path / "echo" / "7"
    tf.saved_model.save(module, str(folder), {"serving_default": echo.get_concrete_function()})
    (folder / EXTRA_FOLDER).mkdir()
    write_samples([Sample("serving_default", {"text": TEXTS}, {"text": TEXTS})],
                  folder / EXTRA_FOLDER / GOLDEN_FILE)
    (tmp_path / "bin").mkdir()
    model_server.write(tmp_path / "bin" / BINARY)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return folder


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["verify", str(folder), "--json"])
    report = json.loads(capsys.readouterr().out)["report"]
    return code, {path["path"]: path for path in report["paths"]}


@pytest.mark.process
def test_the_real_server_is_started_asked_and_ended(
        version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_RECORD", str(tmp_path / "told.json"))
    code, paths = verified(version, capsys)
    told = json.loads((tmp_path / "told.json").read_text())
    assert code == 0
    assert paths[BINARY]["samples"] == 1
    assert paths[BINARY]["differences"][0]["elements"] == 2
    assert told[:2] == ["--port=0", "--model_name=echo"]
    base = Path(told[2].partition("=")[2])
    assert not base.exists()  # it has ended, and what it was told is gone
    assert not [line for line in _processes() if str(base) in line]


def _processes() -> list[str]:
    return [path.read_bytes().decode("utf-8", "replace")
            for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]


@pytest.mark.process
def test_other_answers_of_the_real_server_are_a_difference(
        version: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (version / "wrong").touch()
    code, paths = verified(version, capsys)
    assert code == 1
    assert paths[BINARY]["differences"][0]["mismatches"] == 2
    assert paths["grpc"]["differences"][0]["first_sample"] is None


@pytest.mark.process
def test_a_server_that_ends_or_would_not_run_the_version_is_told(
        version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MODE", "die")
    with pytest.raises(ServerUnavailable, match="ended with code 7"):
        RealServer(version, "echo")
    (version / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(InvalidRequest, match="would not run what it is to load"):
        RealServer(version, "echo")
