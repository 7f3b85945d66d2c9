"""A REST predict body like one that was read before: only its text is read.

Callers send the same JSON again and again, each time with another text. Bodies of one form differ
in that text and in no other byte. Where the text stands, its first quote begins a string whatever
is in it, so a text without quotes, backslashes and control characters changes nothing around it:
what is read of it is the text itself. That it comes out as the input's one value is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tf_infer.errors import ServingError
from tf_infer.wire.rest import Arrays, Form

_PLAIN = re.compile(rb'[^"\\\x00-\x1f]*')  # what a JSON string may hold as it is
_PROBES = (b"", b"a text")  # which no decoding of the value would leave as they are

Read = Callable[[bytes], "tuple[Arrays, Form]"]  # a body -> inputs, and the form of the answer


class BodyForm(NamedTuple):
    """The bytes of a body around its text.

    Attributes:
        head: up to the text, its quote included.
        tail: behind the text.
        name: of the input.
        shape: of its array.
    """

    head: bytes
    tail: bytes
    name: str
    shape: tuple[int, ...]

    def array_in(self, body: bytes) -> np.ndarray | None:
        """Return the input of a body of this form, and None of a body of another one."""
        head, tail, _, shape = self
        end = len(body) - len(tail)
        if not body.startswith(head) or not body.endswith(tail) or end < len(head):
            return None
        text = body[len(head):end]
        if not _PLAIN.fullmatch(text):
            return None
        return _single(text, shape)


def _single(text: bytes, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = text
    return array.reshape(shape)


def form_of(body: bytes, inputs: Arrays, form: Form, read: Read) -> BodyForm | None:
    """Return the form of a body; None where it has more than one text, or other values.

    Args:
        body: as it came.
        inputs, form: what was read of it.
        read: reads others like it.
    """
    (name, array), *others = inputs.items()
    if others or array.dtype.kind != "O" or array.size != 1:
        return None
    head, quote, tail = body.partition(b'"' + array.item() + b'"')
    if not quote or quote in tail:
        return None
    found = BodyForm(head + b'"', b'"' + tail, name, array.shape)
    for text in _PROBES:
        try:
            arrays, again = read(found.head + text + found.tail)
        except ServingError:
            return None
        if (again != form or arrays.keys() != {name} or arrays[name].shape != array.shape
                or arrays[name].item() != text):
            return None
    return found
