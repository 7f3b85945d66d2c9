"""The LiteRT engine on trained weights, stories260K: the golden story, perplexity by precision."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.engines import litert
from tf_infer.networks import build, checkpoints
from tf_infer.optimize.litert import EngineSettings, write
from tf_infer.verify.engine import log_probs

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")

SHARED = Path(os.environ.get(
    "TF_INFER_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))
FOLDER = SHARED / "weights" / "stories260K"
TEXT = SHARED / "data" / "tinystories_sample" / "val.txt"
WIDTH, ROWS, SLOTS = 256, 48, 8

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(
    not (FOLDER.is_dir() and TEXT.is_file()),
    reason="needs weights/stories260K and tinystories_sample in the shared folder")]


@pytest.fixture(scope="module")
def network() -> Any:
    checkpoint = checkpoints.read(FOLDER)
    layer = build.decoder(checkpoint.network, vocab_size=checkpoint.vocab_size)
    checkpoint.assign(layer)
    return layer


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """Return ids [ROWS, WIDTH] of validation stories, each row with the start id before it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(str(FOLDER / "tok512_rebuilt.model"))
    ids = model.encode(TEXT.read_text(encoding="utf-8"))[:ROWS * (WIDTH - 1)]
    return np.insert(np.reshape(ids, (ROWS, WIDTH - 1)), 0, model.bos_id(), axis=1).astype(np.int32)


def engine_of(network: Any, folder: Path, precision: Any) -> litert.LiteRTEngine:
    settings = EngineSettings(precision=precision, rows=(1, SLOTS), chunks=(16,))
    write(network, folder / "litert", settings, positions=WIDTH)
    return litert.load(folder / "litert")


def nats(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the loss of each id: [N, V], [N] -> [N]."""
    return -log_probs(logits)[np.arange(len(ids)), ids]


def test_the_golden_story_comes_out_of_float32_token_by_token(network: Any, tmp_path: Path) -> None:
    golden = json.loads((FOLDER / "golden_greedy.json").read_text())["greedy_ids"]
    engine = engine_of(network, tmp_path, "float32")
    tokens, lengths, found = np.zeros(SLOTS, np.int32), np.zeros(SLOTS, np.int32), [golden[0]]
    while len(found) < len(golden):
        tokens[3], lengths[3] = found[-1], len(found) - 1
        found.append(int(engine.step(tokens, lengths, [3])[3].argmax()))
    assert found == golden


@pytest.mark.parametrize(("precision", "rise"), [("float32", 1e-5), ("int8", 0.01)])
def test_perplexity_rises_by_less_than_one_percent(
        network: Any, rows: np.ndarray, tmp_path: Path, precision: str, rise: float) -> None:
    engine = engine_of(network, tmp_path, precision)
    wanted, found = [], []
    for block in np.split(rows, ROWS // SLOTS):
        logits = np.array(network(tf.constant(block), tf.ones(block.shape, bool)))
        for place in range(WIDTH - 1):
            following = block[:, place + 1]
            wanted.append(nats(logits[:, place], following))
            step = engine.step(block[:, place], np.full(SLOTS, place), list(range(SLOTS)))
            found.append(nats(step, following))
    before, after = np.exp(np.mean(wanted)), np.exp(np.mean(found))
    print(f"perplexity {before:.4f} of the network, {after:.4f} of the engine in {precision}")
    assert 5.0 < before < 6.0
    assert abs(after / before - 1.0) < rise
