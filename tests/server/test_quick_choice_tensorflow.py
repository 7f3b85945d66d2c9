"""Choosing by NumPy is choosing in the graph: the same tokens for the same seeds."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.decoding import sampling
from tf_infer.decoding.contracts import SamplingOptions
from tf_infer.decoding.processors import only
from tf_infer.decoding.random import uniforms
from tf_infer.server.quick_choice import SHORTLIST, Drawing, choose, uniform_of

NO_MASK = np.zeros(0, np.int32)
ROWS = 12


def test_uniform_numbers_are_those_of_the_graph() -> None:
    random = np.random.default_rng(1)
    seeds = np.concatenate([random.integers(-2**63, 2**63, 60), [0, -1, 2**63 - 1, -2**63]])
    draws, streams = random.integers(0, 2**31, 64), random.integers(0, 9, 64)
    wanted = uniforms(tf.constant(seeds), tf.constant(draws, tf.int32),
                      tf.constant(streams, tf.int32)).numpy()
    assert [uniform_of(*map(int, one)) for one in zip(seeds, draws, streams)] == wanted.tolist()


@pytest.mark.parametrize("size", [70, 2000])  # more and fewer than the short list
@pytest.mark.parametrize(("temperature", "top_k", "top_p", "min_p"), [
    (0.0, 0, 1.0, 0.0), (1.0, 0, 1.0, 0.0), (1.0, 40, 1.0, 0.0), (0.7, 0, 0.9, 0.0),
    (3.0, 0, 0.999, 0.0), (1.5, 300, 0.8, 0.02), (1.0, 0, 1.0, 0.1), (2.0, 5000, 0.95, 0.0)])
def test_tokens_are_those_of_the_graph(
        size: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    assert 70 < SHORTLIST < 2000
    random = np.random.default_rng(size)
    logits = (random.normal(size=(ROWS, size)) * 3).astype(np.float32)
    logits[:, 7] = logits[:, 9]  # a tie
    seeds, draws = random.integers(-2**63, 2**63, ROWS), random.integers(0, 3, ROWS)
    produced = random.integers(0, 500, ROWS)
    bits = random.random((ROWS, -(-size // 32) * 32)) < 0.5
    for masked in (False, True):
        masks = (np.packbits(bits, axis=1, bitorder="little").view(np.int32) if masked
                 else np.zeros((ROWS, 0), np.int32))
        wanted = sampling.choose(
            only(tf.constant(logits), tf.constant(masks)),
            SamplingOptions(tf.fill([ROWS], temperature), tf.fill([ROWS], top_k),
                            tf.fill([ROWS], top_p), tf.constant(seeds), tf.fill([ROWS], min_p),
                            None, tf.constant(draws, tf.int32)), tf.constant(produced, tf.int32))
        for row in range(ROWS):
            how = Drawing(temperature, top_k, top_p, min_p, int(seeds[row]), int(draws[row]))
            found = choose(logits[row], how, int(produced[row]), masks[row])
            assert found is not None and found.token == wanted[row]
