"""A tokenizer with fewer ids: given texts keep theirs, and every other text still encodes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.text.codecs import decode
from tf_infer.config import (
    AddedToken,
    BytePairConfig,
    BytesConfig,
    CodecConfig,
    SentencePieceConfig,
    WordPieceConfig,
)
from tf_infer.errors import ConfigError
from tf_infer.text.build import build
from tf_infer.text.contracts import TextCodec
from tf_infer.text.fewer_ids import needed, rewrite

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "text"
WORDS = (GOLDEN / "wordpiece/vocab.txt").read_bytes().decode().split("\n")
END = "<|endoftext|>"
END_ID = json.loads((GOLDEN / "bytepair/vocab.json").read_text())[END]
PAIRS = BytePairConfig(added_tokens=(AddedToken(text=END, id=END_ID),))
# kind -> configuration, and the folder or the one file it reads
CODECS: dict[str, tuple[CodecConfig, str]] = {
    "wordpiece": (WordPieceConfig(added_tokens=tuple(
        AddedToken(text=text, id=WORDS.index(text))
        for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))), "wordpiece"),
    "bytepair": (PAIRS, "bytepair"),
    "unigram": (SentencePieceConfig(), "sentencepiece/unigram.model"),
    "unigram_bytes": (SentencePieceConfig(start_id=1), "sentencepiece/unigram_bytes.model"),
    "bpe": (SentencePieceConfig(), "sentencepiece/bpe.model"),
    "bpe_bytes": (SentencePieceConfig(), "sentencepiece/bpe_bytes.model"),
}
TEXTS: list[str] = json.loads((GOLDEN / "sentencepiece/texts.json").read_text())
GIVEN = TEXTS[::3]


def folder_of(kind: str, scratch: Path) -> Path:
    """Return a folder with the files of a codec."""
    source = GOLDEN / CODECS[kind][1]
    if source.is_dir():
        return source
    scratch.mkdir()
    shutil.copy(source, scratch / "tokenizer.model")
    return scratch


def fewer(kind: str, scratch: Path) -> tuple[TextCodec, TextCodec, np.ndarray]:
    """Return a codec, the one for GIVEN, and which id of the first each id of that is."""
    config, folder = CODECS[kind][0], folder_of(kind, scratch / "whole")
    whole = build(config, folder)
    used = set(whole.encode(tf.constant(GIVEN)).ids.values.numpy().tolist())
    kept = needed(config, folder, used)
    target = scratch / "fewer"
    target.mkdir()
    return whole, build(rewrite(config, folder, kept, target), target), np.array(kept)


@pytest.mark.parametrize("kind", CODECS)
def test_given_texts_keep_their_ids_and_other_texts_their_characters(
        kind: str, tmp_path: Path) -> None:
    whole, small, kept = fewer(kind, tmp_path)
    assert small.vocab_size == len(kept) < whole.vocab_size
    for old, new in zip(whole.encode(tf.constant(GIVEN)).ids.to_list(),
                        small.encode(tf.constant(GIVEN)).ids.to_list()):
        assert kept[new].tolist() == old
    for name in ("pad_id", "start_id", "end_id", "unknown_id"):
        old_id, new_id = getattr(whole, name), getattr(small, name)
        assert (None if new_id is None else kept[new_id]) == old_id
    ids = [codec.encode(tf.constant(TEXTS)).ids.to_list() for codec in (whole, small)]
    if kind == "unigram":  # what has no piece is one unknown id, longer or shorter
        return
    unknown = [[row.count(codec.unknown_id) for row in rows]
               for codec, rows in zip((whole, small), ids)]
    assert unknown[1] == unknown[0]
    assert decode(small, ids[1]) == decode(whole, ids[0])


def test_a_vocabulary_that_is_used_as_a_whole_stays_as_it_is(tmp_path: Path) -> None:
    config, folder = CODECS["bytepair"][0], GOLDEN / "bytepair"
    every = range(build(config, folder).vocab_size)
    kept = needed(config, folder, every)
    assert kept == tuple(every)
    assert rewrite(config, folder, kept, tmp_path) == config
    for name in ("vocab.json", "merges.txt"):
        read = [[line for line in (place / name).read_text().split("\n")
                 if not line.startswith("#version")] for place in (folder, tmp_path)]
        if name == "vocab.json":
            assert json.loads("".join(read[0])) == json.loads("".join(read[1]))
        else:
            assert read[0] == read[1]


def test_a_piece_with_a_character_of_no_other_piece_stays(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n##b\nab\nzq\n##c\nabc\n[unused1]\n", encoding="utf-8")
    # "abc" and "ab" can be spelled, "zq" cannot, and no text gives "[unused1]".
    assert needed(WordPieceConfig(), tmp_path, set()) == (0, 1, 2, 3, 4, 5, 7, 8)


def test_what_is_joined_on_the_way_stays(tmp_path: Path) -> None:
    words = ["a", "b", "c", "d", "ab", "cd", "abcd", "bc", END]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("a b\nc d\nb c\nab cd\n")
    config = BytePairConfig(added_tokens=(AddedToken(text=END, id=8),))
    kept = needed(config, tmp_path, {words.index("abcd")})
    assert [words[number] for number in kept] == ["a", "b", "c", "d", "ab", "cd", "abcd", END]


def test_bytes_have_no_vocabulary_to_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocabulary: expected a tokenizer with a vocabulary"):
        needed(BytesConfig(), tmp_path, {3})
