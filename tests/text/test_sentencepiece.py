from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.text.codecs import ask_export, decode, encoder
from tf_infer.config import AddedToken, SentencePieceConfig
from tf_infer.errors import CheckpointError
from tf_infer.text.byte_decoding import checked_bytes
from tf_infer.text.pieces import PieceKind, ascii_rules, maps_to_space, no_rules, read_model
from tf_infer.text.sentencepiece import SentencePieceCodec

FOLDER = Path(__file__).resolve().parent.parent / "golden" / "text" / "sentencepiece"
TEXTS: list[str] = json.loads((FOLDER / "texts.json").read_text())
NAMES = sorted(path.stem for path in FOLDER.glob("*.model"))


def build(folder: Path, name: str, config: SentencePieceConfig | None = None
          ) -> SentencePieceCodec:
    shutil.copy(FOLDER / f"{name}.model", folder / "tokenizer.model")
    return SentencePieceCodec(config or SentencePieceConfig(), folder)


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_ids_offsets_and_texts_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    codec, expected = build(tmp_path, name), golden(name)
    tokens = encoder(codec)(tf.constant(TEXTS))
    for found, key in ((tokens.ids, "ids"), (tokens.starts, "starts"), (tokens.ends, "ends")):
        assert found.dtype == tf.int32
        for row, (text, numbers) in enumerate(zip(TEXTS, found.to_list())):
            assert numbers == expected[key][row], (key, ascii(text))
    alone = codec.encode(tf.constant(TEXTS))
    assert alone.ids.to_list() == expected["ids"]
    assert alone.starts is None and alone.ends is None
    assert decode(codec, expected["ids"]) == expected["decoded"]
    assert decode(codec, expected["some_ids"]) == expected["some_decoded"]


def test_a_row_alone_is_the_row_in_a_crowd(tmp_path: Path) -> None:
    codec = build(tmp_path, "unigram")
    for text, ids in list(zip(TEXTS, golden("unigram")["ids"]))[::7]:
        assert codec.encode(tf.constant([text])).ids.to_list() == [ids]


@pytest.mark.parametrize("texts", [[], [""], ["", "", " "]])
def test_empty_batches_and_texts_give_no_ids(texts: list[str], tmp_path: Path) -> None:
    for name in ("unigram", "unigram_bytes", "bpe"):
        codec = build(tmp_path, name)
        for offsets in (False, True):
            tokens = codec.encode(tf.constant(texts, tf.string), offsets=offsets)
            assert tokens.ids.to_list() == [[] for _ in texts]


def test_invalid_utf8_is_read_as_replacement_characters(tmp_path: Path) -> None:
    for name in ("unigram_bytes", "bpe_bytes"):
        codec = build(tmp_path, name)
        broken = codec.encode(tf.constant([b"ab \xff dog", b"\xe4\xb8"]), offsets=True)
        whole = codec.encode(tf.constant(["ab \ufffd dog", "\ufffd"]))
        assert broken.ids.to_list() == whole.ids.to_list()
        assert [ends[-1] for ends in broken.ends.to_list()] == [8, 2]


def test_special_ids_come_from_the_file_unless_configured(tmp_path: Path) -> None:
    codec = build(tmp_path, "unigram_own")
    assert (codec.unknown_id, codec.start_id, codec.end_id, codec.pad_id) == (0, 1, 2, 3)
    assert build(tmp_path, "unigram").pad_id is None
    chosen = build(tmp_path, "unigram", SentencePieceConfig(pad_id=0, start_id=-1, end_id=5))
    assert (chosen.start_id, chosen.end_id, chosen.pad_id) == (None, 5, 0)


def test_added_tokens_are_found_and_the_text_between_is_encoded_by_itself(tmp_path: Path) -> None:
    size = len(read_model((FOLDER / "bpe.model").read_bytes(), where="").pieces)
    added = (AddedToken(text="<|x|>", id=size), AddedToken(text="[y]", id=size + 3, special=False))
    codec = build(tmp_path, "bpe", SentencePieceConfig(added_tokens=added))
    tokens = codec.encode(tf.constant(["the dog<|x|>the[y]"]), offsets=True)
    parts = codec.encode(tf.constant(["the dog", "the"])).ids.to_list()
    assert tokens.ids.to_list() == [[*parts[0], size, *parts[1], size + 3]]
    assert tokens.starts.to_list()[0][-1] == 15 and tokens.ends.to_list()[0][-1] == 18
    assert codec.vocab_size == size + 4
    assert decode(codec, tokens.ids.to_list()) == ["the dog the[y]"]


def test_ids_out_of_range_and_behind_the_length_are_dropped(tmp_path: Path) -> None:
    codec = build(tmp_path, "bpe")
    ids = codec.encode(tf.constant(["the dog"])).ids.to_list()[0]
    rows = tf.constant([[[-1, *ids, 10_000, 7]]])
    assert codec.decode(rows, tf.constant([[len(ids) + 2]])).numpy().tolist() == [[b"the dog"]]


def test_bytes_that_are_no_character_become_one_mark_each() -> None:
    rows = [[0xE4, 0xB8, 0xAD, -1], [0xE4, 0xB8, -1, 0xAD], [0xC0, 0x80, 0xED, 0xA0],
            [0xF0, 0x9F, 0x98, 0x80], [0xC3, 0xC3, 0xA9, 0x41]]
    found = checked_bytes(tf.constant(rows), tf.fill([5, 4], "x"))
    texts = [text.decode() for text in tf.strings.reduce_join(found, axis=1).numpy()]
    assert texts == ["\u4e2dx", "\ufffd\ufffdx\ufffd", "\ufffd" * 4, "\U0001f600", "\ufffd\u00e9A"]


@pytest.mark.parametrize("name", ["unigram", "bpe_bytes"])
def test_the_export_needs_no_file(name: str, tmp_path: Path) -> None:
    source, expected = tmp_path / "source", golden(name)
    source.mkdir()
    for found in ask_export(build(source, name), source, tmp_path / "target", TEXTS):
        assert found == {part: expected[part] for part in ("ids", "starts", "ends")}


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer.model: cannot be read"):
        SentencePieceCodec(SentencePieceConfig(), tmp_path)
    data = (FOLDER / "bpe.model").read_bytes()
    for broken in (b"", b"no model", data[:-5], data[:3000]):
        (tmp_path / "tokenizer.model").write_bytes(broken)
        with pytest.raises(CheckpointError, match="expected a sentencepiece model file"):
            SentencePieceCodec(SentencePieceConfig(), tmp_path)


def test_a_model_file_is_written_as_it_was_read() -> None:
    for name in NAMES:
        model = read_model((FOLDER / f"{name}.model").read_bytes(), where=name)
        again = read_model(model.to_bytes(), where=name)
        assert (again.pieces, again.charsmap, again.kind) == (
            model.pieces, model.charsmap or no_rules(), model.kind)
        assert again.byte_fallback == model.byte_fallback
        assert model.pieces[0].kind == PieceKind.UNKNOWN


def test_rules_are_looked_up_in_the_compiled_table() -> None:
    rules = read_model((FOLDER / "unigram.model").read_bytes(), where="").charsmap
    assert [maps_to_space(rules, char) for char in b"\t\r\nA"] == [True, True, False, False]
    assert not any(maps_to_space(no_rules(), char) for char in range(128))
    assert not maps_to_space(b"", 9)
    assert sorted(ascii_rules(rules)) == [b"\t", b"\r"]
    assert ascii_rules(no_rules()) == ascii_rules(b"") == []
