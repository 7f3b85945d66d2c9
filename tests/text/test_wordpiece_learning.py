"""Learning a WordPiece vocabulary."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tf_infer.config import WordPieceConfig
from tf_infer.errors import DataError
from tf_infer.text.wordpiece_learning import learn_wordpiece, split_words

TEXTS = ["low low low low low", "lower lower", "newest newest newest newest newest newest",
         "widest widest widest", "你好, Café!"]
CONFIG = WordPieceConfig()


def slowly(texts: list[str], joins: int) -> list[str]:
    """The same by counting every pair anew for every join."""
    words = Counter(word for text in texts for word in split_words(text, CONFIG))
    pieces = {word: [word[0], *("##" + char for char in word[1:])] for word in words}
    found = []
    for _ in range(joins):
        totals: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                totals[pair] += words[word]
        best = min(totals, key=lambda pair: (-totals[pair], pair))
        if totals[best] < 2:
            break
        joined = best[0] + best[1].removeprefix("##")
        found.append(joined)
        for parts in pieces.values():
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == best:
                    parts[place:place + 2] = [joined]
                place += 1
    return found


def learned(texts: list[str], folder: Path, size: int) -> list[str]:
    return learn_wordpiece(texts, folder, vocab_size=size).read_text("utf-8").splitlines()


def test_special_tokens_characters_and_joins_come_in_this_order(tmp_path: Path) -> None:
    tokens = learned(TEXTS, tmp_path / "new", 1_000)
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"你", "好", "c", "##e", "!", ","} <= set(tokens)
    joins = slowly(TEXTS, 100)
    assert tokens[-len(joins):] == joins
    assert {"low", "newest", "widest", "##est"} <= set(tokens)
    assert len(tokens) == len(set(tokens))


def test_many_words_give_the_same_joins_as_counting_anew(tmp_path: Path) -> None:
    texts = [Path(__file__).read_text("utf-8")]
    tokens = learned(texts, tmp_path, 250)
    assert len(tokens) == 250
    joins = list(dict.fromkeys(slowly(texts, 250)))
    first = tokens.index(joins[0])
    assert tokens[first:] == joins[:250 - first]


def test_the_size_is_kept_and_too_small_a_one_refused(tmp_path: Path) -> None:
    assert len(learned(TEXTS, tmp_path, 32)) == 32
    with pytest.raises(DataError, match=r"vocab_size: expected at least \d+"):
        learn_wordpiece(TEXTS, tmp_path, vocab_size=10)
    with pytest.raises(DataError, match="at least one word"):
        learn_wordpiece([" ", "\0"], tmp_path, vocab_size=100)


def test_words_are_split_as_the_tokenizer_splits_them() -> None:
    assert split_words("Café's\u200b 你好\x00_x", CONFIG) == [
        "cafe", "'", "s", "你", "好", "_", "x"]
    cased = WordPieceConfig(lowercase=False, strip_accents=False, split_chinese=False)
    assert split_words("Café 你好", cased) == ["Café", "你好"]
