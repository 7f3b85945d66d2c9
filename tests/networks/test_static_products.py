"""Products whose inputs have set ranges: whole numbers as NumPy rounds and adds them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_infer.networks.static_products import StaticProduct

ACTIVATIONS: dict[Any, Any] = {
    None: lambda x: x, "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(
        math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x))}
ROWS, INPUTS, OUTPUTS, LIMIT, NEXT = 33, 48, 40, 2.5, 3.0


def drawn() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    factor = draw.uniform(0.5, 2.0, INPUTS)
    return (draw.normal(size=(ROWS, INPUTS)).astype(np.float32),
            draw.normal(size=(OUTPUTS, INPUTS)).astype(np.float32) * 0.3,
            draw.normal(size=OUTPUTS).astype(np.float32), factor.astype(np.float32))


def oracle(inputs: np.ndarray, kernel: np.ndarray, bias: np.ndarray, factor: np.ndarray,
           activation: Any) -> np.ndarray:
    """Return [M, N] float64."""
    whole = np.clip(np.rint(inputs * (factor * (127 / LIMIT)).astype(np.float32)), -127, 127)
    largest = np.abs(kernel).max(axis=1)
    rows = np.rint(kernel * (127 / largest)[:, None])
    sums = whole.astype(np.int64) @ rows.astype(np.int64).T
    return ACTIVATIONS[activation](sums * (LIMIT / 127) * (largest / 127) + bias)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_it_is_what_whole_numbers_give(activation: Any) -> None:
    inputs, kernel, bias, factor = drawn()
    made = StaticProduct(kernel, bias, limit=LIMIT, factor=factor, activation=activation, name="p")
    wanted = oracle(inputs, kernel, bias, factor, activation)
    assert (np.abs(inputs * factor) > LIMIT).sum() > 10  # some are cut off
    # float32 against float64; the bias is rounded to a step of the sums.
    np.testing.assert_allclose(made.multiply(tf.constant(inputs)), wanted, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_it_gives_whole_steps_of_the_next_product(activation: Any) -> None:
    inputs, kernel, bias, factor = drawn()
    made = StaticProduct(kernel, bias, limit=LIMIT, factor=factor, activation=activation,
                         next_limit=NEXT, name="p")
    got = made.multiply(tf.constant(inputs)).numpy()
    wanted = np.clip(np.rint(oracle(inputs, kernel, bias, factor, activation) * (127 / NEXT)),
                     -127, 127)
    assert got.dtype == np.int8 and (np.abs(wanted) == 127).any()
    apart = np.abs(got.astype(int) - wanted)
    assert apart.max() <= 1 and (apart > 0).mean() < 0.02


def test_no_bias_is_a_bias_of_zeros() -> None:
    inputs, kernel, bias, _ = drawn()
    one, other = (StaticProduct(kernel, given, limit=LIMIT, name="p").multiply(tf.constant(inputs))
                  for given in (None, bias * 0))
    np.testing.assert_array_equal(one, other)
