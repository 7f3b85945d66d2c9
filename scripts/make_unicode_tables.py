"""Write tf_infer/data/unicode/bert.json: what BERT's tokenizer in tokenizers does to code points.

Every fact is asked of the reference itself, because the Unicode versions of its parts differ from
one another and from Python's; `fast_*` is asked of TF-Text's FastWordpieceTokenizer. Needs the
extras `models` and `oracles`; run it again when either of them is renewed.

    python scripts/make_unicode_tables.py
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text
import tokenizers
from tokenizers import normalizers, pre_tokenizers

TARGET = Path(__file__).resolve().parent.parent / "tf_infer" / "data" / "unicode" / "bert.json"
POINTS = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
NFD = normalizers.NFD()


def bert(**on: bool) -> normalizers.BertNormalizer:
    off = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    return normalizers.BertNormalizer(**{**off, **on})


def ranges(codes: Iterable[int]) -> list[list[int]]:
    """Return inclusive ranges that hold exactly `codes`."""
    found: list[list[int]] = []
    for code in sorted(codes):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def where(outcome: Callable[[str], bool]) -> list[list[int]]:
    return ranges(code for code in POINTS if outcome(chr(code)))


def combining_classes() -> dict[str, list[list[int]]]:
    """Return canonical combining class -> ranges, as the reference's NFD orders marks."""
    def moves(first: str, second: str) -> bool:
        return bool(NFD.normalize_str(f"x{first}{second}") != f"x{first}{second}")

    kept = [chr(code) for code in POINTS if NFD.normalize_str(chr(code)) == chr(code)]
    lowest = "\u0334"  # class 1
    members: dict[int, list[int]] = {}
    known = {unicodedata.combining(char): char for char in reversed(kept)
             if unicodedata.combining(char) and (char == lowest or moves(char, lowest))}
    for char in kept:
        first_class = unicodedata.combining(char) == 1 and moves("\u0345", char)
        if char != lowest and not moves(char, lowest) and not first_class:
            continue
        group = unicodedata.combining(char)
        for other, sample in known.items():
            assert moves(char, sample) == (group > other), (hex(ord(char)), group, other)
        members.setdefault(group, []).append(ord(char))
    return {str(group): ranges(codes) for group, codes in sorted(members.items())}


def fast_classes() -> tuple[list[list[int]], list[list[int]]]:
    """Return the ranges that FastWordpieceTokenizer takes for white space, and cuts out alone."""
    fast = tf_text.FastWordpieceTokenizer(["[UNK]", "a", "b"], token_out_type=tf.int32)
    words = fast.tokenize(tf.constant([f"a{chr(code)}b" for code in POINTS])).row_lengths().numpy()
    return (ranges(code for code, count in zip(POINTS, words) if count == 2),
            ranges(code for code, count in zip(POINTS, words) if count == 3))


def word_characters() -> list[list[int]]:
    """Return the ranges of characters that an added token of `single_word` must not touch."""
    found = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    found.add_tokens([tokenizers.AddedToken("xyz", single_word=True, normalized=False)])
    return where(lambda char: 1 not in found.encode(f"{char}xyz").ids)


def main() -> None:
    clean, chinese = bert(clean_text=True), bert(handle_chinese_chars=True)
    accents, lower = bert(strip_accents=True), bert(lowercase=True)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    decomposed = {code: NFD.normalize_str(chr(code)) for code in POINTS}
    lowered = {code: lower.normalize_str(chr(code)) for code in POINTS}
    fast_space, fast_alone = fast_classes()
    tables = {
        "source": f"tokenizers {tokenizers.__version__}, tensorflow_text {tf_text.__version__}",
        "removed": where(lambda char: clean.normalize_str(f"a{char}b") == "ab"),
        "cleaned_to_space": where(lambda char: clean.normalize_str(f"a{char}b") == "a b"),
        "chinese": where(lambda char: chinese.normalize_str(f"a{char}b") != f"a{char}b"),
        "mark": where(lambda char: NFD.normalize_str(char) == char
                      and accents.normalize_str(char) == ""),
        "space": where(lambda char: len(split(f"a{char}b")) == 2),
        "punctuation": where(lambda char: len(split(f"a{char}b")) == 3),
        "word": word_characters(),
        "fast_space": fast_space,
        "fast_alone": fast_alone,
        "combining": combining_classes(),
        "decomposed": {f"{code:x}": text for code, text in decomposed.items()
                       if text != chr(code) and code not in HANGUL},
        "lowered": {f"{code:x}": text for code, text in lowered.items() if text != chr(code)},
    }
    lines = [f'"{name}": {json.dumps(value, separators=(",", ":"))}'
             for name, value in tables.items()]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
