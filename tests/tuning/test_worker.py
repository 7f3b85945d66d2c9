"""The process of a search: what is timed, what a failure says, and how it ends."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.tuning_builder import REPORT
from tf_infer.config import to_json
from tf_infer.errors import ServerFailure
from tf_infer.tuning import judge
from tf_infer.tuning.build import BuildOrder
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE
from tf_infer.tuning.measure import stepped, texts
from tf_infer.tuning.process import LOG_FILE, Process, WorkerFailed
from tf_infer.tuning.worker import Worker, serve, timed

ROWS = [["a"], ["b"], ["c"], ["d"], ["e"]]
BUILDER = "tests.fakes.tuning_builder:build"
GIVEN = 10_000  # for each text


class FakeOpened:
    """Answers nothing, and remembers what it was asked."""

    def __init__(self, path: Path, *, new_tokens: int) -> None:
        self.path, self.new_tokens = path, new_tokens
        self.asked: list[list[str]] = []
        self.closed = False

    def ask(self, rows: Sequence[Sequence[str]]) -> int:
        self.asked.append([row[0] for row in rows])
        if "bad" in self.asked[-1]:
            raise ValueError("a text: bad")
        time.sleep(0.002)
        return GIVEN * len(rows)

    def answers(self, rows: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
        return {"labels": np.array([row[0] for row in rows])}

    def close(self) -> None:
        self.closed = True


def order(model: str) -> Any:
    return to_json(BuildOrder(model=model, candidate=REFERENCE_CANDIDATE, base_dir="/nowhere",
                              name="m", texts="t"))


def test_calls_go_through_the_texts_and_begin_where_they_are_told() -> None:
    opened = FakeOpened(Path("."), new_tokens=1)
    seconds = timed(opened, ROWS, batch=2, start=1, calls=3)
    assert opened.asked == [["c", "d"], ["e", "a"], ["b", "c"]]
    assert len(seconds) == 3
    assert all(0.002 <= one * 2 * GIVEN < 20.0 for one in seconds)  # over all that a call gave


def test_lines_are_answered_and_failures_are_answers_without_texts(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[FakeOpened] = []

    def open_version(path: Path, *, new_tokens: int) -> FakeOpened:
        opened.append(FakeOpened(path, new_tokens=new_tokens))
        return opened[0]

    asked = [{"do": "open", "with": ["/v/1", [["a"], ["bad"]], 7]},
             {"do": "time", "with": [1, 0, 1]}, {"do": "time", "with": [1, 1, 1]},
             {"do": "answer", "with": [1, str(tmp_path / "a.npz")]},
             {"do": "build", "with": [BUILDER, order("differs")]},
             {"do": "build", "with": [BUILDER, order("ours")]}]
    channel = io.StringIO()
    serve(Worker(open_version), [json.dumps(one) for one in asked], channel)
    found = [json.loads(line) for line in channel.getvalue().splitlines()]
    assert found[0]["resident_bytes"] > 1_000_000
    assert len(found[1]["seconds"]) == 1
    assert found[2] == {"failed": "ValueError (what it says is in its log)"}
    assert judge.read(tmp_path / "a.npz")["labels"].tolist() == ["a"]
    assert found[4] == {"failed": "logits differ.", "report": to_json(REPORT)}
    assert found[5] == {"failed": "model: expected a good one, got 'ours'."}
    assert opened[0].closed and opened[0].new_tokens == 7
    assert "a text: bad" in capsys.readouterr().err  # in the log alone


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path, builder=BUILDER, rows=ROWS, answered=3, new_tokens=4)
    with contextlib.closing(made):
        yield made


@pytest.mark.process
def test_a_process_builds_fails_in_words_and_dies_with_a_name(
        process: Process, tmp_path: Path) -> None:
    def build(model: str) -> Path:
        return process.build(BuildOrder(model=model, candidate=REFERENCE_CANDIDATE,
                                        base_dir=str(tmp_path), name="m", texts="t"))

    assert build("good") == tmp_path / "1"
    with pytest.raises(WorkerFailed, match="logits differ") as caught:
        build("differs")
    assert caught.value.report == to_json(REPORT)
    with pytest.raises(WorkerFailed, match=rf"its process ended with SIGKILL, as the system does "
                                           rf"when memory runs out \(log: {tmp_path}/log.txt\)"):
        build("dies")
    assert "printed while it was built" in (tmp_path / LOG_FILE).read_text()


@pytest.mark.process
def test_a_process_that_is_ended_in_the_middle_leaves_no_temporary_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    made = Process(tmp_path, builder=BUILDER, rows=[], answered=0, new_tokens=0)
    failures: list[WorkerFailed] = []

    def build() -> None:
        with pytest.raises(WorkerFailed) as caught:
            made.build(BuildOrder(model="sleeps", candidate=REFERENCE_CANDIDATE, base_dir="",
                                  name="m", texts="t"))
        failures.append(caught.value)

    thread = threading.Thread(target=build)
    with contextlib.closing(made):
        thread.start()
        for _ in range(600):  # until it is in the middle of its work
            if "printed while it was built" in (tmp_path / LOG_FILE).read_text():
                break
            time.sleep(0.1)
        assert [path for path in (tmp_path / "tmp").rglob("*") if path.name.startswith("tmp")]
    thread.join(timeout=60)
    assert len(failures) == 1
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.process
def test_a_process_ends_with_its_parent_however_that_ended(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from tf_infer.tuning.build import BuildOrder\n"
        "from tf_infer.tuning.candidates import REFERENCE_CANDIDATE\n"
        "from tf_infer.tuning.process import Process\n"
        f"made = Process(Path({str(tmp_path)!r}), builder={BUILDER!r}, rows=[], answered=0,\n"
        "               new_tokens=0)\n"
        "print(made._process.pid, flush=True)\n"
        "made.build(BuildOrder(model='sleeps', candidate=REFERENCE_CANDIDATE, base_dir='',\n"
        "                      name='m', texts='t'))\n")
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        for _ in range(600):  # until it is in the middle of its work
            if "printed while it was built" in (tmp_path / LOG_FILE).read_text():
                break
            time.sleep(0.1)
        os.kill(child, 0)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "State:\tZ" in Path(
                f"/proc/{child}/status").read_text():
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        pytest.fail("the process outlived its parent")


class FakeSteps:
    """Says that the next id is `id + 1`, surer in later slots; refuses a wrong position."""

    slots, vocab_size = 4, 6

    def __init__(self) -> None:
        self.held = np.zeros(self.slots, int)

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        logits = np.zeros((self.slots, self.vocab_size), np.float32)
        for slot in active:
            assert lengths[slot] == self.held[slot]
            self.held[slot] += 1
            logits[slot, (tokens[slot] + 1) % self.vocab_size] = 1.0 + slot
        return logits


def test_given_ids_pass_through_an_engine_and_only_those_that_count_are_told() -> None:
    rows = [(np.array([0, 1, 2, 0]), np.array([False, True, True, True])),
            (np.array([3, 4]), np.array([False, True])),
            (np.array([5, 0, 1]), np.array([False, False, True]))]
    found = stepped(FakeSteps(), rows)
    assert [count for _, count in found] == [3, 1, 1]

    def log_prob(slot: int, *, right: bool) -> float:
        best = np.exp(1.0 + slot)
        return float(np.log((best if right else 1.0) / (best + 5)))

    np.testing.assert_allclose(found[0][0], [log_prob(0, right=True), log_prob(0, right=True),
                                             log_prob(0, right=False)], rtol=1e-6)
    np.testing.assert_allclose(found[1][0], [log_prob(1, right=True)], rtol=1e-6)
    np.testing.assert_allclose(found[2][0], [log_prob(2, right=True)], rtol=1e-6)


def test_texts_become_bytes() -> None:
    assert texts(["ä", b"\xff", "\ud800"]).tolist() == ["ä".encode(), b"\xff", b"\xed\xa0\x80"]


def test_an_error_of_a_request_is_raised_where_it_is_waited_for() -> None:
    from tf_infer.server.generation import Piece
    from tf_infer.tuning.measure import _Waiting

    waiting = _Waiting(2)
    waiting.hear(Piece(text=b"x"))
    waiting.hear(Piece(text=b"", finish_reason="length", new_tokens=3))
    waiting.hear(Piece(text=b"", finish_reason="stop", new_tokens=4))
    assert waiting.tokens() == 7
    waiting = _Waiting(1)
    waiting.hear(ServerFailure("broken"))
    with pytest.raises(ServerFailure, match="broken"):
        waiting.tokens()
