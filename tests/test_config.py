"""Strict reading of configurations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tf_infer import config
from tf_infer.errors import ConfigError

CLASSIFIER = config.ClassifierConfig(
    classes=("yes", "no"),
    codec=config.WordPieceConfig(added_tokens=(config.AddedToken(text="<x>", id=7),)),
    network=config.HubConfig(backbone="BertBackbone", arguments={"num_layers": 2}))


@pytest.mark.parametrize("value", [
    CLASSIFIER,
    config.CausalLMConfig(codec=config.BytePairConfig(), end_ids=(3, 4)),
    config.ClassifierConfig(classes=("a", "b"), network=config.ConvConfig(),
                            codec=config.SentencePieceConfig(pad_id=-1)),
])
def test_a_task_survives_json(value: Any) -> None:
    data = json.loads(json.dumps(config.to_json(value)))
    assert config.from_json(config.TaskConfig, data) == value


def broken(path: str, value: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(config.to_json(CLASSIFIER)))
    inner = data
    *parents, last = path.split(".")
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return data


@pytest.mark.parametrize(("path", "value", "message"), [
    ("pakcing", {}, "Did you mean 'packing'"),
    ("codec.lowercas", True, "Did you mean 'lowercase'"),
    ("codec.kind", "wordpeice", "Did you mean 'wordpiece'"),
    ("network.backbone", 3, "network.backbone: expected a value of type str, got 3"),
    ("multi_label", "yes", "multi_label: expected a value of type bool"),
    ("packing.max_tokens", True, "packing.max_tokens: expected a value of type int"),
    ("packing.max_tokens", 64, "a last bucket equal to packing.max_tokens = 64"),
    ("classes", ["a"], "two or more names"),
    ("classes", ["a", "a"], "no name twice"),
    ("classes", "ab", "expected a list"),
    ("thresholds", [2.0], "numbers from 0 to 1"),
    ("temperature", 0.0, "a number > 0"),
    ("dropout", 1.0, "0 <= dropout < 1"),
    ("hidden", [4, 0], "widths >= 1"),
    ("pooling", "sum", "expected one of ['first', 'mean', 'max', 'pooler']"),
    ("codec", None, "codec: expected an object"),
    ("codec.max_word_chars", 0, "WordPieceConfig.max_word_chars: expected > 0"),
    ("codec.added_tokens", [{"text": "", "id": 1}], "at least one character"),
    ("codec.added_tokens", [{"text": "a", "id": -1}], "an id >= 0"),
    ("packing.pair_separators", 3, "1 or 2"),
    ("grid.rows", [], "ascending sizes > 0"),
    ("grid.rows", [4, 4], "ascending sizes > 0"),
    ("network.arguments", [], "expected an object"),
])
def test_a_broken_task_names_the_field_and_the_rule(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_json(config.TaskConfig, broken(path, value))
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [[], {}, None, 3])
def test_a_kind_that_is_no_string_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match=r"network\.kind: expected one of"):
        config.from_json(config.TaskConfig, broken("network.kind", kind))


def test_numbers_that_no_float_can_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="temperature: expected a number that a float can hold"):
        config.from_json(config.TaskConfig, broken("temperature", 10**400))
    for text in ("1" * 5_000, "[" * 100_000):
        (tmp_path / "task.json").write_text('{"temperature": ' + text)
        with pytest.raises(ConfigError, match=r"task\.json: expected JSON"):
            config.load(config.TaskConfig, tmp_path / "task.json")


def test_missing_keys_take_defaults_and_required_ones_are_named() -> None:
    assert config.from_json(config.TaskConfig, {"kind": "causal_lm"}) == config.CausalLMConfig()
    with pytest.raises(ConfigError, match="classes"):
        config.from_json(config.TaskConfig, {"kind": "classifier"})


def test_an_int_may_stand_for_a_float_but_not_the_other_way() -> None:
    assert config.from_json(config.TrainConfig, {"weight_decay": 0}).weight_decay == 0.0
    with pytest.raises(ConfigError, match="epochs"):
        config.from_json(config.TrainConfig, {"epochs": 3.0})


@pytest.mark.parametrize(("change", "message"), [
    ({"epochs": 0}, "TrainConfig.epochs"), ({"batch_rows": 0}, "TrainConfig.batch_rows"),
    ({"learning_rate": float("nan")}, "TrainConfig.learning_rate"),
    ({"warmup_fraction": 1.0}, "TrainConfig.warmup_fraction"),
    ({"validation_fraction": 1.0}, "TrainConfig.validation_fraction"),
    ({"epsilon": 0.0}, "TrainConfig.epsilon"), ({"clip_norm": 0.0}, "TrainConfig.clip_norm"),
    ({"label_smoothing": 1.0}, "TrainConfig.label_smoothing"),
    ({"token_dropout": -0.1}, "TrainConfig.token_dropout"),
    ({"average_decay": 1.0}, "TrainConfig.average_decay"),
    ({"weight_decay": -1.0}, "TrainConfig.weight_decay"),
    ({"patience": 0}, "TrainConfig.patience"), ({"block_tokens": 1}, "TrainConfig.block_tokens"),
    ({"epoch_steps": 0}, "TrainConfig.epoch_steps"),
])
def test_training_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config.TrainConfig(), **change)


@pytest.mark.parametrize(("change", "message"), [
    ({"capacity": 0, "defaults": config.GenerationDefaults.within(0)}, "capacity: expected >= 1"),
    ({"packing": config.PackingConfig(end=False)}, "truncation: expected 'left'"),
    ({"packing": config.PackingConfig()}, "no end"),
    ({"defaults": config.GenerationDefaults(max_new_tokens=999)}, "at most capacity"),
])
def test_decoder_rules(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.CausalLMConfig(**change)


@pytest.mark.parametrize(("kind", "change", "rule"), [
    (config.EmbeddingBagConfig, {"width": 0}, "width: expected >= 1"),
    (config.EmbeddingBagConfig, {"ngrams": 0}, "ngrams: expected >= 1"),
    (config.EmbeddingBagConfig, {"hash_buckets": 0}, "hash_buckets: expected >= 1"),
    (config.EmbeddingBagConfig, {"dropout": 2.0}, "dropout: expected 0 <= dropout < 1"),
    (config.ConvConfig, {"filters": 0}, "filters: expected >= 1"),
    (config.ConvConfig, {"kernel_sizes": ()}, "kernel_sizes: expected one or more sizes >= 1"),
    (config.ConvConfig, {"kernel_sizes": (2, 0)}, "kernel_sizes: expected one or more"),
    (config.ConvConfig, {"dropout": float("nan")}, "dropout: expected 0 <= dropout < 1"),
    (config.SmallTransformerConfig, {"heads": 0}, "heads: expected >= 1"),
    (config.SmallTransformerConfig, {"heads": 3}, "heads: expected a divisor of width = 128"),
    (config.SmallTransformerConfig, {"layers": -1}, "layers: expected >= 1"),
    (config.SmallTransformerConfig, {"hidden": 0}, "hidden: expected >= 1"),
    (config.SmallTransformerConfig, {"max_positions": 0}, "max_positions: expected >= 1"),
    (config.SmallTransformerConfig, {"dropout": -0.1}, "dropout: expected 0 <= dropout < 1"),
])
def test_network_rules(kind: Any, change: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.__name__}.{rule}"):
        kind(**change)


@pytest.mark.parametrize("change", [
    {"max_new_tokens": -1}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}])
def test_generation_rules(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"GenerationDefaults.{next(iter(change))}"):
        config.GenerationDefaults(**change)


def test_files_round_trip_and_faults_name_file_line_and_column(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    config.dump(CLASSIFIER, path)
    assert config.load(config.TaskConfig, path) == CLASSIFIER
    path.write_text('{"kind": \n  oops}')
    with pytest.raises(ConfigError, match="line 2, column 3"):
        config.load(config.TaskConfig, path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        config.load(config.TaskConfig, path)
    with pytest.raises(ConfigError, match=r"missing\.json: cannot be read"):
        config.load(config.TaskConfig, tmp_path / "missing.json")


def test_what_is_written_whole_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "task.json"
    config.dump_whole(CLASSIFIER, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        config.dump_whole({"x": float("nan")}, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["task.json"]
    (tmp_path / ".task.json.new").symlink_to("/dev/full")  # a disk without room
    with pytest.raises(OSError, match="No space"):
        config.dump_whole({"x": 1}, path)
    assert path.read_bytes() == before
    config.write_whole(b"\0 any bytes", path)
    assert path.read_bytes() == b"\0 any bytes"
    assert [one.name for one in tmp_path.iterdir()] == ["task.json"]
