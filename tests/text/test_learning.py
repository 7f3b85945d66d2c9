"""Learning a SentencePiece model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_infer.errors import DataError
from tf_infer.text.learning import learn_sentencepiece

sentencepiece = pytest.importorskip("sentencepiece")
TEXTS = ["where is my parcel?", "我的包裹到哪儿了？", "I want my money back, please."] * 5


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
