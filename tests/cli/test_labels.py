"""int8 of a classifier whose logits lie far apart: its rounding passes, planted faults do not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.tasks import small
from tf_infer.cli.labels import prove_labels
from tf_infer.config import ShapeGrid, SmallTransformerConfig
from tf_infer.errors import ConfigError
from tf_infer.manifest import PathReport
from tf_infer.networks.encoder_arrays import EncoderArrays, encoder_arrays_of
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier
from tf_infer.optimize.calibrate import calibrated
from tf_infer.optimize.plan import OptimizationPlan, require_native
from tf_infer.processor import cpu_flags
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build

TEXTS = [f"parcel {number} ist nicht da, 支付 {number * 7}"[:number % 27 + 3].encode()
         for number in range(40)]
PLAN = OptimizationPlan(precision="int8", activations="static", smoothing=0.5)
# Wide enough that rounding errors of its numbers cancel out as they do in networks of use.
CLASSIFIER = replace(small.CLASSIFIER, classes=tuple(f"class_{place}" for place in range(20)),
                     grid=ShapeGrid(rows=(len(TEXTS),), tokens=(8, 32)),  # all at once
                     network=SmallTransformerConfig(width=128, layers=2, heads=4, hidden=256,
                                                    max_positions=40))
LOUD = 8.0  # how much larger the last layer makes logits than they were drawn

Part = tuple[EncoderArrays, EncoderForm]


@pytest.fixture(scope="module")
def task() -> Task:
    try:
        require_native(PLAN, cpu_flags(), floats=True)
    except ConfigError as error:
        pytest.skip(str(error))
    made = build(CLASSIFIER, seed=3)
    draw = np.random.default_rng(0)
    for variable in made.network.trainable_variables:
        variable.assign(variable + draw.normal(size=variable.shape) * 0.15)
    made.network.logits.kernel.assign(made.network.logits.kernel * LOUD)
    return made


@pytest.fixture(scope="module")
def form(task: Task) -> EncoderForm:
    plain = EncoderForm(precision="int8", floats="bfloat16", widths=(8, 16, 32, 40))
    return calibrated(task, encoder_arrays_of(task.network), plain, PLAN, TEXTS)


def proven(task: Task, arrays: EncoderArrays, form: EncoderForm, plan: OptimizationPlan = PLAN,
           ) -> PathReport:
    made = task.replaced(network=FastClassifier(arrays, form))
    return prove_labels(task, made, plan, np.array(TEXTS, dtype=object))


def test_rounding_passes_beyond_the_fixed_bound_and_says_by_which(
        task: Task, form: EncoderForm) -> None:
    found = proven(task, encoder_arrays_of(task.network), form)
    worst = {one.output: one.max_abs for one in found.differences}
    assert found.passed and worst["logits"] > PLAN.label_bounds[0]
    assert found.atol > worst["logits"] and "logits, root mean square" in worst
    # whoever names a bound gets it
    fixed = proven(task, encoder_arrays_of(task.network), form, replace(PLAN, atol=1.0))
    assert not fixed.passed and fixed.atol == 1.0


def swapped(arrays: EncoderArrays, form: EncoderForm) -> Part:
    return replace(arrays, layers=arrays.layers[::-1]), form


def scaled(arrays: EncoderArrays, form: EncoderForm) -> Part:
    first = arrays.layers[0]
    wrong = replace(first, outer=replace(first.outer, kernel=first.outer.kernel * 1.5))
    return replace(arrays, layers=(wrong, *arrays.layers[1:])), form


def saturated(arrays: EncoderArrays, form: EncoderForm) -> Part:
    return arrays, replace(form, limits={name: limit / 4 for name, limit in form.limits.items()})


def unsmoothed(arrays: EncoderArrays, form: EncoderForm) -> Part:
    """Divide the inputs of a product, and leave its kernel as if they were not."""
    name = "layers[0].inner"
    layer = arrays.layers[0]
    wrong = replace(layer, inner=replace(
        layer.inner, kernel=layer.inner.kernel / form.divisors[name].astype(np.float32)))
    return replace(arrays, layers=(wrong, *arrays.layers[1:])), form


@pytest.mark.parametrize("fault", [swapped, scaled, saturated, unsmoothed])
def test_a_planted_fault_is_refused(task: Task, form: EncoderForm, fault: Callable[..., Any]
                                    ) -> None:
    arrays, wrong = fault(encoder_arrays_of(task.network), form)
    assert not proven(task, arrays, wrong).passed
