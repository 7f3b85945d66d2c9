"""Commands that need TensorFlow say so before they do anything; its notes are left out."""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tf_infer.cli import backend, main
from tf_infer.errors import BackendMissing


def without(*missing: str) -> Any:
    def find_spec(name: str) -> Any:
        return None if name in missing else object()
    return find_spec


def test_an_old_python_is_named() -> None:
    with pytest.raises(BackendMissing, match=r"expected 3\.11 to 3\.13 for 'train'.*got 3\.10"):
        backend.require_models("train", python=(3, 10))
    backend.require_models("predict", python=(3, 10))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without("tensorflow_text"))
    with pytest.raises(BackendMissing, match=r"tensorflow_text.*pip install 'tf_infer\[server\]'"):
        backend.require_models("serve", python=(3, 11))
    backend.require_models("status", python=(3, 11))


def test_every_command_that_needs_a_package_exists() -> None:
    assert set(backend.NEEDS) <= set(main.COMMANDS)
    assert set(main.ASK_THEMSELVES) <= set(backend.NEEDS)


@pytest.mark.parametrize("words", [["quickstart"], ["train", "runs/x"],
                                   ["export", "x", "--base-dir", "y"],
                                   ["serve", "--model_base_path=/models/m"]])
def test_a_command_without_tensorflow_says_what_to_install(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
        ) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without("tensorflow"))
    assert main.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"tf-infer {words[0]}: ")
    assert "pip install 'tf_infer[" in said or "Use a newer Python" in said


def test_a_command_that_traces_graphs_collects_seldom_and_a_server_as_ever(
        monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, ...]] = []
    monkeypatch.setattr(gc, "set_threshold", lambda *values: set_to.append(values))
    for name in ("require_models", "load_tensorflow"):
        monkeypatch.setattr(main, name, lambda *_: None)
    monkeypatch.setattr(main.importlib, "import_module", lambda _: SimpleNamespace(
        configure=lambda parser: parser.add_argument("words", nargs="*"), run=lambda _: 0))
    for command in ("status", "serve", "predict"):
        assert main.main([command]) == 0
    assert set_to == []
    assert main.main(["verify"]) == 0
    assert len(set_to) == 1 and set_to[0][0] > 10_000


@pytest.mark.parametrize(("words", "code", "shown"), [
    (["serve", "--help"], 255, "--model_base_path="), (["serve", "-h"], 0, "examples:"),
    (["serve", "--version"], 0, "TensorFlow Library: "),
    (["serve", "--port=abc"], 255, "Failed to start server. Error: INVALID_ARGUMENT"),
    (["serve", "--saved_models={tmp}", "--write_tf_serving_config={tmp}/out"], 0, "models.config")])
def test_what_serve_does_without_tensorflow(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any,
        words: list[str], code: int, shown: str) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", without("tensorflow"))
    assert main.main([word.format(tmp=tmp_path) for word in words]) == code
    assert shown in capsys.readouterr().out


NOTES = (b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
         b"I0000 00:00:1795552336.676501   29004 port.cc:153] oneDNN custom operations are on.\n"
         b"E0000 00:00:1795552481.972448   30019 cuda_platform.cc:52] failed call to cuInit: 303\n")
FAULT = b"E0000 00:00:1795552481.972448   30019 file.cc:5] out of memory\n"


@pytest.mark.parametrize("level", [None, "0"])
def test_notes_of_the_import_are_left_out_unless_the_user_wants_them(
        monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], level: str | None
        ) -> None:
    class Noisy:
        """Stands for TensorFlow: writes its notes, and a fault, to the file of standard error."""

        def __init__(self) -> None:
            os.write(2, NOTES + FAULT)
            self.config = self

        def list_physical_devices(self) -> None:
            pass

    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    monkeypatch.delenv(backend.LOG_LEVEL, raising=False)
    if level is not None:
        monkeypatch.setenv(backend.LOG_LEVEL, level)
    monkeypatch.setattr(backend.importlib, "import_module", lambda name: Noisy())
    backend.load_tensorflow()
    assert os.environ[backend.LOG_LEVEL] == (level or "2")
    shown = capfd.readouterr().err
    assert shown == ("" if level else FAULT.decode())
