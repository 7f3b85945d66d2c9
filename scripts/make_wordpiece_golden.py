"""Write tests/golden/text/wordpiece: a small vocabulary, and tokenizers' answers to hostile texts.

Needs the extra `oracles`.

    python -m scripts.make_wordpiece_golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.text import hostile

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "text" / "wordpiece"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VARIANTS: dict[str, dict[str, Any]] = {
    "uncased": {},
    "cased": {"lowercase": False, "strip_accents": False},
    "keep_accents": {"strip_accents": False},
    "strip_only": {"lowercase": False},
    "whole_chinese": {"handle_chinese_chars": False},
    "unclean": {"clean_text": False, "strip_accents": False},
}
ADDED: list[dict[str, Any]] = [
    {"content": "<Mask>", "lstrip": True, "normalized": False},
    {"content": "un", "single_word": True, "normalized": False},
    {"content": "The", "normalized": True, "rstrip": True},
    {"content": "中文", "normalized": True},
    {"content": "É", "normalized": True, "single_word": True},
]


def vocabulary() -> list[str]:
    """Return characters of every kind, alone and inside words, and some pieces of several."""
    chars = sorted({char for pool in hostile.POOLS for text in pool for char in text
                    if char.isprintable() and char != " "})
    some = chars[::3] + list("abcdefghijklmnopqrstuvwxyzABCDE0123456789!?.,'#-éßσςı中文字々½①")
    words = ["the", "The", "un", "##able", "don", "##ab", "##e\u0301", "e\u0301", "中文", "##中",
             "abc", "##ij", "\u1100\u1161", "##\u11ab", "##\u1161", "[x]", "##'", "a b", "", "##",
             "#", "'", "t", "s", "㐀", "##㐀", "豈", "､", "##､", "\u2028", "i\u0307", "able"]
    tokens = SPECIAL + words + [token for char in some for token in (char, f"##{char}")]
    return list(dict.fromkeys(tokens))


def tokenizer(tokens: list[str], options: dict[str, Any]) -> Tokenizer:
    """Return Hugging Face's BERT tokenizer over `tokens`."""
    built = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)},
                                       unk_token="[UNK]", max_input_chars_per_word=100))
    built.normalizer = normalizers.BertNormalizer(**{
        "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
        "lowercase": True, **options})
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    built.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    built.add_special_tokens([token for token in SPECIAL if token in tokens])
    return built


def byte_offsets(text: str, spans: list[tuple[int, int]]) -> list[list[int]]:
    """Return spans of characters as spans of UTF-8 bytes."""
    at = [0]
    for char in text:
        at.append(at[-1] + len(char.encode()))
    return [[at[first], at[last]] for first, last in spans]


def answers(built: Tokenizer, texts: list[str]) -> dict[str, Any]:
    encoded = [built.encode(text, add_special_tokens=False) for text in texts]
    return {"ids": [item.ids for item in encoded],
            "offsets": [byte_offsets(text, item.offsets) for text, item in zip(texts, encoded)],
            "decoded": [built.decode(item.ids, skip_special_tokens=True) for item in encoded]}


def main() -> None:
    tokens = vocabulary()
    texts = hostile.texts(60, seed=7, long_chars=0)
    texts += ["Unable to do not say 'tis don't, I've you're it's I'm here . ! ? , ' .",
              "The <Mask> the  <Mask>un un. 中文 中文x É é e\u0301 éa THE unthe", "[x] [CLS]a[SEP]"]
    golden: dict[str, Any] = {"texts": texts, "options": VARIANTS, "added": ADDED}
    for name, options in VARIANTS.items():
        golden[name] = answers(tokenizer(tokens, options), texts)
    built = tokenizer(tokens, {})
    built.add_tokens([AddedToken(**token) for token in ADDED])
    golden["added_ids"] = [built.token_to_id(token["content"]) for token in ADDED]
    golden["with_added"] = answers(built, texts)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "vocab.txt").write_bytes("".join(f"{token}\n" for token in tokens).encode())
    (FOLDER / "answers.json").write_text(
        json.dumps(golden, separators=(",", ":"), ensure_ascii=True), encoding="utf-8")


if __name__ == "__main__":
    main()
