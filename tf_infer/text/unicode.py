"""What Hugging Face's BERT tokenizer does to each code point, as arrays; NumPy only.

The facts lie in tf_infer/data/unicode/bert.json, written by scripts/make_unicode_tables.py.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

POINTS = 0x110000
_HANGUL = range(0xAC00, 0xD7A4)


class Facts(NamedTuple):
    """One entry for each of the 0x110000 code points.

    Attributes:
        removed, cleaned_to_space: bool, what clean_text does.
        chinese: bool, gets white space on both sides.
        mark: bool, dropped by accent stripping.
        space, punctuation: bool, where words are split.
        word: bool, what an added token of `single_word` must not touch.
        fast_space, fast_alone: bool, where TF-Text's FastWordpieceTokenizer splits words.
        combining: uint8, canonical combining class.
        decomposed: code point -> its canonical decomposition, where it has one.
        lowered: code point -> its lower case, where it has one.
    """

    removed: np.ndarray
    cleaned_to_space: np.ndarray
    chinese: np.ndarray
    mark: np.ndarray
    space: np.ndarray
    punctuation: np.ndarray
    word: np.ndarray
    fast_space: np.ndarray
    fast_alone: np.ndarray
    combining: np.ndarray
    decomposed: dict[int, list[int]]
    lowered: dict[int, list[int]]


@lru_cache(maxsize=1)
def facts() -> Facts:
    """Read the table of facts."""
    file = resources.files("tf_infer") / "data" / "unicode" / "bert.json"
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    combining = np.zeros(POINTS, np.uint8)
    for group, ranges in data["combining"].items():
        combining[_members(ranges)] = int(group)
    sets = {name: _members(data[name]) for name in
            ("removed", "cleaned_to_space", "chinese", "mark", "space", "punctuation",
             "word", "fast_space", "fast_alone")}
    decomposed = _texts(data["decomposed"])
    decomposed.update({code: _jamo(code) for code in _HANGUL})
    return Facts(**sets, combining=combining, decomposed=decomposed,
                 lowered=_texts(data["lowered"]))


def re2_class(members: np.ndarray) -> str:
    """Return the inside of an RE2 character class that holds exactly the members [POINTS] bool."""
    edges = np.flatnonzero(np.diff(members.astype(np.int8), prepend=0, append=0))
    return "".join(f"\\x{{{first:x}}}-\\x{{{end - 1:x}}}"
                   for first, end in edges.reshape(-1, 2))


def _members(ranges: list[list[int]]) -> np.ndarray:
    found = np.zeros(POINTS, bool)
    for first, last in ranges:
        found[first:last + 1] = True
    return found


def _texts(table: dict[str, str]) -> dict[int, list[int]]:
    return {int(code, 16): [ord(char) for char in text] for code, text in table.items()}


def _jamo(code: int) -> list[int]:
    """Decompose a Hangul syllable (Unicode 15, section 3.12)."""
    lead, rest = divmod(code - _HANGUL.start, 21 * 28)
    vowel, tail = divmod(rest, 28)
    return [0x1100 + lead, 0x1161 + vowel] + ([0x11A7 + tail] if tail else [])
