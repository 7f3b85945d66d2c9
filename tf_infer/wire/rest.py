"""REST predict: JSON body and signature -> arrays, arrays -> JSON body.

Statements RP01 to RP18 and RP32 to RP38 of TensorFlow Serving's observed behaviour
(json_tensor.cc); what a dtype takes is `rest_arrays.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from tf_infer.errors import InvalidRequest, ServingError
from tf_infer.wire import rest_json
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.rest_arrays import blocks, dense, elements
from tf_infer.wire.rest_json import Document, shown

Form = Literal["row", "column"]
Arrays = dict[str, np.ndarray]

INSTANCES, INPUTS, SIGNATURE_NAME = "instances", "inputs", "signature_name"
PREDICTIONS, OUTPUTS = "predictions", "outputs"


@dataclass(frozen=True, slots=True)
class Body:
    """A predict request before its signature is known (RP18).

    Attributes:
        document: the whole of it.
        signature: its name, empty for the default one.
    """

    document: Document
    signature: str


def read_body(body: bytes) -> Body:
    """Read the JSON of a request and the signature that it names (RP14, RP16).

    Raises:
        InvalidRequest: not JSON, not an object, or a signature_name that is no string.
    """
    document = rest_json.parse(body)
    name = document.members.get(SIGNATURE_NAME, "")
    if not isinstance(name, str):
        raise InvalidRequest(f"JSON Value: {shown(document.members)} not formatted correctly. "
                             f"'{SIGNATURE_NAME}' key must be a string value.")
    return Body(document, document.to_bytes(name).decode("utf-8", "replace"))


def read_inputs(body: Body, inputs: Mapping[str, pb.TensorInfo]) -> tuple[Arrays, Form]:
    """Return the arrays of a request, by input name, and the form that its answer has.

    Args:
        body: the request.
        inputs: of the signature.

    Raises:
        InvalidRequest: it does not fit the inputs.
        NotOffered: a dtype that JSON cannot hold, in the column form (RP29).
    """
    members = body.document.members
    if not inputs:
        raise InvalidRequest(
            f"Failed to get input map for signature: {body.signature or 'DEFAULT'}")
    if INSTANCES in members and INPUTS in members:
        raise InvalidRequest(f"JSON Value: {shown(members)} Not formatted correctly expecting only "
                             f"one of '{INPUTS}' or '{INSTANCES}' keys to exist ")
    read = {name: inputs[name].dtype for name in sorted(inputs)}
    if INSTANCES in members:
        return _rows(members[INSTANCES], read, body.document), "row"
    if INPUTS in members:
        return _columns(members[INPUTS], read, body.document), "column"
    raise InvalidRequest(f"Missing '{INPUTS}' or '{INSTANCES}' key")


# ---------------------------------------------------------------------------- column form


def _columns(value: Any, inputs: Mapping[str, int], document: Document) -> Arrays:
    if not _is_object(value):
        if len(inputs) > 1:
            raise InvalidRequest(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map")
        return {name: dense(value, dtype, document) for name, dtype in inputs.items()}
    arrays = {}
    for name, dtype in inputs.items():
        if name not in value:
            raise InvalidRequest(f"Missing named input: {name} in 'inputs' object.")
        arrays[name] = dense(value[name], dtype, document)
    return arrays


# ---------------------------------------------------------------------------- row form


def _rows(instances: Any, inputs: Mapping[str, int], document: Document) -> Arrays:
    if type(instances) is not list:
        raise InvalidRequest(
            f"JSON Value: {shown(document.members)} Excepting '{INSTANCES}' to be an list/array")
    if not instances:
        raise InvalidRequest(
            f"JSON Value: {shown(document.members)} No values in '{INSTANCES}' array")
    if not isinstance(instances[0], dict) and len(inputs) > 1:
        raise InvalidRequest(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map")
    try:
        return _whole(instances, inputs, document)
    except ServingError as error:
        _find_first_fault(instances, inputs, document)
        raise error


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not rest_json.is_base64(value)


def _whole(instances: list[Any], inputs: Mapping[str, int], document: Document) -> Arrays:
    """Read all elements at once; raises where any of them is not like the others."""
    if not _is_object(instances[0]):
        name, dtype = next(iter(inputs.items()))
        return {name: dense(instances, dtype, document)}
    names = inputs.keys()
    if not all(isinstance(element, dict) and element.keys() == names and not rest_json.is_base64(
            element) for element in instances):
        raise InvalidRequest(f"keys must be equal to: {','.join(names)}")
    if rest_json.Repeating in map(type, instances):
        # All values of a name are appended, and the tensor's shape takes as many as there are rows.
        return {name: dense([value for element in instances
                             for key, value in rest_json.pairs_of(element) if key == name],
                            dtype, document)[:len(instances)] for name, dtype in inputs.items()}
    return {name: dense([element[name] for element in instances], dtype, document)
            for name, dtype in inputs.items()}


def _find_first_fault(instances: list[Any], inputs: Mapping[str, int], document: Document) -> None:
    """Raise for the first element that is at fault, with TensorFlow Serving's text (RP38)."""
    first, shapes, place = instances[0], dict[str, tuple[int, ...]](), 0
    for block in blocks(instances):
        try:
            _whole([first, *block], inputs, document)
        except ServingError:
            if place:
                _check_element(first, 0, first, inputs, shapes, document)
            for offset, element in enumerate(block):
                _check_element(element, place + offset, first, inputs, shapes, document)
        place += len(block)


def _check_element(element: Any, place: int, first: Any, inputs: Mapping[str, int],
                   shapes: dict[str, tuple[int, ...]], document: Document) -> None:
    """Raise unless an element fits the inputs, and is like the first one."""
    where = f"Failed to process element: {place}"
    if not _is_object(first):
        if _is_object(element):
            raise InvalidRequest(
                f"Expecting value/list but got object at item {place} of input list")
        _check_item(element, next(iter(inputs)), inputs, shapes, document, where)
        return
    if not _is_object(element):
        raise InvalidRequest(f"Expecting object but got list at item {place} of input list")
    for name, value in rest_json.pairs_of(element):
        _check_item(value, name, inputs, shapes, document, f"{where} key: {name}")
    if element.keys() != inputs.keys():
        raise InvalidRequest(f"{where} of '{INSTANCES}' list. JSON object: {shown(element)} "
                             f"keys must be equal to: {','.join(inputs)}")


def _check_item(value: Any, name: str, inputs: Mapping[str, int],
                shapes: dict[str, tuple[int, ...]], document: Document, where: str) -> None:
    """Raise unless a value fits its input, and is shaped as those of earlier elements."""
    try:
        if name not in inputs:
            raise InvalidRequest(f"JSON object: does not have named input: {name}")
        shape = dense(value, inputs[name], document).shape
        first = shapes.setdefault(name, shape)
        if prod(first) != prod(shape):
            raise InvalidRequest(f"Expecting tensor size: {prod(first)} but got: {prod(shape)}")
        if first != shape:
            raise InvalidRequest(f"Expecting shape {_shape_text(first)} but got: "
                                 f"{_shape_text(shape)}")
    except ServingError as error:
        raise InvalidRequest(f"{where} of '{INSTANCES}' list. Error: {error}") from error


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


# ---------------------------------------------------------------------------- arrays -> JSON


def write_outputs(outputs: Mapping[str, np.ndarray], form: Form) -> bytes:
    """Return the body of an answer, in the form of its request (RP01 to RP03, RP13).

    Args:
        outputs: name -> array, at least one; strings as objects of bytes.
        form: of the request.

    Raises:
        InvalidRequest: a dtype that JSON cannot hold (RP29); row form: an output without rows, or
            outputs with different numbers of them.
    """
    if not outputs:
        raise InvalidRequest("Cannot convert empty tensor map to JSON")
    names = tuple(sorted(outputs))
    if form == "row":
        _check_rows(names, outputs)
        columns = [rest_json.nested(elements(name, outputs[name]), outputs[name].shape)
                   for name in names]
        rows = columns[0] if len(names) == 1 else _objects(names, zip(*columns))
        return rest_json.encode(f'{{"{PREDICTIONS}": [{", ".join(rows)}]}}')
    values = [rest_json.nested(elements(name, outputs[name]), (1, *outputs[name].shape))[0]
              for name in names]
    whole = values[0] if len(names) == 1 else _objects(names, [values])[0]
    return rest_json.encode(f'{{"{OUTPUTS}": {whole}}}')


def _objects(names: tuple[str, ...], rows: Any) -> list[str]:
    form = _object_form(names)
    return [form % tuple(row) for row in rows]


@functools.lru_cache(maxsize=256)
def _object_form(names: tuple[str, ...]) -> str:
    """Return an object's JSON with a place for the value of each name."""
    keys = [rest_json.text_json(name).replace("%", "%%") for name in names]
    return "{" + ", ".join([f"{key}: %s" for key in keys]) + "}"


def _check_rows(names: Sequence[str], outputs: Mapping[str, np.ndarray]) -> None:
    rows: int | None = None
    for name in names:
        shape = outputs[name].shape
        if not shape:
            raise InvalidRequest(f"Tensor name: {name} has no shape information ")
        if rows is not None and rows != shape[0]:
            raise InvalidRequest(f"Tensor name: {name} has inconsistent batch size: {shape[0]} "
                                 f"expecting: {rows}")
        rows = shape[0]
