"""The small decoder keeps the contract Decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import suite
from tf_infer.config import SmallTransformerConfig
from tf_infer.errors import ShapeError
from tf_infer.networks import build


@pytest.fixture(scope="module")
def decoder() -> Any:
    config = SmallTransformerConfig(width=16, layers=2, heads=2, hidden=32, max_positions=20)
    layer = build.decoder(config, vocab_size=30)
    draw = np.random.default_rng(0)
    for variable in layer.weights:
        variable.assign(variable + draw.normal(size=variable.shape) * 0.3)
    return layer


@pytest.mark.parametrize("path", ["eager", "xla", pytest.param("graph", marks=pytest.mark.slow)])
def test_steps_equal_the_whole(decoder: Any, path: str) -> None:
    suite.steps_equal_the_whole(decoder, path)


@suite.on_every_check
def test_it_keeps_the_contract(decoder: Any, check: Callable[[Any], None]) -> None:
    check(decoder)


def test_it_runs_from_a_saved_model(decoder: Any, tmp_path: Path) -> None:
    suite.it_runs_from_a_saved_model(decoder, tmp_path)


def test_padding_changes_nothing(decoder: Any) -> None:
    ids, lengths = suite.rows(decoder.vocab_size)
    mask = tf.sequence_mask(lengths, 12)
    padded = decoder(tf.where(mask, ids, 3), mask)
    for n, length in enumerate(lengths):
        suite.close(padded[n, :length], suite.whole(decoder, ids[n:n + 1, :length], [length])[0])


def test_a_prompt_wider_than_the_cache_is_refused(decoder: Any) -> None:
    with pytest.raises(ShapeError, match="at least the prompt's width 5, got 4"):
        decoder.prefill(tf.zeros([1, 5], tf.int32), tf.constant([5]), capacity=4)


def test_a_prompt_wider_than_the_positions_is_refused(decoder: Any) -> None:
    with pytest.raises(ShapeError, match="at most 20 positions"):
        decoder.prefill(tf.zeros([1, 21], tf.int32), tf.constant([5]), capacity=30)
