"""The stages of a traced run, from what ran when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tf_infer.server.contracts import StageTimes
from tf_infer.server.tracing import Step, covered_ns, stage_times

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)).map(lambda s: (s[0], sum(s))))


@given(SPANS)
def test_covered_is_the_number_of_moments_in_any_span(spans: list[tuple[int, int]]) -> None:
    moments = {moment for start, end in spans for moment in range(start, end)}
    assert covered_ns(spans) == len(moments)


def test_stages_are_told_by_the_names_of_operations() -> None:
    second = 10**9
    assert stage_times([
        Step("call/preprocess/Split", 0, second),
        Step("call/preprocess/Lower", second // 2, 2 * second),        # beside Split
        Step("call/core/cond/MatMul", 3 * second, 5 * second),
        Step("call/core/while/decoding/ArgMax", 5 * second, 5 * second + second // 4),
        Step("call/postprocess/Gather", 6 * second, 7 * second),
        Step("_SOURCE", 0, 9 * second),
    ]) == StageTimes(tokenize_s=2.0, model_s=2.0, decode_s=1.25)


def test_a_graph_without_stages_is_all_model_gaps_included() -> None:
    steps = [Step("dense/MatMul", 10**9, 2 * 10**9), Step("dense/Add", 3 * 10**9, 4 * 10**9)]
    assert stage_times(steps) == StageTimes(tokenize_s=0.0, model_s=3.0, decode_s=0.0)


def test_nothing_took_no_time() -> None:
    assert stage_times([]) == StageTimes(tokenize_s=0.0, model_s=0.0, decode_s=0.0)


def test_a_call_counts_where_nothing_inside_it_tells_of_itself() -> None:
    second = 10**9
    assert stage_times([  # as XLA runs a function
        Step("call/preprocess/Split", 0, second),
        Step("call/core/StatefulPartitionedCall", second, 3 * second),
    ]) == StageTimes(tokenize_s=1.0, model_s=2.0, decode_s=0.0)
    assert stage_times([
        Step("call/preprocess/PartitionedCall", 0, 4 * second),
        Step("call/preprocess/Split", second, 2 * second),
    ]) == StageTimes(tokenize_s=1.0, model_s=0.0, decode_s=0.0)
