"""Client and AsyncClient against servers in this process."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format

from tests.fakes.serving import FakeServer, KillableServer, echo
from tf_infer.client import calls
from tf_infer.client.aio import AsyncClient
from tf_infer.client.client import Client
from tf_infer.client.credentials import bearer
from tf_infer.client.retry import NO_RETRY, RetryPolicy
from tf_infer.client.transport import ChannelOptions
from tf_infer.errors import (
    TABLE,
    Cancelled,
    Code,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ServerFailure,
    ServerUnavailable,
    ServingError,
    ShapeError,
)
from tf_infer.wire import messages, methods
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef, VersionState

NAMES = ["no", "maybe", "yes"]

SIGNATURES = text_format.Parse("""
    signature_def { key: "generate" value {
      inputs { key: "prompt" value { dtype: DT_STRING tensor_shape { dim { size: -1 } } } }
      inputs { key: "max_new_tokens" value { dtype: DT_INT32 tensor_shape { dim { size: -1 } } } }
      inputs { key: "temperature" value { dtype: DT_FLOAT tensor_shape { dim { size: -1 } } } }
      inputs { key: "seed" value { dtype: DT_INT64 tensor_shape { dim { size: -1 } } } }
      inputs { key: "bias" value { dtype: DT_FLOAT tensor_shape { dim { size: -1 } } } }
      defaults { key: "bias" value { dtype: DT_FLOAT tensor_shape { dim { size: 1 } }
                                     float_val: 0.25 } }
      outputs { key: "ids" value { dtype: DT_INT32
                                   tensor_shape { dim { size: -1 } dim { size: 16 } } } } } }
    """, pb.SignatureDefMap()).signature_def


def predict(request: Any, context: grpc.ServicerContext) -> Any:
    """A classifier, a decoder, or an echo, by the signature's name and the model's."""
    model, name = request.model_spec.name, request.model_spec.signature_name
    inputs = {key: messages.tensors.to_array(request.inputs[key]) for key in request.inputs}
    if model == "intents":
        rows = len(inputs["inputs" if name == "classify" else "text"])
        scores = np.tile(np.float32([0.25, 0.125, 0.625]), (rows, 1))
        classes = np.tile(np.array(NAMES, dtype=object), (rows, 1))
        if name == "classify":
            return messages.predict_response_bytes(
                model, 7, name, {"classes": classes, "scores": scores})
        return messages.predict_response_bytes(model, 7, name, {
            "label": classes[:, 2], "score": scores[:, 2], "scores": scores})
    if name == "score":
        return messages.predict_response_bytes(model, 7, name, {
            "score": np.float32([-1.5, 0.0]), "length": np.int32([2, 0]),
            "token_logprobs": np.float32([[-1.0, -0.5, 0.0]] * 2),
            "perplexity": np.float32([2.125, 1.0])})
    if model == "writer":
        rows = len(inputs["prompt"])
        return messages.predict_response_bytes(model, 7, name, {
            "text": np.array([b"fine\xff"] * rows, dtype=object),
            "ids": np.tile(np.int32([5, 6, 0]), (rows, 1)), "length": np.int32([2] * rows),
            "score": np.float32([-1.5] * rows),
            "finish_reason": np.array(["stop"] * rows, dtype=object)})
    return echo(request, context)


def fail_with(code: grpc.StatusCode, text: str = "as told") -> Any:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, text)
    return answer


def statuses(*states: str) -> Any:
    """Answer GetModelStatus with one state after the other; the last one stays."""
    left = list(states)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        state = left.pop(0) if len(left) > 1 else left[0]
        if state == "NOT_FOUND":
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model m")
        failed = state == "END"
        return messages.status_response([VersionState(
            version=3, state=state, error_code="DATA_LOSS" if failed else "OK",
            error_message="torn" if failed else "")])
    return answer


ANSWERS = {
    methods.PREDICT: predict,
    methods.GET_MODEL_METADATA: lambda request, context: messages.metadata_response(
        ModelRef("writer", version=7), SIGNATURES),
    methods.GET_MODEL_STATUS: statuses("AVAILABLE"),
    methods.CLASSIFY: lambda request, context: text_format.Parse(
        'result { classifications { classes { label: "a" score: 0.5 } classes { score: 0.25 } } }',
        pb.ClassificationResponse()),
    methods.REGRESS: lambda request, context: text_format.Parse(
        "result { regressions { value: 1.5 } regressions { value: -2 } }", pb.RegressionResponse()),
}


class Synchronous:
    """AsyncClient seen as a Client, so that one test asks both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **options: self._loop.run_until_complete(method(*args, **options))

    def __enter__(self) -> Synchronous:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


@pytest.fixture(params=[Client, Synchronous], ids=["sync", "aio"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def shared() -> Iterator[FakeServer]:
    with FakeServer(ANSWERS) as server:
        yield server


@pytest.fixture
def server(shared: FakeServer) -> FakeServer:
    shared.requests.clear()
    return shared


def test_predict_carries_arrays_signature_and_version(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        answer = client.predict(ModelRef("m", version=4), {"x": np.float32([[1, 2]]), "s": "naïve"},
                                signature="sum", outputs=["x"], dtypes={"x": "float16"})
    assert answer.model == ModelRef("m", version=4)
    assert answer.signature == "sum"
    assert answer["x"].dtype == np.float16
    assert answer["x"].tolist() == [[1, 2]]
    assert answer["s"].item() == "naïve".encode()
    assert sorted(answer) == ["s", "x"]
    assert list(server.requests[0][1].output_filter) == ["x"]


def test_a_label_travels(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        client.predict(ModelRef("m", label="stable"), {"x": 1.0})
    assert server.requests[0][1].model_spec.version_label == "stable"


def test_classify_gives_labels_with_the_names_of_all_classes(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        first, second = client.classify("intents", ["a", "b"])
        client.classify("intents", ["c"])
    assert (first.label, first.score) == ("yes", 0.625)
    assert [(one.name, one.score) for one in second.scores] == [
        ("no", 0.25), ("maybe", 0.125), ("yes", 0.625)]
    assert [one.name for one in first.top(2)] == ["yes", "no"]
    assert [one.name for one in first.above(0.25)] == ["no", "yes"]
    assert first.labels == ("yes",)
    # the names are asked for once, at the version that ran
    asked = [request.model_spec for _, request, _ in server.requests]
    assert [one.signature_name for one in asked] == ["serving_default", "classify",
                                                     "serving_default"]
    assert asked[1].version.value == 7


def test_classify_of_a_model_without_class_names_still_answers(make: Any) -> None:
    def nameless(request: Any, context: Any) -> Any:
        if request.model_spec.signature_name == "classify":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no such signature")
        return predict(request, context)

    with FakeServer({methods.PREDICT: nameless}) as server, make(server.address) as client:
        assert client.classify("intents", ["a"])[0].scores[2].name == ""
        assert client.classify("intents", ["a"])[0].label == "yes"
        assert len(server.requests) == 3


def test_several_labels_come_as_the_model_decided() -> None:
    prediction = calls.Prediction(ModelRef("m"), "s", {
        "label": np.array([b"yes", b"no"], dtype=object), "score": np.float32([0.9, 0.4]),
        "scores": np.float32([[0.8, 0.1, 0.9], [0.4, 0, 0]]),
        "labels": np.array([[b"no", b"", b"yes"], [b"", b"", b""]], dtype=object)})
    assert [one.labels for one in calls.classifications(prediction, NAMES)] == [("no", "yes"), ()]


def test_classify_of_something_else_names_the_fix(make: Any, server: FakeServer) -> None:
    with make(server.address) as client, pytest.raises(ServerFailure, match="Ask it by predict"):
        client.classify("m", ["secret"])


def test_classify_and_regress_of_examples(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        rows = client.classify_examples("m", [{"text": "x"}], context={"lang": "en"})
        values = client.regress_examples("m", [{"x": 1.0}, {"x": 2.0}], signature="r")
    assert [(one.name, one.score) for one in rows[0]] == [("a", 0.5), ("", 0.25)]
    assert values.tolist() == [1.5, -2.0]
    assert server.requests[0][1].input.example_list_with_context.context.features.feature
    assert server.requests[1][1].model_spec.signature_name == "r"


def test_generate_sends_options_per_row(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        one, _ = client.generate("writer", ["a", "b"], temperature=[0.5, 1.0], seed=7)
    assert (one.text, one.ids, one.score, one.finish_reason) == ("fine\ufffd", (5, 6), -1.5, "stop")
    sent = {name: messages.tensors.to_array(tensor)
            for name, tensor in server.requests[-1][1].inputs.items()}
    assert sent["temperature"].tolist() == [0.5, 1.0]
    assert sent["seed"].tolist() == calls.row_seeds(7, 2)
    assert sent["seed"].dtype == np.int64
    assert sent["max_new_tokens"].tolist() == [16, 16]  # the default, cut to what the output holds
    assert sent["bias"].tolist() == [0.25, 0.25]  # the signature's own default


def test_what_a_text_must_be_is_an_option_like_others(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        for limit in ({"choices": ["a", "b"]}, {"constraint": "date"}):
            with pytest.raises(ConfigError, match=f"got {list(limit)}".replace("[", "\\[")):
                client.generate("writer", ["x"], **limit)  # which has no such option
    assert all(name == "GetModelMetadata" for name, _, _ in server.requests)


def test_score_tells_the_log_probabilities_of_continuations(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        first, second = client.score("writer", ["a", b"\xff"], ["b", ""])
        with pytest.raises(ConfigError, match="continuations: expected 2, one for each prompt"):
            client.score("writer", ["a", "b"], ["c"])
        with pytest.raises(ConfigError, match="continuations: expected a list of texts"):
            client.score("writer", ["a"], "b")
        with pytest.raises(ServerFailure, match="output 'score': expected one entry for each of 3"):
            client.score("writer", ["a"] * 3, ["b"] * 3)
    assert (first.score, first.token_logprobs, first.perplexity) == (-1.5, (-1.0, -0.5), 2.125)
    assert (second.score, second.token_logprobs, second.perplexity) == (0.0, (), 1.0)
    sent = server.requests[0][1]
    assert sent.model_spec.signature_name == "score"
    assert messages.tensors.to_array(sent.inputs["prompt"]).tolist() == [b"a", b"\xff"]
    assert messages.tensors.to_array(sent.inputs["continuation"]).tolist() == [b"b", b""]


def test_generate_of_no_prompts_sends_empty_options_of_the_signatures_dtypes(
        make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        for options in ({"seed": 7}, {"seed": []}, {"temperature": 0.5}, {"max_new_tokens": []}):
            assert client.generate("writer", [], **options) == []
            sent = {name: messages.tensors.to_array(tensor)
                    for name, tensor in server.requests[-1][1].inputs.items()}
            assert {name: (array.dtype.name, array.shape) for name, array in sent.items()} == {
                "prompt": ("object", (0,)), "max_new_tokens": ("int32", (0,)),
                "temperature": ("float32", (0,)), "seed": ("int64", (0,)),
                "bias": ("float32", (0,))}


def test_an_option_whose_default_cannot_be_read_is_left_to_the_server() -> None:
    signature = messages.SignatureInfo(name="generate", inputs=tuple(
        messages.TensorInfo(name=name, dtype=dtype, shape=(None,), has_default=name == "state")
        for name, dtype in (("prompt", "string"), ("seed", "int64"), ("state", "DT_VARIANT"))))
    call = calls.generate(ModelRef("m"), ["a"], {"seed": 3}, signature)
    assert set(pb.PredictRequest.FromString(call.request).inputs) == {"prompt", "seed"}


def test_generate_without_options_takes_the_models_defaults(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        client.generate("writer", ["a"])
    assert [(name, request.model_spec.signature_name) for name, request, _ in server.requests] == [
        ("Predict", "serving_default")]
    assert list(server.requests[0][1].inputs) == ["prompt"]


def test_a_new_version_brings_its_own_defaults(make: Any) -> None:
    versions = iter([(7, 0.25), (8, 0.5)])

    def metadata(request: Any, context: grpc.ServicerContext) -> Any:
        version, bias = next(versions)
        changed = pb.SignatureDefMap()
        changed.signature_def["generate"].CopyFrom(SIGNATURES["generate"])
        changed.signature_def["generate"].defaults["bias"].float_val[:] = [bias]
        return messages.metadata_response(ModelRef("writer", version=version),
                                          changed.signature_def)

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        made = pb.PredictResponse.FromString(predict(request, context))
        made.model_spec.version.value = 7 if len(server.requests) < 3 else 8
        return made

    with (FakeServer(ANSWERS | {methods.PREDICT: answer, methods.GET_MODEL_METADATA: metadata}
                     ) as server, make(server.address) as client):
        for _ in range(5):
            client.generate("writer", ["a"], seed=1)
    sent = [messages.tensors.to_array(request.inputs["bias"]).tolist()
            for name, request, _ in server.requests if name == "Predict"]
    # the second is the first that version 8 answers, and the last that carries 7's default
    assert sent == [[0.25], [0.25], [0.5], [0.5], [0.5]]


@pytest.mark.parametrize(("options", "message"), [
    ({"top_k": 5}, "got \\['top_k'\\]"), ({"seed": [1, 2]}, "one for each of 1 prompts"),
    ({"max_new_tokens": 1.5}, "expected whole numbers"),
    ({"max_new_tokens": 2**40}, "within int32"), ({"seed": "x"}, "whole numbers")])
def test_a_wrong_option_is_named(make: Any, server: FakeServer, options: dict[str, Any],
                                 message: str) -> None:
    with make(server.address) as client, pytest.raises((ConfigError, ShapeError), match=message):
        client.generate("writer", ["a"], **options)


def test_row_seeds_are_fixed_and_differ() -> None:
    seeds = calls.row_seeds(7, 1000)
    assert seeds[0] == 7
    # SplitMix64's published first output for state 1234567 (Java's SplittableRandom, xoshiro page)
    assert calls.row_seeds(1234567, 2)[1] % 2**64 == 6457827717110365317
    assert len(set(seeds)) == 1000
    assert all(-2**63 <= seed < 2**63 for seed in seeds)
    assert calls.row_seeds(2**63 - 1, 3)[0] == 2**63 - 1


def test_status_and_metadata(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        assert client.status("m").available == (3,)
        found = client.metadata("writer")
    assert found.model == ModelRef("writer", version=7)
    assert {info.name: info.dtype for info in found.signatures["generate"].inputs}[
        "seed"] == "int64"


def test_ready_is_waited_for(make: Any) -> None:
    answers = {methods.GET_MODEL_STATUS: statuses("NOT_FOUND", "LOADING", "AVAILABLE")}
    with FakeServer(answers) as server, make(server.address) as client:
        assert client.wait_until_ready("m", timeout_s=20).available == (3,)
        assert len(server.requests) == 3


def test_a_model_that_is_not_ready_in_time_is_told_by_what_was_last_seen(make: Any) -> None:
    loading, asked, over = statuses("LOADING"), itertools.count(), threading.Event()

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if next(asked):
            over.wait(10)
        return loading(request, context)

    with FakeServer({methods.GET_MODEL_STATUS: answer}) as server, make(server.address) as client:
        with pytest.raises(DeadlineExceeded, match="last seen: version 3 LOADING"):
            client.wait_until_ready("m", timeout_s=2.0)
        over.set()


def test_ready_waits_for_a_server_that_starts_late(make: Any) -> None:
    port = _free_port()
    started: list[FakeServer] = []
    timer = threading.Timer(0.4, lambda: started.append(FakeServer(ANSWERS, port=port)))
    with make(f"localhost:{port}") as client:
        timer.start()
        assert client.wait_until_ready("m", timeout_s=20).available == (3,)
    timer.join()
    started[0].stop()


@pytest.mark.parametrize(("states", "expected", "message"), [
    (("LOADING",), DeadlineExceeded, "m: expected to be AVAILABLE within 1.5 s, last seen: "
                                     "version 3 LOADING"),
    (("END",), ServerFailure, "version 3 failed to load: torn")])
def test_a_model_that_does_not_get_ready_is_an_error(
        make: Any, states: tuple[str, ...], expected: type[Exception], message: str) -> None:
    with (FakeServer({methods.GET_MODEL_STATUS: statuses(*states)}) as server,
          make(server.address) as client, pytest.raises(expected, match=message)):
        client.wait_until_ready("m", timeout_s=1.5)


@pytest.mark.parametrize("row", [row for row in TABLE if row.exception], ids=lambda row: row.code)
def test_each_code_is_its_exception_and_only_safe_ones_are_retried(make: Any, row: Any) -> None:
    code = getattr(grpc.StatusCode, row.code.name)
    policy = RetryPolicy(attempts=3, initial_backoff_s=0.001)
    with (FakeServer({methods.PREDICT: fail_with(code)}) as server,
          make(server.address, retry=policy) as client):
        with pytest.raises(row.exception) as caught:
            client.predict("m", {"x": 1.0})
        assert caught.value.code is row.code
        assert caught.value.details.startswith("as told")
        assert len(server.requests) == (3 if row.retryable else 1)
        assert len({metadata["x-request-id"] for _, _, metadata in server.requests}) == 1


def test_what_a_graph_refuses_is_told_without_its_nodes(make: Any) -> None:
    text = ("{{function_node __inference_9}} assertion failed: [top_p: expected 0 < top_p <= 1.] "
            "[First such row:] [1] [got:] [2]\n\t [[{{node preprocess/Assert_1}}]]")
    answer = fail_with(grpc.StatusCode.INVALID_ARGUMENT, text)
    with (FakeServer({methods.PREDICT: answer}) as server, make(server.address) as client,
          pytest.raises(InvalidRequest) as caught):
        client.predict("m", {"x": 1.0})
    assert caught.value.details == "top_p: expected 0 < top_p <= 1, got 2 (row 1)."


def test_retries_stop_with_the_deadline(make: Any) -> None:
    policy = RetryPolicy(attempts=100, initial_backoff_s=0.2, multiplier=1, max_backoff_s=0.2)
    busy = fail_with(grpc.StatusCode.RESOURCE_EXHAUSTED)
    with (FakeServer({methods.PREDICT: busy}) as server,
          make(server.address, retry=policy, timeout_s=0.5) as client,
          pytest.raises((Overloaded, DeadlineExceeded))):  # the last attempt may itself end late
        client.predict("m", {"x": 1.0})
    assert 2 <= len(server.requests) <= 6


def test_a_deadline_ends_a_slow_call(make: Any) -> None:
    over = threading.Event()

    def slow(request: Any, context: Any) -> Any:
        over.wait(10)
        return echo(request, context)

    with FakeServer({methods.PREDICT: slow}) as server, make(server.address) as client:
        with pytest.raises(DeadlineExceeded):
            client.predict("m", {"x": 1.0}, timeout_s=0.1)
        over.set()
        assert client.predict("m", {"x": 1.0}, timeout_s=None)["x"] == 1.0


@pytest.mark.parametrize("timeout", [0, -1, "3", True, float("nan")])
def test_a_wrong_timeout_is_refused(make: Any, server: FakeServer, timeout: Any) -> None:
    with (make(server.address) as client,
          pytest.raises(ConfigError, match="timeout_s: expected seconds > 0")):
        client.predict("m", {"x": 1.0}, timeout_s=timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 1e12, 1e9, 2**70, calls.LONGEST_S])
def test_a_timeout_of_more_than_a_year_is_no_limit(make: Any, server: FakeServer,
                                                   timeout: float) -> None:
    with make(server.address, timeout_s=timeout) as client:
        assert client.predict("m", {"x": 1.0})["x"] == 1.0
        assert client.predict("m", {"x": 1.0}, timeout_s=timeout)["x"] == 1.0
        assert client.classify("intents", ["a"], timeout_s=timeout)[0].label == "yes"
        assert client.wait_until_ready("m", timeout_s=timeout).available == (3,)
    assert calls.seconds(timeout, 1.0) == (None if timeout > calls.LONGEST_S else timeout)


def test_nobody_at_the_address_is_server_unavailable(make: Any) -> None:
    port = _free_port()
    with (make(f"localhost:{port}", retry=NO_RETRY) as client,
          pytest.raises(ServerUnavailable, match=f"address localhost:{port}")):
        client.status("m")


def test_a_killed_server_loses_no_call(make: Any) -> None:
    """Two servers, calls without pause; one is killed in the middle, nothing is lost."""
    with KillableServer() as first, FakeServer(ANSWERS) as second:
        with make([first.address, second.address]) as client:
            for number in range(200):
                if number == 50:
                    assert len(second.requests) == 25
                    threading.Thread(target=first.kill).start()
                assert client.predict("m", {"x": float(number)})["x"] == number
        assert len(second.requests) > 100


def test_a_server_that_drains_loses_no_call(make: Any) -> None:
    with (FakeServer(ANSWERS) as first, FakeServer(ANSWERS) as second,
          make([first.address, second.address]) as client):
        for number in range(100):
            if number == 50:
                thread = threading.Thread(target=lambda: first.stop(grace_s=5))
                thread.start()
            assert client.predict("m", {"x": float(number)})["x"] == number
        thread.join()


def test_a_server_that_comes_back_is_asked_again(make: Any) -> None:
    port = _free_port()
    with FakeServer(ANSWERS) as second, make([f"localhost:{port}", second.address]) as client:
        for _ in range(4):
            client.predict("m", {"x": 1.0})
        with FakeServer(ANSWERS, port=port) as first:
            end_s = time.monotonic() + 15
            while not first.requests and time.monotonic() < end_s:
                client.predict("m", {"x": 1.0})
                time.sleep(0.02)
            assert first.requests


def test_calls_in_flight_survive_the_server_that_dies_under_them() -> None:
    with (KillableServer(delay_s=30) as first, FakeServer(ANSWERS) as second,
          Client([first.address, second.address], timeout_s=60) as client):
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(client.predict("m", {"x": 3.0})))
        thread.start()
        time.sleep(0.5)
        assert not answers
        first.kill()
        thread.join(20)
        assert answers[0]["x"] == 3.0
        assert len(second.requests) == 1


def test_large_messages_pass(make: Any, server: FakeServer) -> None:
    array = np.arange(3_000_000, dtype=np.float32)
    with make(server.address) as client:
        assert np.array_equal(client.predict("m", {"x": array})["x"], array)


def test_compression_is_asked_for(make: Any, server: FakeServer) -> None:
    with make(server.address, options=ChannelOptions(compression="gzip", keepalive_s=60)) as client:
        client.predict("m", {"x": np.zeros(1000, np.float32)})
    assert "gzip" in server.requests[0][2].get("grpc-accept-encoding", "gzip")


def test_a_token_is_sent(make: Any, server: FakeServer) -> None:
    with make(server.address, credentials=bearer("abc", allow_plaintext=True)) as client:
        client.predict("m", {"x": 1.0})
    assert server.requests[0][2]["authorization"] == "Bearer abc"


def test_a_closed_client_says_so(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        client.status("m")
        client.close()
        with pytest.raises(ConfigError, match="an open one, got a closed one"):
            client.status("m")
    with make(server.address) as unused:
        unused.close()
        with pytest.raises(ConfigError, match="an open one, got a closed one"):
            unused.status("m")


def test_an_answer_that_is_no_message_is_a_server_failure(make: Any) -> None:
    with (FakeServer({methods.PREDICT: lambda request, context: b"\xff\xff"}) as server,
          make(server.address) as client, pytest.raises(ServerFailure, match="cannot be read")):
        client.predict("m", {"x": 1.0})


def test_what_is_wrong_before_anything_is_sent(make: Any, server: FakeServer) -> None:
    with make(server.address) as client:
        for call, message in (
                (lambda: client.classify("m", "one"), "Put it in a list"),
                (lambda: client.classify("m", ["a"], text_pairs=["b", "c"]), "expected 1, one for"),
                (lambda: client.predict("m", {"x": 1.0}, dtypes={"y": "half"}), "got \\['y'\\]"),
                (lambda: client.predict("m", {"x": [[1], [1, 2]]}), "x: expected lists"),
                (lambda: client.predict("", {"x": 1}), "ModelRef.name"),
                (lambda: client.classify("m", [1]), "expected str or bytes"),
                (lambda: client.generate("m", ["a"], seed=1), None)):
            if message:
                with pytest.raises((ConfigError, ShapeError), match=message):
                    call()
    assert not server.requests


def test_generate_asked_of_a_classifier_names_its_signatures(make: Any) -> None:
    answers = {methods.GET_MODEL_METADATA: lambda request, context: messages.metadata_response(
        ModelRef("m", version=1), {"serving_default": pb.SignatureDef()})}
    with (FakeServer(answers) as server, make(server.address) as client,
          pytest.raises(ConfigError, match="decoder with the signature 'generate'")):
        client.generate("m", ["a"], seed=1)


def test_the_servers_error_text_comes_through_but_not_the_callers(make: Any) -> None:
    for code, kind in ((grpc.StatusCode.NOT_FOUND, ModelNotFound),
                       (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest)):
        with (FakeServer({methods.PREDICT: fail_with(code, "Servable not found")}) as server,
              make(server.address) as client):
            with pytest.raises(kind, match="Servable not found") as caught:
                client.classify("m", ["very secret text"])
            assert "secret" not in str(caught.value)


def test_a_thousand_awaited_calls_at_once(server: FakeServer) -> None:
    async def ask() -> list[Any]:
        async with AsyncClient(server.address, timeout_s=60) as client:
            return await asyncio.gather(
                *(client.predict("m", {"x": float(number)}) for number in range(1000)))

    answers = asyncio.run(ask())
    assert [answer["x"].item() for answer in answers] == list(map(float, range(1000)))


def test_a_cancelled_task_is_cancelled() -> None:
    over = threading.Event()

    def slow(request: Any, context: Any) -> Any:
        over.wait(10)
        return echo(request, context)

    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            task = asyncio.create_task(client.predict("m", {"x": 1.0}))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with FakeServer({methods.PREDICT: slow}) as server:
        asyncio.run(ask(server.address))
        over.set()


def test_calls_in_flight_end_with_cancelled_when_the_client_is_closed() -> None:
    began, over = threading.Event(), threading.Event()

    def slow(request: Any, context: Any) -> Any:
        began.set()
        over.wait(10)
        return echo(request, context)

    async def ask(address: str) -> None:
        told = sys.version_info >= (3, 11)  # where a task tells whether somebody cancelled it
        for cancel in (False, True) if told else (False,):
            began.clear()
            client = AsyncClient(address, timeout_s=5)
            task = asyncio.create_task(client.predict("m", {"x": 1.0}))
            await asyncio.to_thread(began.wait, 5)
            if cancel:
                task.cancel()
            await client.close()
            with pytest.raises(asyncio.CancelledError if cancel else Cancelled):
                await task

    with FakeServer({methods.PREDICT: slow}) as server, ThreadPoolExecutor(1) as pool:
        client = Client(server.address, timeout_s=5)
        answer = pool.submit(client.predict, "m", {"x": 1.0})
        assert began.wait(5)
        client.close()
        with pytest.raises(Cancelled):
            answer.result()
        asyncio.run(ask(server.address))
        over.set()


def test_threads_share_a_client(server: FakeServer) -> None:
    with Client(server.address) as client:
        found: list[float] = []
        threads = [threading.Thread(target=lambda n=n: found.append(
            client.predict("m", {"x": float(n)})["x"].item())) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(map(float, range(16)))


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> dict[str, inspect.Signature]:
        return {name: inspect.signature(member) for name, member in vars(kind).items()
                if inspect.isfunction(member) and not name.startswith("_")}

    sync, aio = public(Client), public(AsyncClient)
    streams = sync.pop("stream"), aio.pop("stream")  # what they give back is awaited, not they
    assert streams[0].parameters == streams[1].parameters
    assert sync == aio
    assert all(inspect.iscoroutinefunction(vars(AsyncClient)[name]) for name in aio)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def test_every_failure_of_a_call_is_a_serving_error() -> None:
    assert all(issubclass(row.exception, ServingError) for row in TABLE if row.exception)
    assert Code.UNAVAILABLE.value == 14
