"""Uniform numbers: known answers, one truth on all paths, no neighbour, no pattern."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, graph, on_all_paths, xla
from tests.oracles import sampling as oracle
from tf_infer.decoding.random import threefry, uniforms

# Random123 1.14, tests/kat_vectors: threefry2x32 20.
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]
SEEDS = [0, 1, -1, 7, 2**31 - 1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63)]


@pytest.mark.parametrize(("key", "counter", "bits"), KNOWN)
def test_bits_are_those_of_the_published_vectors(
        key: tuple[int, int], counter: tuple[int, int], bits: tuple[int, int]) -> None:
    words = [tuple(tf.constant([word], tf.uint32) for word in pair) for pair in (key, counter)]
    assert tuple(int(word[0]) for word in threefry(*words)) == bits
    assert oracle.threefry_2x32(key, counter) == bits


@on_all_paths
def test_every_seed_and_draw_gives_the_oracles_number(run: Runner) -> None:
    seeds = np.repeat(np.array(SEEDS, np.int64), 5)
    draws = np.tile(np.array([0, 1, 2, 127, 2**31 - 1], np.int32), len(SEEDS))
    found = run(uniforms, tf.constant(seeds), tf.constant(draws)).numpy()
    assert found.tolist() == [oracle.uniform(int(s), int(d)) for s, d in zip(seeds, draws)]


def test_a_number_knows_no_neighbour_and_no_path() -> None:
    seeds = tf.constant(np.random.default_rng(0).integers(-2**63, 2**63 - 1, 1000))
    draws = tf.range(1000)
    crowd = eager(uniforms, seeds, draws)
    assert crowd[417] == uniforms(seeds[417:418], draws[417:418])[0]
    assert np.array_equal(crowd, graph(uniforms, seeds, draws))
    assert np.array_equal(crowd, xla(uniforms, seeds, draws))


@pytest.mark.parametrize("axis", ["seeds", "draws"])
def test_numbers_are_uniform_along_seeds_and_along_draws(axis: str) -> None:
    count, cells = 100_000, 100
    running, fixed = tf.range(count), tf.fill([count], 3)
    seeds, draws = (running, fixed) if axis == "seeds" else (fixed, running)
    numbers = uniforms(tf.cast(seeds, tf.int64), draws).numpy()
    assert numbers.min() >= 0.0 and numbers.max() < 1.0
    observed, _ = np.histogram(numbers, cells, (0.0, 1.0))
    statistic = float(((observed - count / cells) ** 2 / (count / cells)).sum())
    # Chi-squared with 99 degrees of freedom: 148.2 has p = 0.001, 60.3 has p = 0.999.
    assert 60.3 < statistic < 148.2
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
