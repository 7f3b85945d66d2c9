"""A version that is a model.tflite: FL44's --prefer_tflite_model."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.litekit import adder, echo, half_plus_two
from tests.server.serverkit import call, free_port, predict_request, refused, running
from tests.server.test_server_warmup import write_logs
from tf_infer.errors import (
    BackendMissing,
    DeadlineExceeded,
    InvalidRequest,
    ServerFailure,
    ServingError,
)
from tf_infer.server import lite_servable
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.contracts import LoadTimes, Servable
from tf_infer.server.fakes import signature
from tf_infer.server.lite_servable import LITE_FILE, LiteServable, load_lite
from tf_infer.server.metrics import Metrics
from tf_infer.wire import methods, serving_pb2, tensors

WAIT_S = 10
PREFERRED = ServerConfig(models=(), prefer_tflite=True, tflite_runs=2)


def version(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LITE_FILE).write_bytes(content)
    return folder


def opened(folder: Path, content: bytes, most: int = 1) -> LiteServable:
    return LiteServable(version(folder, content) / LITE_FILE, most=most)


def load(path: Path) -> tuple[Servable, LoadTimes]:
    found = load_lite(path, PREFERRED, Metrics(page=False))
    assert found is not None
    return found


def halves(servable: LiteServable, x: object, name: str = "serving_default") -> np.ndarray:
    return servable.run(name, {"x": np.asarray(x, np.float32)}, outputs=["y"], timeout_s=None)["y"]


def test_FL44_its_one_signature_has_the_names_of_the_tensors(tmp_path: Path) -> None:
    servable = opened(tmp_path, half_plus_two())
    definition = servable.signatures["serving_default"]
    assert list(servable.signatures) == ["serving_default"]
    assert definition.method_name == "tensorflow/serving/predict"
    assert {name: (info.name, info.dtype, [dim.size for dim in info.tensor_shape.dim])
            for side in (definition.inputs, definition.outputs) for name, info in side.items()} == {
        "x": ("x:0", serving_pb2.DT_FLOAT, [1]), "y": ("y:0", serving_pb2.DT_FLOAT, [1])}


@pytest.mark.parametrize("x", [[2.0], [2.0, 3.0, 4.0], [[2.0]], [[1.0, 2.0], [3.0, 4.0]], 2.0])
def test_FL44_inputs_of_any_shape_are_run(tmp_path: Path, x: object) -> None:
    servable = opened(tmp_path, half_plus_two())
    for _ in range(2):
        answer = halves(servable, x)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer.reshape(np.shape(x)), np.asarray(x) / 2 + 2)
        assert halves(servable, [6.0]).tolist() == [5.0]


def test_FL44_signatures_of_the_metadata_count(tmp_path: Path) -> None:
    plain = signature({"x": (serving_pb2.DT_FLOAT, (1,))}, {"y": (serving_pb2.DT_FLOAT, (1,))})
    other = signature({"x": (serving_pb2.DT_FLOAT, (1,))}, {"y": (serving_pb2.DT_FLOAT, (1,))},
                      "tensorflow/serving/regress")
    servable = opened(tmp_path, half_plus_two(serving_default=plain, named=other))
    assert dict(servable.signatures) == {"serving_default": plain, "named": other}
    assert halves(servable, [2.0], "named").tolist() == [3.0]


def test_FL44_a_signature_of_the_metadata_that_names_no_tensor_fails_the_load(
        tmp_path: Path) -> None:
    wrong = signature({"x": (serving_pb2.DT_FLOAT, (1,))}, {"z": (serving_pb2.DT_FLOAT, (1,))})
    with pytest.raises(InvalidRequest, match="signature named: z references an unknown tensor"):
        opened(tmp_path, half_plus_two(named=wrong))


def test_strings_pass_as_bytes(tmp_path: Path) -> None:
    servable, texts = opened(tmp_path, echo()), [b"a\0b", b"", "größe".encode(), b"\xff"]
    answer = servable.run("serving_default", {"text": np.array(texts, object)}, outputs=["text"],
                          timeout_s=None)["text"]
    assert servable.signatures["serving_default"].inputs["text"].dtype == serving_pb2.DT_STRING
    assert answer.tolist() == texts


def test_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="be float but int64 is provided"):
        opened(tmp_path, half_plus_two()).run(
            "serving_default", {"x": np.array([1])}, outputs=["y"], timeout_s=None)


def test_a_run_that_fails_does_not_disturb_the_next(tmp_path: Path) -> None:
    servable = opened(tmp_path, adder())

    def add(a: list[float], b: list[float]) -> list[float]:
        return servable.run("serving_default", {"a": np.float32(a), "b": np.float32(b)},
                            outputs=["sum"], timeout_s=None)["sum"].tolist()

    for _ in range(3):
        with pytest.raises(ServerFailure, match="Failed to run TfLite interpreter"):
            add([1, 2], [1, 2, 3])
        assert add([1, 2], [10, 20]) == [11, 22]


def test_so_many_runs_at_once_as_there_may_be_interpreters(tmp_path: Path) -> None:
    servable = opened(tmp_path, half_plus_two(), most=2)
    held = [servable._taken(None), servable._taken(None)]
    with pytest.raises(DeadlineExceeded):
        servable.run("serving_default", {"x": np.float32([2])}, outputs=["y"], timeout_s=0.01)
    answers: list[float] = []
    asking = threading.Thread(target=lambda: answers.extend(halves(servable, [2.0])))
    asking.start()
    servable._free.put(held.pop())
    asking.join(60)
    assert answers == [3.0]
    servable.close()


def test_one_that_cannot_be_made_now_is_made_for_the_next(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(content: bytes) -> object:
        raise RuntimeError("no memory")

    servable = opened(tmp_path, half_plus_two(), most=2)
    held = servable._taken(None)
    with monkeypatch.context() as patched:
        patched.setattr(lite_servable, "_Interpreter", none)
        for _ in range(2):
            with pytest.raises(ServerFailure, match="no memory"):
                servable.run("serving_default", {"x": np.float32([2])}, outputs=["y"],
                             timeout_s=WAIT_S)
    second = servable._taken(WAIT_S)
    assert second is not held
    assert second.run({servable._inputs["x:0"]: np.float32([2])},
                      [servable._outputs["y:0"]])[0].tolist() == [3.0]


@pytest.mark.parametrize("fault", [RuntimeError("r"), MemoryError("m"), TypeError("t")])
def test_one_whose_run_failed_runs_no_more_and_who_waits_gets_another(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    servable, began, asked = opened(tmp_path, half_plus_two()), threading.Event(), []
    ran: list[object] = []
    run = lite_servable._Interpreter.run

    def first_fails(one: object, *arguments: Any) -> list[np.ndarray]:
        ran.append(one)
        if len(ran) > 1:
            return run(one, *arguments)  # type: ignore[arg-type]
        began.set()
        time.sleep(0.1)  # in which another one waits for its place
        raise fault

    monkeypatch.setattr(lite_servable._Interpreter, "run", first_fails)

    def ask_too() -> None:
        assert began.wait(WAIT_S)
        asked.append(servable.run("serving_default", {"x": np.float32([2])}, outputs=["y"],
                                  timeout_s=WAIT_S)["y"].tolist())

    waiting = threading.Thread(target=ask_too)
    waiting.start()
    with pytest.raises((ServerFailure, MemoryError, TypeError)):
        halves(servable, [2.0])
    waiting.join(2 * WAIT_S)
    assert asked == [[3.0]]
    assert len({id(one) for one in ran}) == 2


def test_what_is_no_model_fails_the_load(tmp_path: Path) -> None:
    with pytest.raises(ServerFailure, match="Convert it with the operations of LiteRT alone"):
        opened(tmp_path, b"TFL3 and then nothing")


def test_FL44_without_the_flag_or_the_file_it_is_the_SavedModel(tmp_path: Path) -> None:
    folder, metrics = version(tmp_path / "1", half_plus_two()), Metrics(page=False)
    assert load_lite(folder, ServerConfig(models=()), metrics) is None
    assert load_lite(tmp_path, PREFERRED, metrics) is None


def test_without_LiteRT_a_SavedModel_beside_it_is_served(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(lite_servable, "LIBRARY", "no_such_library")
    folder = version(tmp_path / "1", half_plus_two())
    with pytest.raises(BackendMissing, match="pip install"):
        load_lite(folder, PREFERRED, Metrics(page=False))
    (folder / "saved_model.pb").touch()
    assert load_lite(folder, PREFERRED, Metrics(page=False)) is None
    assert "passed_over=model.tflite" in caplog.text


def test_WU01_WU07_it_is_warmed_up_like_any_version(tmp_path: Path) -> None:
    folder = version(tmp_path / "1", half_plus_two())
    good, bad = serving_pb2.PredictionLog(), serving_pb2.PredictionLog()
    good.predict_log.request.CopyFrom(predict_request(x=np.float32([2.0])))
    bad.predict_log.request.CopyFrom(predict_request(z=np.float32([2.0])))
    write_logs(folder, good, good)
    assert load(folder)[1].warmup_records == 2
    write_logs(folder, bad)
    with pytest.raises(ServingError):
        load(folder)


def test_FL44_over_gRPC_and_REST(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="REST needs aiohttp: pip install 'tf_infer[server]'")
    version(tmp_path / "00000123", half_plus_two())
    with running((ModelConfig(name="m", base_path=str(tmp_path)),), load,
                 rest_port=(port := free_port())) as (_, channel):
        answer = call(channel, methods.PREDICT, predict_request(x=np.float32([[2.0]])))
        assert tensors.to_array(answer.outputs["y"]).tolist() == [[3.0]]
        assert answer.model_spec.version.value == 123
        code, text = refused(channel, methods.PREDICT, predict_request(z=np.float32([2.0])))
        assert (code, "z" in text) == ("INVALID_ARGUMENT", True)
        with urllib.request.urlopen(f"http://localhost:{port}/v1/models/m:predict",
                                    b'{"instances": [2.0, 3.0, 4.0]}', timeout=60) as found:
            assert json.load(found) == {"predictions": [3.0, 3.5, 4.0]}
