"""Timings of a call in trailing metadata: only when asked for, under every scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.serverkit import make_versions, predict_request, queued, running
from tf_infer.client.client import Client
from tf_infer.config import BytesConfig, ClassifierConfig, ShapeGrid
from tf_infer.errors import InvalidRequest
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig
from tf_infer.server.contracts import Arrays, LoadTimes, StageTimes
from tf_infer.server.fakes import EchoServable, signature
from tf_infer.server.serving_batching import BatchingParameters
from tf_infer.wire import methods, serving_pb2
from tf_infer.wire.timings import ANSWER_KEY, REQUEST_KEY, Timings, from_metadata

WAIT_S = 20
STAGES = StageTimes(tokenize_s=0.001, model_s=0.002, decode_s=0.003)
X = (TensorSpec(name="x", dtype="float32", shape=(None,)),)
MANIFEST = ModelManifest(
    name="m", version=1, grid=ShapeGrid(rows=(1, 4), tokens=(8,)),
    signatures=(SignatureSpec(name="serving_default", inputs=X, outputs=X),),
    task=ClassifierConfig(classes=("a", "b"), codec=BytesConfig()))
ONE_THREAD = BatchingParameters(num_batch_threads=1, max_batch_size=4, batch_timeout_micros=0)


class Numbers(EchoServable):
    """Gives `x` back and notes how it was run; a NaN fails. While `held` is clear, runs wait."""

    def __init__(self) -> None:
        x = {"x": (serving_pb2.DT_FLOAT, (-1,))}
        super().__init__({"serving_default": signature(x, x)})
        self.runs: list[tuple[str, int]] = []
        self.held = threading.Event()
        self.held.set()

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None, how: str = "plain") -> Arrays:
        self.runs.append((how, len(inputs["x"])))
        assert self.held.wait(WAIT_S)
        if np.isnan(inputs["x"]).any():
            raise InvalidRequest("x: expected numbers.")
        return {"x": inputs["x"]}


class Traced(Numbers):
    """Tells `STAGES` of every run that is traced."""

    def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                   outputs: Sequence[str], timeout_s: float | None) -> tuple[Arrays, StageTimes]:
        arrays = self.run(signature, inputs, outputs=outputs, timeout_s=timeout_s, how="traced")
        return arrays, STAGES


@contextmanager
def serving(tmp_path: Path, model: Numbers, **settings: Any) -> Iterator[tuple[Server, Client]]:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with (running(models, lambda path: (model, LoadTimes()), **settings) as (server, _),
          Client(server.addresses[0], timeout_s=WAIT_S) as client):
        yield server, client


def times(client: Client, wanted: Any, *values: float) -> Timings | None:
    answer = client.predict("m", {"x": np.float32(values)}, timings=wanted)
    assert answer["x"].tolist() == list(values)
    return answer.timings


def test_stages_are_told_when_they_are_asked_for(tmp_path: Path) -> None:
    model = Traced()
    with serving(tmp_path, model) as (_, client):
        found = times(client, True, 1.0)
    assert found is not None
    assert (found.tokenize_s, found.model_s, found.decode_s) == (0.001, 0.002, 0.003)
    assert 0 <= found.queue_s < found.total_s < WAIT_S
    assert model.runs == [("traced", 1)]


def test_queue_and_run_are_told_without_a_trace(tmp_path: Path) -> None:
    model = Traced()
    with serving(tmp_path, model) as (_, client):
        found = times(client, "queue", 1.0)
    assert found is not None
    assert (found.tokenize_s, found.decode_s) == (None, None)
    assert found.queue_s + found.model_s <= found.total_s
    assert model.runs == [("plain", 1)]


def test_nothing_is_told_unless_it_is_asked_for(tmp_path: Path) -> None:
    model = Traced()
    with serving(tmp_path, model) as (_, client):
        assert times(client, False, 1.0) is None
    assert model.runs == [("plain", 1)]


@pytest.mark.parametrize("model", [Numbers(), Traced()], ids=["cannot tell", "may not"])
def test_the_whole_run_is_told_where_it_is_not_split(tmp_path: Path, model: Numbers) -> None:
    with serving(tmp_path, model, profiler=not isinstance(model, Traced)) as (_, client):
        found = times(client, True, 1.0)
    assert found is not None
    assert (found.tokenize_s, found.decode_s) == (None, None)
    assert model.runs == [("plain", 1)]


def test_time_in_the_queue_is_told(tmp_path: Path) -> None:
    model = Traced()
    with (serving(tmp_path, model, batching=ONE_THREAD) as (server, client),
          ThreadPoolExecutor(2) as pool):
        model.held.clear()
        first = pool.submit(times, client, False, 1.0)
        while not model.runs:
            time.sleep(0.002)
        second = pool.submit(times, client, "queue", 2.0)
        queued(server, 1)
        time.sleep(0.2)
        model.held.set()
        assert first.result(WAIT_S) is None
        found = second.result(WAIT_S)
    assert found is not None
    assert 0.2 <= found.queue_s < found.total_s


@pytest.mark.parametrize("settings", [{"batching": ONE_THREAD}, {"batch_workers": 1}],
                         ids=["TensorFlow Serving's batching", "ours"])
def test_in_a_batch_only_those_who_asked_are_told(
        tmp_path: Path, settings: dict[str, Any]) -> None:
    model = Traced()
    model.manifest = MANIFEST
    with (serving(tmp_path, model, **settings) as (server, client),
          ThreadPoolExecutor(4) as pool):
        model.held.clear()
        first = pool.submit(times, client, False, 1.0)
        while not model.runs:
            time.sleep(0.002)
        others = [pool.submit(times, client, wanted, float(number))
                  for number, wanted in enumerate((False, True, "queue"))]
        queued(server, 3)
        model.held.set()
        assert first.result(WAIT_S) is None
        silent, split, waited = (other.result(WAIT_S) for other in others)
    assert model.runs == [("plain", 1), ("traced", 3)]
    assert silent is None
    assert split is not None
    assert split.tokenize_s == 0.001
    assert waited is not None
    assert waited.tokenize_s is None


def test_a_request_that_is_cut_counts_all_its_pieces(tmp_path: Path) -> None:
    model = Traced()
    parameters = replace(ONE_THREAD, max_batch_size=12, max_execution_batch_size=4,
                         enable_large_batch_splitting=True)
    with serving(tmp_path, model, batching=parameters) as (_, client):
        found = times(client, True, *map(float, range(10)))
    assert sorted(model.runs) == [("traced", 2), ("traced", 4), ("traced", 4)]
    assert found is not None
    assert found.tokenize_s == pytest.approx(0.003)


def test_a_call_that_fails_tells_its_error_alone(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with (running(models, lambda path: (Traced(), LoadTimes())) as (_, channel),
          pytest.raises(grpc.RpcError) as caught):
        channel.unary_unary(methods.PREDICT.path)(
            predict_request(x=np.float32([np.nan])).SerializeToString(), timeout=WAIT_S,
            metadata=((REQUEST_KEY, "1"),))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert ANSWER_KEY not in dict(caught.value.trailing_metadata() or ())


def test_other_methods_tell_it_too(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, lambda path: (Traced(), LoadTimes())) as (_, channel):
        request = serving_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "m"
        _, ended = channel.unary_unary(methods.GET_MODEL_METADATA.path).with_call(
            request.SerializeToString(), timeout=WAIT_S, metadata=((REQUEST_KEY, "1"),))
    found = from_metadata(ended.trailing_metadata())
    assert found is not None
    assert (found.queue_s, found.model_s) == (0.0, 0.0)  # nothing is run
