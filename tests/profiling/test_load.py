"""The load generator against functions that answer as a test tells them to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tf_infer.errors import ConfigError, Overloaded, ServerUnavailable
from tf_infer.profiling.load import Load, arrivals, closed_loop, open_loop


def answering(seconds: float) -> tuple[Callable[[int], None], list[int], list[int]]:
    """Return what takes so long, the numbers it was given, and how many it served at once."""
    numbers: list[int] = []
    together: list[int] = []
    inside = 0
    lock = threading.Lock()

    def ask(number: int) -> None:
        nonlocal inside
        with lock:
            numbers.append(number)
            inside += 1
            together.append(inside)
        time.sleep(seconds)
        with lock:
            inside -= 1

    return ask, numbers, together


def test_a_closed_loop_keeps_every_caller_busy() -> None:
    ask, numbers, together = answering(0.02)
    load = closed_loop(ask, callers=4, duration_s=0.5)
    assert sorted(numbers) == list(range(len(numbers)))
    assert max(together) == 4
    assert len(load.latencies_s) == len(numbers)
    assert load.calls_per_s <= 4 / 0.02
    assert load.calls_per_s == pytest.approx(len(numbers) / load.elapsed_s)
    assert load.percentile_s(50) >= 0.02
    assert load.elapsed_s >= 0.5


def test_an_open_loop_sends_what_is_due_and_counts_the_wait_for_a_caller() -> None:
    ask, numbers, together = answering(0.05)
    load = open_loop(ask, callers=1, rate=40, duration_s=0.5, seed=3)
    assert numbers == list(range(len(arrivals(40, 0.5, seed=3))))
    assert max(together) == 1
    # one caller serves 20 a second: the last calls wait as long as half of the load takes
    assert load.late > 0
    assert load.percentile_s(100) > 0.2
    assert load.rate == 40


def test_an_open_loop_with_enough_callers_is_on_time() -> None:
    def on_time(seed: int) -> bool:
        ask, numbers, _ = answering(0.0)
        load = open_loop(ask, callers=8, rate=50, duration_s=0.5, seed=seed)
        return load.late <= len(numbers) / 4 and load.percentile_s(50) < 0.1

    assert any(map(on_time, range(5)))  # a busy machine may make one late


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(200.0, 50.0, seed=0)
    gaps = np.diff(times)
    assert np.all(gaps >= 0)
    assert 0 <= times[0] <= times[-1] < 50
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # of exponential gaps
    assert np.array_equal(times, arrivals(200.0, 50.0, seed=0))
    assert not np.array_equal(times[:50], arrivals(200.0, 50.0, seed=1)[:50])


def test_failed_calls_are_counted_by_code_and_have_no_latency() -> None:
    def ask(number: int) -> None:
        time.sleep(0.001)
        if number % 3:
            raise (Overloaded if number % 3 == 1 else ServerUnavailable)("no")

    load = closed_loop(ask, callers=1, duration_s=0.1)
    total = len(load.latencies_s) + sum(load.failed.values())
    assert set(load.failed) == {"RESOURCE_EXHAUSTED", "UNAVAILABLE"}
    assert len(load.latencies_s) == (total + 2) // 3


def test_a_fault_of_the_caller_ends_the_load_and_is_raised() -> None:
    calls = []

    def ask(number: int) -> None:
        calls.append(number)
        if number == 5:
            raise ZeroDivisionError
        time.sleep(0.001)

    with pytest.raises(ZeroDivisionError):
        closed_loop(ask, callers=2, duration_s=20.0)
    assert len(calls) < 1000


def test_percentiles_are_latencies_that_occurred() -> None:
    load = Load(callers=1, elapsed_s=2.0, latencies_s=np.array([0.1, 0.2, 0.3, 0.4]), failed={})
    assert [load.percentile_s(percent) for percent in (0, 25, 50, 75, 99, 100)] == [
        0.1, 0.1, 0.2, 0.3, 0.4, 0.4]
    assert load.calls_per_s == 2.0
    assert load.to_json() == {
        "callers": 1, "rate": None, "elapsed_s": 2.0, "answered": 4, "failed": {}, "late": 0,
        "calls_per_s": 2.0, "p50_ms": 200.0, "p90_ms": 400.0, "p99_ms": 400.0}


def test_nothing_answered_is_no_time() -> None:
    load = Load(callers=1, elapsed_s=0.0, latencies_s=np.array([]), failed={"UNKNOWN": 3})
    assert np.isnan(load.percentile_s(99))
    assert load.calls_per_s == 0.0
    assert "p99_ms" not in load.to_json()


@pytest.mark.parametrize(("options", "name"), [
    ({"callers": 0, "duration_s": 1.0}, "callers"),
    ({"callers": 1, "duration_s": 0.0}, "duration_s"),
    ({"callers": 1, "duration_s": float("nan")}, "duration_s"),
    ({"callers": 1, "duration_s": float("inf")}, "duration_s")])
def test_a_load_that_makes_no_sense_is_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected"):
        closed_loop(lambda number: None, **options)


def test_a_rate_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ConfigError, match="rate: expected a number > 0, got -1"):
        open_loop(lambda number: None, callers=1, rate=-1, duration_s=1.0)
