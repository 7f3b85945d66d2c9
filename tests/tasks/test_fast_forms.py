"""The shared suite for a decoder in the forms of a plan."""

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


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def paths(request: pytest.FixtureRequest) -> Paths:
    precision: Any = request.param
    try:
        return Paths(apply(build(small.SHALLOW_DECODER, seed=7),
                           OptimizationPlan(precision=precision)))
    except ConfigError as error:
        pytest.skip(str(error))


def test_outputs_are_what_the_spec_says(paths: Paths) -> None:
    suite.outputs_are_what_the_spec_says(paths)


def test_a_row_alone_is_the_row_in_a_crowd(paths: Paths) -> None:
    suite.a_row_alone_is_the_row_in_a_crowd(paths, "graph")
