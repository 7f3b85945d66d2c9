from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import tensorflow as tf

import tf_infer
from tf_infer.config import WordPieceConfig
from tf_infer.errors import CheckpointError, ConfigError, DataError
from tf_infer.text import vocabulary
from tf_infer.text.vocabulary import learn_vocabulary
from tf_infer.text.wordpiece import WordPieceCodec

MESSAGES = Path(tf_infer.__file__).parent / "data" / "support" / "train.jsonl"


def messages() -> list[str]:
    with MESSAGES.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def test_learned_words_are_found_again_by_the_codec(tmp_path: Path) -> None:
    texts = messages()
    tokens = learn_vocabulary(texts, 1500)
    assert tokens == learn_vocabulary(reversed(texts), 1500)
    assert tokens[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert 1000 < len(tokens) <= 1500 and len(set(tokens)) == len(tokens)
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    codec = WordPieceCodec(WordPieceConfig(), tmp_path)
    ids = Counter(codec.encode(tf.constant(texts)).ids.values.numpy().tolist())
    assert codec.unknown_id is not None
    assert ids[codec.unknown_id] < 0.01 * ids.total()
    # Whole frequent words, so that a text is not a row of letters.
    assert ids.total() < 0.5 * sum(len(text) for text in texts)


def test_words_are_normalised_and_no_token_is_useless() -> None:
    tokens = learn_vocabulary(["Café CAFÉ, 中文中文! naïve?"] * 3, 60)
    assert "cafe" in tokens and "中" in tokens and "!" in tokens
    assert not {"##!", "##中", "中文", "é", "C"} & set(tokens)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(DataError, match="at least one word"):
        learn_vocabulary(["", " \x00"], 100)
    with pytest.raises(ConfigError, match="size"):
        learn_vocabulary(["a"], 3)


def test_lines_may_end_in_carriage_return_and_hold_odd_separators(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("a\r\nb\u2028c\r\n\r\n\x85\n".encode())
    assert vocabulary.read(path) == ["a", "b\u2028c", "", "\x85"]
    path.write_bytes(b"\xff\n")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        vocabulary.read(path)
