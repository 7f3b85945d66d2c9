"""Building, saving and loading tasks, and what a broken directory says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from tests.tasks import small
from tf_infer.config import HubConfig, SmallTransformerConfig, WordPieceConfig
from tf_infer.errors import CheckpointError, ConfigError
from tf_infer.tasks.build import build, load, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(build(small.BAG, seed=1), tmp_path / "deep" / "model")


def test_a_seed_gives_the_same_weights_and_another_gives_others() -> None:
    one, same, other = (build(small.DECODER, seed=seed).network.get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other))


def test_weights_of_a_saved_task_are_taken(folder: Path) -> None:
    task = build(small.BAG, weights=folder, seed=99)
    for a, b in zip(task.network.get_weights(), load(folder).network.get_weights()):
        assert np.array_equal(a, b)


def test_a_folder_holds_the_task_and_nothing_else_stands_beside_it(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "task.json", "tokenizer", "weights.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_existing_folder_is_not_touched(folder: Path) -> None:
    with pytest.raises(ConfigError, match="folder: expected one that does not exist"):
        save(build(small.CLASSIFIER), folder)
    assert load(folder).config == small.BAG


def test_a_task_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    task = build(small.BAG)
    task.config = dataclasses.replace(task.config, codec=WordPieceConfig())
    task.tokenizer_dir = tmp_path / "gone"
    with pytest.raises(CheckpointError, match="gone"):
        save(task, tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_directory_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected a model directory with task\.json"):
        load(tmp_path)


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load(folder)


def test_a_corrupted_configuration_is_refused(folder: Path) -> None:
    path = folder / "task.json"
    data = json.loads(path.read_text())
    path.write_text(path.read_text()[:50])
    with pytest.raises(ConfigError, match="expected JSON"):
        load(folder)
    path.write_text(json.dumps({**data, "clases": []}))
    with pytest.raises(ConfigError, match="Did you mean 'classes'"):
        load(folder)


def test_rows_longer_than_the_network_reads_are_refused() -> None:
    short = SmallTransformerConfig(width=8, layers=1, heads=1, hidden=8, max_positions=16)
    for config in (small.CLASSIFIER, small.DECODER):
        with pytest.raises(ConfigError, match="at most the network's max_positions = 16, got 32"):
            build(dataclasses.replace(config, network=short))


def test_a_backbone_says_itself_how_long_a_row_it_reads() -> None:
    network = HubConfig(backbone="BertBackbone", arguments={
        "vocabulary_size": 300, "num_layers": 1, "num_heads": 2, "hidden_dim": 8,
        "intermediate_dim": 16, "max_sequence_length": 16})
    with pytest.raises(ConfigError, match="at most the network's max_positions = 16, got 32"):
        build(dataclasses.replace(small.CLASSIFIER, network=network))


def test_a_codec_with_files_needs_their_folder() -> None:
    with pytest.raises(ConfigError, match="tokenizer_dir: expected the folder of the wordpiece"):
        build(dataclasses.replace(small.BAG, codec=WordPieceConfig()))
