"""Learning rates and which variables shrink."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_infer.config import TrainConfig
from tf_infer.train import schedule


@pytest.mark.parametrize("decay", ["linear", "cosine", "none"])
@pytest.mark.parametrize("warmup", [0.0, 0.3])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_the_graph_computes_the_reference(decay: str, warmup: float, steps: int) -> None:
    config = TrainConfig(learning_rate=0.5, warmup_fraction=warmup, decay=decay)  # type: ignore
    inside = schedule.Schedule(config, steps)
    found = [float(inside(step)) for step in range(steps)]
    expected = [schedule.rate(config, step, steps) for step in range(steps)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert min(found) > 0
    assert max(found) <= 0.5 * (1 + 1e-6)


def test_the_rate_rises_then_falls() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_fraction=0.5, decay="linear")
    assert [schedule.rate(config, step, 8) for step in range(8)] == [
        0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_only_matrices_shrink() -> None:
    layers = [keras.layers.Embedding(4, 3), keras.layers.Dense(3),
              keras.layers.LayerNormalization(), keras.layers.Conv1D(2, 3)]
    for layer in layers:
        layer.build((None, 5, 3))
    variables = [variable for layer in layers for variable in layer.weights]
    shrinks = {variable.path.rsplit("/", 1)[-1]: schedule.decays(variable)
               for variable in variables}
    assert shrinks == {"embeddings": False, "kernel": True, "bias": False, "gamma": False,
                       "beta": False}
    # Without a gradient, decay is all that moves a variable.
    config = TrainConfig(learning_rate=0.1, weight_decay=0.5, warmup_fraction=0.0, decay="none")
    before = [variable.numpy() for variable in variables]
    adam = schedule.optimizer(config, variables, 10)
    adam.apply([keras.ops.zeros_like(variable) for variable in variables], variables)
    for variable, old in zip(variables, before):
        factor = 0.95 if schedule.decays(variable) else 1.0
        np.testing.assert_allclose(variable.numpy(), old * factor, rtol=1e-5)


def test_gradients_are_clipped_to_the_global_norm() -> None:
    variables = [keras.Variable(np.zeros(2, np.float32)), keras.Variable(np.zeros(2, np.float32))]
    # With an epsilon that large a step is proportional to the clipped gradient.
    config = TrainConfig(learning_rate=1.0, epsilon=1e6, clip_norm=1.0, warmup_fraction=0.0,
                         decay="none", weight_decay=0.0)
    adam = schedule.optimizer(config, variables, 10)
    adam.apply([keras.ops.array([30.0, 0.0]), keras.ops.array([0.0, 40.0])], variables)
    moved = np.concatenate([variable.numpy() for variable in variables]) * -1e6
    # Adam's first step has the factor sqrt(1 - beta_2) that its bias correction leaves.
    np.testing.assert_allclose(moved / 0.001**0.5, [0.6, 0, 0, 0.8], rtol=1e-3)
