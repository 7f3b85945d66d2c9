"""Watchers of a run: what TensorBoard and Weights & Biases are told, and that texts stay out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks import small
from tf_infer.cli.main import main
from tf_infer.config import ClassifierConfig, EmbeddingBagConfig, TrainConfig
from tf_infer.tasks import build
from tf_infer.tasks.base import Task
from tf_infer.train import loop, watch
from tf_infer.train.data import Example

CONFIG = ClassifierConfig(
    classes=("a", "b"), packing=small.PACKING, grid=small.GRID,
    network=EmbeddingBagConfig(width=8, hash_buckets=50))
TRAIN = TrainConfig(epochs=2, batch_rows=8, validation_fraction=0.0, patience=None)
SECRET = "unmistakable"


def examples(count: int, word: str = "text") -> list[Example]:
    return [Example(f"{word} {n} {'good' if n % 2 else 'bad'}", labels=("ab"[n % 2],))
            for n in range(count)]


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def started(self, task: Task, config: TrainConfig, step: Any) -> None:
        self.calls.append(("started", len(step().get_operations()) > 0))

    def epoch(self, told: watch.Epoch) -> None:
        self.calls.append(told)

    def ended(self) -> None:
        self.calls.append("ended")


def test_a_watcher_is_told_of_each_epoch_with_the_answers_and_of_the_end() -> None:
    told, task = Told(), build.build(CONFIG, seed=1)
    history = loop.fit(task, examples(20), TRAIN, validation=examples(12), watchers=[told])
    start, first, second, end = told.calls
    assert (start, end) == (("started", True), "ended")
    assert (first.number, first.steps, second.number, second.steps) == (1, 3, 2, 6)
    assert second.found == history.epochs[1]
    assert second.answers.shape == (12, 2)
    right = float((second.answers.argmax(axis=1) == second.targets).mean())
    assert right == history.epochs[1]["validation"]["accuracy"]
    numbers = list(watch.scalars(second))
    assert [(name, step) for name, _, step in numbers[:3]] == [
        ("train/step_loss", step) for step in (4, 5, 6)]
    assert ("validation/accuracy", right, 6) in numbers


def test_an_interrupted_run_ends_for_its_watchers_too() -> None:
    class Breaks(Told):
        def epoch(self, told: watch.Epoch) -> None:
            raise KeyboardInterrupt

    told, breaks = Told(), Breaks()
    with pytest.raises(KeyboardInterrupt):
        loop.fit(build.build(CONFIG, seed=1), examples(20), TRAIN, watchers=[told, breaks])
    assert told.calls[-1] == breaks.calls[-1] == "ended"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    build.save(build.build(CONFIG, seed=1), folder / "model")
    for name, rows in (("train", examples(24)), ("dev", examples(12, SECRET))):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(
            {"text": row.text, "label": row.labels[0]}) for row in rows))
    return folder


def events(folder: Path) -> dict[str, dict[int, Any]]:
    """Return tag -> step -> value of all event files of a folder; the graph as the tag "graph"."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            if event.graph_def:
                found.setdefault("graph", {})[event.step] = event.graph_def
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = tensor_util.make_ndarray(value.tensor)
    return found


def train(files: Path, *words: str) -> int:
    return main(["train", str(files / "model"), "--data", str(files / "train.jsonl"), "--quiet",
                 "--validation", str(files / "dev.jsonl"), "--epochs", "2", "--batch-rows", "8",
                 *words])


def test_tensorboard_gets_numbers_graph_settings_and_pictures_but_no_text(
        files: Path, tmp_path: Path) -> None:
    assert train(files, "--run-dir", str(tmp_path / "run"), "--tensorboard",
                 str(tmp_path / "board")) == 0
    found = events(tmp_path / "board")
    assert sorted(found["train/step_loss"]) == [1, 2, 3, 4, 5, 6]
    assert sorted(found["validation/accuracy"]) == [3, 6]
    assert b"embedding" in found["graph"][0] or b"words" in found["graph"][0]
    assert "epochs | 2" in str(found["settings/train"][0])
    for name in ("reliability", "confusion"):
        width, height, png = found[f"validation/{name}"][6]
        assert int(width) > 300 and int(height) > 200 and png.startswith(b"\x89PNG")
    assert "samples" not in found
    for path in tmp_path.rglob("events.*"):
        assert SECRET.encode() not in path.read_bytes()
    assert sorted(events(tmp_path / "run")) == sorted(
        tag for tag in found if tag.startswith(("train/", "validation/"))
        and tag not in ("validation/reliability", "validation/confusion"))


def test_texts_are_written_when_they_are_asked_for(files: Path, tmp_path: Path) -> None:
    assert train(files, "--run-dir", str(tmp_path / "run"), "--tensorboard",
                 str(tmp_path / "board"), "--tensorboard-texts", "3") == 0
    table = events(tmp_path / "board")["samples"][6].item().decode()
    lines = table.splitlines()
    assert lines[0] == "| text | answer | score |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        f"| {row.text}" for row in examples(3, SECRET)]
    assert {line.split(" | ")[1] for line in lines[2:]} <= {"a", "b"}


def test_texts_without_a_place_or_a_source_are_refused(
        files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(files, "--run-dir", str(tmp_path / "run"), "--tensorboard-texts", "3") == 1
    assert "--tensorboard-texts: expected a number >= 0, with --tensorboard" in (
        capsys.readouterr().err)


def test_a_table_keeps_its_form_whatever_the_texts_hold() -> None:
    task = build.build(small.MULTI_LABEL_PAIR, seed=1)
    table = watch.Samples(task, [(b"a|b\nc", b"\xff"), (b"x" * 1000, None)]).table().splitlines()
    assert table[0] == "| text | text_pair | answer | score |"
    assert table[2].startswith("| a\\|b c | \ufffd | ")
    assert len(table) == 4 and len(table[3]) < 400


def test_pictures_of_several_labels_are_a_reliability_diagram_alone() -> None:
    told = watch.Epoch(number=1, steps=1, losses=[1.0], found={}, answers=np.zeros((4, 2)),
                       targets=np.eye(2)[[0, 1, 0, 1]])
    assert set(watch.pictures(told, small.MULTI_LABEL_PAIR)) == {"reliability"}
    assert watch.pictures(told, small.DECODER) == {}


def test_without_wandb_the_install_is_named(
        files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert train(files, "--run-dir", str(tmp_path), "--wandb", "project") == 1
    assert "pip install 'tf_infer[wandb]'" in capsys.readouterr().err


def test_weights_and_biases_writes_files_offline(
        files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train(files, "--run-dir", str(tmp_path), "--wandb", "project") == 0
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("run-*.wandb")
    content = log.read_bytes()
    assert b"validation/accuracy" in content and b"project" in content
    assert SECRET.encode() not in content
    assert {path.name.split("_")[0] for path in run.rglob("*.png")} == {"reliability", "confusion"}
