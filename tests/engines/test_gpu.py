"""On a GPU: TensorRT's and CUDA's engines of a classifier, and the graph compiled by XLA.

Run by whoever has one: `pytest -m gpu tests/engines/test_gpu.py`. Needs NVIDIA's driver and
`onnxruntime-gpu` (docs/engines.md); XLA's part needs `tensorflow[and-cuda]`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.networks.encoders import POSITIONS, classifier, rows
from tests.networks.encoders import logits as network_logits
from tf_infer.config import ShapeGrid
from tf_infer.engines import gpus, onnx, onnx_runtime
from tf_infer.errors import BackendMissing
from tf_infer.optimize.onnx import OnnxSettings, write

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus.found(), reason="needs a GPU of NVIDIA and its driver")]

GRID = ShapeGrid(rows=(1, 4), tokens=(8, 16, POSITIONS))
# Products in TF32 keep 10 bits of mantissa, as those in float16 do.
ATOL = 0.01


def loaded(folder: Path, provider: onnx_runtime.Provider, cache: Path) -> onnx.OnnxEngine:
    """Load an engine, or skip where the installed ONNX Runtime has not the provider."""
    try:
        return onnx.load(folder, provider=provider, cache=cache)
    except BackendMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def network() -> Any:
    return classifier("bert")


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("provider", ["tensorrt", "cuda"])
def test_logits_are_the_networks_over_the_whole_grid(
        provider: Any, precision: Any, network: Any, tmp_path: Path) -> None:
    write(network, tmp_path / "onnx", OnnxSettings(precision=precision), grid=GRID)
    engine = loaded(tmp_path / "onnx", provider, tmp_path / "cache")
    for count in (*GRID.rows, 3, 9):
        for width in (*GRID.tokens, 11):
            lengths = np.random.default_rng(width).integers(1, width + 1, count)
            batch = rows(lengths, width, seed=count)
            np.testing.assert_allclose(
                engine.run(**batch), network_logits(network, batch), atol=ATOL)
    engine.close()


def test_tensorrts_engine_is_kept_and_found_again(network: Any, tmp_path: Path) -> None:
    write(network, tmp_path / "onnx", OnnxSettings(precision="float16"), grid=GRID)
    batch = rows([3, 8, 11], 16)
    first = loaded(tmp_path / "onnx", "tensorrt", tmp_path / "cache")
    wanted = first.run(**batch)
    first.close()
    kept = engines(tmp_path / "cache")
    assert kept
    again = onnx.load(tmp_path / "onnx", provider="tensorrt", cache=tmp_path / "cache")
    np.testing.assert_array_equal(again.run(**batch), wanted)
    again.close()
    assert engines(tmp_path / "cache") == kept


def engines(cache: Path) -> dict[Path, int]:
    """Return TensorRT's engines below a folder, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.engine")}


@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="TensorFlow sees no GPU")
def test_xla_gives_on_a_gpu_what_the_cpu_gives(network: Any) -> None:
    batch = rows([3, 8, 11, 16], 16)
    with tf.device("/CPU:0"):
        wanted = network_logits(network, batch)
    compiled = tf.function(network, jit_compile=True)
    with tf.device("/GPU:0"):
        found = network_logits(compiled, batch)
    np.testing.assert_allclose(found, wanted, atol=ATOL)
