"""What a run costs beside its tokens, learned from runs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_infer.server.pace import Pace


def pace_of(constant: float, slope: float, sizes: list[int], noise: float = 0.0) -> Pace:
    rng, pace = random.Random(0), Pace()
    for tokens in sizes:
        pace = pace.seen(tokens, (constant + slope * tokens) * rng.uniform(1 - noise, 1 + noise))
    return pace


SIZES = [16, 512, 128, 64, 32, 256] * 20


@given(st.floats(1e-4, 1e-2), st.floats(1e-6, 1e-3))
def test_a_straight_line_is_found(constant: float, slope: float) -> None:
    expected = min(4096.0, constant / slope)
    assert pace_of(constant, slope, SIZES).run_tokens(1.0) == pytest.approx(expected, rel=1e-3)


def test_noise_does_not_matter_much() -> None:
    assert pace_of(2e-3, 2e-5, SIZES, noise=0.1).run_tokens(1.0) == pytest.approx(100, rel=0.4)


def test_a_model_that_became_slower_is_noticed() -> None:
    pace = pace_of(1e-3, 1e-5, SIZES)
    for tokens in SIZES * 3:
        pace = pace.seen(tokens, 1e-3 + 1e-4 * tokens)
    assert pace.run_tokens(1.0) == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize("sizes", [[], [16, 512] * 4, [64] * 100, [64, 66] * 50],
                         ids=["none", "few", "one size", "about one size"])
def test_the_default_holds_until_enough_different_runs_were_seen(sizes: list[int]) -> None:
    assert pace_of(1e-3, 1e-5, sizes).run_tokens(33.0) == 33.0


def test_tokens_that_cost_nothing_give_the_most() -> None:
    assert pace_of(1e-3, 0.0, SIZES).run_tokens(1.0, most=700.0) == 700.0
    assert pace_of(1e-3, -1e-7, SIZES).run_tokens(1.0, most=700.0) == 700.0


def test_a_run_that_costs_nothing_beside_its_tokens_gives_none() -> None:
    assert pace_of(-1e-3, 1e-3, SIZES).run_tokens(1.0) == 0.0


def test_the_default_is_bounded_too() -> None:
    assert Pace().run_tokens(64.0, most=16.0) == 16.0
