"""Plain values <-> messages, tf.Example, and the method table."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf import text_format

from tf_infer.errors import ConfigError, InvalidRequest, ShapeError
from tf_infer.wire import examples, messages, methods, tensors
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.messages import ModelRef


@pytest.mark.parametrize("ref", [
    ModelRef("m"), ModelRef("m", version=0), ModelRef("m", version=2**63 - 1),
    ModelRef("m", label="stable")])
def test_a_reference_survives_its_model_spec(ref: ModelRef) -> None:
    assert messages.read_model_spec(messages.model_spec(ref, "s")) == ref


@pytest.mark.parametrize("arguments", [
    {"name": ""}, {"name": "m", "version": -1}, {"name": "m", "version": 2**63},
    {"name": "m", "version": 1, "label": "x"}, {"name": "m", "label": ""},
    {"name": "m", "version": True}, {"name": 3}])
def test_a_bad_reference_is_refused(arguments: dict) -> None:
    with pytest.raises(ConfigError, match="ModelRef"):
        ModelRef(**arguments)


def test_a_predict_request_holds_what_it_was_given() -> None:
    request = messages.predict_request(
        ModelRef("m", version=3), {"x": np.float32([[1, 2]])}, signature="s", outputs=["y"],
        dtypes_by_name={"x": "bfloat16"})
    assert request.model_spec.version.value == 3
    assert request.model_spec.signature_name == "s"
    assert list(request.output_filter) == ["y"]
    assert request.inputs["x"].dtype == pb.DT_BFLOAT16


@pytest.mark.parametrize("content", [True, False])
def test_a_predict_response_put_together_holds_what_a_message_would(content: bool) -> None:
    outputs = {"y": np.float32([[1, 2]]), "": np.array([b"text" * 50], object), "z" * 200: np.array(
        True), "large": np.arange(5000), "ü": np.zeros((0, 3))}
    for ref in (ModelRef("m", version=0), ModelRef("x" * 300, version=2**63 - 1), ModelRef("m")):
        made = pb.PredictResponse(model_spec=messages.model_spec(ref, "signature"))
        tensors.write_all(outputs, made.outputs, content=content)
        data = messages.predict_response_bytes(ref.name, ref.version, "signature", outputs,
                                               content=content)
        assert pb.PredictResponse.FromString(data) == made


def test_metadata_survives_its_response() -> None:
    definition = text_format.Parse("""
        inputs { key: "text" value { name: "t:0" dtype: DT_STRING
                                     tensor_shape { dim { size: -1 } } } }
        inputs { key: "k" value { name: "k:0" dtype: DT_INT32
                                  tensor_shape { unknown_rank: true } } }
        outputs { key: "r" value { name: "r:0" dtype: DT_RESOURCE tensor_shape { } } }
        defaults { key: "k" value { dtype: DT_INT32 tensor_shape { } int_val: 5 } }
        method_name: "tensorflow/serving/predict" """, pb.SignatureDef())
    response = messages.metadata_response(ModelRef("m", version=1), {"s": definition})
    ref, signatures = messages.read_metadata(response)
    info = signatures["s"]
    assert ref == ModelRef("m", version=1)
    assert [str(one) for one in info.inputs] == ["k: int32 unknown rank", "text: string [?]"]
    assert str(info.outputs[0]) == "r: DT_RESOURCE []"
    assert [one.default for one in info.inputs] == [5, None]
    assert info.method_name == "tensorflow/serving/predict"


def test_a_default_that_cannot_be_read_leaves_the_rest_readable() -> None:
    definition = pb.SignatureDef()
    for name, dtype in (("v", pb.DT_VARIANT), ("k", pb.DT_INT32), ("n", pb.DT_INT32)):
        definition.inputs[name].dtype = dtype
    definition.defaults["v"].dtype = pb.DT_VARIANT
    definition.defaults["k"].CopyFrom(tensors.to_proto(np.array(5, np.int32)))
    data = pb.SavedModel(meta_graphs=[pb.MetaGraphDef(signature_def={"s": definition})])
    found = messages.read_saved_model(data.SerializeToString(), where="x").signatures["s"]
    assert [(one.name, one.default, one.has_default) for one in found.inputs] == [
        ("k", 5, True), ("n", None, False), ("v", None, True)]


def test_metadata_without_signatures_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="signature_def"):
        messages.read_metadata(pb.GetModelMetadataResponse())
    broken = pb.GetModelMetadataResponse()
    broken.metadata["signature_def"].value = b"\xff"
    with pytest.raises(InvalidRequest, match="SignatureDefMap"):
        messages.read_metadata(broken)


def test_a_status_survives_its_response() -> None:
    versions = (messages.VersionState(version=2, state="AVAILABLE"),
                messages.VersionState(version=1, state="END", error_code="NOT_FOUND",
                                      error_message="gone"))
    assert messages.read_status(messages.status_response(versions)) == versions


def test_an_unknown_state_number_is_called_unknown() -> None:
    response = pb.GetModelStatusResponse()
    response.model_version_status.add(version=1).MergeFromString(b"\x10\x63\x1a\x02\x08\x63")
    assert messages.read_status(response)[0].state == "UNKNOWN"
    assert messages.read_status(response)[0].error_code == "UNKNOWN"


def test_an_example_holds_each_kind_of_feature() -> None:
    example = examples.to_example(
        {"text": "naïve", "raw": [b"\xff\0"], "score": 0.5, "count": [1, 2**40], "flag": True,
         "none": [], "array": np.uint8([3])})
    found = {name: [(field.name, list(kind.value)) for field, kind in feature.ListFields()]
             for name, feature in example.features.feature.items()}
    assert found == {
        "text": [("bytes_list", ["naïve".encode()])], "raw": [("bytes_list", [b"\xff\0"])],
        "score": [("float_list", [0.5])], "count": [("int64_list", [1, 2**40])],
        "flag": [("int64_list", [1])], "none": [], "array": [("int64_list", [3])]}


@pytest.mark.parametrize("value", [1j, np.uint64([2**63]), [["a"], "b"], {"a": 1}])
def test_a_value_no_feature_can_hold_is_refused(value: object) -> None:
    with pytest.raises(ShapeError):
        examples.to_example({"x": value})


def test_an_input_has_examples_and_perhaps_a_context() -> None:
    assert len(examples.to_input([{"a": 1}, {}]).example_list.examples) == 2
    both = examples.to_input([{"a": 1}], context={"b": 2}).example_list_with_context
    assert both.context.features.feature["b"].int64_list.value == [2]
    with pytest.raises(ShapeError, match="at least one"):
        examples.to_input([])


def test_paths_are_those_of_the_services() -> None:
    assert methods.PREDICT.path == "/tensorflow.serving.PredictionService/Predict"
    assert methods.RELOAD_CONFIG.path == (
        "/tensorflow.serving.ModelService/HandleReloadConfigRequest")
    assert methods.HEALTH_CHECK.path == "/grpc.health.v1.Health/Check"


def test_bytes_that_are_no_message_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="answer: expected a PredictResponse message, got 3"):
        methods.parse(pb.PredictResponse, b"\xff\xff\xff", where="answer")


def test_a_model_config_file_of_tensorflow_serving_parses() -> None:
    config = text_format.Parse("""
        model_config_list { config {
          name: "m" base_path: "/models/m" model_platform: "tensorflow"
          model_version_policy { specific { versions: 1 versions: 2 } }
          version_labels { key: "stable" value: 1 }
          logging_config { sampling_config { sampling_rate: 0.1 } } } }""", pb.ModelServerConfig())
    model = config.model_config_list.config[0]
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert model.version_labels["stable"] == 1
    batching = text_format.Parse("max_batch_size { value: 8 } allowed_batch_sizes: 4 "
                                 "enable_large_batch_splitting { value: true }",
                                 pb.BatchingParameters())
    assert batching.max_batch_size.value == 8


def test_a_file_that_is_no_saved_model_is_refused() -> None:
    for data in (b"\xff\xff", b""):
        with pytest.raises(InvalidRequest, match=r"saved_model\.pb: expected a SavedModel"):
            messages.read_saved_model(data, where="saved_model.pb")
