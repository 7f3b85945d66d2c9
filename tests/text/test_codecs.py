"""What all codecs have in common: bad ids, bad shapes, quiet loading."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.text.test_rows import CONFIGS, GOLDEN, codec  # noqa: F401
from tf_infer.config import BytePairConfig, CodecConfig, SentencePieceConfig
from tf_infer.errors import ShapeError
from tf_infer.text.build import build
from tf_infer.text.contracts import TextCodec

WRONG_IDS = (-1, -(2**31), 2**31 - 1, 1_000_000)


def test_wrong_ids_are_dropped_in_the_graph(codec: TextCodec) -> None:  # noqa: F811
    decode = tf.function(codec.decode, input_signature=[
        tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)], autograph=False)
    (ids,) = codec.encode(tf.constant(["ab ab"])).ids.to_list()
    (text,) = decode(tf.constant([ids]), tf.constant([len(ids)])).numpy()
    mixed = [*WRONG_IDS, codec.vocab_size, *ids, *WRONG_IDS]
    rows = tf.constant([mixed, [*WRONG_IDS] + [0] * (len(mixed) - 4)])
    assert text and decode(rows, tf.constant([len(mixed), 4])).numpy().tolist() == [text, b""]
    # No length may point behind the row.
    assert decode(rows, tf.constant([10_000, -3])).numpy().tolist() == [text, b""]
    assert decode(tf.zeros([2, 0], tf.int32), tf.constant([0, 0])).numpy().tolist() == [b"", b""]


def test_spellings_are_what_ids_add_to_a_text_that_has_begun(codec: TextCodec) -> None:  # noqa: F811
    (ids,) = codec.encode(tf.constant(["ab ab é 中 🙂 a"])).ids.to_list()
    spellings = codec.spellings().numpy().tolist()
    assert len(spellings) == codec.vocab_size
    first, whole = codec.decode(tf.constant([ids, ids]), tf.constant([1, len(ids)])).numpy()
    assert first + b"".join(spellings[i] for i in ids[1:]) == whole
    assert first and spellings[ids[0]].endswith(first)
    for special in (codec.pad_id, codec.start_id, codec.end_id):
        assert special is None or spellings[special] == b""


def test_the_bytes_of_random_ids_joined_are_their_text(codec: TextCodec) -> None:  # noqa: F811
    table = codec.token_bytes()
    assert len(table.tokens) == len(table.first) == codec.vocab_size
    draws = np.random.default_rng(3).integers(-2, codec.vocab_size + 2, size=(200, 8))
    texts = codec.decode(tf.constant(draws, tf.int32), tf.fill([len(draws)], 8)).numpy()
    whole = 0
    for ids, text in zip(draws.tolist(), texts):
        joined = table.join(ids)
        if "\ufffd".encode() not in text:
            assert joined == text
            # Behind other ids: what the text grows by.
            before = table.join(ids[:4])
            assert before + table.join(ids[4:], at_start=table.at_start(ids[:4])) == text
            whole += 1
    assert whole > 20


# Somebody else's tf.function converts our code by autograph, which takes seconds; ours do not.
@pytest.mark.parametrize("autograph", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_texts_of_another_rank_are_refused(codec: TextCodec, autograph: bool) -> None:  # noqa: F811
    for texts in (tf.constant("ab"), tf.constant([["ab"]])):
        with pytest.raises(ShapeError, match=r"texts: expected a vector of strings, got shape"):
            codec.encode(texts, offsets=True)
    encode = tf.function(lambda texts: codec.encode(texts).ids.to_tensor(),
                         input_signature=[tf.TensorSpec(None, tf.string)], autograph=autograph)
    for texts in (tf.constant("ab"), tf.constant([["ab"]])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with"):
            encode(texts)


@pytest.mark.parametrize("config", [CONFIGS["unigram_bytes"], BytePairConfig(end_token=None),
                                    SentencePieceConfig()], ids=["unigram", "bytepair", "bpe"])
def test_loading_prints_nothing(config: CodecConfig, tmp_path: Path,
                                capfd: pytest.CaptureFixture[str]) -> None:
    folder = GOLDEN / "bytepair"
    if isinstance(config, SentencePieceConfig):
        folder, name = tmp_path, "bpe_bytes" if config == SentencePieceConfig() else "unigram_bytes"
        shutil.copy(GOLDEN / "sentencepiece" / f"{name}.model", folder / "tokenizer.model")
    build(config, folder).encode(tf.constant(["ab", "é"]), offsets=True)
    assert "normalizer.cc" not in capfd.readouterr().err
