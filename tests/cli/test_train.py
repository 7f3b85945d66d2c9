"""`tf-infer train`: what it prints, what it writes, and how it goes on after Ctrl-C and a kill."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tf_infer.cli import main, train
from tf_infer.config import (
    ClassifierConfig,
    EmbeddingBagConfig,
    PackingConfig,
    ShapeGrid,
    TrainConfig,
)
from tf_infer.tasks.build import build, save

pytestmark = pytest.mark.whole

CONFIG = ClassifierConfig(
    classes=("parcel", "refund"), packing=PackingConfig(max_tokens=32),
    grid=ShapeGrid(tokens=(16, 32)), network=EmbeddingBagConfig(width=8, hash_buckets=300))
SETTINGS = ["--epochs", "3", "--batch-rows", "4", "--learning-rate", "0.01", "--patience", "none"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.csv"
    path.write_text("text,label\n" + "".join(
        f"my parcel {i} is late,parcel\ni want {i} euros back,refund\n" for i in range(30)))
    return path


def model(folder: Path) -> Path:
    return save(build(CONFIG), folder / "intents")


@pytest.fixture(scope="module")
def trained(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    path = model(folder)
    assert main.main(["train", str(path), "--data", str(rows), "--run-dir", str(folder / "run"),
                      "--quiet", *SETTINGS]) == 0
    return (path / "weights.safetensors").read_bytes()


def test_train_and_evaluate_print_json(rows: Path, trained: bytes, tmp_path: Path,
                                       capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path)
    code = main.main(["train", str(path), "--data", str(rows), "--test", str(rows), "--run-dir",
                      str(tmp_path / "run"), "--json", *SETTINGS])
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert code == 0
    assert len(told["epochs"]) == 3
    assert told["test"]["rows"] == 60
    assert "epoch 3/3: loss" in printed.err
    assert (path / "weights.safetensors").read_bytes() == trained
    assert {entry.name for entry in path.iterdir()} == {
        "task.json", "weights.safetensors", "tokenizer"}
    # Evaluating alone gives the same and changes nothing.
    assert main.main(["train", str(path), "--test", str(rows), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == told["test"]
    assert main.main(["train", str(path), "--test", str(rows), "--quiet"]) == 0
    assert "parcel: precision" in capsys.readouterr().out


def test_pairs_are_built_trained_and_evaluated(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Only both texts together tell the label: whether they are the same.
    kinds = ("parcel", "refund")
    path = tmp_path / "pairs.csv"
    path.write_text("text,text_pair,label\n" + "".join(
        f"{one},{other},{'same' if one == other else 'other'}\n"
        for one in kinds for other in kinds for _ in range(16)))
    model_dir = tmp_path / "pairs"
    assert main.main(["build", "--task", "classifier", "--pair", "--labels-from", str(path),
                      "--texts", str(path), "--vocab-size", "100", "--network",
                      "conv", "--max-tokens", "16", "--output", str(model_dir)]) == 0
    assert json.loads((model_dir / "task.json").read_text())["pair"] is True
    capsys.readouterr()
    assert main.main(["train", str(model_dir), "--data", str(path), "--test", str(path),
                      "--run-dir", str(tmp_path / "run"), "--json", "--quiet", "--epochs", "8",
                      "--validation-fraction", "0", "--learning-rate", "0.01"]) == 0
    assert json.loads(capsys.readouterr().out)["test"]["accuracy"] == 1.0


def test_ctrl_c_says_how_to_go_on_and_resume_gives_the_same(
        rows: Path, trained: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run_dir = model(tmp_path), tmp_path / "run"
    before = (path / "weights.safetensors").read_bytes()

    def interrupt() -> None:
        while not (run_dir / "state.npz").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    words = ["train", str(path), "--data", str(rows), "--run-dir", str(run_dir), "--quiet",
             *SETTINGS]
    code = main.main(words)
    thread.join()
    assert code == 130
    assert "Run the same command with --resume" in capsys.readouterr().err
    assert (path / "weights.safetensors").read_bytes() == before
    assert main.main(words) == 1
    assert "--resume" in capsys.readouterr().err
    assert main.main([*words, "--resume"]) == 0
    assert (path / "weights.safetensors").read_bytes() == trained


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same(rows: Path, trained: bytes, tmp_path: Path) -> None:
    path, run_dir = model(tmp_path), tmp_path / "run"
    words = [sys.executable, "-m", "tf_infer", "train", str(path), "--data", str(rows),
             "--run-dir", str(run_dir), "--quiet", *SETTINGS]
    process = subprocess.Popen(words)
    while not (run_dir / "state.npz").exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    subprocess.run([*words, "--resume"], check=True)
    assert (path / "weights.safetensors").read_bytes() == trained


def test_a_cut_model_is_named(rows: Path, tmp_path: Path,
                              capsys: pytest.CaptureFixture[str]) -> None:
    path = model(tmp_path)
    weights = path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main.main(["train", str(path), "--data", str(rows), "--run-dir",
                      str(tmp_path / "run")]) == 1
    assert f"{weights}: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("words", "expected"), [
    ([], "--data: expected a file of training rows"),
    (["--data", "x.jsonl", "--epochs", "many"], "train.epochs: expected a value of type int"),
    (["--data", "x.jsonl", "--decay", "linaer"], "train.decay: expected one of"),
    (["--data", "x.jsonl"], "expected a model directory with task.json"),
])
def test_wrong_settings_are_named(words: list[str], expected: str, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["train", str(tmp_path), *words]) == 1
    assert expected in capsys.readouterr().err


def test_options_go_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"epochs": 7, "decay": "none", "patience": null}')
    read = train.train_config(main.build_parser(only="train").parse_args(
        ["train", "m", "--config", str(tmp_path / "train.json"), "--epochs", "9",
         "--clip-norm", "none", "--learning-rate", "1"]))
    assert read == TrainConfig(epochs=9, decay="none", patience=None, clip_norm=None,
                               learning_rate=1.0)


def test_every_setting_has_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(train.HELP) == {field.name for field in dataclasses.fields(TrainConfig)}
    with pytest.raises(SystemExit):
        main.main(["train", "--help"])
    assert "--average-decay" in capsys.readouterr().out
