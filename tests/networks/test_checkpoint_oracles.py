"""The families against transformers, live: other weights, other settings, shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.networks import golden

pytestmark = pytest.mark.oracles

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *((name, {}, {}) for name in golden.NAMES),
    ("bert", {"hidden_act": "silu", "type_vocab_size": 2, "num_attention_heads": 4}, {}),
    ("bert", {}, {"max_shard_size": "20KB"}),
    ("roberta_classifier", {"pad_token_id": 3, "hidden_act": "gelu_pytorch_tanh"}, {}),
    ("distilbert_classifier", {"activation": "relu"}, {}),
    ("gpt2", {"activation_function": "relu", "n_head": 1}, {"max_shard_size": "20KB"}),
    ("llama3", {"num_key_value_heads": 1, "hidden_act": "gelu", "num_hidden_layers": 3}, {}),
    ("llama3", {"num_key_value_heads": 4, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500000.0}}, {}),
    ("llama_linear", {"tie_word_embeddings": True}, {"max_shard_size": "20KB"}),
]


SEEDS = (1, 2)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a case and seed, all made by one process."""
    folder = tmp_path_factory.mktemp("answers")
    golden.ask_transformers(
        [{"name": name, "changes": changes, "seed": seed, "output": str(folder / f"{i}-{seed}"),
          **saving} for i, (name, changes, saving) in enumerate(CASES) for seed in SEEDS], folder)
    return folder


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("seed", SEEDS)
def test_outputs_are_those_of_transformers(answers: Path, case: int, seed: int) -> None:
    name, changes, saving = CASES[case]
    folder = answers / f"{case}-{seed}"
    if saving:
        assert (folder / "model.safetensors.index.json").exists()
    worst = golden.differences(folder, dict(np.load(folder / "outputs.npz")))
    print(name, changes, worst)
    assert worst and max(worst.values()) <= golden.ATOL, worst
