"""Ranges of 8 bits: counts in growing bins, limits against brute force, smoothing that is exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import ranges as oracle
from tf_infer.errors import ConfigError
from tf_infer.optimize.ranges import BINS, PART, STEPS, Magnitudes, divergence, smoothing

numbers = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=30)


@settings(deadline=None, max_examples=50)
@given(st.lists(numbers, min_size=1, max_size=5))
def test_every_value_is_counted_wherever_the_top_has_grown_to(batches: list[list[float]]) -> None:
    found = Magnitudes(1)
    for batch in batches:
        found.add(np.array(batch)[:, None])
    every = np.abs(np.concatenate([np.array(batch) for batch in batches]))
    assert found.counts.sum() == every.size
    assert found.largest == every.max() == found.peaks[0] and found.top >= found.largest
    # No value is more than a bin away from where it was counted.
    for share in (0.25, 0.5, 1.0):
        edge = found.top * share
        assert abs(found.counts[:int(BINS * share)].sum() - (every <= edge).sum()) <= (
            np.abs(every - edge) <= found.top / BINS).sum()


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.sampled_from([50.0, 90.0, 99.0, 100.0]))
def test_a_percentile_is_that_of_the_sorted_values_but_for_a_bin(seed: int, percent: float) -> None:
    values = np.random.default_rng(seed).normal(size=(500, 2)).astype(np.float32)
    found = Magnitudes(2)
    found.add(values)
    wanted = oracle.percentile_limit(values, percent)
    assert wanted <= found.limit("percentile", percent) + 1e-9 <= wanted + 2 * found.top / BINS


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(STEPS, 400))
def test_the_divergence_is_that_of_the_oracle(seed: int, kept: int) -> None:
    draw = np.random.default_rng(seed)
    counts = draw.poisson(3.0 * np.exp(-np.arange(500) / 80.0))
    wanted = oracle.divergence(counts.tolist(), kept, STEPS)
    assert divergence(counts, kept) == pytest.approx(wanted, abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.sampled_from([7, 300, PART + 1]))
def test_every_count_is_that_of_numpys_histogram(seed: int, size: float, rows: int) -> None:
    draw = np.random.default_rng(seed)
    found = Magnitudes(2)
    batches: list[np.ndarray] = []
    for grown in (1.0, 0.3, 7.0):  # the top doubles for the last one
        batches.append((draw.normal(size=(rows, 2)) * size * grown).astype(np.float32))
        if batches[:-1]:  # numbers on the edges of bins, the last edge among them, and below them
            edges = (draw.integers(0, BINS + 1, rows) * (found.top / BINS)).astype(np.float32)
            batches[-1][:, 0] = np.where(draw.random(rows) < 0.5, edges, np.nextafter(
                edges, np.float32(0.0)))
        found.add(batches[-1])
    every = np.abs(np.concatenate(batches))
    assert found.largest == every.max()
    np.testing.assert_array_equal(found.peaks, every.max(axis=0))
    wanted = oracle.histogram(batches, BINS)
    np.testing.assert_array_equal(found.counts, wanted)


def test_entropy_cuts_off_what_seldom_comes_and_keeps_what_is_even() -> None:
    draw = np.random.default_rng(0)
    long = Magnitudes(1)
    long.add(np.concatenate([draw.normal(size=(200_000, 1)), [[60.0]]]))
    assert 2.0 < long.limit("entropy") < 12.0 and long.limit("largest") == 60.0
    even = Magnitudes(1)
    even.add(draw.uniform(-1.0, 1.0, size=(200_000, 1)))
    assert even.limit("entropy") > 0.9


def test_zeros_alone_have_a_limit() -> None:
    found = Magnitudes(3)
    found.add(np.zeros((4, 3)))
    found.add(np.zeros((0, 3)))
    for how in ("largest", "percentile", "entropy"):
        assert found.limit(how) == 1.0
    found.add(np.full((1, 3), 0.5))
    assert found.counts.sum() == 15 and found.limit("largest") == 0.5


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0))
def test_smoothing_leaves_products_as_they_are(seed: int, alpha: float) -> None:
    draw = np.random.default_rng(seed)
    inputs, kernel = draw.normal(size=(5, 7)) * 10.0 ** draw.uniform(-2, 2, 7), draw.normal(
        size=(3, 7))
    kernel[:, 2], inputs[:, 4] = 0.0, 0.0  # a weight, an input that is never used
    divisor = smoothing(np.abs(inputs).max(axis=0), kernel, alpha)
    np.testing.assert_allclose((inputs / divisor) @ (kernel * divisor).T, inputs @ kernel.T,
                               rtol=1e-9, atol=1e-9)


def test_alpha_says_which_side_becomes_even() -> None:
    draw = np.random.default_rng(1)
    peaks, kernel = 10.0 ** draw.uniform(-1, 2, 9), draw.normal(size=(4, 9))
    assert np.ptp(peaks / smoothing(peaks, kernel, 1.0)) < 1e-9
    assert np.ptp(np.abs(kernel * smoothing(peaks, kernel, 0.0)).max(axis=0)) < 1e-9
    with pytest.raises(ConfigError, match="alpha: expected a number from 0 to 1"):
        smoothing(peaks, kernel, 1.5)
