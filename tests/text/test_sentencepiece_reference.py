"""SentencePiece against the library itself, on real models and models trained here."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.text import hostile
from tests.text.codecs import encoder
from tests.text.test_wordpiece_reference import ROOT, batches, texts_of
from tf_infer.config import SentencePieceConfig
from tf_infer.text.sentencepiece import SentencePieceCodec

SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
GOLDEN = ROOT / "tests" / "golden" / "text" / "sentencepiece"
MODELS = {
    "wmtende": SHARED / "weights" / "tokenizers" / "sp_onmt_wmtende" / "wmtende.model",
    "oss": SHARED / "weights" / "tokenizers" / "sp_tftext_oss" / "test_oss_model.model",
    "stories": SHARED / "weights" / "stories260K" / "tok512_rebuilt.model",
    **{path.stem: path for path in sorted(GOLDEN.glob("*.model"))},
}


def differences(path: Path, texts: list[str], folder: Path) -> tuple[int, int, int]:
    """Return how many texts have other ids, other byte offsets, another decoded text."""
    library = pytest.importorskip("sentencepiece").SentencePieceProcessor(model_file=str(path))
    shutil.copy(path, folder / "tokenizer.model")
    codec = SentencePieceCodec(SentencePieceConfig(), folder)
    quick, full = encoder(codec, offsets=False), encoder(codec)
    wrong = [0, 0, 0]
    for batch in batches(texts):
        expected = library.encode(batch, return_type="proto")
        ids, tokens = quick(tf.constant(batch)).ids, full(tf.constant(batch))
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        decoded = codec.decode(ids.to_tensor(), lengths).numpy()
        rows: Any = zip(expected, ids.to_list(), tokens.ids.to_list(), tokens.starts.to_list(),
                        tokens.ends.to_list(), decoded,
                        library.decode([[p.id for p in one.pieces] for one in expected]))
        for one, quick_ids, full_ids, starts, ends, text, expected_text in rows:
            reference = [piece.id for piece in one.pieces]
            wrong[0] += quick_ids != reference or full_ids != reference
            wrong[1] += list(zip(starts, ends)) != [(p.begin, p.end) for p in one.pieces]
            wrong[2] += text.decode() != expected_text
    return wrong[0], wrong[1], wrong[2]


def model_of(name: str) -> Path:
    if not MODELS[name].exists():
        pytest.skip(f"no {MODELS[name]}: set TF_INFER_SHARED to the folder with weights and data")
    return MODELS[name]


@pytest.mark.oracles
@pytest.mark.parametrize("model", sorted(MODELS))
def test_no_difference_on_hostile_texts(model: str, tmp_path: Path) -> None:
    texts = hostile.texts(1_500, seed=2, long_chars=10_000)
    assert differences(model_of(model), texts, tmp_path) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.oracles
@pytest.mark.parametrize("model", ["wmtende", "oss", "stories", "unigram_bytes"])
@pytest.mark.parametrize("name", ["hostile", "shared", "alone", "inside"])
def test_no_difference_from_the_library(model: str, name: str, tmp_path: Path) -> None:
    assert differences(model_of(model), texts_of(name), tmp_path) == (0, 0, 0)


@pytest.mark.oracles
@pytest.mark.parametrize("model", ["wmtende", "oss", "unigram_bytes"])
def test_no_difference_on_long_words_of_random_letters(model: str, tmp_path: Path) -> None:
    # Up to the 100,000 nats where the library begins to round in another way: see text/unigram.py.
    draw = random.Random(4)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=10_000)) for _ in range(4)]
    assert differences(model_of(model), words, tmp_path) == (0, 0, 0)
