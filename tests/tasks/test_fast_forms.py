"""The shared suite for a decoder and a classifier in the forms of a plan."""

from __future__ import annotations

from typing import Any

import pytest

from tests.tasks import small, suite
from tests.tasks.suite import Paths
from tf_infer.errors import ConfigError
from tf_infer.optimize.apply import apply
from tf_infer.optimize.plan import OptimizationPlan
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
