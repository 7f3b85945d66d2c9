"""Learning a tokenizer's files from texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import tensorflow as tf

import tf_infer
from tf_infer.config import WordPieceConfig
from tf_infer.errors import ConfigError, DataError
from tf_infer.text import vocabulary
from tf_infer.text.learning import learn_sentencepiece, learn_wordpiece
from tf_infer.text.wordpiece import WordPieceCodec

sentencepiece = pytest.importorskip("sentencepiece")
TEXTS = ["where is my parcel?", "我的包裹到哪儿了？", "I want my money back, please."] * 5
MESSAGES = Path(tf_infer.__file__).parent / "data" / "support" / "train.jsonl"


def messages() -> list[str]:
    with MESSAGES.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def learned(texts: Iterable[str], folder: Path, size: int, config: WordPieceConfig | None = None
            ) -> list[str]:
    return vocabulary.read(learn_wordpiece(texts, folder, vocab_size=size, config=config))


# ---------------------------------------------------------------------------- SentencePiece


def test_a_model_reads_and_writes_any_text_and_has_the_stated_ids(tmp_path: Path) -> None:
    path = learn_sentencepiece(TEXTS, tmp_path / "new", vocab_size=320)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id()) == (0, 1, 2, 3)
    assert model.get_piece_size() <= 320
    for text in ("where is my money?", "ｆｕｌｌ，宽", "naïve \U0001f600"):
        assert model.decode(model.encode(text)) == text


def test_the_same_texts_give_the_same_file(tmp_path: Path) -> None:
    files = [learn_sentencepiece(TEXTS, tmp_path / name, vocab_size=320) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"at least [0-9]{3} for the characters"):
        learn_sentencepiece(TEXTS, tmp_path, vocab_size=100)
    with pytest.raises(DataError, match="texts: expected at least one"):
        learn_sentencepiece([], tmp_path, vocab_size=320)


# ---------------------------------------------------------------------------- WordPiece


def test_learned_words_are_found_again_by_the_codec(tmp_path: Path) -> None:
    texts = messages()
    tokens = learned(texts, tmp_path / "new", 1500)
    assert tokens == learned(reversed(texts), tmp_path, 1500)
    assert tokens[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert 1000 < len(tokens) <= 1500 and len(set(tokens)) == len(tokens)
    codec = WordPieceCodec(WordPieceConfig(), tmp_path)
    ids = Counter(codec.encode(tf.constant(texts)).ids.values.numpy().tolist())
    assert codec.unknown_id is not None
    assert ids[codec.unknown_id] < 0.01 * ids.total()
    # Whole frequent words, so that a text is not a row of letters.
    assert ids.total() < 0.5 * sum(len(text) for text in texts)


def test_words_are_normalised_and_no_token_is_useless(tmp_path: Path) -> None:
    texts = ["Café CAFÉ, 中文中文! naïve?"] * 3
    tokens = learned(texts, tmp_path, 80)
    assert "cafe" in tokens and "中" in tokens and "!" in tokens
    assert not {"##!", "##中", "中文", "é", "C"} & set(tokens)
    cased = WordPieceConfig(lowercase=False, strip_accents=False)
    assert {"Café", "CAFÉ"} <= set(learned(texts, tmp_path, 80, cased))


def test_wordpiece_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one word"):
        learn_wordpiece(["", " \x00"], tmp_path, vocab_size=100)
    with pytest.raises(ConfigError, match="vocab_size: expected more than 5"):
        learn_wordpiece(["a"], tmp_path, vocab_size=3)
    with pytest.raises(DataError, match="at least 108 for the 26 characters") as caught:
        learn_wordpiece(["the quick brown fox jumps over the lazy dog"], tmp_path, vocab_size=40)
    assert "quick" not in str(caught.value)
    assert "quick" in learned(["the quick brown fox jumps over the lazy dog"], tmp_path, 108)
