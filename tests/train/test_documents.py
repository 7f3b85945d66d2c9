"""A decoder's documents: what is held out of them, and that training reads what serving sees."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tensorflow as tf

from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    EmbeddingBagConfig,
    PackingConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TrainConfig,
)
from tf_infer.errors import ConfigError, DataError
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
        grid=ShapeGrid(rows=(1, 4), tokens=(12, 16)), capacity=32))


def test_of_one_document_a_share_of_its_rows_is_held_out(decoder: Task) -> None:
    history = loop.fit(decoder, [Example("0123456789" * 12)], TRAIN, progress=False)
    # start, 120 bytes, end: 121 ids asked for, 15 in a row, so 9 rows.
    assert history.epochs[0]["validation"]["rows"] == 2


def test_one_row_leaves_nothing_to_hold_out(decoder: Task) -> None:
    with pytest.raises(DataError, match=r"expected at least two rows .* got 1"):
        loop.fit(decoder, [Example("short")], TRAIN, progress=False)


def test_an_epoch_of_steps_reads_rows_from_anywhere_in_the_documents(decoder: Task) -> None:
    config = replace(TRAIN, epoch_steps=5, batch_rows=3, validation_fraction=0.0)
    objective = NextId(decoder, config)
    texts = [Example("0123456789" * 12), Example("abcdefg"), Example("")]
    rows = objective.rows(texts, training=True, ticker=lambda items, what: items)
    whole = ["".join(map(chr, row)) for row in rows.ids.numpy()]
    assert [len(text) for text in whole] == [122, 9, 2]  # with start and end
    first, again, second = (objective.epoch_rows(rows, epoch) for epoch in (0, 0, 1))
    assert first.ids.to_list() == again.ids.to_list() != second.ids.to_list()
    assert len(first.targets) == 5 * 3
    assert len({tuple(row) for row in first.ids.to_list()}) > 5
    for row in first.ids.numpy():
        text = "".join(map(chr, row))
        assert (text in whole[0] and len(text) == 16) or text in whole[1:]
    # Rows that choose the best epoch are cut as ever.
    held = objective.rows(texts, training=False, ticker=lambda items, what: items)
    assert held.lengths().max() == 16 and objective.weights(held).sum() == 121 + 8 + 1


def test_an_epoch_has_as_many_steps_as_asked_for(decoder: Task) -> None:
    texts = [Example("0123456789" * 5), *[Example("abcdefg")] * 8]
    config = replace(TRAIN, epochs=3, epoch_steps=1, batch_rows=4, validation_fraction=0.0,
                     learning_rate=0.5, warmup_fraction=0.0)
    history = loop.fit(decoder, texts, config, progress=False)
    # The rate falls evenly over three steps.
    assert [epoch["learning_rate"] for epoch in history.epochs] == pytest.approx(
        [0.5 * 3 / 3, 0.5 * 2 / 3, 0.5 * 1 / 3])


def test_rows_from_anywhere_would_reach_into_rows_held_out(decoder: Task) -> None:
    with pytest.raises(ConfigError, match="validation_fraction: expected 0 or validation rows of"):
        loop.fit(decoder, [Example("0123456789" * 12)], replace(TRAIN, epoch_steps=5),
                 progress=False)


def test_a_classifier_has_no_rows_from_anywhere() -> None:
    task = build(ClassifierConfig(classes=("a", "b"), network=EmbeddingBagConfig(
        width=2, hash_buckets=2)))
    with pytest.raises(ConfigError, match="epoch_steps: expected None for a classifier"):
        loop.fit(task, [Example("x", labels=("a",))], TrainConfig(epoch_steps=5), progress=False)


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
