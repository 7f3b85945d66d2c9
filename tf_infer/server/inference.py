"""Classify, Regress and MultiInference: tf.Examples in, classes or values out.

Statements CL, RG, EX and MI of TensorFlow Serving's observed behaviour (classifier.cc,
regressor.cc, util.cc, multi_inference.cc). Pure: plans of runs, and what is made of their outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_infer.errors import InvalidRequest, NotOffered
from tf_infer.server.contracts import Arrays, Plan, Run, Signatures
from tf_infer.server.predict import join
from tf_infer.wire import messages, serving_pb2

CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"
INPUTS, CLASSES, SCORES, OUTPUTS = "inputs", "classes", "scores", "outputs"


def serialized_examples(message: serving_pb2.Input) -> np.ndarray:
    """Return the examples of an Input as strings [B] (EX01 to EX05).

    A context stands before each example: joined bytes merge, the later field wins.
    """
    kind = message.WhichOneof("kind")
    prefix = b""
    examples = message.example_list.examples
    if kind == "example_list_with_context":
        prefix = message.example_list_with_context.context.SerializeToString()
        examples = message.example_list_with_context.examples
    if not examples:
        raise InvalidRequest("Input is empty.")
    array = np.empty(len(examples), dtype=object)
    array[:] = [prefix + example.SerializeToString() for example in examples]
    return array


def classify(signatures: Signatures, name: str, message: serving_pb2.Input, *,
             check_method_name: bool = False) -> Plan[serving_pb2.ClassificationResult]:
    """Plan a Classify.

    Raises:
        InvalidRequest: no such signature, not of the form, empty input; when finished: outputs of
            another shape.
    """
    name = name or messages.SERVING_DEFAULT
    signature = _find(signatures, name)
    if check_method_name and signature.method_name != CLASSIFY_METHOD:
        raise InvalidRequest("Expected classification signature method_name to be "
                             f"{CLASSIFY_METHOD}. Was: {signature.method_name}")
    outputs = check_classify(signature)
    examples = serialized_examples(message)
    return Plan((Run(name, {INPUTS: examples}, tuple(outputs)),),
                lambda found: classifications(found[0], len(examples)))


def regress(signatures: Signatures, name: str, message: serving_pb2.Input, *,
            check_method_name: bool = False) -> Plan[serving_pb2.RegressionResult]:
    """Plan a Regress; raises as `classify`."""
    name = name or messages.SERVING_DEFAULT
    signature = _find(signatures, name)
    if check_method_name and signature.method_name != REGRESS_METHOD:
        raise InvalidRequest("Expected regression signature method_name to be "
                             f"{REGRESS_METHOD}. Was: {signature.method_name}")
    check_regress(signature)
    examples = serialized_examples(message)
    return Plan((Run(name, {INPUTS: examples}, (OUTPUTS,)),),
                lambda found: regressions(found[0], len(examples)))


def multi_inference(signatures: Signatures, request: serving_pb2.MultiInferenceRequest,
                    ) -> Plan[list[serving_pb2.InferenceResult]]:
    """Plan a MultiInference: a run a task; results in task order, without the version (MI01).

    Raises:
        InvalidRequest, NotOffered: the tasks break a rule (MI04 to MI11, MI13).
    """
    names = [task.model_spec.signature_name or messages.SERVING_DEFAULT for task in request.tasks]
    _check_tasks(signatures, request, names)
    examples = serialized_examples(request.input)
    runs = tuple(
        Run(name, {INPUTS: examples}, tuple(check_classify(signatures[name]))
            if task.method_name == CLASSIFY_METHOD else (OUTPUTS,))
        for task, name in zip(request.tasks, names))

    def finish(found: Sequence[Arrays]) -> list[serving_pb2.InferenceResult]:
        results = []
        for task, name, outputs in zip(request.tasks, names, found):
            result = serving_pb2.InferenceResult()
            result.model_spec.name, result.model_spec.signature_name = task.model_spec.name, name
            if task.method_name == CLASSIFY_METHOD:
                result.classification_result.CopyFrom(classifications(outputs, len(examples)))
            else:
                result.regression_result.CopyFrom(regressions(outputs, len(examples)))
            results.append(result)
        return results

    return Plan(runs, finish)


def _check_tasks(signatures: Signatures, request: serving_pb2.MultiInferenceRequest,
                 names: list[str]) -> None:
    first = request.tasks[0].model_spec.name if request.tasks else ""
    for position, (task, name) in enumerate(zip(request.tasks, names)):
        if not task.model_spec.name:
            raise InvalidRequest("Found ModelSpec with an empty model name")
        if task.model_spec.name != first:
            raise InvalidRequest("All ModelSpecs in a MultiInferenceRequest must access the same "
                                 f"model name. Expected: {first} but found: "
                                 f"{task.model_spec.name}")
        if name in names[:position]:
            raise InvalidRequest(f"Duplicate evaluation of signature: {name}")
        if name not in signatures:
            raise InvalidRequest(f"Requested signature not found in model graph: {name}")
        if task.method_name == CLASSIFY_METHOD:
            check_classify(signatures[name])
        elif task.method_name == REGRESS_METHOD:
            check_regress(signatures[name])
        else:
            raise NotOffered(f"Unsupported signature method_name: {task.method_name}")
        if _input_tensor(signatures[name]) != _input_tensor(signatures[names[0]]):
            raise InvalidRequest("Input tensor must be the same for all Signatures.")


def _input_tensor(signature: serving_pb2.SignatureDef) -> str:
    return next(iter(signature.inputs.values())).name


def _find(signatures: Signatures, name: str) -> serving_pb2.SignatureDef:
    if name not in signatures:
        raise InvalidRequest(f"No signature was found with the name: {name}")
    return signatures[name]


def check_classify(signature: serving_pb2.SignatureDef) -> list[str]:
    """Return the outputs to run for; raise unless the signature has Classify's form (CL01-CL08)."""
    if len(signature.inputs) != 1:
        raise InvalidRequest("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise InvalidRequest("Expected one or two output Tensors, found "
                             f"{len(signature.outputs)}")
    if INPUTS not in signature.inputs:
        raise InvalidRequest("No classification inputs found in SignatureDef: "
                             f"inputs {{{join(signature.inputs)}}}")
    found = [name for name in (CLASSES, SCORES) if name in signature.outputs]
    if len(found) != len(signature.outputs):
        raise InvalidRequest("Expected classification signature outputs to contain only "
                             f"\"{CLASSES}\" and \"{SCORES}\", got {{{join(signature.outputs)}}}")
    return found


def check_regress(signature: serving_pb2.SignatureDef) -> None:
    """Raise unless the signature has Regress's form (RG01, RG05)."""
    if len(signature.inputs) != 1:
        raise InvalidRequest("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise InvalidRequest("Expected one output Tensor.")
    if INPUTS not in signature.inputs:
        raise InvalidRequest("No regression inputs found in SignatureDef: "
                             f"inputs {{{join(signature.inputs)}}}")
    if OUTPUTS not in signature.outputs:
        raise InvalidRequest("No regression outputs found in SignatureDef: "
                             f"outputs {{{join(signature.outputs)}}}")


def classifications(outputs: Arrays, examples: int) -> serving_pb2.ClassificationResult:
    """Return one Classifications per example, one Class per column (CL02, CL03, CL09 to CL11)."""
    classes, scores = outputs.get(CLASSES), outputs.get(SCORES)
    for array in (classes, scores):
        if array is not None and array.ndim != 2:
            raise InvalidRequest("Expected Tensor shape: [batch_size num_classes] but got "
                                 f"{list(array.shape)}")
        if array is not None and len(array) != examples:
            raise InvalidRequest(f"Expected output batch size of {examples}, got {len(array)}")
    if scores is not None and scores.dtype != np.float32:
        raise InvalidRequest(f"Expected scores Tensor of DT_FLOAT. Got: {scores.dtype.name}")
    if classes is not None and classes.dtype.kind not in "OSU":
        raise InvalidRequest(f"Expected classes Tensor of DT_STRING. Got: {classes.dtype.name}")
    if classes is not None and scores is not None and classes.shape != scores.shape:
        raise InvalidRequest(f"Tensors class and score should match in shape: {classes.shape} "
                             f"and {scores.shape}")
    shape = scores.shape if scores is not None else classes.shape  # type: ignore[union-attr]
    labels = classes.tolist() if classes is not None else np.full(shape, "").tolist()
    values = scores.tolist() if scores is not None else np.zeros(shape).tolist()
    result = serving_pb2.ClassificationResult()
    for row_labels, row_values in zip(labels, values):
        row = result.classifications.add()
        for label, value in zip(row_labels, row_values):
            text = label.decode("utf-8", "replace") if isinstance(label, bytes) else label
            row.classes.add(label=text, score=value)
    return result


def regressions(outputs: Arrays, examples: int) -> serving_pb2.RegressionResult:
    """Return one Regression per example (RG02, RG03, RG06)."""
    values = outputs[OUTPUTS]
    if not (values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)):
        raise InvalidRequest("Expected output Tensor shape to be either [batch_size] or "
                             f"[batch_size, 1] but got {list(values.shape)}")
    if len(values) != examples:
        raise InvalidRequest(f"Expected output batch size to be {examples}, got {len(values)}")
    if values.dtype != np.float32:
        raise InvalidRequest(f"Expected output Tensor of DT_FLOAT. Got: {values.dtype.name}")
    result = serving_pb2.RegressionResult()
    for value in values.reshape(-1).tolist():
        result.regressions.add(value=value)
    return result
