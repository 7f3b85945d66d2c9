"""Made-up texts that tokenizers stumble over; always the same for the same seed."""

from __future__ import annotations

import random


def _chars(*ranges: tuple[int, int]) -> list[str]:
    return [chr(code) for first, last in ranges for code in range(first, last)]


POOLS: list[list[str]] = [
    _chars((0x300, 0x370)),                                       # combining marks
    list("\x00\x01\x0b\x0c\x1f\x7f\x85\x9f"),                     # control characters
    _chars((0x590, 0x700)),                                       # right to left
    ["👩", "\u200d", "🏽", "❤", "\ufe0f", "🇩", "🇪", "👨‍👩‍👧‍👦"],
    list("\u200b\u200c\u200e\u2060\ufeff\u00ad\u180e\u061c"),     # no width
    list("\t\n\r \u00a0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"),
    _chars((0x1100, 0x1200)) + _chars((0xAC00, 0xAD00)),          # Hangul
    list("ΣσςΑΒİIıiÅßẞﬁŉǰΐΰẖẗẘẙẚὐᾳᾲᾴᾷᾼ"),                          # case that changes length
    list("中文字漢語，。！「」々〇㐀𠀀豈﨑"),
    _chars((0x378, 0x37A), (0x530, 0x531), (0xE000, 0xE004), (0xFFFD, 0x10000), (0x1FFFE, 0x20000),
           (0xF0000, 0xF0003), (0xE0001, 0xE0002), (0x10FFFD, 0x10FFFE)),
    _chars((0x1D15E, 0x1D173)) + list("\u302e\u302f\u1b44\u1baa\u0334\u0345\ua953"),
    _chars((0x900, 0xA00)), _chars((0xE00, 0xE60)), _chars((32, 127)), list("abcdefghij"),
    ["[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "##", "##a", "un", "able", "the", "don't", "é",
     "e\u0301", "Ａ", "①", "½"],
    _chars((0x2000, 0x2070)), _chars((0x3000, 0x3100)), _chars((0x2E80, 0x2FDF)),
]


def texts(count: int, *, seed: int = 0, long_chars: int = 100_000) -> list[str]:
    """Return `count` mixed texts and some more: empty ones, and words around and over limits."""
    draw = random.Random(seed)
    anything = [chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))
                for _ in range(300)]
    pools = [*POOLS, anything]
    found = []
    for _ in range(count):
        some = draw.sample(pools, draw.randint(1, 4))
        size = draw.choice([1, 3, 8, 20, 60])
        text = "".join(draw.choice(draw.choice(some)) for _ in range(size))
        if draw.random() < 0.04:
            letter = draw.choice("xaé中\u0e01가")
            text = letter * draw.choice([33, 50, 98, 99, 100, 101, 102, 120]) + text
        found.append(text)
    edges = ["", " ", "\x00", "a" * 100, "a" * 101, "é" * 100, "é" * 101, "가" * 50, "가" * 51]
    return found + edges + [char * long_chars for char in "aé가中\u0301\u0e01" if long_chars]
