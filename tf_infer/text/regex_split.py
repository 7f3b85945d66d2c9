"""The regular expressions that cut text into words before byte-level BPE, in the graph.

The originals need look-ahead, `\\s+(?!\\S)`: of the white space before a word, all but the last
character. RE2 has none, so a first pass marks that place, and a second one the end of each word.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import tensorflow as tf

from tf_infer.text.unicode_classes import LETTERS, NUMBERS, SPACES

# A byte that no UTF-8 text contains, and that no pattern below matches.
MARK = b"\xff"

Split = Literal["gpt2", "llama3", "none"]


class Patterns(NamedTuple):
    """RE2 patterns of one way to split.

    Attributes:
        last_space: white space, then the last white space of a run and what follows it.
        word: one word.
    """

    last_space: str
    word: str


_OTHER = rf"[^{SPACES}{LETTERS}{NUMBERS}]"
_SPACE = f"[{SPACES}]"
_SPACE_IN_LINE = (r"[\t\x{b}\x{c} \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}"
                  r"\x{205f}\x{3000}]")

# GPT-2 (Radford et al. 2019), as in its encoder.py, and Llama 3 (tiktoken's cl100k form).
PATTERNS = {
    "gpt2": Patterns(
        rf"({_SPACE})({_SPACE}[^{SPACES}])",
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{LETTERS}]+| ?[{NUMBERS}]+| ?{_OTHER}+|{_SPACE}+"),
    "llama3": Patterns(
        rf"({_SPACE})({_SPACE_IN_LINE}[^{SPACES}])",
        r"'(?:[sS\x{17f}]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
        rf"|[^\r\n{LETTERS}{NUMBERS}]?[{LETTERS}]+|[{NUMBERS}]{{1,3}}| ?{_OTHER}+[\r\n]*"
        rf"|{_SPACE}*[\r\n]+|{_SPACE}+"),
}


def mark_words(texts: tf.Tensor, split: Split) -> tf.Tensor:
    """Put one or more `MARK` between the words of [S] well-formed strings (and behind the last)."""
    if split == "none":
        return texts
    patterns = PATTERNS[split]
    texts = tf.strings.regex_replace(texts, patterns.last_space, rb"\1" + MARK + rb"\2")
    return tf.strings.regex_replace(texts, patterns.word, rb"\0" + MARK)
