"""Plans of classifiers: calibrated, smoothed, with sensitive layers kept; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tf_infer.config import ConvConfig
from tf_infer.errors import ConfigError, DataError
from tf_infer.networks.encoder_arrays import encoder_arrays_of
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier
from tf_infer.networks.static_products import StaticProduct
from tf_infer.optimize import calibrate
from tf_infer.optimize.apply import apply, settle
from tf_infer.optimize.plan import OptimizationPlan, require_native
from tf_infer.optimize.sensitivity import sensitivity, worst
from tf_infer.processor import cpu_flags
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build

pytestmark = pytest.mark.whole

TEXTS = [f"parcel {number} ist nicht da, 支付 {number * 7}"[:number % 27 + 3].encode()
         for number in range(40)]
NAMES = [f"layers[{layer}].{part}" for layer in range(2)
         for part in ("qkv", "out", "inner", "outer")]


def plan(**changes: Any) -> OptimizationPlan:
    """Return a plan in int8, or skip where this CPU would emulate it."""
    made = OptimizationPlan(**{"precision": "int8", **changes})
    try:
        require_native(made, cpu_flags(), floats=True)
    except ConfigError as error:
        pytest.skip(str(error))
    return made


@pytest.fixture(scope="module")
def task() -> Task:
    made = build(small.CLASSIFIER, seed=3)
    draw = np.random.default_rng(0)
    for variable in made.network.trainable_variables:
        variable.assign(variable + draw.normal(size=variable.shape) * 0.15)
    return made


def logits(task: Task) -> np.ndarray:
    answer = tf.function(task.signatures()["serving_default"].function, autograph=False)
    return np.array(answer(text=tf.constant(TEXTS))["logits"])


@pytest.fixture(scope="module")
def wanted(task: Task) -> np.ndarray:
    return logits(task)


@pytest.mark.parametrize("changes", [
    {"activations": "static", "ranges": "largest"}, {"activations": "static"},
    {"activations": "static", "ranges": "entropy"}, {"smoothing": 0.5},
    {"activations": "static", "smoothing": 0.5}, {"activations": "static", "sensitive": 3},
    {"sensitive": 2, "floats": "float32"}], ids=str)
def test_what_texts_decide_stays_near_the_reference(
        task: Task, wanted: np.ndarray, changes: Any) -> None:
    settled = settle(task, plan(**changes), TEXTS)
    assert settled.sensitive == 0 and len(settled.keep) == changes.get("sensitive", 0)
    made = apply(task, settled, TEXTS)
    # 7 bits of what comes in, two layers deep.
    assert 0.0 < np.abs(logits(made) - wanted).max() < 0.12 * np.ptp(wanted)
    static = [name for layer in made.network.stack for name, product in layer.products.items()
              if isinstance(product, StaticProduct)]
    assert len(static) == (len([name for name in NAMES if name not in settled.keep])
                           if settled.activations == "static" else 0)


def test_limits_are_those_of_what_a_product_takes(task: Task) -> None:
    arrays = encoder_arrays_of(task.network)
    batches = list(calibrate.batches_of(task, TEXTS))
    form = EncoderForm(precision="int8", widths=(8, 16, 32, 40))
    found = calibrate.calibrated(task, arrays, form, plan(
        activations="static", ranges="largest", smoothing=0.5), TEXTS)
    assert sorted(found.limits) == sorted(NAMES)
    assert sorted(found.divisors) == sorted(name for name in NAMES if "outer" not in name)
    # By hand, of the first product: the normalised vectors of every real position.
    block = task.network.encoder.blocks[0]
    largest = 0.0
    for batch in batches:
        encoder = task.network.encoder
        places = tf.range(tf.shape(batch["ids"])[1])
        hidden = encoder.words(batch["ids"]) + encoder.positions(places) + encoder.segments(
            batch["segments"])
        normed = (block.norm(hidden) - block.norm.beta) / block.norm.gamma
        taken = normed.numpy() / found.divisors["layers[0].qkv"]
        largest = max(largest, float(np.abs(taken[batch["mask"].numpy()]).max()))
    assert found.limits["layers[0].qkv"] == pytest.approx(largest, rel=1e-4)


def test_the_layer_that_is_rounded_worst_is_found(task: Task) -> None:
    arrays = encoder_arrays_of(task.network)
    layer = arrays.layers[1]
    kernel = layer.inner.kernel.copy()
    kernel[:, 0] *= 30.0  # one input sets the steps of every output
    broken = replace(arrays, layers=(arrays.layers[0], replace(
        layer, inner=replace(layer.inner, kernel=kernel))))
    batches = list(calibrate.batches_of(task, TEXTS))
    form = EncoderForm(precision="int8", floats="float32", widths=(8, 16, 32, 40))
    found = sensitivity(broken, form, batches)
    assert set(found) == {"words", *NAMES}
    assert worst(found, 1) == ("layers[1].inner",)
    assert worst({"a": 1.0, "b": 3.0, "c": 2.0}, 2) == ("b", "c")


def test_all_layers_at_once_are_no_worse_than_the_sum_of_each(task: Task) -> None:
    arrays = encoder_arrays_of(task.network)
    batches = list(calibrate.batches_of(task, TEXTS))
    form = EncoderForm(precision="int8", floats="float32", widths=(8, 16, 32, 40))
    found = sensitivity(arrays, form, batches)
    whole, rounded = (np.concatenate([
        FastClassifier(arrays, one)(batch["ids"], batch["mask"], batch["segments"])
        for batch in batches]) for one in (replace(form, precision="float32"), form))
    moved = float(np.sqrt(np.mean(np.square(whole - rounded))))
    assert max(found.values()) > 0.0 and moved < 2.0 * sum(found.values())


def test_texts_that_cannot_calibrate_are_refused(task: Task) -> None:
    static = plan(activations="static")
    with pytest.raises(DataError, match="calibration: expected at least one text, got none"):
        apply(task, static)
    with pytest.raises(DataError, match="of at most 32 tokens, got 2 of 42 to 102"):
        apply(task, static, [b"x" * 100, b"y" * 40])
    apply(task, static, [b"x" * 100, b"y"])  # one fits


def test_a_weight_that_is_no_number_is_named(task: Task) -> None:
    broken = build(small.CLASSIFIER, seed=3)
    kernel = broken.network.encoder.blocks[1].inner.kernel
    kernel.assign(tf.tensor_scatter_nd_update(kernel.value, [[2, 3]], [np.nan]))
    with pytest.raises(ConfigError, match=r"finite numbers, got \['layers\[1\].inner.kernel'\]"):
        apply(broken, OptimizationPlan())


def test_a_plan_that_cannot_be_applied_names_what_and_why(task: Task) -> None:
    with pytest.raises(ConfigError, match=r"plan.keep: .*'words' to 'layers\[1\].outer', got "
                                          r"\['layers\[2\].qkv'\]"):
        apply(task, plan(keep=("layers[2].qkv",)))
    with pytest.raises(ConfigError, match=r"plan\.sensitive: expected a settled plan"):
        apply(task, plan(sensitive=1), TEXTS)
    with pytest.raises(ConfigError, match=r"plan\.sensitive: expected at most 9 layers, got 10"):
        settle(task, plan(sensitive=10), TEXTS)
    explained = replace(small.CLASSIFIER, explain=True)
    with pytest.raises(ConfigError, match="a classifier without the signature explain"):
        apply(build(explained), OptimizationPlan())
    conv = replace(small.CLASSIFIER, network=ConvConfig(width=8, filters=8))
    with pytest.raises(ConfigError, match="got Conv, which no engine and no fast form"):
        apply(build(conv), OptimizationPlan())
    with pytest.raises(ConfigError, match=r"plan: expected a plan of a decoder, got \['keep'\]"):
        apply(build(small.SHALLOW_DECODER), plan(keep=("words",)))
