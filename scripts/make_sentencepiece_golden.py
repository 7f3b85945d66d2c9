"""Write tests/golden/text/sentencepiece: small models, and the library's answers to hostile texts.

Needs the extra `oracles`.

    python -m scripts.make_sentencepiece_golden
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece

from tests.text import hostile

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "golden" / "text" / "sentencepiece"
RULES = "9\t20\nD\t20\nFF21\t41\n65 301\tE9\n200B\t\nA8\t20 308\nFB01\t66 69\n3000\t20\n"
OWN = {"user_defined_symbols": ["<sep>", "foo bar", "ab"], "control_symbols": ["<cls>"]}
MODELS: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram", "normalization_rule_tsv": RULES},
    "unigram_bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram_suffix": {"model_type": "unigram", "treat_whitespace_as_suffix": True},
    "unigram_spaces": {"model_type": "unigram", "remove_extra_whitespaces": False,
                       "add_dummy_prefix": False, "normalization_rule_tsv": RULES},
    "unigram_own": {"model_type": "unigram", "pad_id": 3, **OWN},
    "bpe": {"model_type": "bpe", "normalization_rule_tsv": RULES},
    "bpe_bytes": {"model_type": "bpe", "byte_fallback": True, "remove_extra_whitespaces": False},
    "bpe_suffix": {"model_type": "bpe", "treat_whitespace_as_suffix": True, **OWN},
}
WORDS = ("the quick brown fox jumps over the lazy dog and the dog sleeps on the mat "
         "where is my order it has not arrived and i would like to have my money back "
         "please cancel the card that was stolen from my bag in the train yesterday "
         "cafe\u0301 na\u00efve \u4e2d\u6587\u5b57 \u4e2d\u6587 1234567890 111 333 5,000 ... -- !! "
         "don't we're i'll abc ab foo bar able unable table stable")
CORPUS = WORDS.split(" ")


def texts() -> list[str]:
    """Return the texts of the answers, none longer than 200 characters."""
    mixed = [text for text in hostile.texts(60, seed=4, long_chars=0) if len(text) <= 120]
    return [*mixed, "333 1111 \u4e2d33333", "\u2581", "a\u2581\u2581b \u2581",
            "  a \t\n b  ", "\r\n", "the dog\u200b sleeps", "\U0001f600\U0001f600 ab",
            "foo bar<sep>foo", "<s></s><unk><0x41>", "cafe\u0301 \uff21\u3000\ufb01",
            " \u00a8x\u00a8 ",
            "\x00a\x00"]


def train(options: dict[str, Any], folder: Path) -> bytes:
    """Return a model file; the same options give the same bytes."""
    size = len(CORPUS)
    lines = [" ".join(CORPUS[i % size:] + CORPUS[:i % size]) for i in range(0, 400, 7)]
    lines += [" ".join(CORPUS[(i * k) % size] for k in range(12)) for i in range(200)]
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    options = {"normalization_rule_name": "identity", **options}
    if "normalization_rule_tsv" in options:
        (folder / "rules.tsv").write_text(options["normalization_rule_tsv"], encoding="utf-8")
        options["normalization_rule_tsv"] = str(folder / "rules.tsv")
        options.pop("normalization_rule_name")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"), model_prefix=str(folder / "model"), num_threads=1,
        vocab_size=420 if options.get("byte_fallback") else 170, hard_vocab_limit=False,
        minloglevel=2, **options)
    return (folder / "model.model").read_bytes()


def answers(data: bytes) -> dict[str, Any]:
    """Return what the library makes of `texts()` with a model."""
    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    found = library.encode(texts(), return_type="proto")
    ids = [[piece.id for piece in text.pieces] for text in found]
    some = [[(7 * i + k * k) % library.vocab_size() for k in range(6)] for i in range(60)]
    some += [[(i * 37 + k * 91) % 256 + 3 for k in range(5)] for i in range(60)]
    some = [row for row in some if max(row) < library.vocab_size()]
    return {"ids": ids,
            "starts": [[piece.begin for piece in text.pieces] for text in found],
            "ends": [[piece.end for piece in text.pieces] for text in found],
            "decoded": library.decode(ids), "some_ids": some, "some_decoded": library.decode(some)}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "texts.json").write_text(json.dumps(texts(), indent=0) + "\n")
    for name, options in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            data = train(options, Path(folder))
        (FOLDER / f"{name}.model").write_bytes(data)
        (FOLDER / f"{name}.json").write_text(
            json.dumps(answers(data), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
