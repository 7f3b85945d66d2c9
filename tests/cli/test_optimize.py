"""`tf-infer optimize` before any model is loaded: its words, its files, and what it refuses."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tf_infer import config
from tf_infer.cli import optimize, texts
from tf_infer.cli.main import main
from tf_infer.config import CausalLMConfig, ClassifierConfig, ShapeGrid
from tf_infer.errors import ConfigError, DataError
from tf_infer.tuning.state import Folder

CLASSIFIER = ClassifierConfig(classes=("no", "yes"), grid=ShapeGrid(rows=(1,), tokens=(128,)))
DECODER = CausalLMConfig(grid=ShapeGrid(rows=(1,), tokens=(128,)))


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("word", "seconds"), [
    ("90s", 90), ("5m", 300), ("1h", 3600), ("300", 300), (" 0.5 M ", 30)])
def test_times_are_read(word: str, seconds: float) -> None:
    assert optimize.read_duration(word) == seconds


@pytest.mark.parametrize("word", ["", "5x", "-1s", "0", "m", "1e9", "8000h", "1h30"])
def test_what_is_no_time_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="--budget: expected a time such as 90s, 5m or 1h"):
        optimize.read_duration(word)


def test_drops_are_points_with_or_without_a_sign() -> None:
    assert optimize.read_drop("0.5%") == optimize.read_drop("0.5") == 0.5
    for word in ("x", "-1", "101", "", "nan"):
        with pytest.raises(ConfigError, match="--max-drop: expected points from 0 to 100"):
            optimize.read_drop(word)


def test_a_task_is_read_from_a_folder_or_a_file(tmp_path: Path) -> None:
    config.dump(CLASSIFIER, tmp_path / "task.json")
    assert optimize.read_task(tmp_path) == optimize.read_task(tmp_path / "task.json") == CLASSIFIER
    with pytest.raises(ConfigError, match="MODEL: expected a model directory"):
        optimize.read_task(tmp_path / "none")


def test_texts_come_in_the_order_of_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", *({"text": str(number)} for number in range(20)))
    first, again, other = (
        [one.text for one in optimize.read_examples(path, CLASSIFIER, seed=seed)]
        for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other)


def test_lines_of_a_plain_text_are_texts_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\n  \ntwo\n")
    found = optimize.read_examples(tmp_path / "t.txt", DECODER, seed=0)
    assert sorted((one.text, one.place) for one in found) == [("one", "t.txt:1"),
                                                              ("two", "t.txt:4")]


def test_texts_that_do_not_fit_the_task_are_refused_by_place(tmp_path: Path) -> None:
    for rows, words in (
            ([{"text": "a", "label": "maybe"}], "t.jsonl:1: label: expected one of the model's 2"),
            ([{"text": "a", "text_pair": "b"}], "t.jsonl:1: expected no text_pair"),
            ([{"text": " "}], "expected at least one text, got none")):
        path = written(tmp_path / "t.jsonl", *rows)
        with pytest.raises(DataError, match=words):
            optimize.read_examples(path, CLASSIFIER, seed=0)


def test_partly_labelled_texts_are_read_and_the_labelled_are_answered_first(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": str(number)} for number in range(40)]
    for number in (3, 17, 38):
        rows[number]["label"] = "yes"
    path = written(tmp_path / "t.jsonl", *rows)
    found, again, other = (optimize.read_examples(path, CLASSIFIER, seed=seed, most=10)
                           for seed in (0, 0, 1))
    assert found == again and found != other
    assert sorted(one.text for one in found) == sorted(str(number) for number in range(40))
    assert sorted(one.text for one in found[:10] if one.labels) == ["17", "3", "38"]
    assert {place for place, one in enumerate(found) if one.labels} != {0, 1, 2}


def test_of_several_labels_a_row_without_has_none_of_them() -> None:
    from tf_infer.train.data import Example

    rows = [Example("a", labels=("x",)), Example("b")]
    assert texts.truth(rows) == [frozenset({"x"}), None]
    assert texts.truth(rows, several=True) == [frozenset({"x"}), frozenset()]
    assert texts.truth(rows[1:], several=True) is None


def test_a_decoders_rows_are_no_pairs(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", {"text": "a"}, {"text": "a", "text_pair": "b"})
    with pytest.raises(DataError, match=r"t\.jsonl:2: expected no text_pair, as a decoder"):
        optimize.read_examples(path, DECODER, seed=0)


def test_what_is_told_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    class Drawing:
        def png(self, told: Any) -> bytes:
            return b"png"

        def html(self, told: Any, *, title: str) -> str:
            return f"page {title}"

    arguments = argparse.Namespace(name="m", tensorboard=None)
    paths = optimize._write({"chosen": "reference"}, tmp_path, Drawing(), None, arguments)
    assert [path.read_bytes() for path in paths] == [b'{\n "chosen": "reference"\n}\n', b"png",
                                                     b"page m"]
    with pytest.raises(TypeError):
        optimize._write({"chosen": object()}, tmp_path, Drawing(), None, arguments)
    assert json.loads(paths[0].read_text()) == {"chosen": "reference"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


NEEDS_MODELS = pytest.mark.skipif(importlib.util.find_spec("keras_hub") is None,
                                  reason="the command asks for the extra `models` first")


@NEEDS_MODELS
def test_the_command_refuses_before_it_loads_anything(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.dump(CLASSIFIER, tmp_path / "task.json")
    given = str(written(tmp_path / "t.jsonl", {"text": "a"}))
    for words, wanted in (
            (["--objective", "p99@1"], "--objective: expected p50@N"),
            (["--budget", "soon"], "--budget: expected a time"),
            (["--max-drop", "much"], "--max-drop: expected points"),
            (["--max-texts", "0"], "--max-texts: expected at least 1, got 0"),
            (["--plans", "plan float32 xla", "--no-xla"],
             "--plans: expected a plan that can be tried on this machine, got 'plan float32 xla: "),
            (["--plan", "int9"], "plan: expected one of ['bfloat16', 'float32', 'int8'] or a"),
            (["--plans", "int8"], "--plans: expected some of ['reference', 'plan float32'")):
        assert main(["optimize", str(tmp_path), "--texts", given, "--no-picture",
                     "--output", str(tmp_path / "out"), *words]) == 1
        assert wanted in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@NEEDS_MODELS
def test_two_searches_do_not_share_a_folder(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.dump(CLASSIFIER, tmp_path / "task.json")
    given = str(written(tmp_path / "t.jsonl", {"text": "a"}))
    with Folder(tmp_path / "search"):
        assert main(["optimize", str(tmp_path / "task.json"), "--texts", given, "--no-picture",
                     "--output", str(tmp_path / "search"), "--quiet"]) == 1
    assert "expected no other search in this folder, got one under way" in capsys.readouterr().err


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["optimize", "--help"])
    said = capsys.readouterr().out
    assert "tf-infer optimize models/intents --texts test.jsonl" in said
    assert "(default 0.5%)" in said


def test_a_bar_of_nobody_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with optimize.Bar(quiet=True) as bar:
        bar("timing", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_what_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm", reason="needs the extra `models`")
    with optimize.Bar(quiet=False) as bar:
        bar("building reference", 0, 2)
        bar("building plan int8", 1, 2)
        bar("building", 2, 2)
        bar("timing", 0, 5)
        bar("timing", 3, 5)
    said = capsys.readouterr().err
    assert "building plan int8" in said and "2/2" in said
    assert "timing" in said and "3/5" in said
