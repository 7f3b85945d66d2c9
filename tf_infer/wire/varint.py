"""Packed fields of a message <-> numbers, a whole block at a time.

Source: protobuf's encoding guide, "Base 128 Varints": seven bits a byte, lowest first, the top bit
says that more follow; negative numbers are their 64-bit two's complement, ten bytes long.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_FIXED = {1: 8, 5: 4}  # bytes of the forms that have always as many


def encode(values: np.ndarray) -> bytes:
    """Return the packed varints of integers or bools.

    Args:
        values: [N] of any integer dtype or bool.

    Cost: O(total bytes), at most ten passes.
    """
    if values.dtype.kind == "b" or (values.dtype.itemsize == 1 and values.dtype.kind == "u"
                                    and (values.size == 0 or values.max() < 0x80)):
        return values.astype(np.uint8).tobytes()
    words = values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else (
        values.astype(np.uint64))
    sizes = np.ones(words.shape, np.int64)
    for group in range(1, 10):
        sizes += words >= np.uint64(1 << (7 * group))
    starts = np.cumsum(sizes) - sizes
    packed = np.empty(int(sizes.sum()), np.uint8)
    for group in range(int(sizes.max(initial=0))):
        chosen = sizes > group
        bits = (words[chosen] >> np.uint64(7 * group)).astype(np.uint8) & 0x7F
        packed[starts[chosen] + group] = bits | ((sizes[chosen] > group + 1) * np.uint8(0x80))
    return packed.tobytes()


def decode(packed: bytes | memoryview) -> np.ndarray:
    """Return the numbers of packed varints, [N] uint64 (two's complement where negative).

    Args:
        packed: whole varints.

    Raises:
        ValueError: one of more than ten bytes, or the last one is cut short.
    """
    data = np.frombuffer(packed, np.uint8)
    if data.size == 0:
        return np.zeros(0, np.uint64)
    ends = np.flatnonzero(data < 0x80)
    if ends.size == 0:
        raise ValueError("a varint has one to ten bytes")
    if ends.size == data.size:
        return data.astype(np.uint64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if data[-1] > 0x7F or sizes.max() > 10:
        raise ValueError("a varint has one to ten bytes")
    place = np.arange(data.size) - np.repeat(starts, sizes)
    words = (data & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(words, starts)


def field(number: int, content: bytes) -> bytes:
    """Return a field of bytes as it stands in a message: tag, length, content."""
    size = len(content)
    if size <= 0x7F and number <= 15:  # nearly all of a small message
        return bytes((number << 3 | 2, size)) + content
    return b"".join((_one(number << 3 | 2), _one(size), content))


def _one(value: int) -> bytes:
    if value <= 0x7F:
        return bytes((value,))
    packed = bytearray()
    while value > 0x7F:
        packed.append(value & 0x7F | 0x80)
        value >>= 7
    packed.append(value)
    return bytes(packed)


def find_field(message: bytes, number: int) -> memoryview:
    """Return the content of a field of bytes; empty when it is not there.

    Args:
        message: as protobuf has just written it: known fields in ascending order, each packed field
            in one block, unknown fields behind them.
        number: the field's.
    """
    view, place = memoryview(message), 0
    while place < len(view):
        tag, place = read_one(view, place)
        if tag >> 3 > number:
            break
        if tag & 7 == 2:
            size, place = read_one(view, place)
            if tag >> 3 == number:
                return view[place:place + size]
            place += size
        elif tag & 7 == 0:
            _, place = read_one(view, place)
        else:
            break  # no field below 18 of a TensorProto has another form
    return view[:0]


def fields(message: memoryview, begin: int = 0, end: int | None = None,
           ) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, beginning, beginning of the content, and end of each field, in their order.

    Args:
        message: of any kind.
        begin, end: where it stands in a larger one.

    Raises:
        ValueError, IndexError: it is cut short, or is none.
    """
    end = len(message) if end is None else end
    while begin < end:
        tag, place = message[begin], begin + 1
        if tag > 0x7F:
            tag, place = read_one(message, begin)
        form = tag & 7
        if form == 2:
            size, content = message[place], place + 1
            if size > 0x7F:
                size, content = read_one(message, place)
        elif form == 0:
            size, content = read_one(message, place)[1] - place, place
        elif form in _FIXED:
            size, content = _FIXED[form], place
        else:
            raise ValueError(f"a field has one of the forms 0, 1, 2 and 5, not {form}")
        if content + size > end:
            raise ValueError("the message is cut short")
        yield tag >> 3, begin, content, content + size
        begin = content + size


def read_one(view: memoryview, place: int) -> tuple[int, int]:
    """Return the varint at `place`, and the place behind it; IndexError at the end of the view."""
    value = shift = 0
    while True:
        byte = view[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
