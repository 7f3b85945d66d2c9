"""The command line as a whole: help, versions, exit codes, and what it imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tf_infer.cli.main import main
from tf_infer.version import __version__

ROOT = Path(__file__).resolve().parents[2]
QUESTIONS = ("predict", "status", "inspect", "profile")


@pytest.mark.parametrize("command", QUESTIONS)
def test_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert f"tf-infer {command} " in shown.split("examples:")[1]
    assert "--json" in shown


INTERRUPTED = """
import sys
from tf_infer.cli import main, status
def run(arguments):
    exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
status.run = run
sys.exit(main.main(["status", "intents"]))
"""


def test_ctrl_c_gives_its_exit_code_also_where_python_would_end_by_the_signal(
        tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    ended = subprocess.run(
        [sys.executable, "-m", "interrupted"], capture_output=True, text=True, cwd=tmp_path,
        timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (ended.returncode, ended.stderr) == (130, "tf-infer status: interrupted\n")


def test_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"tf-infer {__version__}\n")
    for name in ("python", "grpcio", "protobuf", "numpy", "tensorflow"):
        assert f"\n{name} " in shown


@pytest.mark.parametrize("words", [[], ["nonsense"], ["status"], ["predict", "m", "--rows", "x"],
                                   ["status", "m", "--model-version", "1", "--label", "a"]])
def test_wrong_usage_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_an_interrupted_command_exits_130(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        """A standard input on which the user presses Ctrl-C."""

        def isatty(self) -> bool:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["predict", "m"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_terminal_without_texts_is_told_what_to_give(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        """A standard input that is a terminal."""

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    assert main(["predict", "m"]) == 1
    assert "TEXT: expected a text, --file, --input" in capsys.readouterr().err


def test_questions_load_no_tensorflow() -> None:
    code = ("import sys\nfrom tf_infer.cli.main import main\n"
            "codes = [main(['inspect', 'tests/golden/inspect']),\n"
            "         main(['status', 'm', '--address', 'localhost:1', '--timeout', '0.2'])]\n"
            "print(codes, [m for m in sys.modules if m.split('.')[0] in "
            "('tensorflow', 'tensorflow_serving', 'keras')])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert done.stdout.splitlines()[-1] == "[0, 1] []"
