"""Texts that every path must bear: hostile ones, always the same, and made-up ones by a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tf_infer.errors import DataError
from tf_infer.verify.golden import EDGE_TEXTS

# Each line is a way in which texts break a tokenizer, a parser behind it, or what shows them.
TEXTS: tuple[str, ...] = (
    "\x00", "\x00\x00 a\x00", "\x01\x02\x1b[31mred\x1b[0m\x7f\x85\x9f",       # control characters
    "a\r\nb\rc\nd\x0be\x0cf\u2028g\u2029h",                                    # ends of lines
    " \u00a0\u1680\u2000\u2003\u2009\u202f\u205f\u3000\t",                     # only white space
    "\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e\u061c",                        # nothing to see
    "\ufeffbefore", "pass\u200bword", "\u202eright to left\u202c \u2066isolated\u2069",
    "שלום עולם", "مرحبا بالعالم ٣٤٥", "नमस्ते दुनिया", "สวัสดีชาวโลก", "བཀྲ་ཤིས་", "こんにちは、世界！",
    "ﾊﾝｶｸ ＦＵＬＬ　ｗｉｄｔｈ", "각 각 \u1100\u1161\u11a8", "中文字漢語，。！「」々〇㐀𠀀豈",
    "e\u0301 é \u0301\u0302 Z\u0335\u0321\u034d\u0353\u0331\u0308\u0301", "a" + "\u0300" * 200,
    "İIıi ßẞ ﬁﬂ ŉǰΐ ΣσςΌ ǅ", "𝒜𝓫𝕔 𝟙𝟚𝟛 Ⓐⓑ ①② ½ ㎏ ℡",                          # folds and cases
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇩 👍🏽 ❤️ 1️⃣ \U0001f9d1\u200d",                              # joined, cut off
    "\ue000\uf8ff \ufffe \uffff \U000e0001\U0010ffff \u0378 \ufffd",           # private, unassigned
    "[CLS] [SEP] [MASK] [PAD] [UNK]", "<s> </s> <unk> <pad> <|endoftext|> <|im_start|>",
    "##a ## ▁a ▁ Ġa Ċ @@ <0x0A>", "[CLS][SEP]glued[SEP]",                      # special tokens
    "'; DROP TABLE texts; --", '{"text": ["\\u0000", 1e309, NaN]}', "<script>alert(1)</script>",
    "%s%n%x {0} {{7*7}} ${a} $(b) `c` \\x00 \\", "../../etc/passwd\x00.png", "&lt;&amp;#0;",
    "NaN Infinity -0 1e309 0x7fffffffffffffff 9223372036854775808 1.", "1,000.00 1.000,00 ٣ 四",
    "don't won't I'll 's", "....!!!???---___", "http://a.b/?q=%00&r=a%20b#c me@example.org",
    "a" * 99, "a" * 100, "a" * 101, "é" * 100, "가" * 51, "ab" * 5_000, "a " * 5_000,
    "x" * 50 + " " * 500 + "y", "no end\u0301", "-" * 300)

# Ill-formed UTF-8: a bare continuation, sequences cut off, too long, of surrogates, beyond the end.
BYTES: tuple[bytes, ...] = (
    b"\x80", b"a\xc3", b"\xe4\xb8 b", b"\xf0\x9f\x91", b"\xc0\x80", b"\xe0\x80\xaf", b"\xc1\xbf",
    b"\xed\xa0\x80\xed\xb0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xfe\xff",
    b"ok \xff ok", bytes(range(128, 256)))

WORDS = ("where", "is", "the", "parcel", "that", "I", "ordered", "on", "3", "May", "?", "请问",
         "我的", "包裹", "在", "哪里", "naïve", "Straße", "ქართული", "привет", "12.50", "€", "😀",
         "don't", "-")


def hostile_texts(more: Path | None = None) -> tuple[bytes, ...]:
    """Return hostile texts, the shipped ones first.

    Args:
        more: a JSON array of strings (the form of the Big List of Naughty Strings), or one a line.

    Raises:
        DataError: the file cannot be read, or is an array of something else.
    """
    shipped = (*EDGE_TEXTS, *(text.encode() for text in TEXTS), *BYTES)
    return shipped + (_read(more) if more is not None else ())


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        content = Path(path).read_bytes()
        found = (json.loads(content) if path.suffix == ".json"
                 else [line.rstrip(b"\r") for line in content.split(b"\n")])
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON array of strings.") from error
    if not isinstance(found, list) or not all(isinstance(one, (str, bytes)) for one in found):
        raise DataError(f"{path}: expected a JSON array of strings.")
    return tuple(one if isinstance(one, bytes) else one.encode("utf-8", "surrogatepass")
                 for one in found)


def made_up_text(*, seed: int, words: int = 400) -> str:
    """Return words of several scripts in an order that the seed draws."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words))
