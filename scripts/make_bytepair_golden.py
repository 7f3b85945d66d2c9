"""Write tests/golden/text/bytepair: a small vocabulary, and tokenizers' answers to hostile texts.

Needs the extra `oracles`. With `--classes` it prints the ranges of tf_infer/text/unicode_classes.py
instead.

    python -m scripts.make_bytepair_golden [--classes]
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.make_sentencepiece_golden import CORPUS
from tests.text import hostile

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "text" / "bytepair"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
END = "<|endoftext|>"
WHOLE = ["\u0120unreachable", "zq", "\u010a\u010a\u010a"]   # no merge makes them
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {}, "prefix": {"prefix": True}, "llama3": {"split": "llama3", "ignore_merges": True},
    "none": {"split": "none"},
}


def texts() -> list[str]:
    """Return the texts of the answers."""
    mixed = [text for text in hostile.texts(60, seed=6, long_chars=0) if len(text) <= 120]
    return [*mixed, "", " ", "  the  dog\n\n  sleeps \t ", "don't DON'T we'\u017f I'LL it's",
            f"a {END}b{END}{END} c", "unreachable unreachable zq\n\n\nzqzq", "12345 \u00bd\u4e2d",
            "a\u0085b\u00a0c\u1680d\u2028e\u3000f", "\u3000\u3000x", "\x00\x00", " \n",
            "!\r\n\r\n  x"]


def train() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return a vocabulary (bytes, joins, words that no merge makes) and the merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        [" ".join(CORPUS)] * 3 + hostile.texts(300, seed=1, long_chars=0),
        trainers.BpeTrainer(vocab_size=600, show_progress=False,
                            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for word in [*WHOLE, END]:
        vocabulary[word] = len(vocabulary)
    return vocabulary, [tuple(pair) for pair in model["merges"]]


def tokenizer_of(vocabulary: dict[str, int], merges: list[tuple[str, str]],
                 *, split: str = "gpt2", prefix: bool = False, ignore_merges: bool = False
                 ) -> Tokenizer:
    """Return Hugging Face's byte-level BPE."""
    built = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignore_merges))
    words = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split == "gpt2",
                                     trim_offsets=False)
    built.pre_tokenizer = words if split != "llama3" else pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), words])
    built.decoder = decoders.ByteLevel()
    if END in vocabulary:
        built.add_special_tokens([AddedToken(END, normalized=False)])
    return built


def answers(tokenizer: Tokenizer, some: list[str]) -> dict[str, Any]:
    """Return ids, byte offsets and decoded texts."""
    found = tokenizer.encode_batch(some, add_special_tokens=False)
    offsets = []
    for text, encoding in zip(some, found):
        at = [0, *itertools.accumulate(len(char.encode()) for char in text)]
        offsets.append([[at[start], at[end]] for start, end in encoding.offsets])
    ids = [encoding.ids for encoding in found]
    rows = [[(i * 31 + k * 57) % tokenizer.get_vocab_size() for k in range(5)] for i in range(120)]
    return {"ids": ids, "offsets": offsets, "decoded": tokenizer.decode_batch(ids),
            "some_ids": rows, "some_decoded": tokenizer.decode_batch(rows)}


def ranges(name: str) -> str:
    """Return the code points of a class of the library's regular expressions, in hexadecimal."""
    splitter = pre_tokenizers.Split(Regex(f"{name}+"), "removed")
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000
             and not splitter.pre_tokenize_str(chr(code))]
    found: list[list[int]] = []
    for code in codes:
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return " ".join(f"{a:x}" if a == b else f"{a:x}-{b:x}" for a, b in found)


def main() -> None:
    if "--classes" in sys.argv:
        print(ranges(r"\p{L}"), ranges(r"\p{N}"), sep="\n\n")
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = train()
    (FOLDER / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n")
    (FOLDER / "merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    (FOLDER / "texts.json").write_text(json.dumps(texts(), indent=0) + "\n")
    for name, options in VARIANTS.items():
        found = answers(tokenizer_of(vocabulary, merges, **options), texts())
        (FOLDER / f"{name}.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
