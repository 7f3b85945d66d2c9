"""JSON values <-> arrays of a dtype: what each dtype takes, its faults, and how it is written.

Statements RP12, RP19 to RP31 and RP34 of TensorFlow Serving's observed behaviour (json_tensor.cc).
Lists are read a level at a time; only what does not fit is walked value by value, for the text of
its first fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from tf_infer.errors import InvalidRequest, NotOffered, ServingError
from tf_infer.wire import dtypes, rest_json
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.rest_json import Document, shown, type_name

BYTES_SUFFIX = "_bytes"  # of outputs that are written as base64 (RP28)
MAX_RANK = 32  # numpy's own limit before 2.0
BLOCK = 1000  # items looked at together in search of a fault


class Rule(NamedTuple):
    """How the values of one dtype are written in JSON.

    Attributes:
        kinds: their Python types.
        wide: numpy dtype they are read as.
        array: numpy dtype of the tensor; what does not fit is cut off, as TensorFlow Serving does.
        low, high: of integers, the range that is taken (RP30).
    """

    kinds: frozenset[type]
    wide: np.dtype
    array: np.dtype
    low: int = 0
    high: int = 0


def _integers(array: str, allowed: str) -> Rule:
    info = np.iinfo(allowed)
    return Rule(frozenset({int}), np.dtype("<u8" if allowed == "u8" else "<i8"), np.dtype(array),
                info.min, info.max)


def _floats(array: str) -> Rule:
    return Rule(frozenset({float, int}), np.dtype("<f8"), np.dtype(array))


_RULES: Mapping[int, Rule] = {
    pb.DT_FLOAT: _floats("<f4"), pb.DT_DOUBLE: _floats("<f8"),
    pb.DT_INT8: _integers("<i1", "i4"), pb.DT_INT16: _integers("<i2", "i4"),
    pb.DT_INT32: _integers("<i4", "i4"), pb.DT_UINT8: _integers("<u1", "i4"),
    pb.DT_INT64: _integers("<i8", "i8"), pb.DT_UINT32: _integers("<u4", "u4"),
    pb.DT_UINT64: _integers("<u8", "u8"),
    pb.DT_BOOL: Rule(frozenset({bool}), np.dtype("?"), np.dtype("?")),
    pb.DT_STRING: Rule(frozenset({str, dict}), np.dtype("O"), np.dtype("O")),
}


# ---------------------------------------------------------------------------- values -> array


def dense(value: Any, dtype: int, document: Document) -> np.ndarray:
    """Return a JSON value, or lists of them, as an array of the dtype (RP12, RP19 to RP24, RP31).

    Raises:
        InvalidRequest: ragged lists, or values that the dtype does not take.
        NotOffered: a dtype that JSON cannot hold.
    """
    shape, leaves = _unnest(value)
    if len(shape) > MAX_RANK:
        raise InvalidRequest(f"expected at most {MAX_RANK} dimensions, got {len(shape)}.")
    rule = _RULES.get(dtype)
    if leaves is None or rule is None or not rule.kinds.issuperset(map(type, leaves)):
        raise _first_fault(value, 0, shape, dtype, document) or _no_conversion(value, dtype)
    try:
        return _to_array(leaves, rule, document).reshape(shape)
    except ServingError as error:
        raise _first_fault(value, 0, shape, dtype, document) or error from None


def _to_array(leaves: list[Any], rule: Rule, document: Document) -> np.ndarray:
    """Return values of the right types as an array; raises where any of them is out of range."""
    kind = rule.wide.kind
    if kind == "O":
        texts = np.empty(len(leaves), dtype=object)
        texts[:] = [document.to_bytes(leaf) if type(leaf) is str else rest_json.read_base64(leaf)
                    for leaf in leaves]
        return texts
    if kind in "iu" and leaves and (min(leaves) < rule.low or max(leaves) > rule.high):
        raise InvalidRequest("out of range")
    if kind == "f":
        with np.errstate(over="ignore"):
            return np.array(leaves, np.float64).astype(rule.array, copy=False)
    return np.array(leaves, rule.wide).astype(rule.array, copy=False)


def _unnest(value: Any) -> tuple[tuple[int, ...], list[Any] | None]:
    """Return the shape that the first elements tell, and all leaves; None when lists differ."""
    shape: list[int] = []
    level = [value]
    while level and type(level[0]) is list:
        size = len(level[0])
        if len(level) > 1 and (set(map(type, level)) != {list} or set(map(len, level)) != {size}):
            return _first_shape(value), None
        shape.append(size)
        level = list(chain.from_iterable(level))
    return tuple(shape), level


def _first_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while type(value) is list:
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _first_fault(value: Any, level: int, shape: tuple[int, ...], dtype: int, document: Document,
                 ) -> ServingError | None:
    """Return what is wrong with the first value that is wrong, in reading order."""
    if type(value) is not list:
        if level != len(shape):
            return InvalidRequest(f"JSON Value: {shown(value)} found at incorrect level: "
                                  f"{level + 1} in the JSON DOM. Expected at level: {len(shape)}")
        return _leaf_fault(value, dtype, document)
    if level >= len(shape):
        return InvalidRequest(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        return InvalidRequest(f"Encountered list at unexpected size: {len(value)} at level: "
                              f"{level} expected size: {shape[level]}")
    for block in blocks(value):
        if not _fits(block, shape[level + 1:], dtype, document):
            for item in block:
                fault = _first_fault(item, level + 1, shape, dtype, document)
                if fault is not None:
                    return fault
    return None


def blocks(items: list[Any]) -> Iterator[list[Any]]:
    """Return the items in blocks: a fault is looked for in a block that has one, item by item."""
    return (items[start:start + BLOCK] for start in range(0, len(items), BLOCK))


def _fits(block: list[Any], shape: tuple[int, ...], dtype: int, document: Document) -> bool:
    found, leaves = _unnest(block)
    rule = _RULES.get(dtype)
    if (leaves is None or found[1:] != shape or rule is None
            or not rule.kinds.issuperset(map(type, leaves))):
        return False
    try:
        _to_array(leaves, rule, document)
    except ServingError:
        return False
    return True


def _leaf_fault(value: Any, dtype: int, document: Document) -> ServingError | None:
    """Return what is wrong with a value where a value is expected; None when nothing is."""
    rule = _RULES.get(dtype)
    kind = dict if isinstance(value, dict) else type(value)
    if rule is None and kind is not dict:
        return _no_conversion(value, dtype)
    if rule is None or kind not in rule.kinds or (
            rule.high and not rule.low <= value <= rule.high):
        return InvalidRequest(f"JSON Value: {shown(value)} Type: {type_name(value)} is not of "
                              f"expected type: {dtype_text(dtype)}")
    try:
        _to_array([value], rule, document)
    except ServingError as error:
        return error
    return None


def _no_conversion(value: Any, dtype: int) -> NotOffered:
    return NotOffered(f"Conversion of JSON Value: {shown(value)} to type: {dtype_text(dtype)}")


def dtype_text(dtype: int) -> str:
    """Return what TensorFlow calls a DataType in texts ("float", "half", "int32")."""
    return dtypes.enum_name(dtype).removeprefix("DT_").lower()


# ---------------------------------------------------------------------------- array -> elements


def elements(name: str, array: np.ndarray) -> list[str]:
    """Return the JSON of each element, in order (RP25 to RP29)."""
    row = dtypes.by_array(array.dtype)
    if row.name in ("float32", "float64"):
        return rest_json.numbers(array)
    flat = array.reshape(-1).tolist()
    if row.form == "strings":
        write: Callable[[Any], str] = (rest_json.base64_json if name.endswith(BYTES_SUFFIX)
                                       else rest_json.text_json)
        return [write(item) for item in flat]
    if row.name == "bool":
        return ["true" if item else "false" for item in flat]
    if flat and row.enum not in _RULES:
        raise InvalidRequest(
            f"Failed to write JSON value for tensor type: {dtype_text(row.enum)}")
    return [str(item) for item in flat]
