"""Regular expressions as Python's `re` reads them -> the syntax of the compiler of automata.

The two dialects differ in what `\\w` holds, in nested sets, in anchors and more. So an expression
is parsed by Python, whose classes become explicit ranges; a text that the automaton lets through is
one that `re.fullmatch` matches. What no automaton can do (look-around, back-references) is refused.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tf_infer.errors import ConfigError

MAX_CHARS = 100_000    # of an expression
MAX_PLACES = 100_000   # characters of an expression with its repetitions written out
MAX_WRITTEN = 4_000_000  # characters of what is made of its sets: 12,729 for `\w`

Ranges: TypeAlias = "tuple[tuple[int, int], ...]"  # of code points, ascending, both ends included
LAST = 0x10FFFE         # U+10FFFF, no character, marks the end of a text for the compiler
SURROGATES = (0xD800, 0xDFFF)

_parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
_UNBOUNDED = _parser.MAXREPEAT

# What is refused: the parser's name of it, how it is written, and in words.
_REFUSED = {
    "ASSERT": (r"\(\?<?=", "look-around"), "ASSERT_NOT": (r"\(\?<?!", "look-around"),
    "FAILURE": (r"\(\?!", "look-around"),
    "GROUPREF": (r"\\[1-9]|\(\?P=", "a back-reference"),
    "GROUPREF_EXISTS": (r"\(\?\(", "a conditional group"),
    "ATOMIC_GROUP": (r"\(\?>", "an atomic group"),
    "POSSESSIVE_REPEAT": (r"[*+?}]\+", "a possessive repetition"),
    "IGNORECASE": (r"\(\?[a-zA-Z]*i", "a flag that ignores case"),
    "LOCALE": (r"\(\?[a-zA-Z]*L", "a flag of the locale"),
    "AT_BEGINNING": (r"(?<!^)\^", "an anchor inside"), "AT_END": (r"\$(?!$)", "an anchor inside"),
    "AT_BEGINNING_STRING": (r"\\A", "an anchor inside"),
    "AT_END_STRING": (r"\\Z", "an anchor inside"),
    "AT_BOUNDARY": (r"\\b", "a word boundary"), "AT_NON_BOUNDARY": (r"\\B", "a word boundary"),
}


def translated(pattern: str, *, where: str = "regex") -> str:
    """Return the expression for `byte_automaton.from_pattern`.

    Raises:
        ConfigError: it is no regular expression (with the position), or holds what no automaton can
            do, or is too long.
    """
    return _Writer(pattern, where, _as_is).whole()


def in_json_string(pattern: str, *, where: str) -> str:
    """Return the expression for the JSON string, without its quotes, of a text that it finds.

    It is searched for, not matched, as JSON Schema's `pattern`: without `^` anything may stand
    before it, without `$` behind it.
    """
    return _Writer(pattern, where, json_characters).found()


def literal(text: str) -> str:
    """Return the expression that matches one text."""
    return "".join(rf"\x{{{ord(char):x}}}" for char in text)


def _as_is(ranges: Ranges) -> str:
    return "[" + "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in ranges) + "]"


_ESCAPED = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r",
            "\t": "\\t"}
_NEED_ESCAPE: Ranges = ((0, 0x1F), (ord('"'), ord('"')), (ord("\\"), ord("\\")))


def json_characters(ranges: Ranges) -> str:
    """Return the expression of one character of a set as it stands in a JSON string.

    Control characters without a short escape are left out; "" where nothing is left.
    """
    plain = _without(ranges, _NEED_ESCAPE)
    options = [_as_is(plain)] if plain else []
    options += [literal(escape) for char, escape in _ESCAPED.items()
                if any(a <= ord(char) <= b for a, b in ranges)]
    return "(?:" + "|".join(options) + ")" if options else ""


@dataclass(frozen=True, slots=True)
class _Context:
    """Where a part stands: whether it begins, ends the text, and the flags in force."""

    first: bool
    last: bool
    flags: int


class _Writer:
    """Writes one expression; `characters` writes a set of them."""

    def __init__(self, pattern: str, where: str, characters: Callable[[Ranges], str]) -> None:
        self._pattern, self._where, self._characters = pattern, where, characters
        self._sets: dict[str, str] = {}  # what has been written, by what Python's parser says
        self._size = 0
        if len(pattern) > MAX_CHARS:
            raise ConfigError(f"{where}: expected at most {MAX_CHARS} characters, got "
                              f"{len(pattern)}. Make it shorter.")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Python's parser, on sets it may read otherwise
                self._parsed = _parser.parse(pattern)
        except re.error as error:
            at = "" if error.pos is None else f" at position {error.pos}"
            raise ConfigError(f"{where}: expected a regular expression of Python's re, got an "
                              f"error{at}: {_plain(error.msg, pattern)}. Correct it.") from error
        except (RecursionError, OverflowError) as error:
            raise ConfigError(f"{where}: expected an expression that can be read, got groups "
                              "nested too deep or a repetition too large.") from error
        self._flags = self._checked(self._parsed.state.flags)

    def whole(self) -> str:
        """Return the expression of texts that match from end to end."""
        try:
            text, places = self._sequence(list(self._parsed), _Context(True, True, self._flags))
        except RecursionError as error:
            raise ConfigError(f"{self._where}: expected an expression that can be read, got groups "
                              "nested too deep.") from error
        self._bounded(places)
        return text

    def found(self) -> str:
        """Return the expression of texts that hold a match."""
        items = list(self._parsed)
        begins = bool(items) and _is_anchor(items[0], "AT_BEGINNING", "AT_BEGINNING_STRING")
        ends = bool(items) and _is_anchor(items[-1], "AT_END", "AT_END_STRING")
        inner, places = self._sequence(items, _Context(begins, ends, self._flags))
        self._bounded(places)
        anything = f"(?:{self._characters(((0, LAST),))})*"
        return f"{'' if begins else anything}(?:{inner}){'' if ends else anything}"

    def _sequence(self, items: Sequence[Any], context: _Context) -> tuple[str, int]:
        """Return what stands one behind the other, and how many places it has."""
        parts: list[str] = []
        total = 0
        for index, (kind, value) in enumerate(items):
            first = context.first and not parts
            last = context.last and all(
                str(item[0]) == "AT" for item in items[index + 1:])
            text, places = self._item(str(kind), value, _Context(first, last, context.flags))
            if text:
                parts.append(text)
            total += places
        return "".join(parts), total

    def _item(self, kind: str, value: Any, context: _Context) -> tuple[str, int]:
        if kind in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._character(kind, value, context.flags), 1
        if kind == "AT":
            fits = context.first if "BEGINNING" in str(value) else context.last
            if not fits or "BOUNDARY" in str(value):
                raise self._refused(str(value))
            return "", 0
        if kind == "BRANCH":
            found = [self._sequence(list(branch), context) for branch in value[1]]
            return f"(?:{'|'.join(text for text, _ in found)})", sum(places for _, places in found)
        if kind == "SUBPATTERN":
            _, more, less, inner = value
            flags = (context.flags | self._checked(more)) & ~less
            text, places = self._sequence(
                list(inner), _Context(context.first, context.last, flags))
            return f"(?:{text})", places
        if kind in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, inner = value
            return self._repeated(low, high, inner, context)
        raise self._refused(kind)

    def _repeated(self, low: int, high: int, inner: Any, context: _Context) -> tuple[str, int]:
        once = high == 1
        text, places = self._sequence(list(inner), _Context(
            context.first and once, context.last and once, context.flags))
        most = low + 1 if high == _UNBOUNDED else high
        self._bounded(places * most)
        limit = "" if high == _UNBOUNDED else str(int(high))
        return f"(?:{text}){{{int(low)},{limit}}}", places * most

    def _character(self, kind: str, value: Any, flags: int) -> str:
        key = f"{kind} {value} {flags}"
        if key not in self._sets:
            self._sets[key] = self._set_of(kind, value, flags)
        text = self._sets[key]
        self._size += len(text)
        if self._size > MAX_WRITTEN:
            raise ConfigError(f"{self._where}: expected sets of at most {MAX_WRITTEN} characters "
                              "with all their ranges written out, got more. Write (?a) before it, "
                              "or fewer sets such as \\w; a repetition counts once.")
        return text

    def _set_of(self, kind: str, value: Any, flags: int) -> str:
        ascii_only = bool(flags & re.ASCII)
        if kind == "LITERAL":
            ranges: Ranges = ((value, value),)
        elif kind == "NOT_LITERAL":
            ranges = negated(((value, value),))
        elif kind == "ANY":
            ranges = ((0, LAST),) if flags & re.DOTALL else negated(((10, 10),))
        else:
            ranges = _set(value, ascii_only)
        text = self._characters(_without(ranges, (SURROGATES,))) if ranges else ""
        if not _without(ranges, (SURROGATES,)) or not text:
            raise ConfigError(f"{self._where}: expected a set that holds a character of a text, "
                              "got one that holds none. Correct it.")
        return text

    def _checked(self, flags: int) -> int:
        for flag in (re.IGNORECASE, re.LOCALE):
            if flags & flag:
                raise self._refused(flag.name or "")
        return flags

    def _refused(self, kind: str) -> ConfigError:
        spelled, words = _REFUSED.get(kind, ("", f"{kind.lower().replace('_', ' ')}"))
        found = re.search(rf"(?<!\\)(?:\\\\)*(?:{spelled})", self._pattern) if spelled else None
        at = "" if found is None else f" at position {found.start()}"
        return ConfigError(f"{self._where}: expected an expression that an automaton can match, "
                           f"got {words}{at}. Write it without.")

    def _bounded(self, places: int) -> None:
        if places > MAX_PLACES:
            raise ConfigError(f"{self._where}: expected at most {MAX_PLACES} characters with every "
                              f"repetition written out, got {places}. Bound the repetitions.")


def _plain(message: str, pattern: str) -> str:
    # What the parser says may quote the expression.
    words = [word for word in message.split() if word.strip("'\",;") not in pattern]
    return " ".join(words) or "not understood"


def _is_anchor(item: Any, *names: str) -> bool:
    return str(item[0]) == "AT" and str(item[1]) in names


def _set(items: Iterable[Any], ascii_only: bool) -> Ranges:
    ranges: list[tuple[int, int]] = []
    inverted = False
    for kind, value in items:
        name = str(kind)
        if name == "NEGATE":
            inverted = True
        elif name == "LITERAL":
            ranges.append((value, value))
        elif name == "RANGE":
            ranges.append(value)
        else:
            ranges += _category(str(value), ascii_only)
    found = merged(ranges)
    return negated(found) if inverted else found


def _category(name: str, ascii_only: bool) -> Ranges:
    """Return what `CATEGORY_NOT_WORD` and the like hold."""
    letter = {"DIGIT": "d", "SPACE": "s", "WORD": "w"}[name.rsplit("_", 1)[1]]
    found = _class(letter, ascii_only)
    return negated(found) if "_NOT_" in name else found


@functools.lru_cache(maxsize=None)
def _class(letter: str, ascii_only: bool) -> Ranges:
    """Return what Python's `\\d`, `\\s` or `\\w` holds, by asking it."""
    every = "".join(map(chr, range(128 if ascii_only else LAST + 1)))
    flags = re.ASCII if ascii_only else 0
    return tuple((m.start(), m.end() - 1) for m in re.finditer(rf"\{letter}+", every, flags))


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return ranges in order, those that touch as one."""
    found: list[tuple[int, int]] = []
    for a, b in sorted(ranges):
        if found and a <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], b))
        else:
            found.append((a, b))
    return tuple(found)


def negated(ranges: Ranges) -> Ranges:
    """Return the code points outside of ranges."""
    edges = [-1, *itertools.chain.from_iterable(ranges), LAST + 1]
    gaps = zip(edges[::2], edges[1::2])
    return tuple((a + 1, b - 1) for a, b in gaps if a + 1 <= b - 1)


def _without(ranges: Iterable[tuple[int, int]], others: Ranges) -> Ranges:
    kept = negated(merged(others))
    return tuple((max(a, c), min(b, d)) for a, b in merged(ranges) for c, d in kept
                 if max(a, c) <= min(b, d))
