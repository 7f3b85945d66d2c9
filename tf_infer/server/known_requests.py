"""Predict requests of forms that came before: what is to be run is known, but for a value."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tf_infer.errors import TfInferError
from tf_infer.server import predict
from tf_infer.server.contracts import Arrays, Plan, Run, Signatures
from tf_infer.server.versions import ModelRef
from tf_infer.wire import messages, request_form, serving_pb2, tensors

MOST = 8  # forms; each costs every request of none of them a microsecond
SELDOM = 8  # of so many requests that are of none of them one has its form kept
SMALL_BYTES = 4096  # of a request that is kept


class Known:
    """Requests of one form.

    Args:
        form: theirs.
        request: one of them, but for its value: that of a caller does not stay in memory.
        ref: what it asks for.

    Attributes:
        signature: that it asks for.
    """

    def __init__(self, form: request_form.RequestForm, request: serving_pb2.PredictRequest,
                 ref: ModelRef) -> None:
        self.form, self.ref = form, ref
        self.signature: str = request.model_spec.signature_name or messages.SERVING_DEFAULT
        self._request = request
        self._planned: tuple[Signatures, bool, Run] | None = None

    def plan(self, signatures: Signatures, array: np.ndarray, *, check_method_name: bool = False,
             ) -> Plan[Arrays]:
        """Return what `predict.plan` returns for the request with this value of its input."""
        planned = self._planned
        if planned is None or planned[0] is not signatures or planned[1] is not check_method_name:
            run, = predict.plan(signatures, self._request, check_method_name=check_method_name).runs
            self._planned = planned = signatures, check_method_name, run
        name, inputs, outputs = planned[2]
        return Plan((Run(name, {**inputs, self.form.name: array}, outputs),), predict.only)


class Found(NamedTuple):
    """What is known of a request, and the value of its input."""

    known: Known
    array: np.ndarray


class KnownRequests:
    """The last forms that came. May be used by several threads at once.

    Args:
        ref_of: what a ModelSpec asks for.
    """

    def __init__(self, ref_of: Callable[[serving_pb2.ModelSpec], ModelRef]) -> None:
        self._ref_of = ref_of
        self._known: tuple[Known, ...] = ()
        self._others = 0

    def find(self, data: bytes) -> Found | None:
        """Return what is known of a request; None where nothing is."""
        for known in self._known:
            array = known.form.array_in(data)
            if array is not None:
                return Found(known, array)
        return None

    def keep(self, data: bytes, request: serving_pb2.PredictRequest) -> None:
        """Remember, perhaps, the form of a request of which nothing is known."""
        self._others += 1
        if self._others % SELDOM != 1 or len(data) > SMALL_BYTES:
            return
        try:
            form, ref = request_form.form_of(data, request), self._ref_of(request.model_spec)
        except (TfInferError, ValueError, IndexError):  # its caller is told by what reads it
            return
        if form is not None and not _unknown_fields(request):
            self._known = (Known(form, _without_value(request, form), ref), *self._known)[:MOST]


def _unknown_fields(request: serving_pb2.PredictRequest) -> bool:
    """Return whether a request has fields that the API does not know, which the form would hold."""
    plain = serving_pb2.PredictRequest()
    plain.CopyFrom(request)
    plain.DiscardUnknownFields()
    return bool(plain.ByteSize() != request.ByteSize())


def _without_value(request: serving_pb2.PredictRequest, form: request_form.RequestForm,
                   ) -> serving_pb2.PredictRequest:
    """Return a request like another, with an empty text or zeros as its input."""
    like = serving_pb2.PredictRequest(
        model_spec=request.model_spec, output_filter=request.output_filter)
    tensors.write(np.full(form.shape, b"" if form.size is None else 0, form.dtype),
                  like.inputs[form.name])
    return like
