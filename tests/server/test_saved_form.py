"""How many tokens a call of `steps` produces: the copy is paid for, and texts are heard of."""

from __future__ import annotations

import pytest

from tf_infer.server.forms import CALL_S, FIRST, LONGEST, tokens_a_call
from tf_infer.server.pace import Pace


def learned(fixed_s: float, token_s: float) -> Pace:
    """Return the pace of calls that cost so much, of several lengths."""
    pace = Pace()
    for tokens in (1, 4, 16) * 8:
        pace = pace.seen(tokens, fixed_s + tokens * token_s)
    return pace


def wanted(fixed_s: float, token_s: float, *, hurry: bool = False, most: int = 1000) -> int:
    return tokens_a_call(learned(fixed_s, token_s), lately=(4, fixed_s + 4 * token_s),
                         hurry=hurry, most=most)


def test_a_fifth_of_a_short_call_is_overhead() -> None:
    assert wanted(0.010, 0.005) == 8   # 10 ms of 50
    assert wanted(0.0, 0.005) == 1     # nothing is saved by waiting
    assert wanted(0.001, 0.010) == 1


def test_two_fifths_of_one_that_somebody_waits_for() -> None:
    assert wanted(0.010, 0.005, hurry=True) == 3


@pytest.mark.parametrize(("fixed_s", "token_s", "tokens"), [
    (0.050, 0.020, 10),  # a fifth were no more: a call of 250 ms
    (0.060, 0.030, 6),   # 240 ms; a fifth would take 300
    (0.200, 0.100, 3)])  # two fifths, though it takes longer
def test_a_long_call_is_cut_while_its_overhead_allows(
        fixed_s: float, token_s: float, tokens: int) -> None:
    assert wanted(fixed_s, token_s) == tokens
    assert fixed_s + tokens * token_s <= CALL_S + 1e-9 or tokens == round(1.5 * fixed_s / token_s)


def test_no_more_than_the_rows_may_have_and_than_anybody_waits_for() -> None:
    assert wanted(0.010, 0.005, most=5) == 5
    assert wanted(0.010, 0.00001) == LONGEST


def test_before_anything_was_seen_a_call_is_thought_to_cost_some_tokens() -> None:
    assert tokens_a_call(Pace(), lately=(0, 0.0), hurry=False, most=99) == 4 * FIRST
