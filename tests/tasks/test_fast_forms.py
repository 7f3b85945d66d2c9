"""The shared suite for a decoder and a classifier in the forms of a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small, suite
from tests.tasks.suite import Paths
from tf_infer.errors import ConfigError
from tf_infer.optimize.apply import apply
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.tasks import options
from tf_infer.tasks.build import build

pytestmark = pytest.mark.slow  # tests/networks/test_fast.py holds the network to its contract


KINDS = {"decoder": small.SHALLOW_DECODER, "classifier": small.CLASSIFIER}


@pytest.fixture(scope="module", params=[(kind, precision) for kind in KINDS for precision in (
    "float32", "bfloat16", "int8")], ids="-".join)
def paths(request: pytest.FixtureRequest) -> Paths:
    kind, precision = request.param
    plan: Any = {"precision": precision}
    try:
        return Paths(apply(build(KINDS[kind], seed=7), OptimizationPlan(**plan)))
    except ConfigError as error:
        pytest.skip(str(error))


def test_outputs_are_what_the_spec_says(paths: Paths) -> None:
    suite.outputs_are_what_the_spec_says(paths)


def test_a_row_alone_is_the_row_in_a_crowd(paths: Paths) -> None:
    suite.a_row_alone_is_the_row_in_a_crowd(paths, "graph")


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_row_whose_company_ends_earlier_gets_the_same_logits(precision: Any) -> None:
    try:
        task = apply(build(small.SHALLOW_DECODER, seed=7), OptimizationPlan(precision=precision))
    except ConfigError as error:
        pytest.skip(str(error))
    specs = plain_specs(task)
    core = plain_core(task, specs)
    draw, rows = np.random.default_rng(0), 19
    dense = {name: tf.zeros([rows], spec.dtype) for name, spec in specs.items()}
    dense |= {"ids": tf.constant(draw.integers(3, 180, (rows, 8)), tf.int32),
              "lengths": tf.constant(draw.integers(1, 9, rows), tf.int32),
              "max_new_tokens": tf.constant(np.arange(rows) % 8, tf.int32),
              "temperature": tf.constant(np.arange(rows) % 2, tf.float32),
              "top_p": tf.ones([rows]), "seed": tf.range(rows, dtype=tf.int64)}
    crowd = core(**dense)
    for row in range(rows):
        alone = core(**{name: tensor[row:row + 1] for name, tensor in dense.items()})
        for name, value in alone.items():
            # exp and log of the last of a few numbers are another approximation.
            np.testing.assert_allclose(value[0], crowd[name][row], rtol=0, atol=2e-6,
                                       err_msg=f"{name} {row}")


def test_a_row_with_options_whose_company_ends_earlier_is_the_row_alone() -> None:
    capacity, limits = 40, (3, 40, 1, 17, 40, 5, 35)  # of more than a stage
    config = small.SHALLOW_DECODER
    reference = build(replace(
        config, capacity=capacity, end_ids=(2,), grid=replace(config.grid, rows=(1, 8)),
        network=replace(config.network, max_positions=120)), seed=7)
    try:
        task = apply(reference, OptimizationPlan(precision="int8"))
    except ConfigError as error:
        pytest.skip(str(error))
    generate = Paths(task).traced("graph", "generate")
    rows = len(limits)
    given = dict(options.defaults_for(tf.constant(rows), task.config))
    given |= {"prompt": tf.constant([b"ab" * (row + 1) for row in range(rows)]),
              "max_new_tokens": tf.constant(limits), "min_new_tokens": tf.constant(limits),
              "seed": tf.range(rows, dtype=tf.int64),
              "temperature": tf.constant(np.arange(rows) % 2, tf.float32),
              "repetition_penalty": tf.constant([1.0, 1.7, 1.0, 1.3, 1.0, 1.0, 1.1]),
              "logprobs": tf.constant([0, 2, 1, 0, 0, 3, 0])}
    crowd = generate(**given)
    assert crowd["length"].numpy().tolist() == list(limits)
    for row in range(rows):
        alone = generate(**{name: tensor[row:row + 1] for name, tensor in given.items()})
        for name, value in alone.items():
            if value.dtype == tf.float32:
                np.testing.assert_allclose(value[0], crowd[name][row], rtol=0, atol=1e-5,
                                           err_msg=f"{name} {row}")
            else:
                np.testing.assert_array_equal(value[0], crowd[name][row], f"{name} {row}")


def test_how_wide_the_prompts_beside_a_row_are_changes_no_rounding_in_it() -> None:
    """An int8 form shows the last bit of a sum: another order of adding up is another answer."""
    capacity, rows = 60, 8
    config = small.SHALLOW_DECODER
    network = replace(config.network, width=64, layers=4, heads=4, hidden=128, max_positions=300)
    reference = build(replace(
        config, network=network, packing=replace(config.packing, max_tokens=200),
        grid=replace(config.grid, tokens=(32, 200)), capacity=capacity), seed=7)
    spread = np.random.default_rng(3)
    for variable in reference.network.trainable_variables:
        variable.assign_add(spread.normal(0, 0.1, variable.shape).astype(np.float32))
    try:
        task = apply(reference, OptimizationPlan(precision="int8"))
    except ConfigError as error:
        pytest.skip(str(error))
    specs = plain_specs(task)
    core = plain_core(task, specs)
    draw = np.random.default_rng(0)
    for _ in range(8):
        widest = int(draw.integers(20, 200))
        lengths = draw.integers(2, widest + 1, rows)
        lengths[0] = widest
        dense = {name: tf.zeros([rows], spec.dtype) for name, spec in specs.items()}
        dense |= {"ids": tf.constant(draw.integers(3, 180, (rows, widest)), tf.int32),
                  "lengths": tf.constant(lengths, tf.int32),
                  "max_new_tokens": tf.constant(
                      draw.integers(10, capacity + 1, rows), tf.int32),
                  "temperature": tf.constant(np.arange(rows) % 2, tf.float32),
                  "top_p": tf.ones([rows]), "seed": tf.range(rows, dtype=tf.int64)}
        crowd = core(**dense)
        for row, length in enumerate(lengths):
            one = {name: tensor[row:row + 1] for name, tensor in dense.items()}
            alone = core(**{**one, "ids": one["ids"][:, :length]})
            np.testing.assert_array_equal(alone["ids"][0], crowd["ids"][row])
            np.testing.assert_allclose(alone["token_logprobs"][0], crowd["token_logprobs"][row],
                                       rtol=0, atol=2e-6, err_msg=f"{row} of {widest}")


def plain_specs(task: Any) -> dict[str, tf.TensorSpec]:
    """Return what the core takes of plain options."""
    return {name: tf.TensorSpec(spec.shape, spec.dtype, name)
            for name, spec in task.core_specs().items() if name in (
                "ids", "lengths", *options.PLAIN, "draw")}


def plain_core(task: Any, specs: dict[str, tf.TensorSpec]) -> Any:
    """Return the core as a graph."""
    return tf.function(lambda **dense: task.core(**dense), autograph=False
                       ).get_concrete_function(**specs)
