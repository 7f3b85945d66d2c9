"""The shared suite for a decoder and a classifier in the forms of a plan."""

from __future__ import annotations

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
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name)
             for name, spec in task.core_specs().items() if name in (
                 "ids", "lengths", *options.PLAIN, "draw")}
    core = tf.function(lambda **dense: task.core(**dense), autograph=False
                       ).get_concrete_function(**specs)
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
