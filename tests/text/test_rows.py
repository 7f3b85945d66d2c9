from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from tf_infer.config import (
    AddedToken,
    BytePairConfig,
    BytesConfig,
    CodecConfig,
    PackingConfig,
    SentencePieceConfig,
    ShapeGrid,
    WordPieceConfig,
)
from tf_infer.text.build import build
from tf_infer.text.contracts import TextCodec
from tf_infer.text.packing import pack, windows
from tf_infer.text.rows import row_ids, spread

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "text"
ADDED = (AddedToken(text="<x>", id=5_000),)
CONFIGS: dict[str, CodecConfig] = {
    "bytes": BytesConfig(),
    "wordpiece": WordPieceConfig(added_tokens=ADDED),
    "bytepair": BytePairConfig(end_token=None, added_tokens=ADDED),
    "unigram_bytes": SentencePieceConfig(added_tokens=ADDED),
    "bpe": SentencePieceConfig(added_tokens=ADDED),
}
SHORT_ROWS, LONG_CHARS = 3_000, 100_000
# One byte for each place of rows x longest row would be 300 MB, row numbers eight times that.
MORE_MB = 150


@pytest.fixture(scope="module", params=list(CONFIGS))
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    name = request.param
    folder = GOLDEN / name
    if name in ("unigram_bytes", "bpe"):
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(GOLDEN / "sentencepiece" / f"{name}.model", folder / "tokenizer.model")
    return build(CONFIGS[name], folder)


def peak_mb(call: Callable[[], object]) -> float:
    """Return how far above its start the process went in memory during `call`."""
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        pytest.skip("needs Linux: the peak of a call is read from /proc")

    def read(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))

    reset.write_text("5")
    before = read("VmRSS")
    call()
    return read("VmHWM") - before


def test_row_ids_are_those_of_tensorflow() -> None:
    for lengths in ([], [0], [3], [0, 2, 0, 0, 1, 0]):
        ragged = tf.RaggedTensor.from_row_lengths(tf.zeros([sum(lengths)]), tf.constant(
            lengths, tf.int64))
        assert row_ids(ragged.row_splits).numpy().tolist() == (
            ragged.value_rowids().numpy().tolist())


def test_spread_counts_places_of_each_item() -> None:
    item, number = spread(tf.constant([2, 0, 3]))
    assert (item.numpy().tolist(), number.numpy().tolist()) == ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2])
    assert [x.shape for x in spread(tf.zeros([0], tf.int64))] == [[0], [0]]


@pytest.mark.parametrize("part", ["ab cd<x> ", "αβ é ", "ab\udcff<x> "])
def test_one_long_row_takes_memory_of_its_own_length_only(codec: TextCodec, part: str) -> None:
    long = part.encode("utf-8", "surrogateescape") * (LONG_CHARS // len(part))
    texts = tf.constant([b"a short row"] * SHORT_ROWS + [long])
    grid = ShapeGrid(rows=(4,), tokens=(32,))

    def call() -> None:
        tokens = codec.encode(texts, offsets=True)
        pack(tokens, codec, PackingConfig(max_tokens=32, start=False, end=False), grid)
        windows(tokens, size=30, overlap=4)

    assert peak_mb(call) < MORE_MB
