"""A decoder's documents: what is held out of them, and that training reads what serving sees."""

from __future__ import annotations

import pytest

from tf_infer.config import (
    CausalLMConfig,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
    TrainConfig,
)
from tf_infer.errors import DataError
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.train import loop
from tf_infer.train.data import Example

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
    with pytest.raises(DataError, match="validation_fraction: expected at least two rows .* got 1"):
        loop.fit(decoder, [Example("short")], TRAIN, progress=False)
