"""How much is asked in a round: budgets, turns, memory. Pure."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import ConfigError
from tf_infer.tuning import rounds

COSTS = st.dictionaries(
    st.sampled_from(["a", "b", "c"]), st.fixed_dictionaries(
        {1: st.floats(1e-5, 10.0), 32: st.floats(1e-4, 100.0)}), min_size=1)


@settings(deadline=None)
@given(COSTS, st.floats(1.0, 3600.0))
def test_rounds_of_these_calls_fill_the_budget_and_no_more(
        costs: dict[str, dict[int, float]], budget_s: float) -> None:
    calls = rounds.calls_for(costs, budget_s)
    assert set(calls) == {1, 32}
    assert all(rounds.LEAST_CALLS <= count <= rounds.MOST_CALLS for count in calls.values())
    free = {batch: count for batch, count in calls.items() if count > rounds.LEAST_CALLS}
    took_s = sum(count * one[batch] for one in costs.values() for batch, count in free.items())
    assert rounds.ROUNDS * took_s <= budget_s * (1 + 1e-9)


def test_a_round_takes_its_calls_and_what_is_opened_anew() -> None:
    costs = {"a": {1: 0.1, 8: 1.0}, "b": {1: 0.2, 8: 2.0}}
    assert rounds.round_s(costs, {1: 10, 8: 2}, {"b": 7.0, "gone": 50.0}) == pytest.approx(16.0)


def test_a_budget_too_small_for_one_round_is_refused_with_what_it_needs() -> None:
    rounds.check_budget(10.0, 10.0, 6)
    with pytest.raises(ConfigError, match=r"--budget: expected at least 39 s, which one round of "
                                          r"these 6 plans takes, got 10 s\. Give more"):
        rounds.check_budget(10.0, 38.6, 6)
    for least_s, budget_s, told in ((10.1, 10.0, "11 s"), (0.371, 0.001, "0.38 s")):
        with pytest.raises(ConfigError, match=f"expected at least {told}, which"):
            rounds.check_budget(budget_s, least_s, 6)


def test_rounds_go_on_while_another_one_fits() -> None:
    assert rounds.goes_on(0, 0.0, 1.0, 50.0)  # the first was checked
    assert rounds.goes_on(3, 30.0, 40.0, 10.0)
    assert not rounds.goes_on(3, 31.0, 40.0, 10.0)
    assert not rounds.goes_on(rounds.MOST_ROUNDS, 1.0, 1e9, 1.0)


def test_turns_change_from_round_to_round_and_come_from_the_seed() -> None:
    keys = list("abcdef")
    orders = [rounds.order(keys, number, seed=3) for number in range(20)]
    assert all(sorted(one) == keys for one in orders)
    assert len({tuple(one) for one in orders}) > 15
    assert {one[0] for one in orders} >= {"a", "b", "c"}
    assert orders == [rounds.order(keys, number, seed=3) for number in range(20)]
    assert orders != [rounds.order(keys, number, seed=4) for number in range(20)]


def test_processes_stay_as_far_as_half_the_free_memory_goes() -> None:
    assert rounds.staying({"a": 3, "b": 1, "c": 2}, free_bytes=12) == {"a", "b", "c"}
    assert rounds.staying({"a": 3, "b": 1, "c": 2}, free_bytes=11) == {"b", "c"}
    assert rounds.staying({"a": 30}, free_bytes=11) == set()
    assert rounds.staying({"a": 30}, free_bytes=0) == {"a"}
