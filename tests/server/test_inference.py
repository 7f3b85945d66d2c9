"""Classify, Regress and MultiInference as pure plans: statements CL, RG, EX and MI, one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tf_infer.errors import Code, ServingError
from tf_infer.server import inference
from tf_infer.server.contracts import Plan
from tf_infer.server.fakes import signature
from tf_infer.wire import serving_pb2

FLOAT, TEXT = serving_pb2.DT_FLOAT, serving_pb2.DT_STRING
ROWS = (-1,)
CLASSIFY, REGRESS = inference.CLASSIFY_METHOD, inference.REGRESS_METHOD
SIGNATURES = {
    "both": signature({"inputs": (TEXT, ROWS)}, {"classes": (TEXT, (-1, 2)),
                                                 "scores": (FLOAT, (-1, 2))}, CLASSIFY),
    "scores": signature({"inputs": (TEXT, ROWS)}, {"scores": (FLOAT, (-1, 2))}, CLASSIFY),
    "classes": signature({"inputs": (TEXT, ROWS)}, {"classes": (TEXT, (-1, 2))}, CLASSIFY),
    "two_inputs": signature({"inputs": (TEXT, ROWS), "x": (FLOAT, ROWS)},
                            {"scores": (FLOAT, (-1, 2))}, CLASSIFY),
    "other_input": signature({"input": (TEXT, ROWS)}, {"scores": (FLOAT, (-1, 2))}, CLASSIFY),
    "three": signature({"inputs": (TEXT, ROWS)}, dict.fromkeys(
        ("classes", "scores", "more"), (FLOAT, (-1, 2))), CLASSIFY),
    "other_output": signature({"inputs": (TEXT, ROWS)}, {"score": (FLOAT, (-1, 2))}, CLASSIFY),
    "regress": signature({"inputs": (TEXT, ROWS)}, {"outputs": (FLOAT, ROWS)}, REGRESS),
    "regress_input": signature({"input": (TEXT, ROWS)}, {"outputs": (FLOAT, ROWS)}, REGRESS),
    "regress_two_inputs": signature({"inputs": (TEXT, ROWS), "x": (FLOAT, ROWS)},
                                    {"outputs": (FLOAT, ROWS)}, REGRESS),
    "regress_output": signature({"inputs": (TEXT, ROWS)}, {"output": (FLOAT, ROWS)}, REGRESS),
    "regress_two_outputs": signature({"inputs": (TEXT, ROWS)}, {
        "outputs": (FLOAT, ROWS), "more": (FLOAT, ROWS)}, REGRESS),
    "tf2": signature({"inputs": (TEXT, ROWS)}, {"outputs": (FLOAT, ROWS)}),
}


def example(**features: bytes) -> serving_pb2.Example:
    made = serving_pb2.Example()
    for name, value in features.items():
        made.features.feature[name].bytes_list.value.append(value)
    return made


def examples(rows: int = 2, context: serving_pb2.Example | None = None) -> serving_pb2.Input:
    made = serving_pb2.Input()
    kind: Any = made.example_list
    if context is not None:
        kind = made.example_list_with_context
        kind.context.CopyFrom(context)
    kind.SetInParent()
    for row in range(rows):
        kind.examples.append(example(row=b"%d" % row))
    return made


def finished(plan: Plan[Any], *outputs: dict[str, Any]) -> Any:
    return plan.finish([{name: np.asarray(value) for name, value in found.items()}
                        for found in outputs])


def classified(name: str, **outputs: Any) -> list[list[tuple[str, float]]]:
    plan = inference.classify(SIGNATURES, name, examples())
    assert set(plan.runs[0].outputs) == set(outputs)
    return [[(item.label, item.score) for item in row.classes]
            for row in finished(plan, outputs).classifications]


def regressed(value: Any) -> list[float]:
    plan = inference.regress(SIGNATURES, "regress", examples())
    return [item.value for item in finished(plan, {"outputs": value}).regressions]


SCORES = np.float32([[0.25, 0.75], [0.5, 0.5]])
LABELS = np.array([[b"no", b"yes"], [b"a", b"b"]], object)


def test_CL01_CL02_one_classification_per_example_one_class_per_column() -> None:
    assert classified("both", classes=LABELS, scores=SCORES) == [
        [("no", 0.25), ("yes", 0.75)], [("a", 0.5), ("b", 0.5)]]


def test_CL03_what_is_missing_is_empty_or_zero() -> None:
    assert classified("scores", scores=SCORES) == [[("", 0.25), ("", 0.75)], [("", 0.5)] * 2]
    assert classified("classes", classes=LABELS) == [[("no", 0), ("yes", 0)], [("a", 0), ("b", 0)]]


@pytest.mark.parametrize(("name", "words"), [
    pytest.param("none", "No signature was found with the name: none", id="CL04"),
    pytest.param("two_inputs", "Expected one input Tensor", id="CL05"),
    pytest.param("other_input", "No classification inputs found", id="CL06"),
    pytest.param("three", "Expected one or two output Tensors", id="CL07"),
    pytest.param("other_output", "classification signature outputs", id="CL08"),
    pytest.param("regress", "classification signature outputs", id="CL08-regress"),
    pytest.param("", "No signature was found with the name: serving_default", id="CL14"),
])
def test_signatures_that_cannot_classify(name: str, words: str) -> None:
    with pytest.raises(ServingError, match=words) as caught:
        inference.classify(SIGNATURES, name, examples())
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("outputs", "words"), [
    pytest.param({"classes": LABELS[0], "scores": SCORES},
                 r"Expected Tensor shape: \[batch_size num_classes\]", id="CL09-classes"),
    pytest.param({"classes": LABELS, "scores": SCORES[None]},
                 r"Expected Tensor shape: \[batch_size num_classes\]", id="CL09-scores"),
    pytest.param({"classes": LABELS, "scores": SCORES.astype(np.float64)},
                 "Expected scores Tensor of DT_FLOAT", id="CL10"),
    pytest.param({"classes": SCORES, "scores": SCORES},
                 "Expected classes Tensor of DT_STRING", id="CL10-classes"),
    pytest.param({"classes": LABELS[:1], "scores": SCORES[:1]},
                 "Expected output batch size of 2", id="CL11"),
    pytest.param({"classes": LABELS[:, :1], "scores": SCORES}, "should match", id="CL11-columns"),
])
def test_results_that_are_no_classifications(outputs: dict[str, Any], words: str) -> None:
    with pytest.raises(ServingError, match=words) as caught:
        classified("both", **outputs)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_CL12_CL13_the_method_name_counts_with_the_flag_only() -> None:
    both = dict(SIGNATURES, both=signature({"inputs": (TEXT, ROWS)}, {"scores": (FLOAT, ROWS)}))
    inference.classify(both, "both", examples())
    with pytest.raises(ServingError, match="Expected classification signature method_name") as bad:
        inference.classify(both, "both", examples(), check_method_name=True)
    assert bad.value.code is Code.INVALID_ARGUMENT
    inference.classify(SIGNATURES, "both", examples(), check_method_name=True)


@pytest.mark.parametrize("value", [[1.5, 2.0], [[1.5], [2.0]]])
def test_RG01_RG02_RG03_one_regression_per_example_from_a_vector_or_a_column(value: Any) -> None:
    assert regressed(np.float32(value)) == [1.5, 2.0]


@pytest.mark.parametrize(("value", "words"), [
    pytest.param(np.float32([[1, 2], [3, 4]]), "Expected output Tensor shape", id="RG02-matrix"),
    pytest.param(np.float32(1), "Expected output Tensor shape", id="RG02-scalar"),
    pytest.param(np.float32([[[1]], [[2]]]), "Expected output Tensor shape", id="RG02-rank3"),
    pytest.param(np.float32([1]), "Expected output batch size to be 2", id="RG03"),
    pytest.param(np.float64([1, 2]), "Expected output Tensor of DT_FLOAT", id="RG06"),
])
def test_results_that_are_no_regressions(value: Any, words: str) -> None:
    with pytest.raises(ServingError, match=words) as caught:
        regressed(value)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("name", "words"), [
    pytest.param("none", "No signature was found", id="RG04"),
    pytest.param("regress_two_inputs", "Expected one input Tensor", id="RG01-inputs"),
    pytest.param("regress_two_outputs", "Expected one output Tensor", id="RG01-outputs"),
    pytest.param("regress_input", "No regression inputs found", id="RG05-input"),
    pytest.param("regress_output", "No regression outputs found", id="RG05-output"),
])
def test_signatures_that_cannot_regress(name: str, words: str) -> None:
    with pytest.raises(ServingError, match=words) as caught:
        inference.regress(SIGNATURES, name, examples())
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_RG07_the_method_name_counts_with_the_flag_only() -> None:
    inference.regress(SIGNATURES, "tf2", examples())
    with pytest.raises(ServingError, match="Expected regression signature method_name"):
        inference.regress(SIGNATURES, "tf2", examples(), check_method_name=True)
    inference.regress(SIGNATURES, "regress", examples(), check_method_name=True)


def serialized(message: serving_pb2.Input) -> list[dict[str, list[bytes]]]:
    """Return what the runtime gets, parsed again, as name -> values of each example."""
    array = inference.serialized_examples(message)
    assert array.ndim == 1
    parsed = [serving_pb2.Example.FromString(item) for item in array]
    return [{name: list(feature.bytes_list.value)
             for name, feature in item.features.feature.items()} for item in parsed]


def test_EX02_one_serialized_example_per_example() -> None:
    assert serialized(examples(3)) == [{"row": [b"%d" % row]} for row in range(3)]


def test_EX03_EX04_the_context_stands_before_each_example_which_wins() -> None:
    made = examples(2, example(row=b"context", shared=b"s"))
    made.example_list_with_context.examples[1].features.feature.clear()
    assert serialized(made) == [{"row": [b"0"], "shared": [b"s"]},
                                {"row": [b"context"], "shared": [b"s"]}]


@pytest.mark.parametrize("message", [
    pytest.param(serving_pb2.Input(), id="EX01-nothing"), pytest.param(examples(0), id="EX01"),
    pytest.param(examples(0, example(a=b"x")), id="EX05"),
])
@pytest.mark.parametrize("ask", [
    lambda message: inference.classify(SIGNATURES, "both", message),
    lambda message: inference.regress(SIGNATURES, "regress", message),
    lambda message: inference.multi_inference(SIGNATURES, tasks(("both", CLASSIFY),
                                                                message=message)),
], ids=["classify", "regress", "MI09"])
def test_empty_input(message: serving_pb2.Input, ask: Any) -> None:
    with pytest.raises(ServingError, match=r"Input is empty\.") as caught:
        ask(message)
    assert caught.value.code is Code.INVALID_ARGUMENT


def tasks(*named: Sequence[str], message: serving_pb2.Input | None = None,
          ) -> serving_pb2.MultiInferenceRequest:
    """Return a request of (signature, method name, model) tasks; the model is "m" by default."""
    request = serving_pb2.MultiInferenceRequest(input=message or examples())
    for name, method, *model in named:
        task = request.tasks.add(method_name=method)
        task.model_spec.name, task.model_spec.signature_name = (model or ["m"])[0], name
    return request


def test_MI01_MI12_results_come_in_task_order_each_with_its_signature() -> None:
    plan = inference.multi_inference(SIGNATURES, tasks(("regress", REGRESS), ("both", CLASSIFY)))
    assert [run.signature for run in plan.runs] == ["regress", "both"]
    first, second = finished(plan, {"outputs": np.float32([1, 2])},
                             {"classes": LABELS, "scores": SCORES})
    assert [item.model_spec.signature_name for item in (first, second)] == ["regress", "both"]
    assert [item.value for item in first.regression_result.regressions] == [1.0, 2.0]
    assert second.classification_result.classifications[0].classes[1].label == "yes"
    (alone,) = inference.multi_inference(SIGNATURES, tasks(("scores", CLASSIFY))).runs
    assert alone.outputs == ("scores",)


def test_MI13_every_task_gets_the_same_examples() -> None:
    plan = inference.multi_inference(SIGNATURES, tasks(("regress", REGRESS), ("both", CLASSIFY)))
    first, second = plan.runs
    assert list(first.inputs["inputs"]) == list(second.inputs["inputs"])


def test_MI13_tasks_that_read_different_tensors_cannot_be_one_run() -> None:
    apart = signature({"inputs": (TEXT, ROWS)}, {"outputs": (FLOAT, ROWS)}, REGRESS)
    apart.inputs["inputs"].name = "regress_inputs:0"
    with pytest.raises(ServingError, match=r"Input tensor must be the same for all Signatures\."):
        inference.multi_inference({**SIGNATURES, "apart": apart},
                                  tasks(("both", CLASSIFY), ("apart", REGRESS)))


@pytest.mark.parametrize(("named", "code", "words"), [
    pytest.param([("both", CLASSIFY), ("regress", REGRESS, "other")], "INVALID_ARGUMENT",
                 "must access the same model name", id="MI04"),
    pytest.param([("both", CLASSIFY), ("both", CLASSIFY)], "INVALID_ARGUMENT",
                 "Duplicate evaluation of signature: both", id="MI05"),
    pytest.param([("none", CLASSIFY)], "INVALID_ARGUMENT",
                 "Requested signature not found in model graph: none", id="MI06"),
    pytest.param([("both", "")], "UNIMPLEMENTED", "Unsupported signature method_name", id="MI07"),
    pytest.param([("both", "tensorflow/serving/predict")], "UNIMPLEMENTED",
                 "Unsupported signature method_name", id="MI07-predict"),
    pytest.param([("regress", CLASSIFY)], "INVALID_ARGUMENT", "classification signature outputs",
                 id="MI08"),
    pytest.param([("both", REGRESS)], "INVALID_ARGUMENT", "Expected one output Tensor",
                 id="MI08-regress"),
    pytest.param([("both", CLASSIFY), ("regress", REGRESS, "")], "INVALID_ARGUMENT",
                 "empty model name", id="MI11"),
])
def test_tasks_that_break_a_rule(named: list[Sequence[str]], code: str, words: str) -> None:
    with pytest.raises(ServingError, match=words) as caught:
        inference.multi_inference(SIGNATURES, tasks(*named))
    assert caught.value.code.name == code


def test_MI08_the_tasks_method_name_decides_and_not_the_signatures() -> None:
    (run,) = inference.multi_inference(SIGNATURES, tasks(("tf2", REGRESS))).runs
    assert (run.signature, run.outputs) == ("tf2", ("outputs",))
