"""Large tensors, cut out of a PredictResponse where they lie, before protobuf copies them.

protobuf copies the numbers of a tensor when it parses them, and once more when they are asked for.
A response is a few tags, lengths and strings around one block for each tensor, so the blocks are
found by walking over the tags; protobuf parses what is left.

Whatever is not plainly so is left to protobuf: a tensor in which any field comes twice (numbers in
several blocks or not packed, strings), and the whole response where an output comes twice or a
length goes beyond the end; `cut` then finds nothing.
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
_LONGEST_VARINT = 5  # bytes of a tag or a length, which have 32 bits
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


class Field(NamedTuple):
    """A field of a serialized message: its number, wire type, all its bytes, those of its value."""

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
        for one in fields(memoryview(response)):
            if one.number != _OUTPUTS:
                kept.append(one.whole)
                continue
            if one.kind != _LENGTH:
                return response, {}
            name, left, block = _cut_output(one)
            if name in names:
                return response, {}
            names.add(name)
            kept.append(left)
            if block is not None:
                blocks[name] = block
    except (IndexError, ValueError):
        return response, {}
    return (b"".join(kept) if blocks else response), blocks


def _cut_output(output: Field) -> tuple[str, bytes | memoryview, Block | None]:
    """Return name, what is left of the entry, and the tensor's block when it is large."""
    key, value = fields(output.content)
    if (key[:2], value[:2]) != ((_KEY, _LENGTH), (_VALUE, _LENGTH)):
        raise ValueError("an entry is a key and a value")
    name = str(key.content, "utf-8")
    kept: list[bytes | memoryview] = []
    block, seen = None, set()
    for one in fields(value.content):
        if one.number in seen:  # protobuf joins them, or takes the last one
            return name, output.whole, None
        seen.add(one.number)
        if len(one.content) < SMALLEST_BYTES or one.number not in _FIELDS:
            kept.append(one.whole)
            continue
        if block is not None or one.kind != _LENGTH:
            return name, output.whole, None
        block = Block(_FIELDS[one.number], one.content)
        size = _SIZES[block.field]
        if one.content[-1] > 0x7F if size == 0 else len(one.content) % size:
            raise ValueError("the last number is cut short")
    if block is None:
        return name, output.whole, None
    tensor = varint.field(_VALUE, b"".join(kept))
    return name, varint.field(_OUTPUTS, bytes(key.whole) + tensor), block


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of a message where they lie.

    Raises:
        ValueError, IndexError: it is no message.
    """
    start = 0
    while start < len(message):
        tag, place = varint.read_one(message, start)
        if place - start > _LONGEST_VARINT:
            raise ValueError("protobuf takes no such tag")
        kind = tag & 7
        if kind == _LENGTH:
            size, begin = varint.read_one(message, place)
            if begin - place > _LONGEST_VARINT:
                raise ValueError("protobuf takes no such length")
            place, end = begin, begin + size
        elif kind == 0:
            _, end = varint.read_one(message, place)
        elif kind in (1, 5):
            end = place + (8 if kind == 1 else 4)
        else:
            raise ValueError("groups are not in use")
        if end > len(message):
            raise ValueError("a field ends behind its message")
        yield Field(tag >> 3, kind, message[start:end], message[place:end])
        start = end
