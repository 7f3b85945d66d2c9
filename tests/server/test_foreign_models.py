"""SavedModels that others wrote, behind the port: TF1 graphs with assets and tables, several tag
sets, resources, TensorFlow Serving's own half_plus_two by every method; one server for all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tensorflow_serving")

from tensorflow.core.protobuf.config_pb2 import CallableOptions  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.server.serverkit import however_long, lent, running, wait_until  # noqa: E402
from tests.server.test_serving_api import count_log, warm  # noqa: E402
from tf_infer.server.app import Server  # noqa: E402
from tf_infer.server.config import ModelConfig, ServerConfig  # noqa: E402
from tf_infer.server.contracts import Run  # noqa: E402
from tf_infer.server.decide import State  # noqa: E402
from tf_infer.server.scheduler import Job, quick_run  # noqa: E402
from tf_infer.server.servable import load_version  # noqa: E402
from tf_infer.server.versions import ModelRef  # noqa: E402

v1 = tf.compat.v1
F32 = np.float32
WAIT_S = 60.0


def info(tensor: Any) -> Any:
    return v1.saved_model.build_tensor_info(tensor)


def define(inputs: dict[str, Any], outputs: dict[str, Any], method: str) -> Any:
    return v1.saved_model.build_signature_def(
        {name: info(tensor) for name, tensor in inputs.items()},
        {name: info(tensor) for name, tensor in outputs.items()}, f"tensorflow/serving/{method}")


def save_half_plus_two(path: Path) -> None:
    """As TensorFlow Serving's own test data: y = x / 2 + 2 by every method, from tf.Examples."""
    with tf.Graph().as_default(), v1.Session() as session:
        half, two = v1.Variable(0.5, name="a"), v1.Variable(2.0, name="b")
        serialized = v1.placeholder(tf.string, name="tf_example")
        parsed = v1.parse_example(serialized, {
            "x": tf.io.FixedLenFeature([1], tf.float32),
            "x2": tf.io.FixedLenFeature([1], tf.float32, [0.0])})
        x = tf.identity(parsed["x"], name="x")
        y, y2 = x * half + two, parsed["x2"] * half + two
        bare = v1.placeholder(tf.float32, [None], name="bare")
        file = path.parent / "foo.txt"
        file.write_text("asset-file-contents", encoding="utf-8")
        asset, name = v1.constant(str(file)), v1.Variable("", name="filename", collections=[])
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        lost = define({"x": bare}, {"y": bare * half + two}, "predict")
        lost.outputs["y"].name = "nope:0"
        sparse = v1.sparse_placeholder(tf.float32, [None, 3])
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {
            "lost": lost,
            "sparse": define({"x": sparse}, {"y": v1.sparse_tensor_to_dense(sparse)}, "predict"),
            "serving_default": define({"x": bare}, {"y": bare * half + two}, "predict"),
            "regress_x_to_y": define({"inputs": serialized}, {"outputs": y}, "regress"),
            "regress_x2_to_y3": define({"inputs": serialized}, {"outputs": y2}, "regress"),
            "classify_x_to_y": define({"inputs": serialized}, {"scores": y}, "classify"),
            "asset": define({"x": bare}, {"y": tf.io.read_file(name)}, "predict"),
            "passed": define({"x": bare}, {"y": bare}, "predict"),
            "twice": define({"a": bare, "b": bare}, {"y": bare * half + two}, "predict"),
        }, assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=name.assign(asset).op)
        builder.save()
    file.unlink()  # what counts is the copy


def save_table(path: Path) -> None:
    """A TF1 lookup table that is filled from a vocabulary file among the assets."""
    vocabulary = path.parent / "words.txt"
    vocabulary.write_text("zero\none\ntwo\n", encoding="utf-8")
    with tf.Graph().as_default(), v1.Session() as session:
        words = v1.placeholder(tf.string, [None], name="words")
        file = v1.constant(str(vocabulary))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, file)
        table = tf.lookup.StaticHashTable(tf.lookup.TextFileInitializer(
            file, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER), -1)
        ids = table.lookup(words)
        session.run(v1.tables_initializer())
        builder = v1.saved_model.Builder(str(path))
        definition = define({"words": words}, {"ids": ids}, "predict")
        builder.add_meta_graph_and_variables(
            session, ["serve"], {"serving_default": definition},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer())
        builder.save()
    vocabulary.unlink()


class Module(tf.Module):
    """Resources that keep what requests put into them, and inputs of every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable(0, dtype=tf.int64)
        self.table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)

    def graphs(self) -> dict[str, Any]:
        def of(function: Any, **specs: Any) -> Any:
            return tf.function(function).get_concrete_function(
                **{name: tf.TensorSpec(shape, dtype, name=name)
                   for name, (shape, dtype) in specs.items()})

        def insert(key: Any, value: Any) -> dict[str, Any]:
            self.table.insert(key, value)
            return {"size": self.table.size()}

        def parse(serialized: Any) -> Any:
            return tf.io.parse_example(serialized, {
                "number": tf.io.FixedLenFeature([1], tf.float32)})["number"][:, 0]

        return {
            "serving_default": of(lambda x: {"y": tf.reduce_sum(x, axis=[1, 2, 3])},
                                  x=([None, 2, 2, 3], tf.float32)),
            "count": of(lambda: {"y": self.count.assign_add(1)}),
            "insert": of(insert, key=([None], tf.string), value=([None], tf.int64)),
            "lookup": of(lambda key: {"value": self.table.lookup(key)}, key=([None], tf.string)),
            "options": of(lambda x, scale, name: {
                "y": x * scale, "name": tf.strings.join([name, "!"])},
                x=([None], tf.float32), scale=([], tf.float32), name=([], tf.string)),
            "regress": of(lambda inputs: {"outputs": parse(inputs)}, inputs=([None], tf.string)),
            "pieces": of(lambda x: {"first": x[0], "shape": tf.shape(x),
                                    "flat": tf.reshape(x, [-1])},
                         x=([None, None, None], tf.int32)),
        }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("foreign")
    for name, save in (("half", save_half_plus_two), ("table", save_table)):
        (base / name).mkdir()
        save(base / name / "00000123")
    module = Module()
    module.table.insert(["there"], [7])
    tf.saved_model.save(module, str(base / "tf2" / "1"), signatures=module.graphs())
    return base


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path.relative_to(folder)): (
        path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")}


class Stub(prediction_service_pb2_grpc.PredictionServiceStub):
    """TensorFlow Serving's own stub, and a Predict in one line."""

    def predict(self, name: str, signature: str = "", /, **inputs: Any) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = name, signature
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        return {key: tf.make_ndarray(value)
                for key, value in self.Predict(request, 30).outputs.items()}


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[tuple[Server, Stub]]:
    before = snapshot(models)
    configs = tuple(ModelConfig(name=path.name, base_path=str(path))
                    for path in sorted(models.iterdir()))
    with running(configs) as (made, channel):
        yield made, Stub(channel)
    assert snapshot(models) == before, "LI13: the server wrote into a model's folder"


@pytest.fixture
def stub(server: tuple[Server, Stub]) -> Stub:
    return server[1]


def with_example(request: Any, signature: str, **features: float) -> Any:
    if hasattr(request, "model_spec"):
        request.model_spec.name, request.model_spec.signature_name = "half", signature
    example = request.input.example_list.examples.add()
    for name, value in features.items():
        example.features.feature[name].float_list.value.append(value)
    return request


def test_half_plus_two_by_every_method(stub: Stub) -> None:
    assert stub.predict("half", x=F32([1, 2, 5]))["y"].tolist() == [2.5, 3.0, 4.5]
    regress = with_example(regression_pb2.RegressionRequest(), "regress_x_to_y", x=2.0)
    answer = stub.Regress(regress, 30)
    assert [item.value for item in answer.result.regressions] == [3.0]
    assert answer.model_spec.version.value == 123
    classify = with_example(classification_pb2.ClassificationRequest(), "classify_x_to_y", x=2.0)
    rows = stub.Classify(classify, 30).result.classifications
    assert [[(item.label, item.score) for item in row.classes] for row in rows] == [[("", 3.0)]]
    multi = with_example(inference_pb2.MultiInferenceRequest(), "", x=2.0)
    for name, method in (("regress_x_to_y", "regress"), ("classify_x_to_y", "classify"),
                         ("regress_x2_to_y3", "regress")):
        task = multi.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name, task.model_spec.signature_name = "half", name
    first, second, third = stub.MultiInference(multi, 30).results
    assert first.regression_result.regressions[0].value == 3.0
    assert second.classification_result.classifications[0].classes[0].score == 3.0
    assert third.regression_result.regressions[0].value == 2.0


def test_assets_of_TF1_models_are_found(stub: Stub) -> None:
    assert stub.predict("half", "asset", x=F32([1]))["y"].item() == b"asset-file-contents"
    assert stub.predict("table", words=["two", "none", "zero"])["ids"].tolist() == [2, -1, 0]


def test_an_output_that_is_an_input_gets_the_runtimes_own_text(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.predict("half", "passed", x=F32([1]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "bare:0 is both fed and fetched."


@pytest.mark.parametrize(("signature", "tensor"), [("lost", "nope:0"), ("sparse", ":0")])
def test_PR21_a_tensor_that_is_not_there_gets_the_runtimes_own_text(
        stub: Stub, signature: str, tensor: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.predict("half", signature, x=F32([1]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (f"Tensor {tensor}, specified in either feed_devices or "
                                      "fetch_devices was not found in the Graph")


def test_PR21_two_inputs_of_one_tensor_get_the_runtimes_own_text(stub: Stub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.predict("half", "twice", a=F32([1]), b=F32([1]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with tf.Graph().as_default(), v1.Session() as session:
        tf.identity(v1.placeholder(tf.float32, name="bare"), name="y")
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            session._make_callable_from_options(
                CallableOptions(feed=["bare:0", "bare:0"], fetch=["y:0"]))
    assert caught.value.details() == raised.value.message


def test_quick_runs_of_many_callers_are_answered_each_with_its_own(
        server: tuple[Server, Stub], stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    however_long(monkeypatch)

    def asked(caller: int) -> bool:
        return all(stub.predict("half", x=F32([caller, number]))["y"].tolist()
                   == [caller / 2 + 2, number / 2 + 2] for number in range(15))

    with ThreadPoolExecutor(8) as callers:
        assert all(callers.map(asked, range(8)))
    with lent(server[0].versions, ModelRef("half")) as lease:
        assert quick_run(Job("half", lease.servable, Run("serving_default", {"x": F32([1, 2])},
                                                        ("y",)), None, lambda *_: None))


def test_PR23_PR24_tables_and_variables_keep_what_requests_put_into_them(stub: Stub) -> None:
    assert stub.predict("tf2", "lookup", key=["there", "new"])["value"].tolist() == [7, -1]
    assert stub.predict("tf2", "insert", key=["new"], value=np.int64([9]))["size"].item() == 2
    assert stub.predict("tf2", "lookup", key=["there", "new"])["value"].tolist() == [7, 9]
    assert stub.predict("tf2", "count")["y"].item() == 1
    assert stub.predict("tf2", "count")["y"].item() == 2


def test_PR20_ranks_from_zero_to_four(stub: Stub) -> None:
    images = np.arange(24, dtype=F32).reshape(2, 2, 2, 3)
    assert stub.predict("tf2", x=images)["y"].tolist() == images.sum((1, 2, 3)).tolist()
    answer = stub.predict("tf2", "options", x=F32([1, 2]), scale=F32(3), name=b"n")
    assert (answer["y"].tolist(), answer["name"].item()) == ([3.0, 6.0], b"n!")
    pieces = stub.predict("tf2", "pieces", x=np.arange(8, dtype=np.int32).reshape(2, 2, 2))
    assert pieces["first"].tolist() == [[0, 1], [2, 3]]
    assert (pieces["shape"].tolist(), pieces["flat"].tolist()) == ([2, 2, 2], list(range(8)))


def test_PR09_PR20_a_scalar_string_for_a_declared_vector_runs_if_the_ops_allow_it(
        stub: Stub) -> None:
    for words in (b"two", [[b"one", b"nowhere"]]):
        found = stub.predict("table", words=words)["ids"].tolist()
        assert found == (2 if words == b"two" else [[1, -1]])


def test_PR26_a_signature_for_tf_Examples_is_run_by_Predict(stub: Stub) -> None:
    example = with_example(regression_pb2.RegressionRequest(), "", x=2.0).input.example_list
    serialized = [item.SerializeToString() for item in example.examples]
    assert stub.predict("half", "regress_x_to_y", inputs=serialized)["outputs"].tolist() == [[3.0]]
    assert stub.predict("half", "classify_x_to_y", inputs=serialized)["scores"].tolist() == [[3.0]]


def test_PR30_options_of_streaming_and_of_a_request_have_no_effect(stub: Stub) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(F32([2])))
    request.predict_streamed_options.request_state = 1
    request.client_id = b"somebody"
    request.request_options.SetInParent()
    assert tf.make_ndarray(stub.Predict(request, 30).outputs["y"]).tolist() == [3.0]


@pytest.mark.parametrize(("features", "words"), [
    pytest.param({"other": 1.0}, "x", id="EX06"), pytest.param({}, "x", id="EX06-empty")])
def test_a_feature_that_is_missing_is_named(
        stub: Stub, features: dict[str, float], words: str) -> None:
    request = with_example(regression_pb2.RegressionRequest(), "regress_x_to_y", **features)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Regress(request, 30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"Feature: {words}" in caught.value.details()


def test_EX07_a_feature_of_another_kind(stub: Stub) -> None:
    request = with_example(regression_pb2.RegressionRequest(), "regress_x_to_y")
    request.input.example_list.examples[0].features.feature["x"].int64_list.value.append(1)
    with pytest.raises(grpc.RpcError, match="Data types don't match") as caught:
        stub.Regress(request, 30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_MD04_MD08_metadata_of_a_TF1_model_is_that_of_its_file(stub: Stub, models: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "half"
    told = get_model_metadata_pb2.SignatureDefMap()
    assert stub.GetModelMetadata(request, 30).metadata["signature_def"].Unpack(told)
    saved = saved_model_pb2.SavedModel.FromString(
        (models / "half" / "00000123" / "saved_model.pb").read_bytes())
    assert dict(told.signature_def) == dict(saved.meta_graphs[0].signature_def)


def test_PR25_MD08_defaults_of_a_signature_are_used_and_told(models: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    path = Path(shutil.copytree(models / "tf2" / "1", tmp_path / "1"))
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].signature_def["options"].defaults["scale"].CopyFrom(
        tf.make_tensor_proto(F32(10)))
    (path / "saved_model.pb").write_bytes(saved.SerializeToString())
    with running((ModelConfig(name="m", base_path=str(tmp_path)),)) as (_, channel):
        stub = Stub(channel)
        assert stub.predict("m", "options", x=F32([1]), name=b"n")["y"].tolist() == [10.0]
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name = "m"
        told = get_model_metadata_pb2.SignatureDefMap()
        stub.GetModelMetadata(request, 30).metadata["signature_def"].Unpack(told)
        assert told.signature_def["options"].defaults["scale"].float_val == [10.0]


def test_WU04_WU17_a_new_version_is_warm_before_it_takes_over(models: Path, tmp_path: Path) -> None:
    base = tmp_path / "m"
    shutil.copytree(models / "tf2" / "1", base / "1")
    with running((ModelConfig(name="m", base_path=str(base)),)) as (server, channel):
        stub = Stub(channel)
        assert stub.predict("m", "count")["y"].item() == 1
        warm(Path(shutil.copytree(models / "tf2" / "1", tmp_path / "2")), *[count_log()] * 3)
        (tmp_path / "2").rename(base / "2")
        server.versions.poll()
        assert wait_until(server.versions, lambda: {
            row.version: row.state for row in server.versions.status("m")
        } == {1: State.END, 2: State.AVAILABLE}, WAIT_S)
        assert stub.predict("m", "count")["y"].item() == 4


def test_LI13_a_load_writes_nothing(models: Path) -> None:
    before = snapshot(models)
    load_version(models / "half" / "00000123", ServerConfig(models=()))[0].close()
    assert snapshot(models) == before


def test_two_tag_sets_are_two_models(tmp_path: Path) -> None:
    path = tmp_path / "1"
    builder = v1.saved_model.Builder(str(path))
    for number, tags in ((2.0, ["serve"]), (3.0, ["serve", "gpu"])):
        with tf.Graph().as_default(), v1.Session() as session:
            x = v1.placeholder(tf.float32, [None], name="x")
            weight = v1.get_variable("w", initializer=5.0)
            session.run(v1.global_variables_initializer())
            definition = {"serving_default": define(
                {"x": x}, {"y": x * weight * number}, "predict")}
            if number == 2.0:
                builder.add_meta_graph_and_variables(session, tags, definition)
            else:
                builder.add_meta_graph(tags, definition)
    builder.save()
    for tags, expected in ((("serve",), 10.0), (("gpu", "serve"), 15.0)):
        servable, _ = load_version(path, ServerConfig(models=(), tags=tags))
        answer = servable.run("serving_default", {"x": F32([1])}, outputs=["y"], timeout_s=None)
        assert answer["y"].tolist() == [expected]
        servable.close()
