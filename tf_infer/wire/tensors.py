"""ndarray <-> TensorProto: every dtype of `dtypes.TABLE`, both encodings, strings as bytes.

A TensorProto holds its numbers either in `tensor_content` (one block, as in memory) or in the typed
field of its dtype; readers take both (statements PR13 to PR17 of TensorFlow Serving's observed
behaviour). Errors name shapes and dtypes, never values.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_infer.errors import ShapeError
from tf_infer.wire import dtypes, varint
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire.blocks import Block
from tf_infer.wire.dtypes import DType

# A typed field may be shorter than its shape and is then filled up: without a bound a message of
# 30 bytes could claim all memory. More than this cannot be sent in one gRPC message anyway.
MAX_TENSOR_BYTES = 2**31 - 1
_FILLED_AT_ONCE = 2**18  # strings
_MAX_EMPTY_BYTES = 2**60  # numpy multiplies the other sizes of an empty shape, too, in 63 bits

# Number by number, 100,000 floats take protobuf 10 ms; as one packed block 0.03 ms. So typed fields
# are written and read as what they are on the wire: the field's number, a length, the block.
_NUMBERS = {field.name: field.number for field in pb.TensorProto.DESCRIPTOR.fields}


# ---------------------------------------------------------------------------- values -> array


def as_array(value: Any, *, where: str = "array") -> np.ndarray:
    """Return any value that a caller may pass as an array whose dtype can be sent.

    Args:
        value: an array (its dtype stays), a number, str or bytes, or nested lists of them. Python
            floats become float32 and ints int32 (int64 where they do not fit), as in
            `tf.make_tensor_proto`; str and bytes become objects, since numpy's own text dtypes drop
            NUL bytes at the end.
        where: what it is called in messages.

    Raises:
        ShapeError: ragged lists, or values of several kinds.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    leaf = value
    while isinstance(leaf, (list, tuple)) and leaf:
        leaf = leaf[0]
    text = isinstance(leaf, (str, bytes))
    try:
        array = np.array(value, dtype=object) if text else np.asarray(value)
        if array.dtype.kind in "SU":
            raise ValueError("text among numbers")
    except (ValueError, TypeError, OverflowError) as error:
        raise ShapeError(f"{where}: expected lists of one shape and kind, got a "
                         f"{type(value).__name__} of mixed ones. Pad the rows.") from error
    if type(leaf) in (int, float, list, tuple) and array.dtype == np.float64:
        return array.astype(np.float32)
    if type(leaf) is int and array.dtype == np.int64:
        small = array.size == 0 or (array.min() >= -(2**31) and array.max() < 2**31)
        return array.astype(np.int32) if small else array
    return array


def cast(array: np.ndarray, name: str, *, where: str = "array") -> np.ndarray:
    """Return `array` as the dtype called `name`, ready for `write(..., dtype=name)`.

    Args:
        array: numbers, or strings for "string".
        name: of `dtypes.TABLE`; float32 to bfloat16 rounds to nearest, ties to even.
        where: what it is called in messages.

    Raises:
        ShapeError: no such dtype, or strings for numbers, or the other way round.
    """
    row = dtypes.by_name(name)
    text = dtypes.by_array(array.dtype).form == "strings"
    if text != (row.form == "strings"):
        raise ShapeError(f"{where}: expected values for {name}, got {array.dtype}.")
    if text:
        return array
    if row.name == "bfloat16":
        return _bfloat16_bits(array)
    return array.astype(row.array)


def _bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """Return the 16-bit patterns of numbers as bfloat16."""
    if array.dtype.name == "bfloat16":
        return array.view(np.uint16)
    words = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (words + np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1)))
    nan = np.isnan(words.view(np.float32))
    return np.asarray(np.where(nan, np.uint32(0x7FC00000), rounded) >> np.uint32(16)).astype("<u2")


# ---------------------------------------------------------------------------- array -> message


def to_proto(array: np.ndarray, *, dtype: str | None = None, content: bool = True) -> Any:
    """Return a TensorProto of an array; see `write`."""
    proto = pb.TensorProto()
    write(array, proto, dtype=dtype, content=content)
    return proto


def write(array: np.ndarray, proto: Any, *, dtype: str | None = None, content: bool = True,
          where: str = "array") -> None:
    """Write an array into an empty TensorProto, such as the value of a map field.

    Args:
        array: of any shape; strings as objects (bytes, or str, which is sent as UTF-8).
        proto: `TensorProto` without fields.
        dtype: name of the dtype it is sent as; None takes the array's own.
        content: numbers go into `tensor_content`; False writes typed fields, as TensorFlow Serving
            answers. Strings have only the typed field.
        where: what it is called in messages.

    Raises:
        ShapeError: a dtype that cannot be sent, objects that are not str or bytes.
    """
    array, row = _as_sent(array, dtype, where)
    proto.MergeFromString(_head(row.enum, array.shape))
    if row.form == "strings":
        proto.string_val.extend(_to_bytes(array, where))
    elif content and array.size:
        proto.tensor_content = array.astype(row.array, copy=False).tobytes()
    elif array.size:
        proto.MergeFromString(varint.field(_NUMBERS[row.field], _pack(array, row)))


def encode(array: np.ndarray, *, content: bool = True, where: str = "array") -> bytes:
    """Return the bytes of the TensorProto that `write` would fill."""
    array, row = _as_sent(array, None, where)
    head = _head(row.enum, array.shape)
    if row.form == "strings":
        texts = _to_bytes(array, where)
        if len(texts) == 1:  # nearly always, and a message costs more
            return head + varint.field(_NUMBERS["string_val"], texts[0])
        return head + pb.TensorProto(string_val=texts).SerializeToString()
    if not array.size:
        return head
    if content:
        return head + varint.field(_NUMBERS["tensor_content"],
                                   array.astype(row.array, copy=False).tobytes())
    return head + varint.field(_NUMBERS[row.field], _pack(array, row))


def _as_sent(array: np.ndarray, dtype: str | None, where: str) -> tuple[np.ndarray, DType]:
    """Return an array as it is sent, and its dtype; see `write`."""
    array = np.asarray(array)
    row = dtypes.by_name(dtype) if dtype else dtypes.by_array(array.dtype)
    if dtype or row.name == "bfloat16":
        array = cast(array, row.name, where=where)
    return array, row


@functools.lru_cache(maxsize=1024)
def _head(enum: int, shape: tuple[int, ...]) -> bytes:
    """Return the bytes of a TensorProto of a dtype and a shape, without values."""
    dims = [pb.TensorShapeProto.Dim(size=size) for size in shape]
    made: Any = pb.TensorProto(tensor_shape=pb.TensorShapeProto(dim=dims))
    made.dtype = enum
    data: bytes = made.SerializeToString()
    return data


def _pack(array: np.ndarray, row: DType) -> bytes:
    """Return the packed bytes of the typed field."""
    flat = np.ascontiguousarray(array, row.array).reshape(-1)
    if row.form == "raw":
        return flat.tobytes()
    return varint.encode(flat.view(np.uint16) if row.form == "bits" else flat)


def _to_bytes(array: np.ndarray, where: str) -> list[bytes]:
    items = array.reshape(-1).tolist() if array.dtype.kind != "S" else list(array.reshape(-1))
    for place, item in enumerate(items):
        if isinstance(item, str):
            try:
                items[place] = item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ShapeError(
                    f"{where}: expected text that UTF-8 can hold, got a lone surrogate in element "
                    f"{place} ({len(item)} characters). Send bytes.") from _without_text(error)
        elif type(item) is not bytes:
            if not isinstance(item, bytes):
                raise ShapeError(f"{where}: expected str or bytes in every element, got "
                                 f"{type(item).__name__} in element {place}.")
            items[place] = bytes(item)
    return items


def _without_text(error: UnicodeEncodeError) -> ValueError:
    """Return the error without the text that it carries."""
    return ValueError(f"{error.reason} at character {error.start}")


# ---------------------------------------------------------------------------- message -> array


def to_array(proto: Any, *, where: str = "tensor", block: Block | None = None) -> np.ndarray:
    """Return the array that a TensorProto holds; numbers may be read-only: copy to write.

    A copy made here would cost a large answer a third of its time.

    Args:
        proto: a `TensorProto`, ours or TensorFlow's.
        where: what it is called in messages.
        block: its numbers, when they were cut out before it was parsed.

    Returns:
        strings as objects of bytes; bfloat16 as ml_dtypes' when installed, else as float32; a typed
        field shorter than the shape filled up with its last value, or with zeros when it is empty,
        and a longer one cut, as TensorFlow reads them.

    Raises:
        ShapeError: a dtype without a numpy form, an unknown or negative size, content whose length
            is not that of the shape.
    """
    row = dtypes.by_enum(proto.dtype)
    shape = _shape(proto.tensor_shape, where)
    count = math.prod(shape)
    without_zeros = count or math.prod(size for size in shape if size)
    if (count * row.array.itemsize > MAX_TENSOR_BYTES
            or without_zeros * row.array.itemsize > _MAX_EMPTY_BYTES):
        raise ShapeError(f"{where}: expected at most {MAX_TENSOR_BYTES} bytes, got {row.name} of "
                         f"shape {list(shape)}.")
    content = block.content if block and block.field == "tensor_content" else proto.tensor_content
    if row.form == "strings":
        flat = _strings(proto, count, where, content)
    elif content:
        flat = _content(content, row, count, where)
    else:
        flat = _fill(_typed(proto, row, block, where), count)
    if row.name == "bfloat16":
        flat = _from_bfloat16(flat)
    return flat.reshape(shape)


def _shape(proto: Any, where: str) -> tuple[int, ...]:
    shape = tuple([dim.size for dim in proto.dim])
    if proto.unknown_rank or min(shape, default=0) < 0:
        got = "an unknown rank" if proto.unknown_rank else str(list(shape))
        raise ShapeError(f"{where}: expected a shape of known sizes >= 0, got {got}.")
    if len(shape) > 32:  # numpy's own limit before 2.0; TensorFlow's is 254
        raise ShapeError(f"{where}: expected at most 32 dimensions, got {len(shape)}.")
    return shape


def _content(content: bytes | memoryview, row: DType, count: int, where: str) -> np.ndarray:
    if len(content) != count * row.array.itemsize:
        raise ShapeError(
            f"{where}: expected {count * row.array.itemsize} bytes of content for {row.name} of "
            f"{count} elements, got {len(content)}.")
    return _aligned(np.frombuffer(content, row.array))


def _typed(proto: Any, row: DType, block: Block | None, where: str) -> np.ndarray:
    """Return the numbers of the typed field, however many there are."""
    if block is not None and block.field == row.field:
        packed = block.content
    else:
        values = getattr(proto, row.field)
        if row.form == "raw" and row.array.kind == "f" and hasattr(values, "__array__"):
            return np.array(values, row.array)  # protobuf from 7.34 on: a block already
        packed = varint.find_field(proto.SerializeToString(), _NUMBERS[row.field])
    if row.form == "raw":
        whole = len(packed) // row.array.itemsize  # half a complex number is none
        return _aligned(np.frombuffer(packed, row.array, count=whole))
    try:
        numbers = varint.decode(packed)
    except ValueError as error:
        raise ShapeError(f"{where}: expected packed numbers, got bytes that are none.") from error
    if row.form == "bits":
        return numbers.astype(np.uint16).view(row.array)
    return numbers.view(np.int64).astype(row.array) if row.array.kind == "i" else (
        numbers.astype(row.array))


def _aligned(array: np.ndarray) -> np.ndarray:
    """Return the array where its numbers lie as the machine wants them, copied if they do not."""
    return array if array.flags.aligned else array.copy()


def _fill(values: np.ndarray, count: int) -> np.ndarray:
    if values.size >= count:
        return values[:count]
    flat = np.empty(count, values.dtype)
    flat[:values.size] = values
    flat[values.size:] = values[-1] if values.size else 0
    return flat


def _strings(proto: Any, count: int, where: str, content: bytes | memoryview) -> np.ndarray:
    if content:
        return _listed(content, count, where)
    values = proto.string_val
    flat = np.empty(count, dtype=object)
    given = min(len(values), count)
    flat[:given] = list(values[:given])
    if given < count:
        last = np.empty(1, dtype=object)
        last[0] = values[-1] if given else b""  # as an object: a scalar would lose NUL bytes
        for start in range(given, count, _FILLED_AT_ONCE):  # in between, other threads run
            flat[start:start + _FILLED_AT_ONCE] = last
    return flat


def _listed(content: bytes | memoryview, count: int, where: str) -> np.ndarray:
    """Return strings as TensorFlow's C++ packs them: their lengths as varints, then their bytes."""
    data = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(data < 0x80)[:count]
    start = int(ends[-1]) + 1 if count and ends.size == count else 0
    try:
        sizes = varint.decode(content[:start])
    except ValueError:
        sizes = np.zeros(0, np.uint64)
    bounds = [start, *(np.cumsum(sizes) + np.uint64(start)).tolist()]
    if sizes.size != count or sizes.max(initial=0) > data.size or bounds[-1] != data.size:
        raise ShapeError(f"{where}: expected content that lists {count} strings, got "
                         f"{data.size} bytes that do not.")
    flat = np.empty(count, dtype=object)
    flat[:] = [bytes(content[begin:end]) for begin, end in itertools.pairwise(bounds)]
    return flat


def _from_bfloat16(bits: np.ndarray) -> np.ndarray:
    kind = dtypes.bfloat16_type()
    if kind is not None:
        return bits.view(kind)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


# ---------------------------------------------------------------------------- maps of tensors


def write_all(arrays: Mapping[str, np.ndarray], target: Any, *,
              dtypes_by_name: Mapping[str, str] | None = None, content: bool = True) -> None:
    """Write named arrays into a map field (`request.inputs`, `response.outputs`); see `write`."""
    chosen = dtypes_by_name or {}
    for name, array in arrays.items():
        write(array, target[name], dtype=chosen.get(name), content=content, where=name)


def read_all(source: Any, *, blocks: Mapping[str, Block] | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of a map field (`request.inputs`, `response.outputs`); see `to_array`."""
    cut = blocks or {}
    return {name: to_array(source[name], where=name, block=cut.get(name))
            for name in sorted(source)}
