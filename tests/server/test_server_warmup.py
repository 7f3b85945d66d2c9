"""Warm-up records, golden samples, settings for the real server; no TensorFlow."""

from __future__ import annotations

import dataclasses
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from tf_infer.config import ShapeGrid
from tf_infer.errors import Code, ConfigError, InvalidRequest, NotOffered, ServerFailure
from tf_infer.manifest import EXTRA_FOLDER, Sample, write_samples
from tf_infer.server import tf_serving, warmup
from tf_infer.server.config import (
    ModelConfig,
    Monitoring,
    VersionPolicy,
    read_config_file,
    read_monitoring_file,
)
from tf_infer.server.fakes import EchoServable, ScriptedServable, signature
from tf_infer.server.metrics import Metrics
from tf_infer.server.warmup import (
    masked_crc32c,
    read_records,
    replay_golden,
    warm_up,
)
from tf_infer.wire import serving_pb2, tensors

TEXTS = np.array([b"a", b"b"], object)


def test_the_checksum_is_Castagnolis() -> None:
    # RFC 3720, B.4: crc32c of 32 zero bytes is 0x8a9136aa; the mask is record_writer.cc's.
    crc = 0x8A9136AA
    assert masked_crc32c(bytes(32)) == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return (length + struct.pack("<I", masked_crc32c(length)) + data
            + struct.pack("<I", masked_crc32c(data)))


def test_records_come_back_and_every_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "records"
    whole = record(b"one") + record(b"") + record(b"x" * 1000)
    path.write_bytes(whole)
    assert [len(data) for data in read_records(path)] == [3, 0, 1000]
    for place in (0, 9, 13, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        with pytest.raises(ServerFailure, match="verify your warmup data") as caught:
            list(read_records(path))
        assert caught.value.code is Code.DATA_LOSS
    path.write_bytes(whole[:-1])
    with pytest.raises(ServerFailure, match="cut short"):
        list(read_records(path))


def test_of_a_file_that_is_as_it_was_written_no_record_is_summed_up(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records"
    path.write_bytes(record(b"one") + record(b"x" * 1000))
    summed: list[int] = []
    monkeypatch.setattr(warmup, "masked_crc32c", lambda data: (
        summed.append(len(data)), masked_crc32c(data))[1])
    assert [len(data) for data in read_records(path, intact=True)] == [3, 1000]
    assert summed == [8, 8]  # the lengths, on which hangs how much is read
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ServerFailure, match="cut short"):
        list(read_records(path, intact=True))


def test_warm_up_runs_each_record_as_often_as_asked(tmp_path: Path) -> None:
    log = serving_pb2.PredictionLog()
    log.predict_log.request.inputs["text"].CopyFrom(tensors.to_proto(TEXTS))
    assert warm_up(EchoServable(), tmp_path) == 0
    (tmp_path / EXTRA_FOLDER).mkdir()
    path = tmp_path / EXTRA_FOLDER / "tf_serving_warmup_requests"
    path.write_bytes(record(log.SerializeToString()) * 2)
    servable = ScriptedServable([{"text": TEXTS}])
    assert warm_up(servable, tmp_path, iterations=3) == 2
    assert len(servable.calls) == 6
    assert warm_up(servable, tmp_path, most_rows=1) == 2
    assert [len(inputs["text"]) for _, inputs, _, _ in servable.calls] == [2] * 6 + [1] * 2


INFERENCE = {
    "predict": signature({"x": (serving_pb2.DT_STRING, (-1,))},
                         {"y": (serving_pb2.DT_FLOAT, (-1,))}),
    "classify": signature({"inputs": (serving_pb2.DT_STRING, (-1,))},
                          {"scores": (serving_pb2.DT_FLOAT, (-1, 1))}),
    "regress": signature({"inputs": (serving_pb2.DT_STRING, (-1,))},
                         {"outputs": (serving_pb2.DT_FLOAT, (-1,))}),
}


def logs() -> dict[str, serving_pb2.PredictionLog]:
    """Return a record of every kind that is replayed, in the order of their names in WU02."""
    made = {kind: serving_pb2.PredictionLog() for kind in (
        "predict", "classify", "regress", "multi_inference")}
    for kind, log in made.items():
        request = getattr(log, f"{kind}_log").request
        if kind == "predict":
            request.inputs["x"].CopyFrom(tensors.to_proto(TEXTS[:1]))
        else:
            request.input.example_list.examples.add()
        if kind == "multi_inference":
            task = request.tasks.add(method_name="tensorflow/serving/regress")
            task.model_spec.name, task.model_spec.signature_name = "any", "regress"
        else:
            request.model_spec.name, request.model_spec.signature_name = "another model", kind
            request.model_spec.version.value = 99                               # WU05
    return made


def write_logs(folder: Path, *found: serving_pb2.PredictionLog) -> None:
    (folder / EXTRA_FOLDER).mkdir(exist_ok=True)
    (folder / EXTRA_FOLDER / "tf_serving_warmup_requests").write_bytes(
        b"".join(record(log.SerializeToString()) for log in found))


def test_WU02_WU03_WU05_WU11_every_kind_of_record_runs_in_order(tmp_path: Path) -> None:
    write_logs(tmp_path, *logs().values(), serving_pb2.PredictionLog(),         # WU11
               logs()["classify"])
    answer = {"y": np.float32([0]), "scores": np.float32([[0]]), "outputs": np.float32([0])}
    servable = ScriptedServable([answer], INFERENCE)
    assert warm_up(servable, tmp_path) == 6
    assert [name for name, _, _, _ in servable.calls] == [
        "predict", "classify", "regress", "regress", "classify"]


@pytest.mark.parametrize("kind", ["session_run_log", "predict_streamed_log"])
def test_WU12_records_of_other_kinds_are_not_offered(tmp_path: Path, kind: str) -> None:
    log = serving_pb2.PredictionLog()
    getattr(log, kind).SetInParent()
    write_logs(tmp_path, log)
    with pytest.raises(NotOffered, match=f"Unsupported log_type for warmup: {kind}") as caught:
        warm_up(EchoServable(), tmp_path)
    assert caught.value.code is Code.UNIMPLEMENTED


@pytest.mark.parametrize("kind", ["predict", "classify", "regress", "multi_inference"])
def test_WU07_a_record_that_fails_fails_with_its_own_error(tmp_path: Path, kind: str) -> None:
    write_logs(tmp_path, logs()[kind])
    servable = ScriptedServable([InvalidRequest("bad row", code=Code.OUT_OF_RANGE)], INFERENCE)
    with pytest.raises(InvalidRequest, match="bad row") as caught:
        warm_up(servable, tmp_path)
    assert caught.value.code is Code.OUT_OF_RANGE


def test_wu14_wu15_the_warm_up_is_measured_and_its_requests_are_not_counted(
        tmp_path: Path) -> None:
    log = serving_pb2.PredictionLog()
    log.predict_log.request.inputs["text"].CopyFrom(tensors.to_proto(TEXTS))
    metrics = Metrics()
    assert warm_up(EchoServable(), tmp_path, metrics=metrics) == 0
    assert "model_path" not in metrics.page().decode()  # no file: nothing to measure
    (tmp_path / EXTRA_FOLDER).mkdir()
    path = tmp_path / EXTRA_FOLDER / "tf_serving_warmup_requests"
    path.write_bytes(record(log.SerializeToString()) * 2)
    warm_up(EchoServable(), tmp_path, iterations=3, metrics=metrics)
    path.write_bytes(record(log.SerializeToString())[:-1])
    with pytest.raises(ServerFailure):
        warm_up(EchoServable(), tmp_path, metrics=metrics)
    lines = metrics.page().decode().splitlines()
    for name, status, value in (("model_warmup_records_read", "OK", 2),
                                ("model_warmup_latency_count", "OK", 1),
                                ("model_warmup_records_read", "DATA_LOSS", 0),
                                ("model_warmup_latency_count", "DATA_LOSS", 1)):
        assert (f':tensorflow:serving:{name}{{model_path="{tmp_path}",status="{status}"}} {value}'
                in lines)
    assert metrics.counter_value("/tensorflow/serving/request_count") == 0


def replay(tmp_path: Path, answer: np.ndarray, *samples: Sample) -> int:
    (tmp_path / EXTRA_FOLDER).mkdir(exist_ok=True)
    write_samples(samples, tmp_path / EXTRA_FOLDER / "golden.jsonl")
    return replay_golden(ScriptedServable([{"text": answer}]), tmp_path)


@pytest.mark.parametrize(("labels", "words"), [
    ([b"b", b"b"], None), ([b"a", b"a"], r"output 'label': 1 of 2 values differ.*first in row 1")])
def test_a_label_may_flip_only_where_verify_lets_it_flip(
        tmp_path: Path, labels: list[bytes], words: str | None) -> None:
    kinds = {"label": (serving_pb2.DT_STRING, (-1,)), "scores": (serving_pb2.DT_FLOAT, (-1, 2))}
    takes = {"text": (serving_pb2.DT_STRING, (-1,))}
    scores = np.float32([[0.5, 0.49999], [0.1, 0.9]])
    (tmp_path / EXTRA_FOLDER).mkdir()
    write_samples([Sample("serving_default", {"text": TEXTS}, {
        "label": np.array([b"a", b"b"], object), "scores": scores})],
        tmp_path / EXTRA_FOLDER / "golden.jsonl")
    servable = ScriptedServable([{"label": np.array(labels, object), "scores": scores}],
                                {"serving_default": signature(takes, kinds)})
    if words is None:
        assert replay_golden(servable, tmp_path) == 1
    else:
        with pytest.raises(InvalidRequest, match=words):
            replay_golden(servable, tmp_path)


def test_golden_replay_names_sample_and_output_and_never_a_text(tmp_path: Path) -> None:
    good = Sample("serving_default", {"text": TEXTS}, {"text": TEXTS})
    assert replay_golden(EchoServable(), tmp_path) == 0
    assert replay(tmp_path, TEXTS, good, good) == 2
    with pytest.raises(InvalidRequest, match="golden sample 0, signature 'serving_default', "
                       "output 'text': 1 of 2 values differ") as caught:
        replay(tmp_path, np.array([b"a", b"secret"], object), good)
    assert "secret" not in str(caught.value)
    assert caught.value.code is Code.FAILED_PRECONDITION


@pytest.mark.parametrize(("sample", "words"), [
    (Sample("no", {}, {}), "expected one of"),
    (Sample("serving_default", {"text": TEXTS}, {"z": TEXTS}),
     r"outputs of \['text'\], got \['z'\]"),
    (Sample("serving_default", {"z": TEXTS}, {}), r"inputs of \['text'\], got \['z'\]"),
])
def test_golden_samples_of_another_model(tmp_path: Path, sample: Sample, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replay(tmp_path, TEXTS, sample)


# ---------------------------------------------------------------------------- the real server


def models(tmp_path: Path) -> tuple[ModelConfig, ...]:
    for name in ("b", "a"):
        os.makedirs(tmp_path / name / "1")
    return tuple(ModelConfig(name=name, base_path=str(tmp_path / name)) for name in ("b", "a"))


def test_models_config_names_every_model_below_the_root(tmp_path: Path) -> None:
    path, _ = tf_serving.write(models(tmp_path), tmp_path / "out", model_root="/models/")
    read = serving_pb2.ModelServerConfig()
    text_format.Parse(path.read_text(encoding="utf-8"), read)
    assert [(item.name, item.base_path, item.model_platform)
            for item in read.model_config_list.config] == [
        ("a", "/models/a", "tensorflow"), ("b", "/models/b", "tensorflow")]


def test_models_config_of_this_machine_keeps_every_path(tmp_path: Path) -> None:
    given = [ModelConfig(name=name, base_path=f"/{name}/intents") for name in ("a", "b")]
    (tmp_path / "models.config").write_text(tf_serving.models_text(given, model_root=None))
    assert list(read_config_file(tmp_path / "models.config")) == given


def test_monitoring_config_turns_the_page_on(tmp_path: Path) -> None:
    _, path = tf_serving.write(models(tmp_path), tmp_path / "out", model_root="/models")
    assert read_monitoring_file(path) == Monitoring(
        enabled=True, path="/monitoring/prometheus/metrics")


def test_models_config_keeps_folders_policies_and_labels(tmp_path: Path) -> None:
    policies = (VersionPolicy(), VersionPolicy(count=2), VersionPolicy(kind="all"),
                VersionPolicy(kind="specific", versions=(3, 7)))
    given = tuple(ModelConfig(name=f"m{place}", base_path=f"/data/{place % 3}-folder/",
                              policy=policy, labels={"stable": 7} if place == 3 else {})
                  for place, policy in enumerate(policies))
    path = tmp_path / "models.config"
    path.write_text(tf_serving.models_text(given, model_root="/models"), encoding="utf-8")
    assert read_config_file(path) == tuple(
        dataclasses.replace(one, base_path=f"/models/{place % 3}-folder")
        for place, one in enumerate(given))


def test_two_folders_of_one_name_cannot_lie_below_one_root() -> None:
    models = [ModelConfig(name=name, base_path=f"/data/{name}/intents") for name in ("a", "b")]
    with pytest.raises(ConfigError, match=r"'intents'.*'/data/a/intents'.*'/data/b/intents'"):
        tf_serving.models_text(models, model_root="/models")


def test_batching_config_allows_the_sizes_of_the_grids() -> None:
    text = tf_serving.batching_text([ShapeGrid(rows=(1, 8)), ShapeGrid(rows=(1, 4, 32))])
    read = text_format.Parse(text, serving_pb2.BatchingParameters())
    assert list(read.allowed_batch_sizes) == [1, 4, 8, 32]
    assert read.max_batch_size.value == 32  # BA08


def test_a_relative_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TensorFlow Serving refuses relative paths"):
        tf_serving.models_text(models(tmp_path), model_root="models")
