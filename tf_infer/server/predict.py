"""Predict against a signature: which inputs, which outputs, and the texts when they do not fit.

Statements PR01 to PR30 of TensorFlow Serving's observed behaviour (predict_util.cc). Pure, so gRPC,
REST and warm-up share it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from tf_infer.errors import Code, InvalidRequest, ServerFailure, TfInferError
from tf_infer.server.contracts import Arrays, Plan, Run, Signatures
from tf_infer.wire import messages, serving_pb2, tensors

METHOD_NAMES = frozenset(f"tensorflow/serving/{kind}" for kind in
                         ("predict", "classify", "regress"))


def plan(signatures: Signatures, request: serving_pb2.PredictRequest, *,
         check_method_name: bool = False) -> Plan[Arrays]:
    """Return one run, whose outputs are the answer, in the order asked for.

    Raises:
        InvalidRequest: the request does not fit the signature (PR02 to PR06, PR11, PR12).
    """
    name = request.model_spec.signature_name or messages.SERVING_DEFAULT
    signature = find(signatures, name, check_method_name=check_method_name)
    inputs = read_inputs(signature, request.inputs)
    outputs = choose_outputs(signature, request.output_filter)
    return Plan((Run(name, inputs, tuple(outputs)),), only)


def only(found: Sequence[Arrays]) -> Arrays:
    """Return the outputs of the one run."""
    return found[0]


def find(signatures: Signatures, name: str, *, check_method_name: bool = False,
         ) -> serving_pb2.SignatureDef:
    """Return the signature for Predict; FAILED_PRECONDITION when there is none (PR02, PR27)."""
    if name not in signatures:
        raise InvalidRequest(f'Serving signature key "{name}" not found.',
                             code=Code.FAILED_PRECONDITION)
    signature = signatures[name]
    if check_method_name and signature.method_name not in METHOD_NAMES:
        raise ServerFailure(
            f"Expected prediction signature method_name to be one of {{{join(METHOD_NAMES)}}}. "
            f"Was: {signature.method_name}")
    return signature


def join(names: Iterable[str]) -> str:
    """Return names as the server's texts list them."""
    return ",".join(sorted(names))


def read_inputs(signature: serving_pb2.SignatureDef,
                protos: Mapping[str, serving_pb2.TensorProto]) -> Arrays:
    """Return every input as an array, defaults filled in (PR25).

    Raises:
        InvalidRequest: too few, too many, unknown names, or a tensor that does not parse.
    """
    check_inputs(signature, protos)
    given = {name: read_tensor(name, proto) for name, proto in protos.items()}
    if signature.defaults:
        given |= {name: read_tensor(name, signature.defaults[name])
                  for name in set(signature.defaults) & set(signature.inputs) - set(protos)}
    return given


def check_inputs(signature: serving_pb2.SignatureDef, given: Collection[str]) -> None:
    """Raise unless these are the inputs of the signature, but for those with a default (PR03)."""
    inputs = signature.inputs
    if len(given) == len(inputs) and all(name in inputs for name in given):
        return
    known, defaults = set(inputs), set(signature.defaults)
    missing = known - set(given) - defaults
    if len(given) > len(known) or (missing and len(given) != len(known)):
        raise InvalidRequest(
            f"input size does not match signature: {len(given)}!={len(known)} "
            f"len({{{join(given)}}}) != len({{{join(known)}}}). "
            f"Sent extra: {{{join(set(given) - known)}}}. "
            f"Missing but required: {{{join(missing)}}}.")
    unknown = sorted(set(given) - known)
    if unknown:
        raise InvalidRequest(f"input tensor alias not found in signature: {unknown[0]}. "
                             f"Inputs expected to be in the set {{{join(known)}}}.")


def read_tensor(name: str, proto: serving_pb2.TensorProto) -> np.ndarray:
    """Return the array of a TensorProto; INVALID_ARGUMENT when it does not parse (PR06)."""
    try:
        return tensors.to_array(proto)
    except TfInferError as error:
        raise InvalidRequest(f"tensor parsing error: {name}: {error}") from error


def choose_outputs(signature: serving_pb2.SignatureDef, wanted: Sequence[str]) -> list[str]:
    """Return the names of the outputs to run for: `wanted`, or all (PR10 to PR12)."""
    chosen: list[str] = []
    for name in wanted:
        if name not in signature.outputs:
            raise InvalidRequest(f"output tensor alias not found in signature: {name} Outputs "
                                 f"expected to be in the set {{{join(signature.outputs)}}}.")
        if name in chosen:
            raise InvalidRequest(f"duplicate output tensor alias: {name}")
        chosen.append(name)
    return chosen or list(signature.outputs)
