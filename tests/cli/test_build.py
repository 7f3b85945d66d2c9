"""`tf-infer build`: from nothing and from a configuration."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from tf_infer.cli import build, main
from tf_infer.config import BytesConfig, CausalLMConfig, ClassifierConfig, EmbeddingBagConfig
from tf_infer.errors import ConfigError

ROWS = [{"text": "where is my parcel", "label": "parcel"},
        {"text": "i want my money back", "label": "refund"},
        {"text": "the parcel is late", "label": "parcel"}]


def arguments(*words: str) -> argparse.Namespace:
    return main.build_parser(only="build").parse_args(["build", *words])


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_a_classifier_from_nothing_takes_classes_and_words_from_a_file(
        rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "models" / "intents"
    code = main.main(["build", "--task", "classifier", "--labels-from", str(rows), "--texts",
                      str(rows), "--vocab-size", "120", "--network", "embedding_bag",
                      "--output", str(output), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert told["classes"] == ["parcel", "refund"]
    assert (told["name"], told["codec"]) == ("intents", "wordpiece")
    words = (output / "tokenizer" / "vocab.txt").read_text().splitlines()
    assert told["vocab_size"] == len(words) <= 120 and "parcel" in words
    assert {path.name for path in output.iterdir()} == {
        "task.json", "weights.safetensors", "tokenizer"}
    # The same again from its configuration, with its tokenizer.
    again = tmp_path / "again"
    assert main.main(["build", "--config", str(output / "task.json"), "--tokenizer",
                      str(output / "tokenizer"), "--output", str(again)]) == 0
    assert "next: tf-infer train" in capsys.readouterr().out
    for name in ("task.json", "weights.safetensors", "tokenizer/vocab.txt"):
        assert (again / name).read_bytes() == (output / name).read_bytes()
    # Never over something that is there.
    assert main.main(["build", "--config", str(output / "task.json"), "--output",
                      str(again)]) == 1
    assert "expected a directory that does not exist" in capsys.readouterr().err


def test_a_decoder_of_bytes_needs_no_file(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "writer"
    assert main.main(["build", "--task", "causal_lm", "--max-tokens", "48", "--capacity", "40",
                      "--output", str(output)]) == 0
    assert "bytes codec of 259 ids" in capsys.readouterr().out
    assert json.loads((output / "task.json").read_text())["grid"]["tokens"] == [16, 32, 48]


def test_a_decoder_learns_its_pieces_from_texts(
        rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sentencepiece")
    words = ["build", "--task", "causal_lm", "--texts", str(rows), "--max-tokens", "16", "--json"]
    output = tmp_path / "writer"
    assert main.main([*words, "--vocab-size", "300", "--output", str(output)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["codec"] == "sentencepiece" and 280 < told["vocab_size"] <= 300
    assert [path.name for path in (output / "tokenizer").iterdir()] == ["tokenizer.model"]
    assert main.main([*words, "--vocab-size", "99", "--output", str(tmp_path / "small")]) == 1
    assert "vocab_size: expected at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "expected"), [
    (["--task", "classifier"], "--labels: expected the names of the classes"),
    (["--task", "classifier", "--labels", "a"], "ClassifierConfig.classes: expected two or more"),
    (["--task", "classifier", "--labels", "a,b", "--hidden", "x"], "--hidden: expected numbers"),
    (["--task", "causal_lm", "--network", "conv"], "--network: expected small_transformer"),
    (["--task", "classifier", "--labels", "a,b", "--codec", "wordpiece"], "--texts: expected"),
    (["--config", "a", "--checkpoint", "b"], "--config: expected either"),
    ([], "--task: expected 'classifier' or 'causal_lm'"),
    (["--task", "causal_lm", "--checkpoint", "nowhere"], "nowhere: expected a directory"),
])
def test_wrong_settings_are_named(words: list[str], expected: str, tmp_path: Path,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["build", *words, "--output", str(tmp_path / "new")]) == 1
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_options_become_a_configuration() -> None:
    config = build.task_config(arguments(
        "--task", "classifier", "--labels", "a, b", "--network", "embedding_bag", "--hidden",
        "8,4", "--frozen", "--normalize", "--pair", "--multi-label", "--max-tokens", "40",
        "--output", "models/x"), BytesConfig())
    assert isinstance(config, ClassifierConfig)
    assert config.network == EmbeddingBagConfig()
    assert (config.classes, config.hidden, config.name) == (("a", "b"), (8, 4), "x")
    assert config.frozen and config.normalize and config.pair and config.multi_label
    assert config.grid.tokens == (16, 32, 40)
    decoder = build.task_config(arguments(
        "--task", "causal_lm", "--capacity", "600", "--output", "x"), BytesConfig())
    assert isinstance(decoder, CausalLMConfig)
    assert decoder.network.max_positions == 728  # type: ignore[union-attr]


@pytest.mark.parametrize(("capacity", "most"), [("1", 1), ("31", 31), ("33", 32)])
def test_a_small_capacity_lowers_the_default(capacity: str, most: int) -> None:
    config = build.task_config(arguments(
        "--task", "causal_lm", "--capacity", capacity, "--output", "x"), BytesConfig())
    assert isinstance(config, CausalLMConfig) and config.defaults.max_new_tokens == most


def test_no_capacity_is_refused() -> None:
    with pytest.raises(ConfigError, match="capacity: expected >= 1, got 0"):
        build.task_config(arguments(
            "--task", "causal_lm", "--capacity", "0", "--output", "x"), BytesConfig())


def test_a_checkpoint_keeps_what_is_not_given() -> None:
    changes = build.checkpoint_changes(arguments(
        "--task", "classifier", "--labels", "a,b", "--pooling", "mean", "--normalize",
        "--checkpoint", "c", "--output", "models/x"))
    assert changes == {"kind": "classifier", "name": "x", "classes": ("a", "b"),
                       "pooling": "mean", "normalize": True}


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["build", "--help"])
    assert "tf-infer build --checkpoint" in capsys.readouterr().out
