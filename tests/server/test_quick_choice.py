"""Choosing without the graph: what is chosen, and what is left to the graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tf_infer.manifest import TensorSpec
from tf_infer.server.quick_choice import (
    NEUTRAL,
    Drawing,
    choose,
    drawing,
    leading,
    pick,
    uniform_of,
)

NO_MASK = np.zeros(0, np.int32)
GREEDY = Drawing(0.0, 0, 1.0, 0.0, 0, 0)
SPECS = tuple(TensorSpec(name=name, dtype="string" if isinstance(value, bytes) else "float32",
                         shape=(None,), default=value)
              for name, value in {**NEUTRAL, "temperature": 0.0, "top_k": 5, "seed": 1}.items())


def mask(*tokens: int, size: int = 40) -> np.ndarray:
    bits = np.isin(np.arange(-(-size // 32) * 32), tokens)
    return np.packbits(bits, bitorder="little").view(np.int32)


def test_the_best_token_its_log_probability_and_its_alternatives() -> None:
    logits = np.random.default_rng(0).normal(size=40).astype(np.float32)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    found = choose(logits, GREEDY, 0, NO_MASK, told=3)
    assert found is not None and found.token == exact.argmax()
    assert found.logprob == pytest.approx(exact.max(), abs=1e-6)
    assert [number for number, _ in found.top] == np.argsort(-exact)[:3].tolist()
    assert [value for _, value in found.top] == pytest.approx(np.sort(exact)[:-4:-1], abs=1e-6)
    held = choose(logits, GREEDY, 0, mask(3, 39))
    assert held is not None and held.token == (3 if logits[3] >= logits[39] else 39)
    assert held.logprob == pytest.approx(exact[held.token], abs=1e-6)
    assert held.top == ()


def test_of_equals_the_lowest_id() -> None:
    logits = np.zeros(40, np.float32)
    for allowed, token in ((NO_MASK, 0), (mask(7, 9), 7)):
        found = choose(logits, GREEDY, 0, allowed)
        assert found is not None and found.token == token
    assert leading(np.array([1.0, 2.0, 2.0, 0.0, 2.0]), 2).tolist() == [1, 2]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_or_not_allowed_is_left_to_the_graph(value: float) -> None:
    logits = np.zeros(40, np.float32)
    assert choose(logits, GREEDY, 0, mask()) is None
    logits[5] = value
    assert choose(logits, GREEDY, 0, NO_MASK) is None


@pytest.mark.parametrize(("options", "quick"), [
    ({}, True), ({"top_k": 3, "seed": 9}, True), ({"temperature": 0.5}, True),
    ({"min_new_tokens": 1}, False), ({"repetition_penalty": 1.1}, False),
    ({"banned": b"x"}, False), ({"logit_bias": "1:2"}, False), ({"stop_ids": ""}, True),
    ({"typical_p": 0.5}, False)])
def test_rows_that_ask_for_more_are_left_to_the_graph(options: dict[str, Any], quick: bool) -> None:
    assert (drawing(options, SPECS) is not None) is quick
    strange = (*SPECS, TensorSpec(name="mood", dtype="float32", shape=(None,), default=0.0))
    assert drawing(options, strange) is None


def test_draws_meet_their_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))

    def drawn(**given: Any) -> dict[int, float]:
        how = Drawing(1.0, 0, 1.0, 0.0, 0, 0)._replace(**given)
        found = [choose(logits, how._replace(seed=seed), 3, NO_MASK) for seed in range(800)]
        counts = Counter(one.token for one in found if one is not None)
        return {token: count / 800 for token, count in sorted(counts.items())}

    # 0.07 is four deviations of a share of 800 draws
    for given, wanted in [
            ({}, {0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}), ({"top_k": 2}, {0: 0.625, 1: 0.375}),
            ({"top_p": 0.7}, {0: 0.625, 1: 0.375}),
            ({"min_p": 0.2}, {0: 0.526, 1: 0.316, 2: 0.158}),
            ({"temperature": 0.5, "top_k": 3}, {0: 0.69, 1: 0.248, 2: 0.062})]:
        assert drawn(**given) == pytest.approx(wanted, abs=0.07)


def test_a_draw_knows_its_seed_its_number_and_its_stream() -> None:
    first = uniform_of(7, 0, 0)
    assert first == uniform_of(7, 0, 0) and 0.0 <= first < 1.0
    assert len({first, uniform_of(8, 0, 0), uniform_of(7, 1, 0), uniform_of(7, 0, 1),
                uniform_of(-7, 0, 0), uniform_of(7 + 2**32, 0, 0)}) == 6


def test_rounding_at_the_end_picks_something_that_may_be_picked() -> None:
    assert pick(np.array([0.0, 1.0, 0.0]), 1.0) == 1
    assert pick(np.array([0.0, 1.0, 1.0]), 0.0) == 1
