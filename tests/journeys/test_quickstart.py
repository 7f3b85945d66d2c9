"""`tf-infer quickstart` as a user runs it: to its end, and stopped at any time."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.server.generationkit import SCRIPT, TEXT, serving
from tf_infer.cli import main, quickstart
from tf_infer.client.client import Client
from tf_infer.manifest import PathReport, Report
from tf_infer.verify.parity import not_compared


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "tf_infer", "quickstart", "--output", str(folder / "models"),
            *more]


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of processes that mention `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_trains_exports_serves_and_answers(tmp_path: Path) -> None:
    ran = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=800)
    assert ran.returncode == 0, ran.stderr[-2000:]
    accuracy = re.search(r"accuracy on the 169 test messages: ([\d.]+)%", ran.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 75
    for label in ("delivery_status", "login_problem", "product_defect", "refund", "invoice"):
        assert re.search(rf"^    {label} \(0\.\d\d\): \S", ran.stdout, re.MULTILINE)
    streamed = re.search(r"a reply as it is written:\n +\S.*\n  in (\d+) pieces, the first after "
                         r"(\d+) ms, the last after (\d+) ms", ran.stdout)
    assert streamed is not None
    assert int(streamed[1]) > 1, "it came all at once"
    assert int(streamed[2]) < int(streamed[3]) < 10_000
    assert "  not compared here: xla; " in ran.stdout
    for name in (quickstart.INTENTS, quickstart.WRITER):
        assert (tmp_path / "models" / name / "1" / "saved_model.pb").is_file()
    assert "what to type next" in ran.stdout
    assert processes_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "moment"), [
    (signal.SIGINT, "importing"), (signal.SIGINT, "train the classifier"),
    (signal.SIGTERM, "verify and export"), (signal.SIGHUP, "train the decoder")])
def test_a_signal_ends_it_at_once_and_leaves_nothing_half_written(
        number: signal.Signals, moment: str, tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for line in process.stdout:
        if moment in line:
            break
    time.sleep(1.0)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-2000:]
    assert "quickstart: interrupted" in errors
    assert "Traceback" not in errors
    models = tmp_path / "models"
    for version in models.glob("*/[0-9]*"):  # what had been finished before is whole
        assert (version / "assets.extra" / "report.json").is_file()
    assert list(models.glob("*/.tmp-*")) == []
    assert processes_of(tmp_path) == []


def test_a_port_that_another_process_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main.main(["quickstart", "--port", str(port)]) == 1
    assert f"--port: expected one that can be opened, got {port}" in capsys.readouterr().err


def test_a_port_out_of_range_is_refused_before_anything_is_done(
        capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["quickstart", "--port", "70000"]) == 1
    assert "--port: expected 0 to 65535, got 70000" in capsys.readouterr().err


def test_a_reply_is_shown_as_it_is_written(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quickstart, "WRITER", "writer")
    with serving(tmp_path) as one, Client(one.server.addresses[0]) as client:
        quickstart._stream(client)
        asked = one.writer.requests[-1]
    assert asked.prompt.decode() == f"delivery_status: {quickstart.QUESTIONS[0]} =>"
    shown = re.fullmatch(r"  a reply as it is written:\n    (.*)\n  in (\d+) pieces, the first "
                         r"after (\d+) ms, the last after (\d+) ms\n", capsys.readouterr().out)
    assert shown is not None
    assert shown[1] == TEXT
    assert 1 <= int(shown[2]) <= len(SCRIPT)
    assert int(shown[3]) <= int(shown[4])


def test_it_says_which_paths_it_has_not_compared() -> None:
    paths = (PathReport(path="saved_model", atol=1e-4, rtol=1e-4, samples=9, seconds=1.0,
                        differences=()),
             *itertools.starmap(not_compared, quickstart.SKIPPED_OF_WRITER.items()))
    assert quickstart._compared(Report(reference="eager", paths=paths)) == [
        "equal to the model run op by op: saved_model",
        *(f"not compared here: {name}; {why}"
          for name, why in quickstart.SKIPPED_OF_WRITER.items())]


def test_every_message_has_a_reply_of_its_intent_and_language() -> None:
    messages, replies = quickstart._rows("train"), quickstart._rows("replies")
    known = {row["text"]: (row["label"], row["language"]) for row in replies}
    for row, dialogue in zip(messages, quickstart._dialogues()):
        prompt, reply = dialogue.text.split(" => ")
        assert prompt == f"{row['label']}: {row['text']}"
        assert known[reply] == (row["label"], row["language"])
