"""A PredictRequest like one that was read before: only the value of its input is read.

Callers ask the same of the same model again and again, each time with another text or other
numbers. Their requests differ in that value and in the lengths of what is around it, and in no
other byte; so one that fits the bytes of another needs no message, no names looked up and nothing
checked anew.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tf_infer.wire import dtypes, tensors, varint
from tf_infer.wire import serving_pb2 as pb

INPUTS = pb.PredictRequest.DESCRIPTOR.fields_by_name["inputs"].number
_KEY, _VALUE = 1, 2  # of an entry of a map


class RequestForm(NamedTuple):
    """The bytes of a request of one input around the value of that input.

    Attributes:
        head: up to the length of the input's entry in the map.
        entry: behind that, up to the length of the tensor.
        tensor: behind that, up to the length of the value.
        tail: behind the value.
        name: of the input.
        dtype: of numpy; an object for one string.
        shape: of the array.
        size: of the value in bytes; None for any, of a string.
    """

    head: bytes
    entry: bytes
    tensor: bytes
    tail: bytes
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    size: int | None

    def array_in(self, data: bytes) -> np.ndarray | None:
        """Return the input of a request of this form, and None of a request of another one."""
        head, entry, tensor, tail, _, dtype, shape, size = self
        if not data.startswith(head):
            return None
        try:
            whole, inside = _length(data, len(head))
            if not data.startswith(entry, inside):
                return None
            part, within = _length(data, inside + len(entry))
            if not data.startswith(tensor, within):
                return None
            length, begin = _length(data, within + len(tensor))
        except (IndexError, ValueError):
            return None
        end = begin + length
        if (inside + whole != end or within + part != end or end > len(data) or data[end:] != tail
                or (size is not None and size != length)):
            return None
        if size is not None:
            return np.frombuffer(data[begin:end], dtype).reshape(shape)
        array = np.empty(1, object)
        array[0] = data[begin:end]
        return array.reshape(shape)


def _length(data: bytes, place: int) -> tuple[int, int]:
    """Return a length of up to two bytes, and the place behind it; a ValueError of a longer one."""
    low = data[place]
    if low < 0x80:
        return low, place + 1
    high = data[place + 1]
    if high > 0x7F:
        raise ValueError("a short value was expected")
    return low & 0x7F | high << 7, place + 2


def form_of(data: bytes, request: pb.PredictRequest) -> RequestForm | None:
    """Return the form of a request; None where it has several inputs, or more than one value.

    Args:
        data: the request as it came.
        request: the same, parsed.
    """
    if len(request.inputs) != 1:
        return None
    name, proto = next(iter(request.inputs.items()))
    row, array = dtypes.by_enum(proto.dtype), tensors.to_array(proto)
    view = memoryview(data)
    inputs = [place for place in varint.fields(view) if place[0] == INPUTS]
    inside = list(varint.fields(view, *inputs[0][2:])) if len(inputs) == 1 else []
    within = list(varint.fields(view, *inside[1][2:])) if (
        [number for number, *_ in inside] == [_KEY, _VALUE]) else []
    if not within:
        return None
    number, begin, _, end = within[-1]
    fields = {pb.TensorProto.DESCRIPTOR.fields_by_name[one].number
              for one in (row.field, "tensor_content")}
    if number not in fields or any(other[0] in fields for other in within[:-1]):
        return None
    if row.form == "strings":
        single = number != pb.TensorProto.DESCRIPTOR.fields_by_name["tensor_content"].number
        size = None
    else:
        single, size = row.form == "raw", math.prod(array.shape) * array.itemsize
    found = RequestForm(
        data[:inputs[0][1] + 1], data[inputs[0][2]:inside[1][1] + 1],
        data[inside[1][2]:begin + 1], data[end:], name, array.dtype, array.shape, size)
    if not single or (size is None and array.size != 1):
        return None
    again = found.array_in(data)
    return found if again is not None and np.array_equal(again, array) else None
