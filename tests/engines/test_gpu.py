"""On a GPU: TensorRT's and CUDA's engines of a classifier, and its graph compiled by XLA.

Run by whoever has one: `pytest -m gpu tests/engines/test_gpu.py`. Needs NVIDIA's driver and
`onnxruntime-gpu` (docs/engines.md), for XLA's part `jax[cuda13]`; and TensorFlow, or in its place
the folder that gpu_cases.py makes, named by `TF_INFER_GPU_CASES`.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines import gpu_cases
from tests.engines.xla_programs import Program
from tf_infer.engines import gpus, onnx, onnx_runtime
from tf_infer.errors import BackendMissing

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus.found(), reason="needs a GPU of NVIDIA and its driver")]

GIVEN = os.environ.get("TF_INFER_GPU_CASES")
# Of what the network's logits spread by. float16 keeps 10 bits of mantissa, int8 7 bits of a range.
SHARE = {"float32": 1e-4, "float16": 0.01, "int8": 0.2}
# Of logits near 1. XLA multiplies float32 in TF32, which keeps 10 bits of mantissa, too.
XLA_ATOL = {"network": 0.01, "float32": 0.01, "bfloat16": 0.05, "int8": 0.05}
CROWD_ATOL = {"float32": 1e-5, "float16": 0.005}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if GIVEN:
        return Path(GIVEN)
    pytest.importorskip("tensorflow", reason="needs TensorFlow, or TF_INFER_GPU_CASES")
    pytest.importorskip("onnx")
    return gpu_cases.make(tmp_path_factory.mktemp("cases"))


def loaded(folder: Path, provider: onnx_runtime.Provider, cache: Path) -> onnx.OnnxEngine:
    """Load an engine, or skip where the installed ONNX Runtime has not the provider."""
    pytest.importorskip("onnxruntime")
    try:
        return onnx.load(folder, provider=provider, cache=cache)
    except BackendMissing as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("network", gpu_cases.NETWORKS)
@pytest.mark.parametrize("precision", gpu_cases.PRECISIONS)
@pytest.mark.parametrize("provider", ["tensorrt", "cuda"])
def test_logits_are_the_networks_over_the_whole_grid(
        provider: Any, precision: str, network: str, cases: Path, tmp_path: Path) -> None:
    engine = loaded(gpu_cases.engine_folder(cases, network, precision), provider, tmp_path)
    assert engine.provider == provider and not engine.as_proven
    given = list(gpu_cases.batches(cases, network))
    worst = max(np.abs(engine.run(**batch) - wanted).max() for batch, wanted in given)
    engine.close()
    assert worst < SHARE[precision] * np.concatenate([wanted for _, wanted in given]).std()


@pytest.mark.parametrize("precision", CROWD_ATOL)
@pytest.mark.parametrize("provider", ["tensorrt", "cuda"])
def test_a_row_alone_is_the_row_in_a_crowd_and_threads_may_ask_at_once(
        provider: Any, precision: str, cases: Path, tmp_path: Path) -> None:
    engine = loaded(gpu_cases.engine_folder(cases, "bert", precision), provider, tmp_path)
    given = [batch for batch, _ in gpu_cases.batches(cases, "bert")]
    crowds = [engine.run(**batch) for batch in given]
    with ThreadPoolExecutor(4) as pool:
        for found, crowd in zip(pool.map(lambda batch: engine.run(**batch), given), crowds):
            np.testing.assert_allclose(found, crowd, atol=CROWD_ATOL[precision])
    for batch, crowd in zip(given, crowds):
        for row in range(len(crowd)):
            alone = engine.run(**{name: array[row:row + 1] for name, array in batch.items()})
            np.testing.assert_allclose(alone[0], crowd[row], atol=CROWD_ATOL[precision])
    engine.close()


@pytest.mark.parametrize("precision", gpu_cases.PRECISIONS)
def test_a_recorded_call_gives_the_bits_of_one_that_is_not(
        precision: str, cases: Path, tmp_path: Path) -> None:
    folder = gpu_cases.engine_folder(cases, "bert", precision)
    engine = loaded(folder, "cuda", tmp_path)
    assert onnx_runtime.records(engine._session)
    import onnxruntime

    plain = onnxruntime.InferenceSession(
        folder / "model.onnx",
        providers=onnx_runtime.options("cuda", onnx.profile([(1, 8)]), (), None))
    assert not onnx_runtime.records(plain)
    for _ in range(2):
        for batch, _ in gpu_cases.batches(cases, "bert"):
            whole = {name: np.ascontiguousarray(array[:1, :8]) for name, array in batch.items()}
            np.testing.assert_array_equal(engine.run(**whole), plain.run(None, {
                name: whole[name] for name in onnx.INPUTS})[0])
    engine.close()


@pytest.mark.parametrize("provider", ["tensorrt", "cuda"])
def test_an_engine_answers_while_another_one_is_loaded(
        provider: Any, cases: Path, tmp_path: Path) -> None:
    folder = gpu_cases.engine_folder(cases, "bert", "float16")
    first = loaded(folder, provider, tmp_path)
    given = [batch for batch, _ in gpu_cases.batches(cases, "bert")]
    wanted = [first.run(**batch) for batch in given]
    done = threading.Event()

    def ask() -> int:
        count = 0
        while not done.is_set():
            for batch, logits in zip(given, wanted):
                np.testing.assert_allclose(first.run(**batch), logits,
                                           atol=CROWD_ATOL["float16"])
                count += 1
        return count

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for _ in range(3):
                second = onnx.load(folder, provider=provider, cache=tmp_path)
                np.testing.assert_allclose(second.run(**given[0]), wanted[0],
                                           atol=CROWD_ATOL["float16"])
                second.close()
        finally:
            done.set()
        assert min(one.result() for one in asking) > 0
    first.close()


def test_what_is_there_computes_without_being_asked_for(
        cases: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded(gpu_cases.engine_folder(cases, "bert", "float16"), "cuda", tmp_path).close()
    engine = onnx.load(gpu_cases.engine_folder(cases, "bert", "float16"), cache=tmp_path)
    # One that is listed and cannot be loaded is named, with its install, and CUDA computes.
    assert engine.provider == "tensorrt" or "tensorrt" in caplog.text
    assert engine.provider in onnx_runtime.ON_GPU
    batch, wanted = next(gpu_cases.batches(cases, "bert"))
    np.testing.assert_allclose(engine.run(**batch), wanted, atol=SHARE["float16"])
    engine.close()


def test_tensorrts_engine_is_kept_and_found_again(cases: Path, tmp_path: Path) -> None:
    folder = gpu_cases.engine_folder(cases, "bert", "float16")
    batch, _ = next(gpu_cases.batches(cases, "bert"))
    first = loaded(folder, "tensorrt", tmp_path)
    wanted = first.run(**batch)
    first.close()
    kept = engines(tmp_path)
    assert kept
    again = onnx.load(folder, provider="tensorrt", cache=tmp_path)
    np.testing.assert_array_equal(again.run(**batch), wanted)
    again.close()
    assert engines(tmp_path) == kept


def engines(cache: Path) -> dict[Path, int]:
    """Return TensorRT's engines below a folder, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in cache.rglob("*.engine")}


@pytest.mark.parametrize("form", gpu_cases.FORMS)
def test_xla_gives_on_a_gpu_what_the_graph_gives_on_a_cpu(form: str, cases: Path) -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX sees no GPU")
    folder, arguments, wanted = gpu_cases.program(cases, form)
    np.testing.assert_allclose(Program(folder, "gpu").run(*arguments), wanted, atol=XLA_ATOL[form])


def test_tensorflow_compiles_it_on_its_own() -> None:
    tf = pytest.importorskip("tensorflow")
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU")
    from tests.networks.encoders import classifier, logits, rows

    network, batch = classifier("bert"), rows([3, 8, 11, 16], 16)
    with tf.device("/CPU:0"):
        wanted = logits(network, batch)
    with tf.device("/GPU:0"):
        found = logits(tf.function(network, jit_compile=True), batch)
    np.testing.assert_allclose(found, wanted, atol=XLA_ATOL["network"])
