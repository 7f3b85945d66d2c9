from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.text import hostile
from tests.text.codecs import ask_export, encoder
from tf_infer.config import AddedToken, WordPieceConfig
from tf_infer.errors import CheckpointError
from tf_infer.text.contracts import Tokens
from tf_infer.text.wordpiece import WordPieceCodec

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "text" / "wordpiece"
GOLDEN = json.loads((FOLDER / "answers.json").read_text(encoding="utf-8"))
TOKENS = (FOLDER / "vocab.txt").read_bytes().decode().split("\n")
SPECIAL = tuple(AddedToken(text=text, id=TOKENS.index(text))
                for text in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))
ADDED = tuple(
    AddedToken(text=token["content"], id=number, special=False,
               left_strip=token.get("lstrip", False), right_strip=token.get("rstrip", False),
               single_word=token.get("single_word", False), normalized=token["normalized"])
    for token, number in zip(GOLDEN["added"], GOLDEN["added_ids"]))


def config(options: dict[str, Any], added: tuple[AddedToken, ...] = ()) -> WordPieceConfig:
    lowercase = options.get("lowercase", True)
    return WordPieceConfig(
        clean_text=options.get("clean_text", True), lowercase=lowercase,
        strip_accents=options.get("strip_accents", lowercase),
        split_chinese=options.get("handle_chinese_chars", True), added_tokens=(*SPECIAL, *added))


@pytest.fixture(scope="module")
def uncased() -> WordPieceCodec:
    return WordPieceCodec(config({}), FOLDER)


@pytest.fixture(scope="module")
def encode(uncased: WordPieceCodec) -> Callable[[tf.Tensor], Tokens]:
    return encoder(uncased)


def pairs_of(starts: list[list[int]], ends: list[list[int]]) -> list[list[list[int]]]:
    return [[[s, e] for s, e in zip(*row)] for row in zip(starts, ends)]


def spans(tokens: Tokens) -> list[list[list[int]]]:
    assert tokens.starts is not None and tokens.ends is not None
    return pairs_of(tokens.starts.to_list(), tokens.ends.to_list())


@pytest.mark.parametrize(("name", "graph"), [  # the graph of with_added is exported below
    *((name, False) for name in (*GOLDEN["options"], "with_added")), ("uncased", True)])
def test_ids_offsets_and_texts_are_those_of_tokenizers(
        name: str, graph: bool, encode: Callable[[tf.Tensor], Tokens]) -> None:
    codec = WordPieceCodec(
        config(GOLDEN["options"].get(name, {}), ADDED if name == "with_added" else ()), FOLDER)
    expected = GOLDEN[name]
    texts = tf.constant(GOLDEN["texts"])
    tokens = encode(texts) if graph else codec.encode(texts, offsets=True)
    rows = zip(GOLDEN["texts"], tokens.ids.to_list(), spans(tokens))
    for row, (text, ids, pairs) in enumerate(rows):
        assert ids == expected["ids"][row], ascii(text)
        assert pairs == expected["offsets"][row], ascii(text)
    decoded = codec.decode(tokens.ids.to_tensor(), tokens.ids.row_lengths())
    assert [text.decode() for text in decoded.numpy()] == expected["decoded"]


def test_ids_are_the_same_without_offsets(uncased: WordPieceCodec) -> None:
    tokens = encoder(uncased, offsets=False)(tf.constant(GOLDEN["texts"]))
    assert tokens.ids.to_list() == GOLDEN["uncased"]["ids"]
    assert tokens.starts is None and tokens.ends is None


anything = st.lists(st.one_of(
    st.binary(max_size=12), st.text(max_size=12).map(str.encode),
    st.sampled_from([text.encode() for pool in hostile.POOLS for text in pool])), max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(anything.map(b"".join), max_size=5))
def test_offsets_ascend_inside_the_text_and_a_row_is_the_same_alone(
        encode: Callable[[tf.Tensor], Tokens], uncased: WordPieceCodec, rows: list[bytes]) -> None:
    tokens = encode(tf.constant(rows, tf.string, shape=[len(rows)]))
    assert tokens.ids.nrows() == len(rows)
    for row, ids, pairs in zip(rows, tokens.ids.to_list(), spans(tokens)):
        alone = encode(tf.constant([row]))
        assert alone.ids.to_list() == [ids]
        assert spans(alone) == [pairs]
        assert all(0 <= start < end <= len(row) for start, end in pairs)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(pairs))
        assert all(0 <= number < uncased.vocab_size for number in ids)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=16), min_size=1, max_size=4))
def test_invalid_utf8_is_read_as_replacement_characters(
        encode: Callable[[tf.Tensor], Tokens], rows: list[bytes]) -> None:
    repaired = [row.decode("utf-8", "replace").encode() for row in rows]
    assert encode(tf.constant(rows)).ids.to_list() == encode(tf.constant(repaired)).ids.to_list()


def test_a_nul_byte_does_not_cut_the_text(encode: Callable[[tf.Tensor], Tokens]) -> None:
    with_nul, without = encode(tf.constant(["the\x00 un the", "the un the"])).ids.to_list()
    assert with_nul == without


@pytest.mark.parametrize("rows", [[], [b""], [b"", b"the", b""]])
def test_empty_batches_and_empty_texts(
        encode: Callable[[tf.Tensor], Tokens], uncased: WordPieceCodec, rows: list[bytes]) -> None:
    tokens = encode(tf.constant(rows, tf.string, shape=[len(rows)]))
    assert [bool(ids) for ids in tokens.ids.to_list()] == [bool(row) for row in rows]
    decoded = uncased.decode(tokens.ids.to_tensor(), tokens.ids.row_lengths())
    assert decoded.numpy().tolist() == rows


def test_decode_drops_special_ids_and_ids_out_of_range(uncased: WordPieceCodec) -> None:
    the, able = TOKENS.index("the"), TOKENS.index("##able")
    ids = tf.constant([[uncased.start_id, the, -1, able, 10**6, uncased.end_id, the, the]])
    assert uncased.decode(ids, tf.constant([7])).numpy().tolist() == [b"theable the"]


def test_an_export_works_without_the_vocabulary_file(tmp_path: Path) -> None:
    source, target, expected = tmp_path / "tokenizer", tmp_path / "model", GOLDEN["with_added"]
    shutil.copytree(FOLDER, source)
    codec = WordPieceCodec(config({}, ADDED), source)
    for found in ask_export(codec, source, target, GOLDEN["texts"]):
        assert found["ids"] == expected["ids"]
        assert pairs_of(found["starts"], found["ends"]) == expected["offsets"]
    assert (target / "assets" / "vocab.txt").read_bytes() == (FOLDER / "vocab.txt").read_bytes()


def test_a_missing_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vocab\.txt: expected a vocabulary"):
        WordPieceCodec(config({}), tmp_path)


def test_an_empty_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty file"):
        WordPieceCodec(config({}), tmp_path)


def test_a_vocabulary_without_the_unknown_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n[CLS]\n[SEP]\nthe\n")
    with pytest.raises(CheckpointError, match="unknown_token"):
        WordPieceCodec(WordPieceConfig(), tmp_path)
