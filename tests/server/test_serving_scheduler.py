"""TensorFlow Serving's batching end to end: statements BA01 to BA26; no TensorFlow."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.serverkit import (
    call,
    make_versions,
    predict_request,
    queued,
    refused,
    running,
    uncollected,
)
from tf_infer.errors import DeadlineExceeded, InvalidRequest, ServingError
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig
from tf_infer.server.contracts import LoadTimes, Plan, Run, Servable
from tf_infer.server.fakes import EchoServable, signature
from tf_infer.server.pipeline import Call
from tf_infer.server.scheduler import Job, WaitingCounts
from tf_infer.server.serving_batching import PER_MODEL_FILE, BatchingParameters
from tf_infer.server.serving_scheduler import ServingScheduler
from tf_infer.server.versions import ModelRef
from tf_infer.wire import methods, serving_pb2, tensors

FLOAT, TEXT = serving_pb2.DT_FLOAT, serving_pb2.DT_STRING
PREDICT = methods.PREDICT
WAIT_S = 20
VECTOR = {"x": (FLOAT, (-1,))}


class Doubler(EchoServable):
    """x -> 2 x; some signatures do what their name says. While `held` is clear, runs wait."""

    def __init__(self, hold: bool = False) -> None:
        super().__init__({
            "serving_default": signature({"x": (FLOAT, None)},
                                         {"y": (FLOAT, None), "z": (FLOAT, None)}),
            "other": signature(VECTOR, {"y": (FLOAT, (-1,))}),
            "scalar": signature(VECTOR, {"y": (FLOAT, ())}),
            "short": signature(VECTOR, {"y": (FLOAT, (-1,))}),
            "two": signature({"x": (FLOAT, None), "w": (FLOAT, None)}, {"y": (FLOAT, None)}),
            "fails": signature(VECTOR, {"y": (FLOAT, (-1,))}),
            "classify": signature({"inputs": (TEXT, (-1,))}, {"scores": (FLOAT, (-1, 1))}),
            "regress": signature({"inputs": (TEXT, (-1,))}, {"outputs": (FLOAT, (-1,))}),
        })
        self.runs: list[np.ndarray] = []
        self.limits: list[float | None] = []
        self.threads: set[str] = set()
        self.held = threading.Event()
        if not hold:
            self.held.set()

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        x = next(iter(inputs.values()))
        self.runs.append(x)
        self.limits.append(timeout_s)
        self.threads.add(threading.current_thread().name)
        assert self.held.wait(WAIT_S)
        if signature == "fails":
            raise InvalidRequest("op failed")
        if signature == "scalar":
            return {"y": np.float32(1)}
        if signature == "short":
            return {"y": np.zeros(1, np.float32)}
        if signature in ("classify", "regress"):
            return {"scores": np.zeros((len(x), 1), np.float32),
                    "outputs": np.zeros(len(x), np.float32)}
        return dict.fromkeys(outputs, 2 * x)


@contextmanager
def serving(tmp_path: Path, model: Doubler, *, per_model: bool = False, **parameters: Any,
            ) -> Iterator[tuple[Server, Any]]:
    parameters.setdefault("num_batch_threads", 1)
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, lambda path: (model, LoadTimes()), per_model_batching=per_model,
                 batching=BatchingParameters(**parameters)) as made:
        yield made


def later(channel: Any, signature: str = "", *, timeout: float = WAIT_S,
          filters: Sequence[str] = (), **inputs: Any) -> Any:
    request = predict_request(signature=signature, **inputs)
    request.output_filter.extend(filters)
    return channel.unary_unary(
        PREDICT.path, response_deserializer=PREDICT.response.FromString).future(
            request.SerializeToString(), timeout=timeout)


def hold(channel: Any, model: Doubler) -> Any:
    """Let the only batch thread begin a run that waits."""
    first = later(channel, x=np.float32([0]))
    while not model.runs:
        time.sleep(0.002)
    return first


def values(future: Any, name: str = "y") -> Any:
    return tensors.to_array(future.result(WAIT_S).outputs[name]).tolist()


def failure(future: Any) -> tuple[str, str]:
    return future.code().name, future.details()


def test_BA01_concurrent_requests_run_as_one_and_each_gets_its_rows(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model) as (server, channel):
        first = hold(channel, model)
        asked = [later(channel, x=np.float32(rows)) for rows in ([1, 2], [3])]
        queued(server, 2)
        model.held.set()
        assert [values(first), *map(values, asked)] == [[0], [2, 4], [6]]
    assert sorted(len(run) for run in model.runs) == [1, 3]


def test_BA04_a_request_of_too_many_rows_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, Doubler(), max_batch_size=2) as (_, channel):
        assert refused(channel, PREDICT, predict_request(x=np.float32([1, 2, 3]))) == (
            "INVALID_ARGUMENT", "Task size 3 is larger than maximum input batch size 2")


def test_BA05_a_full_batch_runs_at_once_a_part_full_one_after_the_timeout(tmp_path: Path) -> None:
    with serving(tmp_path / "full", Doubler(), max_batch_size=2,
                 batch_timeout_micros=10 * WAIT_S * 1_000_000) as (_, channel):
        assert values(later(channel, x=np.float32([1, 2]))) == [2, 4]
    with serving(tmp_path / "part", Doubler(), max_batch_size=2,
                 batch_timeout_micros=200_000) as (_, channel):
        started = time.monotonic()
        assert values(later(channel, x=np.float32([1]))) == [2]
        assert time.monotonic() - started >= 0.2


def test_BA06_a_full_queue_is_UNAVAILABLE(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model, max_batch_size=1, max_enqueued_batches=2) as (server, channel):
        first = hold(channel, model)
        asked = [later(channel, x=np.float32([i])) for i in (1, 2)]
        queued(server, 2)
        code, text = refused(channel, PREDICT, predict_request(x=np.float32([3])))
        assert code == "UNAVAILABLE"
        assert "The batch scheduling queue to which this task was submitted is full" in text
        model.held.set()
        assert [values(first), *map(values, asked)] == [[0], [2], [4]]


def test_BA07_a_batch_is_filled_up_to_an_allowed_size_and_cut_again(tmp_path: Path) -> None:
    model = Doubler()
    with serving(tmp_path, model, max_batch_size=8, allowed_batch_sizes=(4, 8)) as (_, channel):
        assert values(later(channel, x=np.float32([5, 6]))) == [10, 12]
    assert model.runs[0].tolist() == [5, 6, 5, 5]


def test_BA09_BA24_signatures_and_output_filters_have_queues_of_their_own(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model) as (server, channel):
        hold(channel, model)
        asked = [later(channel, x=np.float32([1])), later(channel, "other", x=np.float32([2])),
                 later(channel, x=np.float32([3]), filters=["y"])]
        queued(server, 3)
        model.held.set()
        assert [values(future) for future in asked] == [[2], [4], [6]]
    assert sorted(run.tolist() for run in model.runs[1:]) == [[1], [2], [3]]


def test_BA24_signatures_take_turns(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model, max_batch_size=1) as (server, channel):
        hold(channel, model)
        asked = []
        for name, value in (("", 1), ("", 2), ("", 3), ("other", 4)):
            asked.append(later(channel, name, x=np.float32([value])))
            queued(server, len(asked))
        model.held.set()
        assert [values(future) for future in asked] == [[2], [4], [6], [8]]
    assert model.runs[2].tolist() == [4]


def test_BA09_a_request_of_another_dtype_does_not_spoil_the_batch(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model) as (server, channel):
        hold(channel, model)
        asked = [later(channel, x=np.float32([1])), later(channel, x=np.int32([2]))]
        queued(server, 2)
        model.held.set()
        assert [values(future) for future in asked] == [[2], [4]]
    assert [run.dtype.name for run in model.runs] == ["float32", "float32", "int32"]


def test_BA10_BA11_different_shapes_fail_all_or_are_padded_with_their_own_first_value(
        tmp_path: Path) -> None:
    for pad in (False, True):
        model = Doubler(hold=True)
        with serving(tmp_path, model, pad_variable_length_inputs=pad) as (server, channel):
            hold(channel, model)
            asked = [later(channel, x=np.float32([[1, 2]])), later(channel, x=np.float32([[7]]))]
            queued(server, 2)
            model.held.set()
            if pad:
                assert [values(future) for future in asked] == [[[2, 4]], [[14, 14]]]
            else:
                for future in asked:
                    code, text = failure(future)
                    assert code == "FAILED_PRECONDITION"
                    assert "different shapes and padding is turned off" in text


@pytest.mark.parametrize(("name", "inputs", "code", "text"), [
    ("two", {"x": [1.0, 2.0], "w": [1.0]}, "INVALID_ARGUMENT",
     "must have equal 0th-dimension size"),                                          # BA12
    ("", {"x": 1.0}, "INVALID_ARGUMENT", "at least one dimension"),                  # BA13
    ("scalar", {"x": [1.0]}, "FAILED_PRECONDITION", "0 dimensions"),                 # BA14
    ("short", {"x": [1.0, 2.0]}, "FAILED_PRECONDITION", "does not equal"),           # BA14
], ids=["BA12", "BA13", "BA14", "BA14_other_rows"])
def test_BA15_the_rules_of_batching_hold_for_single_requests(
        tmp_path: Path, name: str, inputs: dict[str, Any], code: str, text: str) -> None:
    with serving(tmp_path, Doubler()) as (_, channel):
        got = refused(channel, PREDICT, predict_request(signature=name, **{
            key: np.float32(value) for key, value in inputs.items()}))
        assert got[0] == code
        assert text in got[1]


def test_BA16_an_error_goes_to_every_request_of_the_batch(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model) as (server, channel):
        hold(channel, model)
        asked = [later(channel, "fails", x=np.float32([i])) for i in (1, 2)]
        queued(server, 2)
        model.held.set()
        assert [failure(future) for future in asked] == [("INVALID_ARGUMENT", "op failed")] * 2
    assert len(model.runs) == 2


def test_BA17_time_that_ran_out_in_the_queue_is_RESOURCE_EXHAUSTED(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    outcomes: list[Any] = []
    with serving(tmp_path, model) as (server, channel):
        hold(channel, model)
        run = Run("other", {"x": np.float32([1])}, ("y",))
        ticket = server.pipeline.submit(Call("predict", ModelRef("m"), lambda _: Plan(
            (run,), lambda found: found[0]), entrypoint="REST"), outcomes.append)
        ticket.give_up(DeadlineExceeded("Timed out"))
        model.held.set()
    assert outcomes[0].code.name == "RESOURCE_EXHAUSTED"
    assert "timeout exceeded while waiting in batching queue" in outcomes[0].details
    assert len(model.runs) == 1


def test_BA18_a_batch_runs_with_the_largest_time_left(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model) as (server, channel):
        hold(channel, model)
        asked = [later(channel, x=np.float32([1]), timeout=timeout) for timeout in (15.0, 60.0)]
        queued(server, 2)
        model.held.set()
        assert [values(future) for future in asked] == [[2], [2]]
    assert model.limits[1] is not None
    assert 30 < model.limits[1] < 65  # gRPC rounds what it sends


def test_BA20_only_a_version_with_a_file_is_batched_and_the_threads_are_the_servers(
        tmp_path: Path) -> None:
    for name, text in (("with", "max_batch_size { value: 2 } num_batch_threads { value: 9 }"),
                       ("without", "")):
        make_versions(tmp_path / name, "1")
        if text:
            (tmp_path / name / "1" / PER_MODEL_FILE).write_text(text)
    made: dict[str, Doubler] = {}

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        made[path.parent.name] = Doubler()
        return made[path.parent.name], LoadTimes()

    models = tuple(ModelConfig(name=name, base_path=str(tmp_path / name))
                   for name in ("with", "without"))
    with running(models, load, per_model_batching=True,
                 batching=BatchingParameters(num_batch_threads=1, max_batch_size=1,
                                             thread_pool_name="pool")) as (_, channel):
        three = np.float32([1, 2, 3])
        assert refused(channel, PREDICT, predict_request("with", x=three))[0] == "INVALID_ARGUMENT"
        call(channel, PREDICT, predict_request("with", x=np.float32([1, 2])))
        call(channel, PREDICT, predict_request("without", x=three))
    assert made["with"].threads == {"pool-0"}  # BA26
    assert not any(name.startswith("pool") for name in made["without"].threads)


@pytest.mark.parametrize("text", ["max_batch_size { value: 0 }", "allowed_batch_sizes: 3",
                                  "batch_timeout_micros { value: -1 }", "nonsense"],
                         ids=["BA19", "BA08", "BA19_timeout", "FL25"])
def test_BA08_BA19_a_version_with_bad_parameters_of_its_own_fails_to_load(
        tmp_path: Path, text: str) -> None:
    make_versions(tmp_path, "1")
    (tmp_path / "1" / PER_MODEL_FILE).write_text(text)
    models = (ModelConfig(name="m", base_path=str(tmp_path)),)
    with pytest.raises(ServingError, match="did not become available"), running(
            models, lambda path: (Doubler(), LoadTimes()), per_model_batching=True,
            batching=BatchingParameters(num_batch_threads=1)):
        pass


def test_BA21_large_requests_are_split_and_put_together_again(tmp_path: Path) -> None:
    model = Doubler()
    with serving(tmp_path, model, max_batch_size=10, enable_large_batch_splitting=True,
                 max_execution_batch_size=4, num_batch_threads=2) as (_, channel):
        rows = np.arange(10, dtype=np.float32)
        assert values(later(channel, x=rows)) == (2 * rows).tolist()
        assert failure(later(channel, "fails", x=rows)) == ("INVALID_ARGUMENT", "op failed")
    assert sorted(len(run) for run in model.runs[:3]) == [2, 4, 4]


def test_BA21_the_pieces_of_a_large_request_run_side_by_side(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model, max_batch_size=12, enable_large_batch_splitting=True,
                 max_execution_batch_size=4, num_batch_threads=3) as (_, channel):
        answer = later(channel, x=np.arange(12, dtype=np.float32))
        end = time.monotonic() + WAIT_S
        while len(model.runs) < 3:
            assert time.monotonic() < end
            time.sleep(0.002)
        model.held.set()
        assert len(values(answer)) == 12


def test_BA21_pieces_that_cannot_be_put_together_fail_that_request_alone(tmp_path: Path) -> None:
    class Wide(Doubler):
        def run(self, *args: Any, **options: Any) -> dict[str, np.ndarray]:
            y = super().run(*args, **options)["y"]
            return {"y": np.zeros((len(y), len(y)), np.float32)}  # as wide as the piece has rows

    with serving(tmp_path, Wide(), max_batch_size=10, enable_large_batch_splitting=True,
                 max_execution_batch_size=4) as (_, channel):
        code, text = failure(later(channel, "other", x=np.zeros(10, np.float32)))
        assert code == "FAILED_PRECONDITION"
        assert "enable_large_batch_splitting" in text
        assert np.shape(values(later(channel, "other", x=np.zeros(3, np.float32)))) == (3, 3)


def test_BA22_classify_regress_and_multi_inference_are_batched_too(tmp_path: Path) -> None:
    model = Doubler(hold=True)
    with serving(tmp_path, model) as (server, channel):
        hold(channel, model)
        asked = []
        for method, name in ((methods.CLASSIFY, "classify"), (methods.REGRESS, "regress")):
            for _ in range(2):
                request = method.request()
                request.model_spec.name, request.model_spec.signature_name = "m", name
                request.input.example_list.examples.add()
                asked.append(channel.unary_unary(method.path).future(
                    request.SerializeToString(), timeout=WAIT_S))
        multi = serving_pb2.MultiInferenceRequest()
        multi.input.example_list.examples.add()
        for name in ("classify", "regress"):
            task = multi.tasks.add(method_name=f"tensorflow/serving/{name}")
            task.model_spec.name, task.model_spec.signature_name = "m", name
        asked.append(channel.unary_unary(methods.MULTI_INFERENCE.path).future(
            multi.SerializeToString(), timeout=WAIT_S))
        queued(server, 6)
        model.held.set()
        for future in asked:
            future.result(WAIT_S)
    assert sorted(len(run) for run in model.runs) == [1, 3, 3]


def test_BA25_a_request_of_no_rows_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, Doubler()) as (_, channel):
        assert values(later(channel, x=np.zeros(0, np.float32))) == []


def test_many_callers_at_once_never_get_another_ones_answer(tmp_path: Path) -> None:
    model = Doubler()
    with serving(tmp_path, model, num_batch_threads=3, max_batch_size=8,
                 allowed_batch_sizes=(2, 4, 8), enable_large_batch_splitting=True,
                 max_execution_batch_size=8, max_enqueued_batches=1000) as (_, channel):
        asked = {number: later(channel, x=np.float32(range(number, number + 1 + number % 8)))
                 for number in range(500)}
        for number, future in asked.items():
            assert values(future) == [2.0 * (number + i) for i in range(1 + number % 8)]


def test_a_thread_that_waits_keeps_no_version_that_nobody_else_has() -> None:
    scheduler, gone = ServingScheduler(1, WaitingCounts()), threading.Event()

    def ask() -> None:
        model, ended = Doubler(), threading.Event()
        weakref.finalize(model, gone.set)
        scheduler.submit_with(Job("m", model, Run("other", {"x": np.float32([1])}, ("y",)), None,
                                  lambda job, outcome: ended.set()), BatchingParameters())
        assert ended.wait(WAIT_S) and model.runs

    try:
        with uncollected():
            ask()
            assert gone.wait(WAIT_S)
    finally:
        scheduler.close()
