"""JSON as TensorFlow Serving's REST reads and writes it: parsing, leaves, number and text forms.

Statements RP16 to RP28, RP34 and RP36 of its observed behaviour (json_tensor.cc, rapidjson). Texts
keep its wording but show no text of the caller: a string is told by its length.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from json.encoder import encode_basestring
from typing import Any, cast

import numpy as np

from tf_infer.errors import InvalidRequest

TOO_BIG = "JSON Parse error: Number too big to be stored in double."
LONE_HALF = "The surrogate pair in string is invalid."
FEW = 16  # numbers that are faster written one by one
MAX_SHOWN_DIGITS = 40  # of a number in an error text

# what Python's decoder says -> what rapidjson says
_FAULTS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting ',' delimiter": "Missing a comma, or the end of an array or object.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
}
_FLOAT32 = struct.Struct("<f")
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\n\r]*")
# A text, ended or not, which stays, or what rapidjson reads beside NaN, Infinity and -Infinity.
_SPELLINGS = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z))|-NaN|(-?Inf)(?!i)', re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*")
_FIRST_HALF = re.compile(r"\\u[dD][89abAB]")  # found ten times as fast, and seldom there
# The first half of a surrogate pair without the second; an escape if its backslashes are odd. A run
# of them is looked at from its beginning alone: else long ones would cost their length squared.
_LONE_HALF = re.compile(r"(?<!\\)(\\+)u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})")
# What a number beyond double has, with every digit as "1".
_DIGITS = bytes.maketrans(b"0123456789", b"1" * 10)
_LARGE = (b"e111", b"e+111", b"E111", b"E+111", b"1" * 200)


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Document:
    """A request body.

    Attributes:
        members: of the object at the top; of equal keys the first one counts, on every level, but
            an object that has some is `Repeating`.
        text_errors: how its texts become bytes: "surrogatepass", since rapidjson takes a second
            half of a surrogate pair for a character, or "surrogateescape" when the body was not
            UTF-8, whose bytes then pass as they came.
    """

    members: dict[str, Any]
    text_errors: str

    def to_bytes(self, text: str) -> bytes:
        """Return a text of the document as bytes."""
        try:
            return text.encode("utf-8", self.text_errors)
        except UnicodeEncodeError:  # an escape in a body whose own bytes are written alike
            raise InvalidRequest(f"JSON Parse error: {LONE_HALF}") from None


class Repeating(dict[str, Any]):
    """An object with equal keys, of which the first one counts.

    Attributes:
        pairs: all of its keys and values, as they were written.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(reversed(pairs))
        self.pairs = pairs


def pairs_of(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return the keys and values of an object, equal keys too."""
    return value.pairs if isinstance(value, Repeating) else value.items()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    return members if len(members) == len(pairs) else Repeating(pairs)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InvalidRequest(TOO_BIG)
    return value


def _int(text: str) -> int:
    if len(text) > sys.float_info.max_10_exp:
        _float(text)
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_CAREFUL = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int)


def parse(body: bytes) -> Document:
    """Read a request body: one JSON object, whatever follows it (RP16, RP17, RP36).

    Raises:
        InvalidRequest: not JSON, nested too deeply, not an object, or a number beyond double
            (RP34).
    """
    if not body:
        raise InvalidRequest("JSON Parse error: The document is empty")
    if body.startswith(_BOM):
        body = body[len(_BOM):]
    try:
        text, errors = body.decode("utf-8"), "surrogatepass"
    except UnicodeDecodeError:
        text, errors = body.decode("utf-8", "surrogateescape"), "surrogateescape"
    start = cast("re.Match[str]", _SPACE.match(text)).end()
    if start == len(text):
        raise _fault("The document is empty.", text, start)
    digits = body.translate(_DIGITS)
    large = any(sign in digits for sign in _LARGE)  # a hook for each number costs as much again
    try:
        value, end = _decoded(_CAREFUL if large else _DECODER, text, start)
    except json.JSONDecodeError as error:
        _check_pairs(text, start, error.pos)
        raise _fault(_FAULTS.get(error.msg, "Invalid value."), text, error.pos) from None
    except RecursionError:
        raise InvalidRequest("JSON Parse error: The document is nested too deeply.") from None
    _check_pairs(text, start, end)
    if not isinstance(value, dict):
        raise InvalidRequest(f"JSON Value: {shown(value)} Is not object")
    return Document(value, errors)


def _decoded(decoder: json.JSONDecoder, text: str, start: int) -> tuple[Any, int]:
    """Decode; where Python's decoder stops at a spelling of rapidjson's, again with its own."""
    try:
        return decoder.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if not _SPELLINGS.match(text, error.pos):
            raise
    try:
        return decoder.raw_decode(_SPELLINGS.sub(_respelled, text), start)
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(error.msg, text, min(error.pos, len(text))) from None


def _check_pairs(text: str, start: int, end: int) -> None:
    """Raise for the first half of a surrogate pair without the second, wherever it stands."""
    if not _FIRST_HALF.search(text, start, end):
        return
    for found in _LONE_HALF.finditer(text, start, end):
        if len(found[1]) % 2:
            raise _fault(LONE_HALF, text, found.end(1) - 1)


def _respelled(found: re.Match[str]) -> str:
    return found[1] or ("NaN" if found[2] is None else found[2] + "inity")


def _fault(what: str, text: str, place: int) -> InvalidRequest:
    offset = len(text[:place].encode("utf-8", "surrogateescape"))
    return InvalidRequest(f"JSON Parse error: {what} at offset: {offset}")


# ---------------------------------------------------------------------------- telling


def type_name(value: Any) -> str:
    """Return what a value is called in error texts."""
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    names: dict[type, str] = {dict: "Object", Repeating: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def shown(value: Any) -> str:
    """Return a value for an error text: numbers as they are, the rest by kind and size."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return number(value, narrow=False)
    if isinstance(value, int):
        return str(value) if abs(value) < 10**MAX_SHOWN_DIGITS else "<a longer number>"
    if isinstance(value, str):
        return f"<text of {len(value)} characters>"
    return (f"<list of {len(value)}>" if isinstance(value, list)
            else f"<object of {len(value)} keys>")


# ---------------------------------------------------------------------------- base64


def is_base64(value: Any) -> bool:
    """Return whether a value is {"b64": "<text>"} and nothing else (RP23)."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def read_base64(value: Any) -> bytes:
    """Return the bytes of {"b64": "<text>"}: padding and white space may be there or not.

    Raises:
        InvalidRequest: another object, or text that is not base64.
    """
    if not is_base64(value):
        raise InvalidRequest(
            f"JSON Value: {shown(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    bare = text.rstrip("=.")
    padding = -len(bare) % 4
    if padding == 3 or len(text) - len(bare) not in (0, padding) or not _BASE64.fullmatch(bare):
        raise InvalidRequest("Unable to base64 decode")
    return binascii.a2b_base64(bare + "=" * padding)


# ---------------------------------------------------------------------------- writing


def numbers(values: np.ndarray) -> list[str]:
    """Return each float as JSON: six digits when they say it all, else 9 (double: 17) (RP25, RP26).

    Args:
        values: float32 or float64, of any shape; read in order.

    Cost: about that of `json.dumps`, twice it where all numbers are short.
    """
    flat = values.reshape(-1)
    items = flat.tolist()
    narrow = flat.dtype.char == "f"
    if len(items) <= FEW:
        return [number(item, narrow) for item in items]
    short = _may_be_short(flat)
    formats = np.where(short, "%.6g", "%.9g" if narrow else "%.17g").tolist()
    texts = (" ".join(formats) % tuple(items)).split(" ")
    # Rounding twice, to double and to float32, is harmless here: no decimal of six digits lies so
    # close to the middle of two float32 that it matters (all of them were tried).
    with np.errstate(all="ignore"):
        back = np.array(list(map(float, compress(texts, short.tolist())))).astype(flat.dtype)
        whole = flat == np.rint(flat)
    if whole.any():
        texts = [text + ".0" if point and "e" not in text else text
                 for text, point in zip(texts, whole.tolist())]
    places = np.flatnonzero(short)  # NaN and infinities are among them
    for place in places[(back != flat[places]) | np.isinf(back)].tolist():
        texts[place] = number(items[place], narrow)
    return texts


def number(value: float, narrow: bool) -> str:
    """Return one float as JSON; see `numbers`.

    Args:
        value: if `narrow`, one that float32 holds.
        narrow: whether it is a float32.
    """
    size = abs(value)
    if narrow and 0.01 <= size < 100.0:  # as most scores are, of which few are short
        scale = (1e4 if size >= 10.0 else 1e5) if size >= 1.0 else 1e6 if size >= 0.1 else 1e7
        # A float32 is rounded by 2**-24 of itself at most: by less than 0.06 of the sixth digit.
        if 0.06 < size * scale % 1.0 < 0.94:
            return f"{value:.9g}"
    if value - value != 0:
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    text = f"{value:.6g}"
    back = float(text)
    if (_FLOAT32.unpack(_FLOAT32.pack(back))[0] if narrow else back) != value:
        text = f"{value:.9g}" if narrow else f"{value:.17g}"
    return text if "." in text or "e" in text else text + ".0"


def _may_be_short(flat: np.ndarray) -> np.ndarray:
    """Return where six digits could give the number back: all such places and few others."""
    with np.errstate(all="ignore"):
        size = np.abs(flat.astype(np.float64))
        scale = 10.0 ** (5 - np.floor(np.log10(size)))
        near = np.abs(np.rint(size * scale) / scale - size)
        clear = near > 0.51 * np.spacing(np.abs(flat)).astype(np.float64) + 1e-15 * size
    # also where the above overflows: zero, subnormal and infinite numbers, NaN
    return np.asarray(~clear)


def text_json(item: bytes | str) -> str:
    """Return a string as JSON; bytes that are not UTF-8 pass through `encode` as they are."""
    return encode_basestring(item.decode("utf-8", "surrogateescape") if isinstance(item, bytes)
                             else item)


def base64_json(item: bytes | str) -> str:
    """Return a string as {"b64": ".."} (RP28)."""
    raw = item.encode("utf-8", "surrogateescape") if isinstance(item, str) else item
    return '{"b64": "' + base64.b64encode(raw).decode("ascii") + '"}'


def nested(texts: Sequence[str], shape: Sequence[int]) -> list[str]:
    """Return the texts of an array's elements as its rows: [N, ...] gives N texts.

    Args:
        texts: of each element, in order.
        shape: at least one dimension.
    """
    rows = list(texts)
    for axis in range(len(shape) - 1, 0, -1):
        size, count = shape[axis], math.prod(shape[:axis])
        if count == 1:
            rows = ["[" + ", ".join(rows) + "]"]
            continue
        rows = ["[" + ", ".join(rows[row * size:(row + 1) * size]) + "]" for row in range(count)]
    return rows


def encode(text: str) -> bytes:
    """Return a JSON text as the bytes of an answer."""
    return text.encode("utf-8", "surrogateescape")


def error_json(message: str) -> bytes:
    """Return the body of a failure (RS13)."""
    return ('{"error": ' + encode_basestring(message) + "}").encode("utf-8", "replace")
