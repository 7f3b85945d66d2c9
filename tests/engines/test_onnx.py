"""The ONNX engine of a classifier: its network's logits, each row for itself; what is refused."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from tests.networks.encoders import POSITIONS, classifier, rows
from tests.networks.encoders import logits as network_logits
from tf_infer import config
from tf_infer.config import ShapeGrid
from tf_infer.engines import gpus, onnx, onnx_runtime
from tf_infer.engines.deadline import Deadline
from tf_infer.engines.onnx_recorded import Recorded, by_its_thread
from tf_infer.errors import BackendMissing, ConfigError, DeadlineExceeded, ExportError
from tf_infer.manifest import ENGINE_FILE, EncoderEngineManifest, hash_file
from tf_infer.optimize.onnx import OnnxSettings, write

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

GRID = ShapeGrid(rows=(1, 3), tokens=(8, 16, POSITIONS))
# Sums of at most 40 numbers near 1 in another order, through two layers.
FLOAT32_ATOL = 2e-5
# 7 bits of the largest number of a row and of an output of a matrix: of 16 numbers each.
INT8_ATOL = 0.15
FLOAT16_ATOL = 0.01


@pytest.fixture(scope="module")
def network() -> Any:
    return classifier("bert")


@pytest.fixture(scope="module")
def folder(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("engines")
    for precision in ("int8", "float16", "float32"):
        write(network, base / precision, OnnxSettings(precision=precision), grid=GRID)
    return base


@pytest.fixture(scope="module", params=["int8", "float32"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[onnx.OnnxEngine]:
    loaded = onnx.load(folder / request.param, provider="cpu")
    yield loaded
    loaded.close()


@pytest.mark.parametrize(("precision", "atol"), [
    ("float32", FLOAT32_ATOL), ("float16", FLOAT16_ATOL), ("int8", INT8_ATOL)])
def test_logits_are_the_networks_over_the_whole_grid(
        precision: str, atol: float, network: Any, folder: Path) -> None:
    engine = onnx.load(folder / precision, provider="cpu", threads=1)
    worst = 0.0
    for count in (*GRID.rows, 4):
        for width in (*GRID.tokens, 11):
            lengths = np.random.default_rng(width).integers(1, width + 1, count)
            batch = rows(lengths, width, seed=count)
            difference = engine.run(**batch) - network_logits(network, batch)
            worst = max(worst, float(np.abs(difference).max()))
    engine.close()
    assert worst < atol
    assert precision == "float32" or worst > FLOAT32_ATOL  # it is another precision


def test_a_row_is_the_same_to_the_last_bit_alone_and_in_a_crowd(engine: onnx.OnnxEngine) -> None:
    batch = rows([5, 1, 40, 12, 12, 30], 40)
    # A neighbour of large numbers would widen a range that rows shared.
    crowd = engine.run(**batch)
    order = np.array([3, 5, 0, 2, 4, 1])
    np.testing.assert_array_equal(engine.run(**{n: a[order] for n, a in batch.items()}),
                                  crowd[order])
    for row, width in enumerate(batch["mask"].sum(axis=1)):
        for size in (width, 40):
            alone = engine.run(**{n: a[row:row + 1, :size] for n, a in batch.items()})
            np.testing.assert_array_equal(alone[0], crowd[row])


def test_what_stands_in_padding_does_not_matter(engine: onnx.OnnxEngine) -> None:
    batch = rows([5, 9], 16)
    other = {**batch, "ids": np.where(batch["mask"], batch["ids"], 7).astype(np.int32)}
    np.testing.assert_array_equal(engine.run(**batch), engine.run(**other))


def test_several_threads_may_ask_at_once(engine: onnx.OnnxEngine) -> None:
    batches = [rows([3, 17, 40, 8], 40, seed=seed) for seed in range(8)]
    wanted = [engine.run(**batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, one in zip(pool.map(lambda batch: engine.run(**batch), batches), wanted):
            np.testing.assert_array_equal(found, one)


def test_no_rows_and_rows_without_an_id_are_answered(engine: onnx.OnnxEngine, network: Any
                                                     ) -> None:
    assert engine.run(**rows([], 8)).shape == (0, 3)
    empty = rows([0, 4], 8)
    found = engine.run(**empty)
    # Their mean is 0, so only the head is left.
    np.testing.assert_allclose(found[0], keras.ops.convert_to_numpy(network.logits.bias), atol=1e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"ids": np.zeros((2, POSITIONS + 1), np.int32), "mask": np.ones((2, POSITIONS + 1), bool),
      "segments": np.zeros((2, POSITIONS + 1), np.int32)}, "at most 40 ids, got 41 in row 0"),
    ({"ids": np.zeros((2, 7), np.int32)}, "expected the same"),
    ({"ids": np.zeros(8, np.int32), "mask": np.ones(8, bool), "segments": np.zeros(8, np.int32)},
     "expected the same")])
def test_rows_that_cannot_be_are_refused(engine: onnx.OnnxEngine, change: dict[str, Any],
                                         message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.run(**{**rows([2, 3], 8), **change})


def test_padding_behind_the_last_position_is_no_fault(engine: onnx.OnnxEngine) -> None:
    narrow, wide = rows([4], 8), rows([4], POSITIONS + 9)
    wide = {name: np.pad(array, ((0, 0), (0, POSITIONS + 1))) for name, array in narrow.items()}
    np.testing.assert_array_equal(engine.run(**narrow), engine.run(**wide))


def test_a_network_without_segments_does_not_look_at_them(tmp_path: Path) -> None:
    network = classifier("distilbert", "first")
    manifest = write(network, tmp_path / "onnx", OnnxSettings(precision="float32"), grid=GRID)
    engine, batch = onnx.load(tmp_path / "onnx", provider="cpu"), rows([3, 9], 12)
    assert not manifest.segments and batch["segments"].any()
    np.testing.assert_allclose(engine.run(**batch), network_logits(network, batch),
                               atol=FLOAT32_ATOL)
    engine.close()


# ---------------------------------------------------------------------------- what a folder is


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    for path in (folder / "float32").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def changed(folder: Path, content: bytes) -> None:
    """Write another model file, and what `engine.json` says of it."""
    (folder / "model.onnx").write_bytes(content)
    described: EncoderEngineManifest = config.load(EncoderEngineManifest, folder / ENGINE_FILE)
    config.dump(replace(described, sha256=hash_file(folder / "model.onnx")), folder / ENGINE_FILE)


def test_a_file_that_is_not_the_exported_one_is_refused(copied: Path) -> None:
    path = copied / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ExportError, match=r"model\.onnx: expected the file of its engine\.json"):
        onnx.load(copied)
    path.unlink()
    with pytest.raises(ExportError, match="expected the engine's model"):
        onnx.load(copied)


def test_a_file_that_is_no_model_is_refused(copied: Path) -> None:
    changed(copied, b"no model")
    with pytest.raises(ExportError, match=r"model\.onnx: expected a model that ONNX Runtime .* got "
                                          "InvalidProtobuf"):
        onnx.load(copied, provider="cpu")


def test_an_operation_that_the_runtime_lacks_is_named(copied: Path) -> None:
    import onnx as library

    model = library.load(copied / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Softmax")
    node.op_type = "Hardness"
    changed(copied, model.SerializeToString())
    with pytest.raises(ExportError, match="Hardness"):
        onnx.load(copied, provider="cpu")


# ---------------------------------------------------------------------------- where it runs


def test_without_the_library_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch
                                                ) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissing, match=r"pip install 'tf-infer\[onnx\]'"):
        onnx.load(folder / "float32")


def test_float16_wants_a_gpu_unless_the_cpu_is_asked_for(
        folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "found", lambda: ())
    with pytest.raises(BackendMissing, match=r"onnxruntime-gpu|got none"):
        onnx.load(folder / "float16")
    with pytest.raises(BackendMissing, match=r"onnxruntime-gpu|got none"):
        onnx.load(folder / "float32", provider="tensorrt")
    onnx.load(folder / "float16", provider="cpu").close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of ONNX Runtime: a provider it has not
def test_listed_providers_that_cannot_be_loaded_are_passed_over_and_named(
        folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import onnxruntime

    monkeypatch.setattr(gpus, "found", lambda: (gpus.Gpu("a GPU", "9.0"),))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    engine = onnx.load(folder / "float32")
    assert engine.provider == "cpu" and engine.as_proven
    engine.close()
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in caplog.text
    assert len(caplog.records) == 2 and "tensorrt" in caplog.records[0].message.lower()
    with pytest.raises(BackendMissing, match=r"pip install 'onnxruntime-gpu\[cuda"):
        onnx.load(folder / "float32", provider="cuda")
    with pytest.raises(BackendMissing, match=r"pip install 'onnxruntime-gpu\[cuda"):
        onnx.load(folder / "float16")


def test_recorded_calls_keep_shapes_and_callers_apart(folder: Path) -> None:
    import onnxruntime

    plain = onnxruntime.InferenceSession(
        folder / "float32" / "model.onnx", providers=["CPUExecutionProvider"])
    assert not onnx_runtime.records(plain)
    recorded = Recorded(plain, "logits", 3, device="cpu")  # no graphs there, but all the rest
    batches = [rows([width] * count, width, seed=seed) for seed in range(6)
               for count, width in ((1, 8), (3, 8), (3, 16))]

    def found(batch: dict[str, np.ndarray]) -> np.ndarray:
        return by_its_thread(lambda: recorded.run(batch), Deadline(None))

    wanted = [plain.run(None, batch)[0] for batch in batches]
    given = [found(batch) for batch in batches]  # none changes when the next one is computed
    with ThreadPoolExecutor(4) as pool:
        for one in (given, list(pool.map(found, batches))):
            for logits, reference in zip(one, wanted, strict=True):
                np.testing.assert_array_equal(logits, reference)
    recorded.close()


def test_an_engine_whose_recording_fails_is_loaded_without(
        folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    closed = []

    class Failing(onnx.OnnxEngine):
        def __init__(self, *given: Any, recorded: bool = True, **more: Any) -> None:
            super().__init__(*given, recorded=recorded, **more)
            self.wanted = recorded

        @property
        def records(self) -> bool:
            return self.wanted

        def warm_up(self) -> None:
            if self.wanted:
                raise RuntimeError("CUDA failure 906")
            super().warm_up()

        def close(self) -> None:
            closed.append(self.wanted)
            super().close()

    monkeypatch.setattr(onnx, "OnnxEngine", Failing)
    engine = onnx.load(folder / "float32", provider="cpu")
    assert closed == [True] and not engine.records and "not recorded" in caplog.text
    assert engine.run(**rows([3], 8)).shape == (1, 3)
    engine.close()


def test_work_on_a_gpu_is_done_by_one_thread_or_given_up_before_it_begins() -> None:
    assert len({by_its_thread(threading.get_ident) for _ in range(3)} - {threading.get_ident()}
               ) == 1
    begun, end = threading.Event(), threading.Event()

    def long() -> str:
        begun.set()
        return "done" if end.wait(20.0) else "never"

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(by_its_thread, long, Deadline(0.05))
        assert begun.wait(20.0)
        with pytest.raises(DeadlineExceeded, match="expected its turn before the deadline"):
            by_its_thread(lambda: "too late", Deadline(0.05))
        end.set()
        assert first.result(20.0) == "done"  # what has begun is not given up
    with pytest.raises(DeadlineExceeded):
        by_its_thread(lambda: "too late", Deadline(0.0))
    with pytest.raises(ZeroDivisionError):
        by_its_thread(lambda: 1 // 0)


def test_a_call_whose_time_is_up_is_given_up_between_rows(engine: onnx.OnnxEngine) -> None:
    batch = rows([3, 9], 16)
    with pytest.raises(DeadlineExceeded, match="expected its turn before the deadline"):
        engine.run(**batch, timeout_s=0.0)
    assert engine.run(**batch, timeout_s=60.0).shape == (2, 3)


def test_int8_is_the_cpus(folder: Path) -> None:
    with pytest.raises(ConfigError, match="expected cpu with an engine in int8"):
        onnx.load(folder / "int8", provider="tensorrt")


def test_tensorrt_is_told_the_smallest_a_common_and_the_largest_shape() -> None:
    shapes = tuple((count, width) for count in (1, 8, 32) for width in (16, 32, 64, 128))
    assert onnx.profile(shapes) == ((1, 16), (8, 64), (32, 128))
