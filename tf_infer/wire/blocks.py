"""Large tensors, cut out of a PredictResponse where they lie, before protobuf copies them.

protobuf copies the numbers of a tensor when it parses them, and once more when they are asked for.
A response is a few tags, lengths and strings around one block for each tensor, so the blocks are
found by walking over the tags; protobuf parses what is left.

Whatever is not plainly so (a field that comes twice, numbers that are not packed, a length beyond
the end) is left to protobuf as a whole: `cut` then finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire import varint

SMALLEST_BYTES = 16_384  # below, walking costs more than the copies

_LENGTH = 2  # wire type of strings, messages and packed numbers
_OUTPUTS = pb.PredictResponse.DESCRIPTOR.fields_by_name["outputs"].number
_KEY, _VALUE = 1, 2  # of an entry of a map
# field of a TensorProto -> bytes of one number, 0 for varints
_SIZES = {"tensor_content": 1, "float_val": 4, "scomplex_val": 4, "double_val": 8,
          "dcomplex_val": 8, "int_val": 0, "int64_val": 0, "bool_val": 0, "half_val": 0,
          "uint32_val": 0, "uint64_val": 0}
_FIELDS = {pb.TensorProto.DESCRIPTOR.fields_by_name[name].number: name for name in _SIZES}


class Block(NamedTuple):
    """The numbers of one tensor.

    Attributes:
        field: of the TensorProto that they stood in.
        content: its bytes, a part of the response's.
    """

    field: str
    content: memoryview


class _Field(NamedTuple):
    number: int
    kind: int
    whole: memoryview
    content: memoryview


def cut(response: bytes) -> tuple[bytes, dict[str, Block]]:
    """Return a PredictResponse without its large blocks, and the blocks by name of the output.

    Args:
        response: serialized.
    """
    if len(response) < SMALLEST_BYTES:
        return response, {}
    kept: list[bytes | memoryview] = []
    blocks: dict[str, Block] = {}
    names = set()
    try:
        for one in _fields(memoryview(response)):
            if one.number != _OUTPUTS:
                kept.append(one.whole)
                continue
            name, left, block = _cut_output(one)
            if name in names:
                return response, {}
            names.add(name)
            kept.append(left)
            if block is not None:
                blocks[name] = block
    except (IndexError, ValueError):
        return response, {}
    return b"".join(kept), blocks


def _cut_output(output: _Field) -> tuple[str, bytes | memoryview, Block | None]:
    """Return name, what is left of the entry, and the tensor's block when it is large."""
    key, value = _fields(output.content)
    if (key.number, value.number) != (_KEY, _VALUE):
        raise ValueError("an entry is a key and a value")
    name = str(key.content, "utf-8")
    kept: list[bytes | memoryview] = []
    block = None
    for one in _fields(value.content):
        if len(one.content) < SMALLEST_BYTES or one.number not in _FIELDS:
            kept.append(one.whole)
            continue
        if block is not None or one.kind != _LENGTH:
            raise ValueError("numbers stand in one block")
        block = Block(_FIELDS[one.number], one.content)
        size = _SIZES[block.field]
        if one.content[-1] > 0x7F if size == 0 else len(one.content) % size:
            raise ValueError("the last number is cut short")
    if block is None:
        return name, output.whole, None
    tensor = varint.field(_VALUE, b"".join(kept))
    return name, varint.field(_OUTPUTS, bytes(key.whole) + tensor), block


def _fields(message: memoryview) -> Iterator[_Field]:
    """Yield the fields of a message; raises ValueError or IndexError where it is none."""
    start = 0
    while start < len(message):
        tag, place = varint.read_one(message, start)
        kind = tag & 7
        if kind == _LENGTH:
            size, place = varint.read_one(message, place)
            end = place + size
        elif kind == 0:
            _, end = varint.read_one(message, place)
        elif kind in (1, 5):
            end = place + (8 if kind == 1 else 4)
        else:
            raise ValueError("groups are not in use")
        if end > len(message):
            raise ValueError("a field ends behind its message")
        yield _Field(tag >> 3, kind, message[start:end], message[place:end])
        start = end
