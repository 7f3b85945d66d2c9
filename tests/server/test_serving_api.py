"""Real SavedModels behind the port, asked by TensorFlow Serving's own stubs and messages."""

from __future__ import annotations

import http.client
import json
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

import tensorflow_text as tf_text  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.server.serverkit import free_port, lent, running, wait_until  # noqa: E402
from tf_infer.errors import ServingError  # noqa: E402
from tf_infer.manifest import EXTRA_FOLDER, Sample, write_samples  # noqa: E402
from tf_infer.server.config import ModelConfig, ServerConfig  # noqa: E402
from tf_infer.server.metrics import Metrics  # noqa: E402
from tf_infer.server.servable import SavedModelServable, load_version  # noqa: E402
from tf_infer.server.versions import ModelRef  # noqa: E402

STEPS_OF_MINUTES = 10_000_000_000
DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64", "uint8",
          "uint16", "uint32", "uint64", "bool", "complex64", "complex128", "string")


class Module(tf.Module):
    """A signature for every statement that only a real graph can show."""

    def __init__(self) -> None:
        super().__init__()
        self.count = tf.Variable(0, dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(
            tf.constant([b"a", b"b"]), tf.constant([1, 2], tf.int64)), -1)
        self.bert = tf_text.FastBertTokenizer(["[UNK]", "a", "b"])

    def graphs(self) -> dict[str, Any]:
        def of(function: Any, **specs: tf.TensorSpec) -> Any:
            return tf.function(function).get_concrete_function(
                **{name: tf.TensorSpec(spec.shape, spec.dtype, name=name)
                   for name, spec in specs.items()})

        floats, text = tf.TensorSpec([None], tf.float32), tf.TensorSpec([None], tf.string)
        made = {
            "serving_default": of(lambda x: {"y": x * 2.0, "z": x + 1.0}, x=floats),
            "matmul": of(lambda x: {"y": tf.linalg.matmul(x, x)},
                         x=tf.TensorSpec([None, None], tf.float32)),
            "gather": of(lambda i: {"y": tf.gather(tf.constant([1.0, 2.0]), i)},
                         i=tf.TensorSpec([None], tf.int32)),
            "assertion": of(_asserted, x=floats),
            "spin": of(_spin, x=floats),
            "count": of(lambda: {"y": self.count.assign_add(1)}),
            "lookup": of(lambda x: {"y": self.table.lookup(x)}, x=text),
            "bert": of(lambda x: {"y": self.bert.tokenize(x).to_tensor()}, x=text),
            "compiled": of(tf.function(lambda x: {"y": x * x}, jit_compile=True), x=floats),
            "number": of(lambda x: {"y": tf.strings.to_number(x)}, x=text),
            "scalar": of(lambda x: {"y": x}, x=tf.TensorSpec([], tf.string)),
            "any_rank": of(lambda x: {"y": tf.shape(x)}, x=tf.TensorSpec(None, tf.float32)),
            "classify": of(_classify, inputs=text),
            "regress": of(lambda inputs: {"outputs": _parsed(inputs)["number"][:, 0] * 2.0},
                          inputs=text),
        }
        for name in DTYPES:
            made[f"echo_{name}"] = of(lambda x: {"y": tf.identity(x)},
                                      x=tf.TensorSpec(None, tf.as_dtype(name)))
        return made


def _asserted(x: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_positive(x, "must be positive")]):
        return {"y": tf.identity(x)}


def _spin(x: Any) -> Any:
    total = tf.while_loop(lambda i, _: i < STEPS_OF_MINUTES, lambda i, t: (i + 1, t + 1.0),
                          (tf.constant(0, tf.int64), tf.reduce_sum(x)))[1]
    return {"y": total[None]}


def _parsed(serialized: Any) -> Any:
    return tf.io.parse_example(serialized, {
        "text": tf.io.FixedLenFeature([1], tf.string, ""),
        "number": tf.io.FixedLenFeature([1], tf.float32)})


def _classify(inputs: Any) -> Any:
    parsed = _parsed(inputs)
    scores = tf.concat([parsed["number"], 1.0 - parsed["number"]], 1)
    return {"classes": tf.concat([parsed["text"], parsed["text"]], 1), "scores": scores}


def save_tf1(path: Path) -> None:
    """A TF1-style SavedModel: variables, two tag sets, a main op, method names."""
    builder = tf.compat.v1.saved_model.Builder(str(path))
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        weight = tf.compat.v1.get_variable("w", initializer=3.0, use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        info = tf.compat.v1.saved_model.build_tensor_info
        definition = tf.compat.v1.saved_model.build_signature_def(
            {"x": info(x)}, {"y": info(x * weight)}, "tensorflow/serving/predict")
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": definition})
        builder.add_meta_graph(["serve", "other"], {"other": definition})
    builder.save()


def save_keras(base: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones")])
    model.export(str(base / "exported" / "1"), verbose=False)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("double", lambda x: model(x) * 2.0,
                         input_signature=[tf.TensorSpec((None, 3), tf.float32, name="x")])
    archive.write_out(str(base / "archive" / "1"), verbose=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("saved")
    module = Module()
    tf.saved_model.save(module, str(base / "m" / "3"), signatures=module.graphs())
    save_tf1(base / "tf1" / "1")
    save_keras(base)
    return base


class Stub:
    """TensorFlow Serving's own stubs, and its messages built in one line each."""

    def __init__(self, channel: grpc.Channel, rest_port: int = 0) -> None:
        self.rest_port = rest_port
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self.raw = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        self.models = model_service_pb2_grpc.ModelServiceStub(channel)

    def predict(self, name: str = "m", signature: str = "", timeout: float | None = 30,
                **inputs: Any) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = name, signature
        for key, value in inputs.items():
            proto = value if hasattr(value, "tensor_shape") else (
                tf.make_tensor_proto(value))
            request.inputs[key].CopyFrom(proto)
        response = self.prediction.Predict(request, timeout)
        return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}

    def rest(self, target: str, body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of a request to REST: a POST if there is a body."""
        connection = http.client.HTTPConnection("localhost", self.rest_port, timeout=30)
        try:
            connection.request("GET" if body is None else "POST", f"/v1/models/{target}",
                               None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def refused(self, **arguments: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.predict(**arguments)
        return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def stub(models: Path) -> Iterator[Stub]:
    configs = tuple(ModelConfig(name=name, base_path=str(models / name))
                    for name in ("m", "tf1", "exported", "archive"))
    port = free_port()
    with running(configs, rest_port=port) as (_, channel):
        yield Stub(channel, port)


F32 = np.float32


def test_PR01_all_outputs_come_back(stub: Stub) -> None:
    answer = stub.predict(x=F32([1, 2]))
    assert {name: array.tolist() for name, array in answer.items()} == {
        "y": [2.0, 4.0], "z": [2.0, 3.0]}


@pytest.mark.parametrize("name", DTYPES)
def test_PR15_PR16_PR17_every_dtype_and_rank(stub: Stub, name: str) -> None:
    values = np.array([b"a\0", b"\xff"], object) if name == "string" else (
        np.array([0, 1]).astype(tf.as_dtype(name).as_numpy_dtype))
    for array in (values, values[:0], values[:1].reshape(()), values.reshape(2, 1, 1)):
        answer = stub.predict(signature=f"echo_{name}", x=tf.make_tensor_proto(
            array, dtype=name, shape=array.shape))["y"]
        assert answer.dtype == values.dtype
        assert answer.shape == array.shape
        assert answer.tolist() == array.tolist()
    short = tf.make_tensor_proto(values[1:], dtype=name, shape=[1])
    if not short.tensor_content:
        short.tensor_shape.dim[0].size = 3
        assert stub.predict(signature=f"echo_{name}", x=short)["y"].tolist() == [values[1]] * 3


def test_PR07_wrong_dtype(stub: Stub) -> None:
    assert stub.refused(x=np.int32([1])) == (
        "INVALID_ARGUMENT", "Expects arg[0] to be float but int32 is provided")
    assert stub.refused(x=["a"]) == (
        "INVALID_ARGUMENT", "Expects arg[0] to be float but string is provided")


def test_PR08_PR09_declared_shapes_are_not_checked_but_ops_are(stub: Stub) -> None:
    assert stub.predict(x=F32([[1, 2]]))["y"].tolist() == [[2.0, 4.0]]
    assert stub.predict(x=F32(1))["y"].tolist() == 2.0
    code, text = stub.refused(signature="matmul", x=np.ones((2, 3), F32))
    assert code == "INVALID_ARGUMENT"
    assert "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,3]" in text


def test_PR19_PR20_PR28_PR29_empty_scalar_any_rank_nan(stub: Stub) -> None:
    assert stub.predict(x=np.zeros(0, F32))["y"].shape == (0,)
    assert stub.predict(signature="scalar", x=b"\0s")["y"].item() == b"\0s"
    assert stub.predict(signature="any_rank", x=np.zeros((1, 2, 3, 4), F32))["y"].tolist() == [
        1, 2, 3, 4]
    assert np.array_equal(stub.predict(x=F32([np.nan, np.inf, -np.inf]))["y"],
                          F32([np.nan, np.inf, -np.inf]), equal_nan=True)


def test_PR21_PR22_errors_of_ops_keep_code_and_text_and_disturb_nothing(stub: Stub) -> None:
    for arguments, words in (({"signature": "assertion", "x": F32([-1])}, "must be positive"),
                             ({"signature": "gather", "i": np.int32([9])}, "9 is not in [0, 2)")):
        code, text = stub.refused(**arguments)
        assert (code, words in text) == ("INVALID_ARGUMENT", True), text
        assert stub.predict(x=F32([1]))["y"].tolist() == [2.0]


def test_PR21_the_text_of_an_op_that_quotes_bytes_which_are_no_text(
        stub: Stub, caplog: pytest.LogCaptureFixture) -> None:
    for data, words in ((b"abc", "abc"), (b"\xff\xfe", "\ufffd\ufffd")):
        code, text = stub.refused(signature="number", x=[data])
        assert (code, words in text) == ("INVALID_ARGUMENT", True), text
    assert not caplog.records


def test_PR23_variables_and_tables_keep_their_values(stub: Stub) -> None:
    first = stub.predict(signature="count")["y"].item()
    assert stub.predict(signature="count")["y"].item() == first + 1
    assert stub.predict(signature="lookup", x=["b", "z"])["y"].tolist() == [2, -1]


def test_LI06_calls_at_the_same_time_get_their_own_answers(stub: Stub) -> None:
    def ask(number: int) -> bool:
        x = np.full(1 + number % 5, number, F32)
        text = np.array([str(number).encode()] * 3, object)
        return bool(np.array_equal(stub.predict(x=x)["y"], 2 * x) and np.array_equal(
            stub.predict(signature="echo_string", x=text)["y"], text))

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))


def test_compiled_graphs_run(stub: Stub) -> None:
    assert stub.predict(signature="compiled", x=F32([1, 2]))["y"].tolist() == [1.0, 4.0]


def test_requests_with_random_damage_never_end_the_process(stub: Stub) -> None:
    random = np.random.default_rng(0)
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "bert"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(["a b", "b"]))
    whole, codes = request.SerializeToString(), set()
    for _ in range(600):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 1 + random.integers(3)):
            data[place] = random.integers(256)
        try:
            stub.raw(bytes(data), timeout=30)
            codes.add("OK")
        except grpc.RpcError as error:
            codes.add(error.code().name)
    assert {"INTERNAL", "INVALID_ARGUMENT", "NOT_FOUND"} <= codes
    assert "UNAVAILABLE" not in codes
    assert stub.predict(x=F32([1]))["y"].tolist() == [2.0]


def test_a_scalar_string_that_would_end_the_process_is_refused(stub: Stub) -> None:
    code, text = stub.refused(signature="bert", x="a")
    assert (code, text) == ("INVALID_ARGUMENT", "x: expected a string tensor of rank 1, got a "
                            "scalar. Send one string as a vector of one.")
    assert stub.predict(signature="bert", x=["a b", ""])["y"].tolist() == [[1, 2], [0, 0]]


def test_hostile_text_reaches_the_graph_unharmed(stub: Stub) -> None:
    texts = [b"", b"\0", b"\xff\xfe", "a\u0301 🙂".encode(), b"a" * 1_000_000, b"a " * 500_000]
    assert stub.predict(signature="bert", x=texts)["y"].shape[0] == len(texts)
    assert stub.predict(signature="echo_string", x=texts)["y"].tolist() == texts


def test_LI03_LI04_a_deadline_stops_the_run_and_its_thread_is_free(stub: Stub) -> None:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "spin"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(F32([1])))
    # More than TensorFlow has threads: were these still held, no further call would be answered.
    spins = [stub.prediction.Predict.future(request, 0.5) for _ in range(12)]
    assert {spin.code().name for spin in spins} == {"DEADLINE_EXCEEDED"}
    assert stub.predict(x=F32([1]))["y"].tolist() == [2.0]


def test_LI05_a_call_may_have_no_deadline(stub: Stub) -> None:
    for timeout in (None, 1e9):
        assert stub.predict(x=F32([1]), timeout=timeout)["y"].tolist() == [2.0]


def test_models_of_plain_keras_and_of_TF1_are_served(stub: Stub) -> None:
    ones = np.ones((1, 3), F32)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "exported"
    found = get_model_metadata_pb2.SignatureDefMap.FromString(
        stub.prediction.GetModelMetadata(request, 30).metadata["signature_def"].value)
    (key,) = found.signature_def["serving_default"].inputs
    (answer,) = stub.predict("exported", **{key: ones}).values()
    assert answer.tolist() == [[3.0, 3.0]]
    (answer,) = stub.predict("archive", signature="double", x=ones).values()
    assert answer.tolist() == [[6.0, 6.0]]
    assert stub.predict("tf1", x=F32([2]))["y"].tolist() == [6.0]


def test_MD04_every_signature_is_told_as_saved_model_pb_has_it(stub: Stub, models: Path) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    response = stub.prediction.GetModelMetadata(request, 30)
    told = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(told)
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((models / "m" / "3/saved_model.pb").read_bytes())
    expected = saved.meta_graphs[0].signature_def
    assert "__saved_model_init_op" in told.signature_def
    assert set(told.signature_def) == set(expected)
    assert all(told.signature_def[name] == expected[name] for name in expected)


def test_MS_status_through_the_stock_stub(stub: Stub) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "m"
    (row,) = stub.models.GetModelStatus(request, 30).model_version_status
    assert (row.version, row.state, row.status.error_code) == (3, row.AVAILABLE, 0)


def examples(request: Any, *numbers: float | None, context: dict[str, Any] | None = None) -> Any:
    kind = request.input.example_list
    if context is not None:
        kind = request.input.example_list_with_context
        for name, value in context.items():
            kind.context.features.feature[name].bytes_list.value.append(value)
    for number in numbers:
        features = kind.examples.add().features.feature
        if number is not None:
            features["number"].float_list.value.append(number)
    return request


def classify_request() -> Any:
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "m", "classify"
    return request


def test_CL_RG_EX_MI_through_the_stock_stubs(stub: Stub) -> None:
    request = examples(classify_request(), 0.25, 1.0, context={"text": b"c"})
    request.input.example_list_with_context.examples[1].features.feature[
        "text"].bytes_list.value.append(b"own")
    rows = stub.prediction.Classify(request, 30).result.classifications
    assert [[(c.label, c.score) for c in row.classes] for row in rows] == [
        [("c", 0.25), ("c", 0.75)], [("own", 1.0), ("own", 0.0)]]               # EX03, EX04

    regress = regression_pb2.RegressionRequest()
    regress.model_spec.name, regress.model_spec.signature_name = "m", "regress"
    values = stub.prediction.Regress(examples(regress, 1.5, 2.0), 30).result.regressions
    assert [item.value for item in values] == [3.0, 4.0]

    with pytest.raises(grpc.RpcError, match="number") as caught:                # EX06
        stub.prediction.Classify(examples(classify_request(), None), 30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    first, second = (stub.prediction.MultiInference(multi_request(kind), 30).results[0]
                     for kind in ("classify", "regress"))
    assert first.classification_result.classifications[0].classes[0].score == 0.5
    assert second.regression_result.regressions[0].value == 1.0
    with pytest.raises(grpc.RpcError, match="Input tensor must be the same") as caught:  # MI13
        stub.prediction.MultiInference(multi_request("classify", "regress"), 30)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def multi_request(*kinds: str) -> Any:
    """Return a request to signatures of a TensorFlow 2 module, each of which has its own input."""
    request = examples(inference_pb2.MultiInferenceRequest(), 0.5)
    for kind in kinds:
        task = request.tasks.add(method_name=f"tensorflow/serving/{kind}")
        task.model_spec.name, task.model_spec.signature_name = "m", kind
    return request


# ---------------------------------------------------------------------------- loading


def test_a_load_does_not_write_TensorFlows_own_lines(
        models: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="tensorflow")
    SavedModelServable(models / "m" / "3").close()
    assert not caplog.records
    tf.get_logger().warning("said outside of a load")
    assert "said outside" in caplog.text


def test_FL37_tags(models: Path) -> None:
    servable = SavedModelServable(models / "tf1" / "1", tags=("serve", "other"))
    assert set(servable.signatures) == {"other"}
    servable.close()
    with pytest.raises(ServingError, match=r"matching supplied tags: \{ gpu \}") as caught:
        SavedModelServable(models / "tf1" / "1", tags=("gpu",))
    assert caught.value.code.name == "NOT_FOUND"


def config(**settings: Any) -> ServerConfig:
    return ServerConfig(models=(), **settings)


@pytest.mark.parametrize("spoil", ["nothing", "empty file", "random bytes", "no variables",
                                   "empty folder", "a file"])
def test_VR03_a_half_written_version_fails_with_a_clear_error(
        models: Path, tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "7"
    if spoil == "a file":
        path.write_bytes(b"7")
    elif spoil == "empty folder":
        path.mkdir()
    else:
        shutil.copytree(models / "tf1" / "1", path)
    if spoil == "no variables":
        shutil.rmtree(path / "variables")
    elif spoil == "nothing":
        (path / "saved_model.pb").unlink()
    elif path.is_dir() and spoil != "empty folder":
        data = b"" if spoil == "empty file" else np.random.default_rng(0).bytes(3000)
        (path / "saved_model.pb").write_bytes(data)
    with pytest.raises(ServingError) as caught:
        load_version(path, config())
    assert str(path) in str(caught.value)
    assert caught.value.code.name == (
        "DATA_LOSS" if spoil in ("random bytes", "no variables") else "NOT_FOUND")


def warm(path: Path, *records: Any) -> Path:
    (path / EXTRA_FOLDER).mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path / EXTRA_FOLDER / "tf_serving_warmup_requests")) as writer:
        for record in records:
            writer.write(record if isinstance(record, bytes) else record.SerializeToString())
    return path


def count_log() -> Any:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.name = "another model"
    log.predict_log.request.model_spec.signature_name = "count"
    return log


@pytest.fixture
def version(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "m" / "3", tmp_path / "3"))


def test_WU01_to_WU06_warm_up_runs_before_a_version_is_available(version: Path) -> None:
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.request.CopyFrom(examples(classify_request(), 0.5))
    path = warm(version, count_log(), classify, prediction_log_pb2.PredictionLog(), count_log())
    for settings, counted, records in (({}, 2, 4), ({"warmup_iterations": 3}, 6, 4),
                                       ({"warmup": False}, 0, 0)):
        servable, times = load_version(path, config(**settings))
        answer = servable.run("count", {}, outputs=["y"], timeout_s=None)
        assert (answer["y"].item(), times.warmup_records) == (counted + 1, records)
        servable.close()


@pytest.mark.parametrize(("record", "code", "words"), [
    ("fails", "INVALID_ARGUMENT", "must be positive"),                          # WU07
    ("bytes", "INVALID_ARGUMENT", "Failed to parse warmup record"),             # WU08
    ("session", "UNIMPLEMENTED", "Unsupported log_type for warmup"),            # WU12
    ("many", "INVALID_ARGUMENT", r"exceeds the maximum \(1000\)"),              # WU10
])
def test_WU_records_that_make_the_load_fail(
        version: Path, record: str, code: str, words: str) -> None:
    log = prediction_log_pb2.PredictionLog()
    if record == "fails":
        log.predict_log.request.model_spec.signature_name = "assertion"
        log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(F32([-1])))
    elif record == "session":
        log.session_run_log.SetInParent()
    records = [b"\xff\xff"] if record == "bytes" else [log] * (1001 if record == "many" else 1)
    with pytest.raises(ServingError, match=words) as caught:
        load_version(warm(version, *records), config())
    assert caught.value.code.name == code


@pytest.mark.parametrize("kind", ["warm-up", "golden"])
def test_a_record_or_sample_that_would_end_the_process_is_refused(
        version: Path, kind: str) -> None:
    scalar = np.array(b"a", object)
    if kind == "warm-up":
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.model_spec.signature_name = "bert"
        log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(scalar))
        warm(version, log)
    else:
        (version / EXTRA_FOLDER).mkdir(exist_ok=True)
        write_samples([Sample("bert", {"x": scalar}, {"y": np.int32([[1]])})],
                      version / EXTRA_FOLDER / "golden.jsonl")
    with pytest.raises(ServingError) as caught:
        load_version(version, config())
    assert caught.value.code.name == "INVALID_ARGUMENT"


def test_WU09_WU10_WU13_other_files(version: Path) -> None:
    path = warm(version) / EXTRA_FOLDER / "tf_serving_warmup_requests"
    load_version(version, config())[0].close()
    warm(version, *[prediction_log_pb2.PredictionLog()] * 1000)
    load_version(version, config())[0].close()
    for data in (b"no records at all, just text", path.read_bytes()[:-3]):
        path.write_bytes(data)
        with pytest.raises(ServingError, match="verify your warmup data is in TFRecord") as caught:
            load_version(version, config())
        assert caught.value.code.name == "DATA_LOSS"


def test_MO13_WU15_loads_warm_ups_and_runs_are_counted(version: Path) -> None:
    metrics = Metrics()
    load_version(warm(version, count_log(), count_log()), config(), metrics)[0].close()
    (version / "saved_model.pb").rename(version / "elsewhere.pb")
    with pytest.raises(ServingError):
        load_version(version, config(), metrics)
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
              for line in metrics.page().decode().splitlines() if not line.startswith("#")}
    attempts = ":tensorflow:cc:saved_model:load_attempt_count"
    assert values[f'{attempts}{{model_path="{version}",status="success"}}'] == 1
    assert values[f'{attempts}{{model_path="{version}",status="fail"}}'] == 1
    latency = values[f':tensorflow:cc:saved_model:load_latency{{model_path="{version}"}}']
    assert 1000 < latency < 600e6
    records = ":tensorflow:serving:model_warmup_records_read"
    assert values[f'{records}{{model_path="{version}",status="OK"}}'] == 2
    assert values[":tensorflow:core:graph_runs{}"] == 2
    assert 0 < values[":tensorflow:core:graph_run_time_usecs{}"] < 60e6


def golden(version: Path, value: float, signature: str = "serving_default") -> Path:
    (version / EXTRA_FOLDER).mkdir(exist_ok=True)
    right = Sample("serving_default", {"x": F32([1])}, {"y": F32([2])})
    write_samples([right, Sample(signature, {"x": F32([1])}, {"y": F32([value])})],
                  version / EXTRA_FOLDER / "golden.jsonl")
    return version


def test_golden_samples_are_replayed_before_a_version_is_available(version: Path) -> None:
    servable, times = load_version(golden(version, 2.00001), config())
    servable.close()
    assert times.golden_samples == 2
    with pytest.raises(ServingError, match=r"golden sample 1, signature 'serving_default', "
                       r"output 'y': 1 of 1 values differ, the worst by 0.5"):
        load_version(golden(version, 2.5), config())
    load_version(version, config(golden_replay=False))[0].close()


def test_WU16_VR11_a_version_that_does_not_reproduce_its_samples_leaves_the_old_one(
        models: Path, tmp_path: Path) -> None:
    base = tmp_path / "m"
    shutil.copytree(models / "m" / "3", base / "3")
    with running((ModelConfig(name="m", base_path=str(base)),)) as (server, channel):
        golden(Path(shutil.copytree(models / "m" / "3", tmp_path / "4")), 9.0)
        (tmp_path / "4").rename(base / "4")
        server.versions.poll()
        assert wait_until(
            server.versions, lambda: any(row.error for row in server.versions.status("m")), 60)
        row = server.versions.status("m", 4)[0]
        assert row.error is not None
        assert "golden sample 1" in row.error.details
        assert Stub(channel).predict(x=F32([1]))["y"].tolist() == [2.0]
        with lent(server.versions, ModelRef("m")) as lease:
            assert lease.version == 3


@pytest.mark.parametrize("name", ["tf_infer.json", "report.json", "golden.jsonl"])
def test_a_corrupted_manifest_report_or_sample_file_is_named(version: Path, name: str) -> None:
    golden(version, 2.0)
    (version / EXTRA_FOLDER / name).write_text('{"format": 1, "name":', encoding="utf-8")
    with pytest.raises(Exception, match=name.replace(".", r"\.")) as caught:
        load_version(version, config())
    assert type(caught.value).__module__ == "tf_infer.errors"


# ---------------------------------------------------------------------------- REST


@pytest.mark.parametrize("name", DTYPES)
def test_RP19_to_RP29_every_dtype_over_rest(stub: Stub, name: str) -> None:
    values: list[Any] = {"string": ["a\0", "中"], "bool": [False, True]}.get(name, [0, 1])
    body = {"signature_name": f"echo_{name}", "inputs": values}
    if name in ("float16", "bfloat16", "uint16", "complex64", "complex128"):
        assert stub.rest("m:predict", body)[0] == 501
        return
    assert stub.rest("m:predict", body) == (200, {"outputs": values})
    for shaped in (values[1], [], [[values]]):
        assert stub.rest("m:predict", {**body, "inputs": shaped}) == (200, {"outputs": shaped})


def test_RP01_RP03_RP13_real_outputs_over_rest(stub: Stub) -> None:
    assert stub.rest("m:predict", {"instances": [1, 2.5]}) == (
        200, {"predictions": [{"y": 2.0, "z": 2.0}, {"y": 5.0, "z": 3.5}]})
    assert stub.rest("tf1:predict", {"inputs": {"x": [1]}}) == (200, {"outputs": [3.0]})
    assert stub.rest("exported:predict", {"instances": [[1, 2, 3]]}) == (
        200, {"predictions": [[6.0, 6.0]]})
    status, answer = stub.rest("m:predict", {"signature_name": "any_rank", "instances": [1]})
    assert (status, answer) == (200, {"predictions": [1]})
    status, answer = stub.rest("m:predict", {"signature_name": "scalar", "instances": ["a"]})
    assert (status, answer) == (200, {"predictions": ["a"]})


def test_RP37_an_error_of_the_graph_keeps_its_text_over_rest(stub: Stub) -> None:
    status, answer = stub.rest("m:predict", {"signature_name": "assertion", "instances": [-1]})
    assert status == 400
    assert "must be positive" in answer["error"]


def test_RC03_RC05_examples_over_rest(stub: Stub) -> None:
    examples = [{"number": 0.25, "text": "a"}, {"number": [1.0]}]
    body = {"signature_name": "classify", "examples": examples}
    assert stub.rest("m:classify", body) == (
        200, {"results": [[["a", 0.25], ["a", 0.75]], [["", 1.0], ["", 0.0]]]})
    body = {"signature_name": "regress", "context": {"number": 3.0}, "examples": [{}]}
    assert stub.rest("m:regress", body) == (200, {"results": [6.0]})
    body = {"signature_name": "regress", "examples": [{"number": 1}]}
    assert stub.rest("m:regress", body)[0] == 400  # an int64 feature


def test_RM01_RM04_RM07_status_and_metadata_over_rest(stub: Stub) -> None:
    status, answer = stub.rest("m/metadata")
    assert status == 200
    found = answer["metadata"]["signature_def"]["signature_def"]
    assert set(found) == {*stub_signatures(stub), "__saved_model_init_op"}
    assert found["serving_default"]["inputs"]["x"]["tensor_shape"]["dim"] == [
        {"size": "-1", "name": ""}]
    assert stub.rest("m")[1]["model_version_status"][0]["version"] == "3"


def stub_signatures(stub: Stub) -> set[str]:
    """Return the names of the model's signatures, as gRPC tells them."""
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "m"
    response = stub.prediction.GetModelMetadata(request, 30)
    found = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    return set(found.signature_def) - {"__saved_model_init_op"}
