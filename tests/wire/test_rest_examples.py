"""REST classify, regress, status and metadata (statements RC and RM)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tf_infer.errors import InvalidRequest
from tf_infer.wire import messages, rest_examples
from tf_infer.wire import serving_pb2 as pb


def read(body: bytes | dict[str, Any]) -> tuple[str, Any]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return rest_examples.read_examples(raw)


def refused(body: bytes | dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(body)
    return caught.value.details


def feature(value: str) -> Any:
    """Return the Feature of a value that is written so."""
    _, message = read(f'{{"examples": [{{"f": {value}}}]}}'.encode())
    return message.example_list.examples[0].features.feature["f"]


def test_rc01_a_request_has_examples_and_perhaps_a_context_and_a_signature() -> None:
    name, message = read({"examples": [{"a": 1}, {}]})
    assert (name, message.WhichOneof("kind")) == ("", "example_list")
    assert len(message.example_list.examples) == 2
    name, message = read({"signature_name": "s", "context": {"c": "x"}, "examples": [{"a": 1}]})
    assert (name, message.WhichOneof("kind")) == ("s", "example_list_with_context")
    listed = message.example_list_with_context
    assert listed.context.features.feature["c"].bytes_list.value == [b"x"]
    assert listed.examples[0].features.feature["a"].int64_list.value == [1]


def test_rc04_of_a_feature_named_twice_the_last_counts() -> None:
    assert feature('1, "f": 2').int64_list.value == [2]
    assert feature('[1, 2], "f": "x"').bytes_list.value == [b"x"]
    assert feature('1.5, "f": []').WhichOneof("kind") is None
    _, message = read(b'{"context": {"c": 1, "c": 2}, "examples": [{}]}')
    context = message.example_list_with_context.context
    assert context.features.feature["c"].int64_list.value == [2]


def test_rc06_of_a_feature_named_twice_both_must_be_one() -> None:
    assert "unexpected JSON type: Null" in refused(b'{"examples": [{"f": null, "f": 1}]}')
    assert "unexpected JSON type: Object" in refused(
        b'{"examples": [{"f": {"b64": "aGk=", "b64": "aGk="}}]}')


def test_rc09_a_signature_name_that_is_no_unicode_is_just_unknown() -> None:
    name, _ = read(b'{"signature_name": "\\udc80", "examples": [{}]}')
    assert name.encode() == "\ufffd".encode() * 3


def test_rc01_the_first_of_equal_keys_at_the_top_counts() -> None:
    name, message = read(b'{"signature_name": "a", "examples": [{}], "signature_name": "b", '
                         b'"examples": []}')
    assert (name, len(message.example_list.examples)) == ("a", 1)


def test_rc02_rc03_classes_are_pairs_below_results() -> None:
    result = pb.ClassificationResult()
    for scores in ((0.25, 3.0), (np.float32(0.1), 1e7)):
        row = result.classifications.add()
        for label, score in zip(("a", 'ü"'), scores):
            row.classes.add(label=label, score=score)
    assert rest_examples.classification_json(result) == (
        '{"results": [[["a", 0.25], ["ü\\"", 3.0]], [["a", 0.1], ["ü\\"", 1e+07]]]}'.encode())


def test_rc02_rc03_regressions_are_numbers_below_results() -> None:
    result = pb.RegressionResult()
    for number in (3.0, 0.1, float("nan")):
        result.regressions.add(value=number)
    assert rest_examples.regression_json(result) == b'{"results": [3.0, 0.1, NaN]}'


def test_empty_results_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Cannot convert empty ClassificationResults"):
        rest_examples.classification_json(pb.ClassificationResult())
    with pytest.raises(InvalidRequest, match="Cannot convert empty RegressionResults"):
        rest_examples.regression_json(pb.RegressionResult())


@pytest.mark.parametrize(("value", "kind", "expected"), [
    ('"x"', "bytes_list", [b"x"]),
    ('["ü", {"b64": "//4="}]', "bytes_list", ["ü".encode(), b"\xff\xfe"]),
    ("1", "int64_list", [1]), ("true", "int64_list", [1]), ("[2, false]", "int64_list", [2, 0]),
    ("1.0", "float_list", [1.0]), ("[1e2, NaN]", "float_list", [100.0, float("nan")]),
    ("1e300", "float_list", [float("inf")]), ("-9223372036854775808", "int64_list", [-2**63]),
    ("100000000000000000000", "float_list", [float(np.float32(1e20))]),
    ('{"b64": ""}', "bytes_list", [b""]), ("-Infinity", "float_list", [-float("inf")]),
])
def test_rc04_a_features_kind_is_that_of_its_values(value: str, kind: str,
                                                    expected: list[Any]) -> None:
    found = feature(value)
    assert found.WhichOneof("kind") == kind
    np.testing.assert_array_equal(list(getattr(found, kind).value), expected)


def test_rc04_an_empty_list_is_a_feature_without_values() -> None:
    assert feature("[]").WhichOneof("kind") is None


def test_rc05_a_whole_number_is_no_float() -> None:
    assert feature("1").WhichOneof("kind") != feature("1.0").WhichOneof("kind")


@pytest.mark.parametrize(("value", "text"), [
    ("[1, 2.0]", "Unexpected element type in feature: f expecting type: int64"),
    ('[1.5, "secret"]', "Unexpected element type in feature: f expecting type: float"),
    ('["a", true]', "Unexpected element type in feature: f expecting type: bytes"),
    ('["a", 1, null]', "Unexpected element type in feature: f expecting type: bytes"),
    ("null", "Feature: f has element with unexpected JSON type: Null"),
    ("[[1]]", "Feature: f has element with unexpected JSON type: Array"),
    ('{"x": 1}', "Feature: f has element with unexpected JSON type: Object"),
    ('{"b64": 1}', "Feature: f has element with unexpected JSON type: Object"),
    ('{"b64": "!"}', "Unable to base64 decode"), ("1e400", "Number too big"),
])
def test_rc06_values_that_are_no_feature_are_refused(value: str, text: str) -> None:
    found = refused(f'{{"examples": [{{"f": {value}}}]}}'.encode())
    assert text in found
    assert "secret" not in found


@pytest.mark.parametrize(("body", "text"), [
    ({}, "key 'examples' is expected and was not found"),
    ({"examples": {"a": 1}}, "Expecting 'examples' value to be an list/array"),
    ({"examples": []}, "'examples' value is an empty array"),
])
def test_rc07_examples_must_be_a_list_of_something(body: dict[str, Any], text: str) -> None:
    assert text in refused(body)


def test_rc08_an_example_must_be_an_object() -> None:
    assert refused({"examples": [{}, [1]]}) == "Example must be JSON object but got JSON Array"
    assert refused({"context": 1, "examples": [{}]}) == (
        "Example must be JSON object but got JSON Number")


def test_rc10_broken_json_is_refused_first() -> None:
    assert refused(b"{").startswith("JSON Parse error")
    assert "must be a string value" in refused({"signature_name": 1, "examples": [{}]})


def test_rc11_an_integer_beyond_int64_is_refused() -> None:
    assert "has uint64 element. Only int64 is supported." in refused(
        b'{"examples": [{"f": 9223372036854775808}]}')


def test_rm01_status_is_told_with_empty_fields() -> None:
    body = rest_examples.status_json(messages.status_response([
        messages.VersionState(version=2, state="AVAILABLE"),
        messages.VersionState(version=1, state="END", error_code="NOT_FOUND",
                              error_message='a "b"')]))
    assert json.loads(body) == {"model_version_status": [
        {"version": "2", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
        {"version": "1", "state": "END",
         "status": {"error_code": "NOT_FOUND", "error_message": 'a "b"'}}]}


def test_rm04_rm05_metadata_is_told_with_empty_fields() -> None:
    signature = pb.SignatureDef(method_name="tensorflow/serving/predict")
    info = signature.inputs["x"]
    info.name, info.dtype = "x:0", pb.DT_FLOAT
    info.tensor_shape.dim.add(size=-1)
    signature.outputs["y"].tensor_shape.unknown_rank = True
    body = rest_examples.metadata_json(messages.metadata_response(
        messages.ModelRef("m", version=3), {"serving_default": signature}))
    assert json.loads(body) == {
        "model_spec": {"name": "m", "signature_name": "", "version": "3"},
        "metadata": {"signature_def": {"signature_def": {"serving_default": {
            "inputs": {"x": {"dtype": "DT_FLOAT", "name": "x:0", "tensor_shape": {
                "dim": [{"size": "-1", "name": ""}], "unknown_rank": False}}},
            "outputs": {"y": {"dtype": "DT_INVALID", "tensor_shape": {
                "dim": [], "unknown_rank": True}}},
            "method_name": "tensorflow/serving/predict", "defaults": {}}}}}}
