"""The choice: bounds, objectives, ties and what is said of them, against slow definitions."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_infer.errors import ConfigError
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE, Candidate, EngineChoice
from tf_infer.tuning.choice import (
    SAME,
    Objective,
    batches_for,
    choose,
    lead,
    median_interval,
    not_faster,
    read_objective,
    value,
)
from tf_infer.tuning.trial import Times, Trial, drop

P50 = Objective(kind="p50", batch=1)
PLANS: tuple[Candidate, ...] = (
    REFERENCE_CANDIDATE, *(Candidate(plan=OptimizationPlan(precision=precision))
                           for precision in ("float32", "bfloat16", "int8")))


def trial(place: int, times: Sequence[float] = (), *, mean: Sequence[float] | None = None,
          size: int = 100, metric: float | None = 0.9, failed: str = "", batch: int = 1) -> Trial:
    rounds: Mapping[int, tuple[Times, ...]] = {batch: tuple(
        Times(median_s=one, mean_s=other) for one, other in zip(times, mean or times))}
    return Trial(candidate=PLANS[place], size_bytes=size, rounds=rounds, worst=0.0, metric=metric,
                 failed=failed)


def choice(*trials: Trial, objective: Objective = P50, max_drop: float = 0.5,
           kind: Any = "accuracy") -> Any:
    return choose(trials, kind=kind, objective=objective, max_drop=max_drop)


# ---------------------------------------------------------------------------- words


def test_objectives_are_read_from_words() -> None:
    assert read_objective("p50@1") == P50
    assert read_objective("throughput@32") == Objective(kind="throughput", batch=32)
    assert read_objective("size") == Objective(kind="size")
    assert batches_for(P50) == (1, 8, 32)
    assert batches_for(Objective(kind="p50", batch=4)) == (1, 4, 8, 32)
    assert [str(read_objective(word)) for word in ("p50@8", "size")] == ["p50@8", "size"]


@pytest.mark.parametrize("word", ["", "p50", "p50@", "p50@0", "p50@x", "p99@1", "size@1",
                                  "throughput@1025", "p50@²"])
def test_what_is_no_objective_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"--objective: expected p50@N, throughput@N"):
        read_objective(word)


# ---------------------------------------------------------------------------- intervals


def test_the_interval_of_a_median_keeps_what_it_promises() -> None:
    # 40 medians of coin-like draws whose median is known, for each number of rounds
    draw = random.Random(0)
    for count in (6, 9, 15, 30):
        inside = 0
        for _ in range(400):
            low, high = median_interval([draw.lognormvariate(0.0, 1.0) for _ in range(count)])
            inside += low <= 1.0 <= high
        assert inside >= 0.93 * 400, count


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=40))
def test_the_interval_is_of_draws_and_holds_their_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert low in values and high in values
    assert low <= sorted(values)[(len(values) - 1) // 2] <= high
    if len(values) < 6:  # 2 * 2**-n > 0.05: nothing can be left out
        assert (low, high) == (min(values), max(values))


# ---------------------------------------------------------------------------- choosing


def test_the_fastest_inside_the_bounds_is_chosen_and_how_much_is_said() -> None:
    found = choice(trial(0, [1.0] * 6), trial(1, [0.8] * 6), trial(2, [0.5] * 6),
                   trial(3, [0.25] * 6, metric=0.89))
    assert found.name == "plan bfloat16"
    assert found.refused == {"plan int8": "accuracy is 1.00 points lower, 0.5 are allowed"}
    assert found.tied == ()
    assert found.reason == ("plan bfloat16: 2.00 times faster than the reference by p50@1; plan "
                            "float32 comes next, 60 % or more behind.")


def test_a_drop_on_the_bound_is_allowed() -> None:
    assert choice(trial(0, [1.0] * 6, metric=0.9), trial(1, [0.5] * 6, metric=0.895)
                  ).name == "plan float32"


def test_throughput_goes_by_means_and_latency_by_medians() -> None:
    trials = (trial(0, [1.0] * 6), trial(1, [0.5] * 6, mean=[2.0] * 6))
    assert choice(*trials).name == "plan float32"
    assert choice(*trials, objective=Objective(kind="throughput", batch=1)).name == "reference"


def test_size_needs_no_rounds() -> None:
    found = choice(trial(0, size=1000), trial(1, size=400), trial(2, size=300, metric=0.5),
                   objective=Objective(kind="size"))
    assert found.name == "plan float32"
    assert found.reason.startswith("plan float32: 2.50 times smaller than the reference by size")


def test_a_form_that_is_not_faster_is_not_chosen() -> None:
    found = choice(trial(0, [1.0] * 6), trial(1, [1.005] * 6, size=1), trial(2, [0.995] * 6))
    assert found.name == "reference"
    assert found.tied == ("plan bfloat16", "reference", "plan float32")
    assert "nothing inside the bounds is faster by p50@1" in found.reason
    assert "a tie of plan bfloat16, reference, plan float32: the reference goes first" in (
        found.reason)


def test_a_tie_goes_to_the_smaller_drop_and_then_to_the_smaller_file() -> None:
    reference = trial(0, [1.0] * 6)
    found = choice(reference, trial(1, [0.500] * 6, metric=0.896), trial(2, [0.502] * 6, size=50),
                   trial(3, [0.503] * 6, size=40))
    assert found.name == "plan int8"
    assert found.tied == ("plan float32", "plan bfloat16", "plan int8")
    assert "the smallest drop goes first" in found.reason


def test_a_difference_of_perplexity_that_no_table_tells_decides_no_tie() -> None:
    trials = (trial(0, [1.5] * 6, metric=2.0), trial(1, [1.0] * 6, metric=2.0 + 3e-8),
              trial(3, [1.005] * 6, metric=1.9995, size=1))
    found = choice(*trials, kind="loss")
    assert found.tied == ("plan float32", "plan int8")
    assert found.name == "plan float32"
    assert found.not_faster == {"plan int8": "plan float32"}
    told = replace(trials[1], metric=2.0 + math.log(1.0002))  # 0.02 % higher
    assert choice(trials[0], told, trials[2], kind="loss").name == "plan int8"


def test_a_form_that_rounds_and_is_not_faster_is_told_and_not_chosen() -> None:
    found = choice(trial(0, [2.0] * 6), trial(1, [1.0] * 6), trial(2, [0.995] * 6, size=1),
                   trial(3, [1.2] * 6, size=2))
    assert found.name == "plan float32"  # as fast and larger, but it rounds nothing
    assert "then float32, then the smallest file" in found.reason
    assert found.not_faster == {"plan int8": "plan float32"}
    assert not choice(trial(0, [2.0] * 6), trial(3, [0.5] * 6)).not_faster
    assert choice(trial(0, [0.5] * 6), trial(3, [0.5] * 6)).not_faster == {"plan int8": "reference"}
    assert not choice(trial(0, [0.5] * 6), trial(3, [0.5] * 6),
                      objective=Objective(kind="size")).not_faster


def test_an_engine_is_held_to_float32_of_its_kind_and_of_the_graph_and_to_its_own_cut() -> None:
    def of(seconds: float, **form: Any) -> Trial:
        return replace(trial(0, [seconds] * 6), candidate=Candidate(**form))

    def engine(kind: str, precision: str) -> EngineChoice:
        return EngineChoice(kind=kind, precision=precision)

    cut = {"layers": 1}
    found = not_faster([
        of(3.0), of(0.5, engine=engine("litert", "float32")),
        of(1.0, engine=engine("onnx", "int8")), of(0.6, engine=engine("litert", "int8")),
        of(2.9, plan=OptimizationPlan(precision="bfloat16")),
        of(0.2, prune=cut), of(0.3, prune=cut, plan=OptimizationPlan(precision="int8")),
        of(9.0, prune={"heads": 1}, plan=OptimizationPlan(precision="int8"))], P50)
    assert found == {
        "litert int8": "litert float32",
        Candidate(prune=cut, plan=OptimizationPlan(precision="int8")).name: Candidate(
            prune=cut).name}


def test_set_ranges_are_chosen_inside_the_bound_alone_and_else_their_drop_is_told() -> None:
    found, set_once = (Candidate(engine=EngineChoice(kind="litert", precision="int8",
                                                     ranges=ranges))
                       for ranges in ("found", "percentile"))

    def of(metric: float) -> Any:
        return choice(trial(0, [1.0] * 6), replace(trial(0, [0.5] * 6), candidate=found),
                      replace(trial(0, [0.3] * 6, metric=metric), candidate=set_once))

    assert of(0.898).name == "litert int8 static"
    far = of(0.88)
    assert far.name == "litert int8"
    assert far.refused == {"litert int8 static": "accuracy is 2.00 points lower, 0.5 are allowed"}


def test_a_better_metric_decides_no_tie() -> None:
    found = choice(trial(0, [1.0] * 6), trial(1, [0.5] * 6, size=50),
                   trial(2, [0.5] * 6, metric=0.95, size=60))
    assert found.name == "plan float32"


def test_rounds_that_swing_make_a_tie_and_steady_ones_do_not() -> None:
    swinging = [0.9, 0.5, 0.92, 0.6, 0.7, 1.1]
    reference = trial(0, [2.0] * 6)
    assert choice(reference, trial(1, [0.7] * 6), trial(2, swinging)).tied
    assert not choice(reference, trial(1, [0.7] * 6), trial(2, [0.8] * 6)).tied


def test_swings_that_both_meet_do_not_hide_a_lead() -> None:
    # the machine is twice as slow in every other round; in each of them one is a tenth ahead
    swings = [1.0, 2.0, 1.1, 2.2, 0.9, 2.1]
    found = choice(trial(0, [5.0] * 6), trial(1, swings), trial(2, [1.1 * one for one in swings]))
    assert found.name == "plan float32" and not found.tied


def test_who_failed_or_was_not_measured_is_refused_with_the_reason() -> None:
    found = choice(trial(0, [1.0] * 3), trial(1, failed="its process ended with SIGKILL"),
                   trial(2, [0.1] * 3, batch=8), trial(3, [0.1] * 3, metric=None))
    assert found.name == "reference"
    assert found.refused == {"plan float32": "its process ended with SIGKILL",
                             "plan bfloat16": "not measured at batch 1",
                             "plan int8": "its accuracy is no number"}
    assert found.reason.endswith("nothing else could be chosen.")


def test_a_reference_that_was_not_measured_is_an_error() -> None:
    with pytest.raises(ConfigError, match="reference: expected one that could be measured, got "
                                          "'not measured at batch 1'"):
        choice(trial(0), trial(1, [1.0] * 3))
    with pytest.raises(ConfigError, match="--max-drop: expected 0 to 100 points, got -1"):
        choice(trial(0, [1.0]), max_drop=-1)


def test_a_decoder_may_lose_so_many_per_cent_of_perplexity() -> None:
    trials = (trial(0, [1.0] * 6, metric=1.5),
              trial(1, [0.5] * 6, metric=1.5 + math.log(1.004)),
              trial(2, [0.4] * 6, metric=1.5 + math.log(1.006)),
              trial(3, [0.3] * 6, metric=math.inf))
    found = choice(*trials, kind="loss")
    assert found.name == "plan float32"
    assert found.refused == {"plan bfloat16": "perplexity is 0.60 % higher, 0.5 are allowed",
                             "plan int8": "its loss is no number"}


def test_drops_are_points_of_shares_and_per_cents_of_perplexity() -> None:
    assert drop("accuracy", 0.9, 0.88) == pytest.approx(2.0)
    assert drop("agreement", 1.0, 0.99) == pytest.approx(1.0)
    assert drop("loss", 2.0, 2.0 + math.log(1.25)) == pytest.approx(25.0)


@st.composite
def measured(draw: st.DrawFn) -> tuple[Trial, ...]:
    count = draw(st.integers(1, 4))
    rounds = draw(st.integers(1, 12))
    times = st.lists(st.floats(0.01, 1.0), min_size=rounds, max_size=rounds)
    return tuple(trial(place, draw(times), size=draw(st.integers(1, 1000)),
                       metric=draw(st.sampled_from([0.88, 0.896, 0.9, 0.91])),
                       failed=draw(st.sampled_from(["", "", "", "gone"])) if place else "")
                 for place in range(count))


@settings(deadline=None)
@given(measured(), st.sampled_from(["p50", "throughput", "size"]))
def test_nothing_outside_the_bounds_is_chosen_and_nothing_inside_leads_it(
        trials: tuple[Trial, ...], kind: Any) -> None:
    objective = Objective(kind=kind, batch=0 if kind == "size" else 1)
    found = choice(*trials, objective=objective)
    by_name = {one.name: one for one in trials}
    chosen = by_name[found.name]
    assert found.name not in found.refused
    if chosen is not trials[0]:
        assert not chosen.failed
        assert 100 * ((trials[0].metric or 0) - (chosen.metric or 0)) <= 0.5 + 1e-6
    assert set(found.refused) <= set(by_name) - {"reference"}
    eligible = [one for one in trials if one.name not in found.refused]
    best = min(eligible, key=lambda one: value(one, objective))
    # The best cannot be told from the chosen one, or it is the chosen one.
    assert lead(best, chosen, objective)[0] <= SAME
    assert (chosen.name in found.tied) == bool(found.tied)
    for one in eligible:
        assert (one.name in found.tied) == (bool(found.tied) and (
            one.name == found.tied[0] or lead(by_name[found.tied[0]], one, objective)[0] <= SAME))


@settings(deadline=None)
@given(measured(), st.randoms(use_true_random=False))
def test_the_order_of_rounds_does_not_matter(trials: tuple[Trial, ...], draw: Any) -> None:
    order = list(range(len(trials[0].rounds[1])))
    draw.shuffle(order)
    shuffled = tuple(trial(PLANS.index(one.candidate), [one.rounds[1][i].median_s for i in order],
                           size=one.size_bytes or 0, metric=one.metric, failed=one.failed)
                     for one in trials)
    assert choice(*trials).name == choice(*shuffled).name


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=6, max_size=12), st.randoms(use_true_random=False))
def test_small_noise_does_not_change_the_choice_among_equals(
        machine: list[float], draw: Any) -> None:
    # Three forms of one speed, a tenth of a per cent of noise each: always that which does not
    # round is chosen.
    def noisy(factor: float) -> list[float]:
        return [factor * one * draw.uniform(0.999, 1.001) for one in machine]

    for _ in range(3):
        found = choice(trial(0, noisy(2.0)), trial(1, noisy(1.0), size=70),
                       trial(2, noisy(1.0), size=60), trial(3, noisy(1.0), size=80))
        assert found.name == "plan float32"
        assert set(found.tied) == {"plan float32", "plan bfloat16", "plan int8"}


def test_the_lead_is_that_of_pairs_of_rounds() -> None:
    fast, slow = [1.0, 2.0, 4.0], [1.5, 3.5, 6.0]
    ratios = sorted(b / a for a, b in zip(fast, slow))
    assert lead(trial(0, fast), trial(1, slow), P50) == (ratios[0] - 1, ratios[-1] - 1)
    for one, other in itertools.permutations((trial(0, fast), trial(1, fast)), 2):
        assert lead(one, other, P50) == (0.0, 0.0)
