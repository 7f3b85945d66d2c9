"""REST classify, regress, status and metadata: JSON bodies <-> the messages that gRPC uses.

Statements RC01 to RC11 and RM01 to RM07 of TensorFlow Serving's observed behaviour (json_tensor.cc,
http_rest_api_util.cc).
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import numpy as np
from google.protobuf import json_format

from tf_infer.errors import InvalidRequest
from tf_infer.wire import messages, methods, rest_json
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.rest import read_body
from tf_infer.wire.rest_json import Document, shown, type_name

CONTEXT, EXAMPLES, RESULTS = "context", "examples", "results"
_INT64, _UINT64_END = np.iinfo(np.int64), 2**64

# protobuf 5.26 gave the switch a new name
_ALWAYS = ("always_print_fields_with_no_presence"
           if "always_print_fields_with_no_presence" in inspect.signature(
               json_format.MessageToDict).parameters else "including_default_value_fields")


# ---------------------------------------------------------------------------- requests


def read_examples(body: bytes) -> tuple[str, Any]:
    """Return the signature's name (may be empty) and the Input of a classify or regress request.

    Raises:
        InvalidRequest: not JSON, no examples, or values that no feature can hold (RC06 to RC11).
    """
    read = read_body(body)
    document, members = read.document, read.document.members
    context = None
    if CONTEXT in members:
        context = _example(members[CONTEXT], document)
    if EXAMPLES not in members:
        raise InvalidRequest(f"JSON Value: {shown(members)} When method is classify, key "
                             f"'{EXAMPLES}' is expected and was not found")
    given = members[EXAMPLES]
    if type(given) is not list:
        raise InvalidRequest(f"JSON Value: {shown(members)} Expecting '{EXAMPLES}' value to be an "
                             "list/array")
    if not given:
        raise InvalidRequest(
            f"JSON Value: {shown(members)} '{EXAMPLES}' value is an empty array")
    examples = [_example(value, document) for value in given]
    if context is None:
        return read.signature, pb.Input(example_list=pb.ExampleList(examples=examples))
    return read.signature, pb.Input(example_list_with_context=pb.ExampleListWithContext(
        examples=examples, context=context))


def _example(value: Any, document: Document) -> Any:
    if not isinstance(value, dict):
        raise InvalidRequest(f"Example must be JSON object but got JSON {type_name(value)}")
    example = pb.Example()
    example.features.SetInParent()
    for name, content in rest_json.pairs_of(value):
        feature = example.features.feature[document.to_bytes(name).decode("utf-8", "replace")]
        feature.Clear()  # the last of equal names counts
        items = content if type(content) is list else [content]
        if items:
            _fill(feature, name, items, document)
    return example


def _fill(feature: Any, name: str, items: list[Any], document: Document) -> None:
    """Write the values of one feature, whose kind is that of the first one (RC04, RC06)."""
    first = _kind(name, items[0])
    for item in items:
        if _kind(name, item) != first:
            raise InvalidRequest(
                f"Unexpected element type in feature: {name} expecting type: {first}")
    if first == "bytes":
        feature.bytes_list.value.extend(
            document.to_bytes(item) if type(item) is str else rest_json.read_base64(item)
            for item in items)
    elif first == "int64":
        feature.int64_list.value.extend(map(int, items))
    else:
        with np.errstate(over="ignore"):
            feature.float_list.value.extend(
                np.array(items, np.float64).astype(np.float32).tolist())


def _kind(name: str, item: Any) -> str:
    if type(item) is bool or (type(item) is int and _INT64.min <= item <= _INT64.max):
        return "int64"
    if type(item) is int and _INT64.max < item < _UINT64_END:
        raise InvalidRequest(f"Feature: {name} has uint64 element. Only int64 is supported.")
    if type(item) in (float, int):  # longer integers are read as doubles
        return "float"
    if type(item) is str or rest_json.is_base64(item):
        return "bytes"
    raise InvalidRequest(
        f"Feature: {name} has element with unexpected JSON type: {type_name(item)}")


# ---------------------------------------------------------------------------- answers


def classification_json(result: Any) -> bytes:
    """Return the body of a ClassificationResult: pairs of label and score (RC02, RC03)."""
    if not result.classifications:
        raise InvalidRequest("Cannot convert empty ClassificationResults to JSON")
    rows = [row.classes for row in result.classifications]
    scores = iter(rest_json.numbers(
        np.array([item.score for row in rows for item in row], np.float32)))
    texts = ["[" + ", ".join(f"[{rest_json.text_json(item.label)}, {next(scores)}]"
                             for item in row) + "]" for row in rows]
    return rest_json.encode(f'{{"{RESULTS}": [{", ".join(texts)}]}}')


def regression_json(result: Any) -> bytes:
    """Return the body of a RegressionResult: one value per example (RC02, RC03)."""
    if not result.regressions:
        raise InvalidRequest("Cannot convert empty RegressionResults to JSON")
    values = np.array([item.value for item in result.regressions], np.float32)
    return rest_json.encode(f'{{"{RESULTS}": [{", ".join(rest_json.numbers(values))}]}}')


def status_json(response: Any) -> bytes:
    """Return the body of a GetModelStatusResponse (RM01)."""
    return _indented(_dict(response))


def metadata_json(response: Any) -> bytes:
    """Return the body of a GetModelMetadataResponse (RM04, RM05)."""
    found = methods.parse(pb.SignatureDefMap, response.metadata[messages.SIGNATURE_DEF].value,
                          where="metadata")
    return _indented({"model_spec": _dict(response.model_spec),
                      "metadata": {messages.SIGNATURE_DEF: _dict(found)}})


def _dict(message: Any) -> Any:
    """Return a message as JSON has it; empty fields are there, too."""
    options: dict[str, Any] = {_ALWAYS: True}
    return json_format.MessageToDict(message, preserving_proto_field_name=True, **options)


def _indented(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")
