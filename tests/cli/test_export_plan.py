"""`tf-infer export --plan`: a decoder in a form made for speed, proven against the one it was."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_infer.cli import proof
from tf_infer.cli.main import main
from tf_infer.client.client import Client
from tf_infer.config import (
    CausalLMConfig,
    ClassifierConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.errors import ConfigError, DataError, VerificationError
from tf_infer.manifest import EXTRA_FOLDER, read_manifest
from tf_infer.optimize.apply import apply
from tf_infer.optimize.plan import OptimizationPlan, require_native
from tf_infer.processor import cpu_flags
from tf_infer.tasks import build
from tf_infer.tasks.base import Signature, Task
from tf_infer.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.whole

GRID = ShapeGrid(rows=(1, 2), tokens=(8, 16))
NETWORK = SmallTransformerConfig(width=64, layers=2, heads=2, hidden=64, max_positions=32)
PRECISIONS = ("float32", "bfloat16", "int8")


class Brief(CausalLM):
    """A decoder with two of its signatures: tracing all for every path takes a minute."""

    def signatures(self) -> dict[str, Signature]:
        """Return generate, as serving_default, and encode."""
        found = super().signatures()
        generate = found["generate"]
        return {"serving_default": Signature(replace(generate.spec, name="serving_default"),
                                             generate.function), "encode": found["encode"]}


def brief(**changes: Any) -> Task:
    config = CausalLMConfig(
        grid=GRID, capacity=8, network=NETWORK, defaults=GenerationDefaults(max_new_tokens=4),
        packing=PackingConfig(max_tokens=16, end=False, truncation="left"))
    made = build.build(replace(config, **changes), seed=3)
    return Brief(made.config, made.codec, made.network)


def native(precision: Any) -> OptimizationPlan:
    """Return a plan, or skip where this CPU would emulate it."""
    plan = OptimizationPlan(precision=precision)
    try:
        require_native(plan, cpu_flags())
    except ConfigError as error:
        pytest.skip(str(error))
    return plan


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_form_is_held_against_the_reference_under_the_same_tokens(precision: str) -> None:
    task, plan = brief(), native(precision)
    found = proof.prove_plan(task, apply(task, plan), plan, ())
    worst = {one.output: one.max_abs for one in found.differences}
    assert found.passed and set(worst) == {"log_probs", "loss"}
    # Nearer for more bits, and never quite the same.
    assert 0.0 < worst["log_probs"] < {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.2}[precision]
    assert worst["loss"] <= worst["log_probs"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_form_is_exported_proven_and_served(precision: str, tmp_path: Path) -> None:
    plan = native(precision)
    folder, report = proof.export_task(brief(), tmp_path / "writer", name="writer", plan=plan,
                                       max_rows=2, server=False)
    assert report.plan is not None and report.plan.passed
    assert {one.output: one.max_abs > 0 for one in report.plan.differences} == {
        "log_probs": True, "loss": True}
    assert report.plan.atol == plan.bounds[0]
    assert {path.path: bool(path.skipped) for path in report.paths} == {
        "graph": False, "saved_model": False, "session": False, "xla": True, "grpc": True}
    assert read_manifest(folder).plan["precision"] == precision
    assert main(["preflight", str(folder)]) == 0  # a tensorflow_model_server knows the operations
    written = json.loads((folder / EXTRA_FOLDER / "report.json").read_text())
    assert written["plan"]["path"] == "plan"
    with (contextlib.closing(proof.ServedPredictor(folder, "writer")) as served,
          Client(served.address, timeout_s=60.0) as client):
        crowd = client.predict("writer", {"prompt": ["once", "a longer one", "x"]})
        for row, prompt in enumerate(["once", "a longer one", "x"]):
            alone = client.predict("writer", {"prompt": [prompt]})
            for name in ("ids", "score"):
                np.testing.assert_array_equal(alone[name][0], crowd[name][row])


def test_a_form_too_far_from_the_reference_is_not_written(tmp_path: Path) -> None:
    plan = replace(native("int8"), atol=1e-4)
    wanted = "what the model before its plan gives, .* plan log_probs/log_probs: .* worst"
    with pytest.raises(VerificationError, match=wanted) as caught:
        proof.export_task(brief(), tmp_path / "writer", name="writer", plan=plan, max_rows=2,
                          xla=False, server=False)
    assert caught.value.report.plan is not None and not caught.value.report.plan.passed
    assert not (tmp_path / "writer").exists()


def test_the_reference_keeps_its_weights_and_its_answers() -> None:
    task = brief()
    before = [weight.numpy() for weight in task.network.weights]
    made = apply(task, native("int8"))
    assert type(made) is Brief and made.network is not task.network
    for old, new in zip(before, task.network.weights):
        np.testing.assert_array_equal(old, new.numpy())


CLASSIFIER = ClassifierConfig(
    classes=("yes", "no", "perhaps"), grid=GRID, network=NETWORK,
    packing=PackingConfig(max_tokens=16))
ASKED = ["da", "a longer one", "x", "nicht da", "是", "no or yes", "one two three"]


def asked_in_company(address: str) -> None:
    with Client(address, timeout_s=60.0) as client:
        crowd = client.predict("answers", {"text": ASKED})
        for row, text in enumerate(ASKED):
            alone = client.predict("answers", {"text": [text]})
            np.testing.assert_array_equal(alone["logits"][0], crowd["logits"][row])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    {"precision": "float32"}, {"precision": "bfloat16"}, {"precision": "int8"},
    {"precision": "int8", "activations": "static", "smoothing": 0.4, "sensitive": 1},
], ids=str)
def test_a_classifier_is_exported_proven_and_served(changes: Any, tmp_path: Path) -> None:
    native(changes["precision"])
    plan = OptimizationPlan(**changes)
    folder, report = proof.export_task(
        build.build(CLASSIFIER, seed=3), tmp_path / "answers", name="answers", plan=plan,
        texts=[text.encode() for text in ASKED], max_rows=2, server=False)
    assert report.plan is not None and report.plan.passed
    found = {one.output: one for one in report.plan.differences}
    assert set(found) == {"logits", "label", "loss"} and found["logits"].max_abs > 0
    assert report.plan.atol == plan.label_bounds[0]
    written = read_manifest(folder).plan
    assert written["precision"] == plan.precision and written["sensitive"] == 0
    assert len(written["keep"]) == plan.sensitive
    assert main(["preflight", str(folder)]) == 0
    with contextlib.closing(proof.ServedPredictor(folder, "answers")) as served:
        if plan.precision != "float32":
            asked_in_company(served.address)


def test_a_classifier_is_held_against_the_reference_on_the_same_texts() -> None:
    task, plan = build.build(CLASSIFIER, seed=3), native("int8")
    found = proof.prove_plan(task, apply(task, plan), plan, [text.encode() for text in ASKED])
    worst = {one.output: one.max_abs for one in found.differences}
    assert found.passed and set(worst) == {"logits", "label", "loss"}
    assert 0.0 < worst["loss"] <= worst["logits"] < 0.1
    other = build.build(CLASSIFIER, seed=4)  # another model is not excused
    found = proof.prove_plan(task, apply(other, plan), replace(plan, atol=1e-3, loss_atol=1e-4), ())
    assert all(one.mismatches for one in found.differences)


def test_a_reference_that_answers_nan_is_named() -> None:
    task = build.build(CLASSIFIER, seed=3)
    made = apply(task, OptimizationPlan())
    task.network.logits.bias.assign([0.0, float("nan"), 0.0])
    with pytest.raises(DataError, match="got NaN in output 'logits' of sample 0, row 0"):
        proof.prove_plan(task, made, OptimizationPlan(), ())


def test_the_command_refuses_a_plan_that_is_none(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["export", str(tmp_path), "--base-dir", str(tmp_path / "saved"), "--plan", "int3"])
    assert code != 0
    assert "one of ['bfloat16', 'float32', 'int8'] or a .json file" in capsys.readouterr().err
