"""The port's answers, codes and texts, with servables that are no models; no TensorFlow."""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.serverkit import (
    call,
    free_port,
    make_versions,
    predict_request,
    refused,
    running,
    uncollected,
    wait_until,
)
from tf_infer.errors import Code, InvalidRequest, ServerUnavailable
from tf_infer.server import inference, predict
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.contracts import LoadTimes, Servable
from tf_infer.server.fakes import EchoServable, ScriptedServable, load_echo, signature
from tf_infer.server.grpc_service import claims_many, truncated
from tf_infer.wire import methods, serving_pb2, tensors

FLOAT, INT, TEXT = serving_pb2.DT_FLOAT, serving_pb2.DT_INT32, serving_pb2.DT_STRING
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
LONG_TEXT = "long " + "é" * 2000
SLEEP_S = 0.6

SIGNATURES = {
    "serving_default": signature({"text": (TEXT, (-1,))}, {"text": (TEXT, (-1,))}),
    "two": signature({"a": (FLOAT, (-1,)), "b": (FLOAT, (-1,))},
                     {"a": (FLOAT, (-1,)), "b": (FLOAT, (-1,))}),
    "any": signature({"x": (TEXT, None)}, {"x": (TEXT, None)}),
    "none": signature({}, {}),
    "fails": signature({}, {"y": (FLOAT, ())}),
    "bug": signature({}, {"y": (FLOAT, ())}),
    "sleep": signature({}, {"y": (FLOAT, ())}),
    "classify": signature({"inputs": (TEXT, (-1,))},
                          {"classes": (TEXT, (-1, 2)), "scores": (FLOAT, (-1, 2))}, CLASSIFY),
    "scores": signature({"inputs": (TEXT, (-1,))}, {"scores": (FLOAT, (-1, 2))}),
    "classes": signature({"inputs": (TEXT, (-1,))}, {"classes": (TEXT, (-1, 2))}),
    "regress": signature({"inputs": (TEXT, (-1,))}, {"outputs": (FLOAT, (-1,))}, REGRESS),
    "three": signature({"inputs": (TEXT, (-1,))},
                       dict.fromkeys(("classes", "scores", "z"), (FLOAT, (-1,)))),
    "other": signature({"input": (TEXT, (-1,))}, {"outputs": (FLOAT, (-1,))}, "else"),
}


class Model(EchoServable):
    """Echoes; some signatures do what their name says."""

    def __init__(self) -> None:
        super().__init__(SIGNATURES)
        SIGNATURES["two"].defaults["b"].CopyFrom(tensors.to_proto(np.float32([7.0])))

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        if signature == "fails":
            raise InvalidRequest(LONG_TEXT, code=Code.OUT_OF_RANGE)
        if signature == "bug":
            raise KeyError("a secret text")
        if signature == "sleep":
            time.sleep(SLEEP_S)
            return {"y": np.float32(0)}
        if "inputs" in inputs:
            rows = len(inputs["inputs"])
            made = {"classes": np.array([[b"no", b"yes"]] * rows, object),
                    "scores": np.tile(np.float32([0.25, 0.75]), (rows, 1)),
                    "outputs": np.arange(rows, dtype=np.float32)}
            return {name: made[name] for name in outputs}
        return {name: inputs[name] for name in outputs}


def load(path: Path) -> tuple[Servable, LoadTimes]:
    return Model(), LoadTimes()


@pytest.fixture(scope="module")
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[grpc.Channel]:
    base = make_versions(tmp_path_factory.mktemp("models"), "3")
    models = (ModelConfig(name="m", base_path=str(base)),)
    with running(models, load, health=True, threads=16) as (_, made):
        yield made


PREDICT = methods.PREDICT


def arrays(response: Any) -> dict[str, list[Any]]:
    return {name: array.tolist() for name, array in tensors.read_all(response.outputs).items()}


def test_GE08_GE09_the_answer_names_model_version_and_signature(channel: grpc.Channel) -> None:
    spec = call(channel, PREDICT, predict_request(text=["x"])).model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("m", 3, "serving_default")


def test_GE02_GE01_services(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("method", [methods.PREDICT, methods.CLASSIFY, methods.REGRESS,
                                    methods.GET_MODEL_METADATA])
def test_GE03_GE04_no_model_spec_no_name(channel: grpc.Channel, method: methods.Method) -> None:
    request = method.request()
    assert refused(channel, method, request) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    request.model_spec.SetInParent()
    if method is methods.GET_MODEL_METADATA:
        request.metadata_field.append("signature_def")
    assert refused(channel, method, request) == (
        "INVALID_ARGUMENT", "ModelSpec has no name specified.")


def test_GE05_GE06_CF19_unknown_model_version_label(channel: grpc.Channel) -> None:
    assert refused(channel, PREDICT, predict_request("M", text=["x"])) == (
        "NOT_FOUND", "Servable not found for request: Latest(M)")  # GE12 too
    request = predict_request(text=["x"])
    for version in (4, -1, 2**63 - 1):
        request.model_spec.version.value = version
        assert refused(channel, PREDICT, request) == (
            "NOT_FOUND", f"Servable not found for request: Specific(m, {version})")
    for label in ("stable", ""):
        request.model_spec.version_label = label
        assert refused(channel, PREDICT, request) == (
            "INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")


def test_GE07_the_later_of_version_and_label_wins(channel: grpc.Channel) -> None:
    label = serving_pb2.ModelSpec(version_label="x").SerializeToString()
    request = predict_request(text=["x"])
    request.model_spec.MergeFromString(label)
    request.model_spec.version.value = 3
    assert call(channel, PREDICT, request).model_spec.version.value == 3


def test_GE10_GE11_long_texts_are_cut_and_codes_kept(channel: grpc.Channel) -> None:
    code, text = refused(channel, PREDICT, predict_request(signature="fails"))
    assert code == "OUT_OF_RANGE"
    assert text == truncated(LONG_TEXT)
    assert text.endswith("...TRUNCATED")
    assert len(text.removesuffix("...TRUNCATED").encode()) in (1023, 1024)
    assert truncated("x" * 1024) == "x" * 1024
    assert truncated("x" * 1025) == "x" * 1024 + "...TRUNCATED"


def test_a_fault_of_ours_is_INTERNAL_and_tells_no_text(
        channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    code, text = refused(channel, PREDICT, predict_request(signature="bug"))
    assert code == "INTERNAL"
    assert "secret" not in text + caplog.text
    assert "KeyError" in caplog.text


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", bytes(range(256)), b"\x0a\x05ab"])
def test_random_bytes_as_a_request(channel: grpc.Channel, data: bytes) -> None:
    for method in (PREDICT, methods.CLASSIFY, methods.REGRESS, methods.MULTI_INFERENCE,
                   methods.GET_MODEL_METADATA, methods.GET_MODEL_STATUS, methods.RELOAD_CONFIG,
                   methods.HEALTH_CHECK):
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method.path)(data, timeout=10)
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert call(channel, PREDICT, predict_request(text=["x"])).model_spec.name == "m"


# ---------------------------------------------------------------------------- Predict


def test_PR02_unknown_signature(channel: grpc.Channel) -> None:
    assert refused(channel, PREDICT, predict_request(signature="no", text=["x"])) == (
        "FAILED_PRECONDITION", 'Serving signature key "no" not found.')


def test_PR03_PR04_PR05_names_of_inputs(channel: grpc.Channel) -> None:
    code, text = refused(channel, PREDICT, predict_request())
    assert code == "INVALID_ARGUMENT"
    assert "input size does not match signature" in text
    assert "Missing but required: {text}" in text
    code, text = refused(channel, PREDICT, predict_request(text=["x"], more=["y"]))
    assert (code, "Sent extra: {more}" in text) == ("INVALID_ARGUMENT", True)
    code, text = refused(channel, PREDICT, predict_request(wrong=["y"]))
    assert (code, "wrong" in text) == ("INVALID_ARGUMENT", True)


def test_PR06_a_tensor_that_does_not_parse(channel: grpc.Channel) -> None:
    request = predict_request(text=["x"])
    huge = serving_pb2.TensorShapeProto()
    huge.dim.add(size=0)
    huge.dim.add(size=2**62)
    for spoil in (lambda t: setattr(t.tensor_shape.dim[0], "size", -1),
                  lambda t: (setattr(t, "dtype", FLOAT), setattr(t, "tensor_content", b"abc")),
                  lambda t: t.CopyFrom(serving_pb2.TensorProto(dtype=FLOAT, tensor_shape=huge))):
        spoilt = serving_pb2.PredictRequest.FromString(request.SerializeToString())
        spoil(spoilt.inputs["text"])
        code, text = refused(channel, PREDICT, spoilt)
        assert (code, "tensor parsing error: text" in text) == ("INVALID_ARGUMENT", True)


def test_PR10_PR11_PR12_output_filter(channel: grpc.Channel) -> None:
    request = predict_request(signature="two", a=[1.0], b=[2.0])
    assert arrays(call(channel, PREDICT, request)) == {"a": [1.0], "b": [2.0]}
    request.output_filter.append("b")
    assert arrays(call(channel, PREDICT, request)) == {"b": [2.0]}
    request.output_filter.append("b")
    assert refused(channel, PREDICT, request) == (
        "INVALID_ARGUMENT", "duplicate output tensor alias: b")
    request.output_filter[1] = "z"
    code, text = refused(channel, PREDICT, request)
    assert code == "INVALID_ARGUMENT"
    assert "output tensor alias not found in signature: z" in text
    assert "{a,b}" in text


def test_PR25_inputs_with_a_default_may_be_left_out(channel: grpc.Channel) -> None:
    response = call(channel, PREDICT, predict_request(signature="two", a=[1.0]))
    assert arrays(response) == {"a": [1.0], "b": [7.0]}
    assert "Missing but required: {a}" in refused(
        channel, PREDICT, predict_request(signature="two"))[1]
    assert "not found in signature: z" in refused(
        channel, PREDICT, predict_request(signature="two", a=[1.0], z=[1.0]))[1]


def test_PR13_outputs_are_typed_fields(channel: grpc.Channel) -> None:
    output = call(channel, PREDICT, predict_request(signature="two", a=[1.0, 1.0])).outputs["a"]
    assert (list(output.float_val), output.tensor_content) == ([1.0, 1.0], b"")


def test_PR14_or_tensor_content_with_its_flag(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, load, tensor_content=True) as (_, made):
        for values in ([1.0], [1.0, 2.0]):
            output = call(made, PREDICT, predict_request(signature="two", a=values)).outputs["a"]
            assert (list(output.float_val), output.tensor_content) == (
                [], np.float32(values).tobytes())


def test_PR18_PR19_PR24_text_is_bytes_and_empty_is_normal(channel: grpc.Channel) -> None:
    hostile = [b"a\0b", b"\xff\xfe", "ünï".encode(), b"", b"x" * 1_000_000]
    response = call(channel, PREDICT, predict_request(text=hostile))
    assert tensors.read_all(response.outputs)["text"].tolist() == hostile
    empty = np.empty(0, object)
    assert tensors.read_all(call(channel, PREDICT, predict_request(text=empty)).outputs)[
        "text"].shape == (0,)
    assert arrays(call(channel, PREDICT, predict_request(signature="none"))) == {}


def test_LI01_large_messages_both_ways(channel: grpc.Channel) -> None:
    text = b"x" * 20_000_000
    response = call(channel, PREDICT, predict_request(text=[text]))
    assert len(response.outputs["text"].string_val[0]) == len(text)


def of_examples(count: int) -> serving_pb2.ClassificationRequest:
    request = serving_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "classify"
    request.input.example_list.examples.extend([serving_pb2.Example()] * count)
    return request


def of_shape(*sizes: int) -> serving_pb2.PredictRequest:
    request = predict_request(text=[b"x"])
    del request.inputs["text"].tensor_shape.dim[:]
    for size in sizes:
        request.inputs["text"].tensor_shape.dim.add(size=size)
    return request


@pytest.mark.parametrize("small,claiming,method,module,planner", [
    (of_shape(10_000), of_shape(10_001), PREDICT, predict, "plan"),
    (of_shape(100), of_shape(101, 100), PREDICT, predict, "plan"),
    (of_examples(1000), of_examples(1001), methods.CLASSIFY, inference, "classify"),
], ids=["vector", "matrix", "examples"])
def test_a_small_message_that_claims_many_elements_holds_up_nobody(
        channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, small: Any, claiming: Any,
        method: methods.Method, module: Any, planner: str) -> None:
    planned: list[str] = []
    plan = getattr(module, planner)

    def noted(*args: Any, **options: Any) -> Any:
        planned.append(threading.current_thread().name)
        return plan(*args, **options)

    monkeypatch.setattr(module, planner, noted)
    for request in (small, claiming):
        call(channel, method, request)
    assert "_serve" in planned[0]
    assert planned[1].startswith("tf-infer-grpc")


def test_a_shape_that_is_none_claims_no_less() -> None:
    request = of_shape(20_000)
    request.inputs["other"].CopyFrom(of_shape(-1, 10**9).inputs["text"])
    assert claims_many(request)
    assert claims_many(of_shape(*[10**9] * 30_000))
    assert not claims_many(of_shape(0, 10**9))


# ---------------------------------------------------------------------------- metadata, health


def metadata_request(*fields: str, name: str = "m") -> serving_pb2.GetModelMetadataRequest:
    request = serving_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = name
    return request


def test_MD01_to_MD06_metadata(channel: grpc.Channel) -> None:
    method = methods.GET_MODEL_METADATA
    response = call(channel, method, metadata_request("signature_def"))
    made = serving_pb2.SignatureDefMap.FromString(response.metadata["signature_def"].value)
    assert set(made.signature_def) == set(SIGNATURES)
    assert response.metadata["signature_def"].type_url.endswith(
        "tensorflow.serving.SignatureDefMap")
    assert (response.model_spec.version.value, response.model_spec.signature_name) == (3, "")
    assert refused(channel, method, metadata_request(name="no"))[1].endswith(
        "must specify at least one metadata_field")                             # MD05
    assert refused(channel, method, metadata_request("signature_def", "x", name="no")) == (
        "INVALID_ARGUMENT", "Metadata field x is not supported")                # MD02, MD05
    assert refused(channel, method, metadata_request("signature_def", name="no"))[0] == "NOT_FOUND"


def test_LI10_health_only_with_its_flag(channel: grpc.Channel, tmp_path: Path) -> None:
    check = methods.HEALTH_CHECK
    for name in ("", "ModelService", "PredictionService"):
        assert call(channel, check, serving_pb2.HealthCheckRequest(service=name)).status == 1
    assert refused(channel, check, serving_pb2.HealthCheckRequest(service="x"))[0] == "NOT_FOUND"
    with running((), load_echo) as (_, bare):
        assert refused(bare, check, serving_pb2.HealthCheckRequest())[0] == "UNIMPLEMENTED"


# ---------------------------------------------------------------------------- Classify and others


def example(**values: bytes) -> serving_pb2.Example:
    made = serving_pb2.Example()
    for name, value in values.items():
        made.features.feature[name].bytes_list.value.append(value)
    return made


def examples_request(method: methods.Method, signature_name: str, rows: int = 2) -> Any:
    request = method.request()
    request.model_spec.name, request.model_spec.signature_name = "m", signature_name
    for _ in range(rows):
        request.input.example_list.examples.append(example(text=b"x"))
    return request


def test_CL02_CL03_CL12_classify(channel: grpc.Channel) -> None:
    def rows(name: str) -> list[list[tuple[str, float]]]:
        result = call(channel, methods.CLASSIFY, examples_request(methods.CLASSIFY, name)).result
        return [[(c.label, c.score) for c in row.classes] for row in result.classifications]

    assert rows("classify") == [[("no", 0.25), ("yes", 0.75)]] * 2
    assert rows("scores") == [[("", 0.25), ("", 0.75)]] * 2
    assert rows("classes") == [[("no", 0.0), ("yes", 0.0)]] * 2


@pytest.mark.parametrize(("name", "words"), [
    ("no", "No signature was found with the name: no"),                         # CL04
    ("two", "Expected one input Tensor"),                                       # CL05
    ("other", "No classification inputs found"),                                # CL06
    ("three", "Expected one or two output Tensors"),                            # CL07
    ("regress", "classification signature outputs"),                            # CL08
    ("", "No classification inputs found"),                                     # CL14
])
def test_CL_signatures_without_the_form(channel: grpc.Channel, name: str, words: str) -> None:
    code, text = refused(channel, methods.CLASSIFY, examples_request(methods.CLASSIFY, name))
    assert (code, words in text) == ("INVALID_ARGUMENT", True), text


def test_RG_regress(channel: grpc.Channel) -> None:
    def ask(name: str) -> Any:
        return examples_request(methods.REGRESS, name)

    response = call(channel, methods.REGRESS, ask("regress"))
    assert [item.value for item in response.result.regressions] == [0.0, 1.0]
    for name, words in (("no", "No signature was found"), ("other", "No regression inputs found"),
                        ("scores", "No regression outputs found")):
        code, text = refused(channel, methods.REGRESS, ask(name))
        assert (code, words in text) == ("INVALID_ARGUMENT", True), text


def test_EX01_EX05_empty_input(channel: grpc.Channel) -> None:
    request = examples_request(methods.CLASSIFY, "classify", rows=0)
    assert refused(channel, methods.CLASSIFY, request) == ("INVALID_ARGUMENT", "Input is empty.")
    request.input.example_list_with_context.context.CopyFrom(example(text=b"c"))
    assert refused(channel, methods.CLASSIFY, request) == ("INVALID_ARGUMENT", "Input is empty.")


def multi_request(*tasks: tuple[str, str, str]) -> serving_pb2.MultiInferenceRequest:
    request = serving_pb2.MultiInferenceRequest()
    for model, name, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = model, name
    request.input.example_list.examples.append(example(text=b"x"))
    return request


def test_MI01_MI12_multi_inference(channel: grpc.Channel) -> None:
    response = call(channel, methods.MULTI_INFERENCE, multi_request(
        ("m", "regress", REGRESS), ("m", "classify", CLASSIFY)))
    first, second = response.results
    assert (first.model_spec.signature_name, first.model_spec.version.value) == ("regress", 3)
    assert first.WhichOneof("result") == "regression_result"
    assert second.classification_result.classifications[0].classes[1].label == "yes"


@pytest.mark.parametrize(("tasks", "code", "words"), [
    ((), "INVALID_ARGUMENT", "no name"),                                                   # MI02
    ((("m", "regress", REGRESS), ("n", "classify", CLASSIFY)), "INVALID_ARGUMENT",
     "must access the same model name"),                                                   # MI04
    ((("m", "regress", REGRESS),) * 2, "INVALID_ARGUMENT",
     "Duplicate evaluation of signature: regress"),                                        # MI05
    ((("m", "no", REGRESS),), "INVALID_ARGUMENT",
     "Requested signature not found in model graph: no"),                                  # MI06
    ((("m", "regress", ""),), "UNIMPLEMENTED", "Unsupported signature method_name"),       # MI07
    ((("no", "regress", REGRESS),), "NOT_FOUND", "Latest(no)"),                            # MI10
    ((("m", "regress", REGRESS), ("", "classify", CLASSIFY)), "INVALID_ARGUMENT",
     "empty model name"),                                                                  # MI11
])
def test_MI_tasks_that_break_a_rule(
        channel: grpc.Channel, tasks: Any, code: str, words: str) -> None:
    got, text = refused(channel, methods.MULTI_INFERENCE, multi_request(*tasks))
    assert (got, words in text) == (code, True), text


def test_FL38_CL13_RG07_PR27_method_names_are_looked_at_with_the_flag(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    with running(models, load, check_method_names=True) as (_, made):
        call(made, methods.CLASSIFY, examples_request(methods.CLASSIFY, "classify"))
        assert "Expected classification signature method_name" in refused(
            made, methods.CLASSIFY, examples_request(methods.CLASSIFY, "scores"))[1]
        assert "Expected regression signature method_name" in refused(
            made, methods.REGRESS, examples_request(methods.REGRESS, "scores"))[1]
        assert refused(made, PREDICT, predict_request(signature="other", input=["x"]))[
            0] == "INTERNAL"


# ---------------------------------------------------------------------------- time, load, end


def test_LI04_LI06_a_slow_request_neither_outlives_its_deadline_nor_holds_up_others(
        channel: grpc.Channel) -> None:
    slow = [channel.unary_unary(PREDICT.path).future(
        predict_request(signature="sleep").SerializeToString(), timeout=10) for _ in range(4)]
    call(channel, PREDICT, predict_request(text=["x"]))
    assert not all(future.done() for future in slow)
    for future in slow:
        future.result()
    assert refused(channel, PREDICT, predict_request(signature="sleep"), timeout=0.1)[
        0] == "DEADLINE_EXCEEDED"


def test_a_full_queue_refuses_and_a_waiting_request_keeps_its_deadline(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    entered, leave = threading.Event(), threading.Event()

    class Blocking(EchoServable):
        def run(self, *arguments: Any, **more: Any) -> dict[str, np.ndarray]:
            entered.set()
            leave.wait(20)
            return super().run(*arguments, **more)

    with running(models, lambda path: (Blocking(), LoadTimes()), threads=1, max_queued=1
                 ) as (server, made):
        request = predict_request(text=["x"])
        ask = made.unary_unary(PREDICT.path)
        first = ask.future(request.SerializeToString(), timeout=30)
        assert entered.wait(20)
        late = ask.future(request.SerializeToString(), timeout=1.0)
        while not server.schedulers.waiting.count("m"):
            time.sleep(0.005)
        code, text = refused(made, PREDICT, request)
        assert (code, "queue" in text) == ("RESOURCE_EXHAUSTED", True)
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while server.schedulers.waiting.count("m"):  # its place is free before the run has ended
            time.sleep(0.005)
        leave.set()
        first.result()
        call(made, PREDICT, request)


def test_LI05_without_a_deadline_a_waiting_request_and_a_reload_wait(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    limits: list[float | None] = []

    class Slow(Model):
        def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
                timeout_s: float | None) -> dict[str, np.ndarray]:
            limits.append(timeout_s)
            return super().run(signature, inputs, outputs=outputs, timeout_s=timeout_s)

    with running(models, lambda path: (Slow(), LoadTimes()), threads=1) as (_, made):
        asked = [made.unary_unary(PREDICT.path).future(
            predict_request(signature="sleep").SerializeToString()) for _ in range(2)]
        assert [future.code() for future in asked] == [grpc.StatusCode.OK] * 2
        request = serving_pb2.ReloadConfigRequest()
        for name in ("m", "n"):
            request.config.model_config_list.config.add(
                name=name, base_path=str(tmp_path), model_platform="tensorflow")
        call(made, methods.RELOAD_CONFIG, request, timeout=None)
        call(made, PREDICT, predict_request("n", text=["x"]), timeout=None)
    assert limits == [None] * 3


def test_FL13_a_taken_port_is_refused_and_LI09_free_after_the_end(tmp_path: Path) -> None:
    port = free_port()
    with running((), load_echo, port=port), pytest.raises(
            ServerUnavailable, match="cannot be opened"):
        Server(ServerConfig(models=(), port=port, host="localhost", poll_s=0),
               load=load_echo).start()
    with running((), load_echo, port=port):
        pass


def test_FL09_a_unix_socket_alone(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path / "m", "1"))),)
    path = str(tmp_path / "s")
    with running(models, load, port=0, socket_path=path) as (server, made):
        assert server.addresses == (f"unix:{path}",)
        assert call(made, PREDICT, predict_request(text=["x"])).model_spec.version.value == 1


def test_FL07_FL09_a_unix_socket_beside_the_port_which_is_on_all_addresses(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path / "m", "1"))),)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as stale:  # of a server that was killed
        stale.bind(path)
    host = ServerConfig(models=()).host
    assert host == "0.0.0.0"
    with running(models, load, socket_path=path, host=host) as (server, made):
        for address in (server.addresses[1], f"127.0.0.2:{server.config.port}"):
            with grpc.insecure_channel(address) as other:
                call(other, PREDICT, predict_request(text=["x"]))
        call(made, PREDICT, predict_request(text=["x"]))


def test_FL42_unknown_channel_arguments_do_no_harm(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path / "m", "1"))),)
    arguments = (("no.such.argument", 1), ("another", "x"), ("grpc.max_connection_age_ms", 60_000))
    with running(models, load, channel_arguments=arguments) as (_, made):
        call(made, PREDICT, predict_request(text=["x"]))


def test_FL27_the_port_opens_only_when_the_models_are_there(tmp_path: Path) -> None:
    port, may_load = free_port(), threading.Event()

    def slowly(path: Path) -> tuple[Servable, LoadTimes]:
        may_load.wait(20)
        return load_echo(path)

    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    server = Server(ServerConfig(models=models, port=port, host="localhost", poll_s=0), load=slowly)
    starting = threading.Thread(target=server.start)
    starting.start()
    with grpc.insecure_channel(f"localhost:{port}") as made:
        assert refused(made, PREDICT, predict_request(text=["x"]), timeout=5)[0] == "UNAVAILABLE"
    may_load.set()
    starting.join(20)
    with grpc.insecure_channel(f"localhost:{port}") as made:
        call(made, PREDICT, predict_request(text=["x"]))
    server.stop()


def test_LI07_a_drain_lets_running_requests_end_and_is_bounded(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    for drain_s, ended in ((10.0, True), (0.05, False)):
        server = Server(ServerConfig(models=models, port=free_port(), host="localhost", poll_s=0),
                        load=load)
        server.start()
        with grpc.insecure_channel(server.addresses[0]) as made:
            running_call = made.unary_unary(PREDICT.path).future(
                predict_request(signature="sleep").SerializeToString(), timeout=20)
            while not server.pipeline._inside:
                time.sleep(0.005)
            assert server.stop(drain_s) is ended
            assert (running_call.code() is grpc.StatusCode.OK) is ended


def test_arrays_of_a_request_go_with_its_answer_and_wait_for_no_collection(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    arrays_seen: list[weakref.ref[Any]] = []

    class Noting(EchoServable):
        def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
                timeout_s: float | None) -> dict[str, np.ndarray]:
            made = {name: inputs[name].copy() for name in outputs}
            arrays_seen.extend(map(weakref.ref, (*inputs.values(), *made.values())))
            return made

    with running(models, lambda path: (Noting(), LoadTimes())) as (_, channel), uncollected():
        call(channel, PREDICT, predict_request(text=[b"x"]))
        end = time.monotonic() + 10
        while any(seen() is not None for seen in arrays_seen) and time.monotonic() < end:
            time.sleep(0.01)
        assert [seen() is None for seen in arrays_seen] == [True, True]


def test_LI07_what_a_call_still_uses_is_freed_when_it_ends(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()
    made: dict[str, EchoServable] = {}

    class Blocking(EchoServable):
        def run(self, *arguments: Any, **more: Any) -> dict[str, np.ndarray]:
            entered.set()
            leave.wait(20)
            assert not self.closed
            return super().run(*arguments, **more)

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        made[path.parent.name] = Blocking()
        return made[path.parent.name], LoadTimes()

    models = tuple(ModelConfig(name=name, base_path=str(make_versions(tmp_path / name, "1")))
                   for name in ("busy", "idle"))
    with running(models, load, poll_s=0.05) as (server, channel):
        asked = channel.unary_unary(PREDICT.path).future(
            predict_request("busy", text=["x"]).SerializeToString())
        assert entered.wait(20)
    assert asked.code() is not grpc.StatusCode.OK
    assert not server.versions._poller.is_alive()
    assert (made["busy"].closed, made["idle"].closed) == (False, True)
    leave.set()
    assert wait_until(server.versions, lambda: made["busy"].closed, 20)
    assert server.pipeline.wait_idle(20)


def test_the_summary_names_address_model_version_and_times(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "12"))),)
    times = LoadTimes(load_s=1.0, warmup_records=3, warmup_s=0.5, golden_samples=2, golden_s=0.25)
    with running(models, lambda path: (EchoServable(), times)) as (server, _):
        text = server.summary()
    assert f"localhost:{server.config.port}" in text
    assert ("m version 12: loaded in 1.00 s, 3 warm-up records in 0.50 s, "
            "2 golden samples equal in 0.25 s") in text


def test_the_log_tells_calls_but_never_their_data(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1"))),)
    caplog.set_level("DEBUG", logger="tf_infer")
    servable = ScriptedServable([InvalidRequest("op failed on 'a secret'"),
                                 {"text": np.array([b"secret answer"], object)}])
    with running(models, lambda path: (servable, LoadTimes())) as (_, made):
        refused(made, PREDICT, predict_request(text=["a secret"]))
        call(made, PREDICT, predict_request(text=["a secret"]))
        refused(made, PREDICT, predict_request("a secret name", text=["x"]))
    assert "method=Predict code=INVALID_ARGUMENT" in caplog.text
    assert "model=m version=1 state=AVAILABLE" in caplog.text
    assert "secret" not in caplog.text
