"""The best token without the graph: the same token, or none where it is not ours to choose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tf_infer.manifest import TensorSpec
from tf_infer.server.quick_choice import NEUTRAL, best_token, is_quick

NO_MASK = np.zeros(0, np.int32)
SPECS = tuple(TensorSpec(name=name, dtype="string" if isinstance(value, bytes) else "float32",
                         shape=(None,), default=value)
              for name, value in {**NEUTRAL, "temperature": 0.0, "top_k": 5, "seed": 1}.items())


def mask(*tokens: int, size: int = 40) -> np.ndarray:
    bits = np.isin(np.arange(-(-size // 32) * 32), tokens)
    return np.packbits(bits, bitorder="little").view(np.int32)


def test_the_best_token_and_its_log_probability() -> None:
    logits = np.random.default_rng(0).normal(size=40).astype(np.float32)
    found = best_token(logits, NO_MASK)
    exact = logits.astype(np.float64)
    assert found is not None and found.token == exact.argmax()
    assert found.logprob == pytest.approx(exact.max() - np.log(np.exp(exact).sum()), abs=1e-6)
    held = best_token(logits, mask(3, 39))
    assert held is not None and held.token == (3 if logits[3] >= logits[39] else 39)
    assert held.logprob == pytest.approx(exact[held.token] - np.log(np.exp(exact).sum()), abs=1e-6)


def test_of_equals_the_lowest_id() -> None:
    logits = np.zeros(40, np.float32)
    for allowed, token in ((NO_MASK, 0), (mask(7, 9), 7)):
        found = best_token(logits, allowed)
        assert found is not None and found.token == token


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_left_to_the_graph(value: float) -> None:
    logits = np.zeros(40, np.float32)
    logits[5] = value
    assert best_token(logits, NO_MASK) is None
    logits[5] = -np.inf
    found = best_token(logits, NO_MASK)
    assert found is not None and found.token == 0
    assert best_token(logits, mask(5)) is None and best_token(logits, mask()) is None
    assert best_token(np.full(40, -np.inf, np.float32), NO_MASK) is None


@pytest.mark.parametrize(("options", "quick"), [
    ({}, True), ({"top_k": 3, "seed": 9}, True), ({"temperature": 0.5}, False),
    ({"min_new_tokens": 1}, False), ({"repetition_penalty": 1.1}, False),
    ({"banned": b"x"}, False), ({"logit_bias": "1:2"}, False), ({"stop_ids": ""}, True)])
def test_only_rows_that_ask_for_the_best_token_alone_are_quick(
        options: dict[str, Any], quick: bool) -> None:
    assert is_quick(options, SPECS, 0) is quick
    assert not is_quick(options, SPECS, 1)


def test_an_option_that_nobody_knows_here_is_left_to_the_graph() -> None:
    strange = (*SPECS, TensorSpec(name="mood", dtype="float32", shape=(None,), default=0.0))
    assert not is_quick({}, strange, 0)
