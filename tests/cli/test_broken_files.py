"""Files that are cut short, through the commands that read them: named, and nothing is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.test_export import CLASSES, GRID, NETWORK
from tf_infer.cli.main import main
from tf_infer.config import ClassifierConfig, PackingConfig
from tf_infer.tasks import build

CHECKPOINT = Path(__file__).resolve().parent.parent / "golden" / "networks" / "bert_classifier"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The stored BERT classifier of 90 ids, with a tokenizer of as many words."""
    folder = shutil.copytree(CHECKPOINT, tmp_path / "bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{n}" for n in range(85))]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return folder


@pytest.mark.parametrize(("name", "size"), [
    ("model.safetensors", 4), ("model.safetensors", 500), ("model.safetensors", -10),
    ("config.json", -10)])
def test_a_truncated_checkpoint_is_named_by_build(
        checkpoint: Path, capsys: pytest.CaptureFixture[str], name: str, size: int) -> None:
    command = ["build", "--task", "classifier", "--checkpoint", str(checkpoint), "--output"]
    assert main([*command, str(checkpoint.parent / "whole")]) == 0
    path = checkpoint / name
    path.write_bytes(path.read_bytes()[:size])
    capsys.readouterr()
    assert main([*command, str(checkpoint.parent / "new")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("tf-infer build: ")
    assert name in said
    assert not (checkpoint.parent / "new").exists()


def test_a_truncated_model_is_named_by_export(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build.save(build.build(ClassifierConfig(
        classes=CLASSES, grid=GRID, network=NETWORK, packing=PackingConfig(max_tokens=16))),
        tmp_path / "model")
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main(["export", str(model), "--base-dir", str(tmp_path / "saved")]) == 1
    assert "weights.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()
