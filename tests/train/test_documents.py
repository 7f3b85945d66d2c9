"""A decoder's documents: what is held out of them, and that training reads what serving sees."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from tf_infer.config import (
    CausalLMConfig,
    PackingConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TrainConfig,
)
from tf_infer.errors import DataError
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.train import loop
from tf_infer.train.data import Example
from tf_infer.train.objectives import NextId

MODEL = Path(__file__).parents[1] / "golden" / "text" / "sentencepiece" / "unigram.model"
TRAIN = TrainConfig(epochs=1, batch_rows=8, block_tokens=16, validation_fraction=0.25)


@pytest.fixture(scope="module")
def decoder() -> Task:
    return build(CausalLMConfig(
        network=SmallTransformerConfig(width=8, layers=1, heads=2, hidden=8, max_positions=16),
        packing=PackingConfig(max_tokens=16, end=False, truncation="left"),
        grid=ShapeGrid(rows=(1, 4), tokens=(16,)), capacity=32))


def test_of_one_document_a_share_of_its_rows_is_held_out(decoder: Task) -> None:
    history = loop.fit(decoder, [Example("0123456789" * 12)], TRAIN, progress=False)
    # start, 120 bytes, end: 121 ids asked for, 15 in a row, so 9 rows.
    assert history.epochs[0]["validation"]["rows"] == 2


def test_one_row_leaves_nothing_to_hold_out(decoder: Task) -> None:
    with pytest.raises(DataError, match=r"expected at least two rows .* got 1"):
        loop.fit(decoder, [Example("short")], TRAIN, progress=False)


def test_a_long_document_has_the_ids_that_serving_sees(tmp_path: Path) -> None:
    shutil.copy(MODEL, tmp_path / "tokenizer.model")
    task = build(CausalLMConfig(
        codec=SentencePieceConfig(), network=SmallTransformerConfig(
            width=8, layers=1, heads=2, hidden=8, max_positions=10_000),
        packing=PackingConfig(start=False, max_tokens=16, end=False, truncation="left"),
        grid=ShapeGrid(rows=(1, 4), tokens=(16,)), capacity=32, end_ids=(2,)),
        tokenizer_dir=tmp_path)
    text = "the cat sat on the mat\n" * 300
    objective = NextId(task, TrainConfig(block_tokens=10_000))
    rows = objective.rows([Example(text)], training=True, ticker=lambda items, what: items)
    served = task.codec.encode(tf.constant([text])).ids[0].numpy().tolist()
    assert len(served) > 2_000
    assert rows.ids[0].numpy().tolist() == [*served, 2]
