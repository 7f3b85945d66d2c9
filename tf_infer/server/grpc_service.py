"""PredictionService, ModelService and health over gRPC: bytes -> message -> Call and back.

Codes and texts are TensorFlow Serving's (sections GE, PR, MD, MS, CL, RG, MI of its observed
behaviour). Handlers are generic, so that no generated gRPC code is needed, and no thread is held
while a request waits or runs: docs/runtime.md.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Union

import grpc

from tf_infer.errors import Code, InvalidRequest, ServerFailure, ServingError
from tf_infer.server import direct, inference, logs, predict, reading
from tf_infer.server.config import models_from
from tf_infer.server.contracts import Arrays, Plan, Signatures
from tf_infer.server.known_requests import Found, KnownRequests
from tf_infer.server.metrics import GRPC
from tf_infer.server.pipeline import Answer, Call, Pipeline, Progress
from tf_infer.server.replies import Reply
from tf_infer.server.scheduler import as_serving_error
from tf_infer.server.versions import ModelRef
from tf_infer.wire import messages, methods, serving_pb2, timings

log = logging.getLogger("tf_infer.server")

MAX_DETAILS_BYTES = 1024
MANY_ELEMENTS = 10_000  # to read more would hold up the others on gRPC's thread: reading.py
EXAMPLE_ELEMENTS = 10  # one costs as much as so many strings
MAX_DIMENSIONS = 32  # of a tensor that is read at all
MAX_DEADLINE_S = 365 * 24 * 3600.0
HEALTH_NAMES = ("", "ModelService", "PredictionService")
OUR_FAULT = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS})

Deadline = Union[float, None]  # on the clock of time.monotonic


class Asked(NamedTuple):
    """A request that the pipeline answers: its call, and the message made of the answer, or its
    bytes."""

    call: Call[Any]
    response: Callable[[Answer[Any]], Any]


Answering = Callable[[Any, Deadline], Any]  # message, deadline -> Asked, or the response itself
Replying = Union[Reply, direct.DirectCall]
Behaviour = Callable[[bytes, Any, Replying], None]  # the request, gRPC's context, what answers


def truncated(details: str) -> str:
    """Return an error text as it is sent: cut after 1024 bytes (GE10)."""
    raw = details.encode("utf-8", "replace")
    if len(raw) <= MAX_DETAILS_BYTES:
        return details
    return raw[:MAX_DETAILS_BYTES].decode("utf-8", "ignore") + "...TRUNCATED"


def claims_many(request: Any) -> bool:
    """Return whether reading a request takes long, however few its bytes.

    A tensor of one value may claim a shape of millions, and an example may be two bytes.
    """
    elements = 0
    if isinstance(request, serving_pb2.PredictRequest):
        for tensor in request.inputs.values():
            count = 1
            for dim in tensor.tensor_shape.dim[:MAX_DIMENSIONS]:
                count *= abs(dim.size)  # a negative one is refused, but after the others
            elements += count
    elif hasattr(request, "input"):
        listed = request.input
        elements = EXAMPLE_ELEMENTS * (len(listed.example_list.examples)
                                       + len(listed.example_list_with_context.examples))
    return elements > MANY_ELEMENTS


def model_ref(spec: serving_pb2.ModelSpec) -> ModelRef:
    """Return what a ModelSpec asks for (GE04, GE07)."""
    if not spec.name:
        raise InvalidRequest("ModelSpec has no name specified.")
    choice = spec.WhichOneof("version_choice")
    return ModelRef(spec.name, spec.version.value if choice == "version" else None,
                    spec.version_label if choice == "version_label" else None)


class Service:
    """The answers to every method of the port; each takes a message and a deadline.

    Args:
        pipeline: answers inference calls.
        tensor_content: PR14.
        check_method_names: FL38.
        health: offer grpc.health.v1 (LI10).
        stages: split runs into their stages for callers that ask for it (wire/timings.py).
    """

    def __init__(self, pipeline: Pipeline, *, tensor_content: bool = False,
                 check_method_names: bool = False, health: bool = False,
                 stages: bool = True) -> None:
        self._pipeline = pipeline
        self._tensor_content = tensor_content
        self._check = check_method_names
        self._stages = stages
        self._known = KnownRequests(model_ref)
        self._answers: dict[str, tuple[methods.Method, Answering]] = {
            method.path: (method, answer) for method, answer in (
                (methods.PREDICT, self.predict), (methods.CLASSIFY, self.classify),
                (methods.REGRESS, self.regress), (methods.MULTI_INFERENCE, self.multi_inference),
                (methods.GET_MODEL_METADATA, self.metadata),
                (methods.GET_MODEL_STATUS, self.status),
                (methods.RELOAD_CONFIG, self.reload))}
        if health:
            self._answers[methods.HEALTH_CHECK.path] = (methods.HEALTH_CHECK, self.health)

    # ------------------------------------------------------------------ inference

    def predict(self, request: serving_pb2.PredictRequest, deadline: Deadline) -> Asked:
        """Answer Predict."""
        spec = _spec_of(request)
        return self._predicting(
            model_ref(spec), _signature(spec), lambda signatures: predict.plan(
                signatures, request, check_method_name=self._check), deadline)

    def predict_known(self, found: Found, deadline: Deadline) -> Asked:
        """Answer Predict of a form that came before."""
        known = found.known
        return self._predicting(known.ref, known.signature, lambda signatures: known.plan(
            signatures, found.array, check_method_name=self._check), deadline)

    def _predicting(self, ref: ModelRef, signature: str,
                    plan: Callable[[Signatures], Plan[Arrays]], deadline: Deadline) -> Asked:
        def response(answer: Answer[Any]) -> bytes:
            return messages.predict_response_bytes(answer.name, answer.version, signature,
                                                   answer.value, content=self._tensor_content)

        return Asked(Call("Predict", ref, plan, deadline), response)

    def classify(self, request: serving_pb2.ClassificationRequest, deadline: Deadline) -> Asked:
        """Answer Classify."""
        spec = _spec_of(request)
        return Asked(
            Call("Classify", model_ref(spec), lambda signatures: inference.classify(
                signatures, spec.signature_name, request.input, check_method_name=self._check),
                deadline),
            lambda answer: serving_pb2.ClassificationResponse(
                model_spec=messages.model_spec(_ran(answer), _signature(spec)),
                result=answer.value))

    def regress(self, request: serving_pb2.RegressionRequest, deadline: Deadline) -> Asked:
        """Answer Regress."""
        spec = _spec_of(request)
        return Asked(
            Call("Regress", model_ref(spec), lambda signatures: inference.regress(
                signatures, spec.signature_name, request.input, check_method_name=self._check),
                deadline),
            lambda answer: serving_pb2.RegressionResponse(
                model_spec=messages.model_spec(_ran(answer), _signature(spec)),
                result=answer.value))

    def multi_inference(self, request: serving_pb2.MultiInferenceRequest, deadline: Deadline,
                        ) -> Asked:
        """Answer MultiInference; the first task picks the version (MI03)."""
        first = request.tasks[0].model_spec if request.tasks else serving_pb2.ModelSpec()

        def response(answer: Answer[Any]) -> serving_pb2.MultiInferenceResponse:
            for result in answer.value:
                result.model_spec.version.value = answer.version
            return serving_pb2.MultiInferenceResponse(results=answer.value)

        return Asked(Call("MultiInference", model_ref(first), lambda signatures:
                          inference.multi_inference(signatures, request), deadline), response)

    def metadata(self, request: serving_pb2.GetModelMetadataRequest, deadline: Deadline) -> Asked:
        """Answer GetModelMetadata (MD01 to MD07)."""
        spec = _spec_of(request)
        if not request.metadata_field:
            raise InvalidRequest("GetModelMetadataRequest must specify at least one metadata_field")
        for name in request.metadata_field:
            if name != messages.SIGNATURE_DEF:
                raise InvalidRequest(f"Metadata field {name} is not supported")

        def plan(signatures: Signatures) -> Plan[Signatures]:
            return Plan((), lambda outputs: signatures)

        return Asked(Call("GetModelMetadata", model_ref(spec), plan, deadline),
                     lambda answer: messages.metadata_response(_ran(answer), answer.value))

    # ------------------------------------------------------------------ models

    def status(self, request: serving_pb2.GetModelStatusRequest, deadline: Deadline,
               ) -> serving_pb2.GetModelStatusResponse:
        """Answer GetModelStatus; label and signature are not looked at (MS07, MS09)."""
        spec = _spec_of(request)
        version = spec.version.value if spec.HasField("version") else None
        rows = self._pipeline.versions.status(spec.name, version)
        response: serving_pb2.GetModelStatusResponse = messages.status_response([
            messages.VersionState(
                version=row.version, state=row.state.name,
                error_code=row.error.code.name if row.error else Code.OK.name,
                error_message=row.error.details if row.error else "") for row in rows])
        return response

    def reload(self, request: serving_pb2.ReloadConfigRequest, deadline: Deadline,
               ) -> serving_pb2.ReloadConfigResponse:
        """Answer HandleReloadConfigRequest: take the list, wait for new models (MS11 to MS18)."""
        models = models_from(request.config, self._pipeline.versions.names())
        metrics = self._pipeline.metrics
        before = {name: metrics.counter_value(name) for name in request.metric_names}
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            self._pipeline.versions.configure(models, timeout_s=left)
        except TimeoutError as error:
            raise ServingError(str(error), code=Code.DEADLINE_EXCEEDED) from error
        response = serving_pb2.ReloadConfigResponse()
        response.status.error_code = serving_pb2.OK
        for name, value in before.items():
            response.metric.add(name=name, int64_value_increase=metrics.counter_value(name) - value)
        return response

    def health(self, request: serving_pb2.HealthCheckRequest, deadline: Deadline,
               ) -> serving_pb2.HealthCheckResponse:
        """Answer health Check: serving from the first moment on, whatever the models do (LI10)."""
        if request.service not in HEALTH_NAMES:
            raise ServingError("unknown service", code=Code.NOT_FOUND)
        return serving_pb2.HealthCheckResponse(status=serving_pb2.HealthCheckResponse.SERVING)

    # ------------------------------------------------------------------ gRPC

    def offered(self) -> tuple[methods.Method, ...]:
        """Return the methods that are answered."""
        return tuple(method for method, _ in self._answers.values())

    def handlers(self, wanted: Callable[[methods.Method], bool] = lambda method: True, *,
                 large: Callable[..., Any] | None = None) -> list[Any]:
        """Return one generic handler per service, for `grpc.Server.add_generic_rpc_handlers`.

        Args:
            wanted: whether a method is offered; others are UNIMPLEMENTED.
            large: see `reading.handler`.
        """
        services: dict[str, dict[str, Any]] = {}
        for method, answering in self._answers.values():
            if wanted(method):
                behaviour = _replying(self._behaviour(method, answering, large))
                services.setdefault(method.service, {})[method.name] = (
                    reading.in_pool(behaviour) if method == methods.RELOAD_CONFIG  # it waits
                    else reading.handler(behaviour, large))
        return [grpc.method_handlers_generic_handler(service, table)
                for service, table in services.items()]

    def behaviours(self, large: Callable[..., Any]) -> dict[str, direct.Behaviour]:
        """Return what answers each method by its path, for `direct.register`.

        The handlers are needed all the same: they answer where `direct` does not know grpcio.

        Args:
            large: see `direct.register`.
        """
        def called(behaviour: Behaviour) -> direct.Behaviour:
            return lambda data, call: behaviour(data, call, call)

        return {path: called(self._behaviour(method, answering, large))
                for path, (method, answering) in self._answers.items()
                if method != methods.RELOAD_CONFIG}  # it waits

    def _behaviour(self, method: methods.Method, answering: Answering,
                   large: Callable[..., Any] | None) -> Behaviour:
        """Return what is called with the request's bytes; it returns before the answer is sent."""
        predicts = method is methods.PREDICT

        def behaviour(data: bytes, context: Any, reply: Replying) -> None:
            record = _Record(method.name, context, len(data), time.monotonic())

            def fail(error: ServingError) -> None:
                self._finish(record, error.code)
                reply.fail(error.code, truncated(error.details))

            def succeed(response: Any) -> None:
                content = (response if isinstance(response, bytes)
                           else response.SerializeToString())
                self._finish(record, Code.OK)
                reply.send(content)

            def answer(request: Any, answering: Answering = answering) -> None:
                try:
                    asked = answering(request, deadline_of(context, record.started_s))
                    if isinstance(asked, Asked):
                        record.progress = asked.call.progress
                        asked = self._with_timings(asked, context, reply, record.started_s)
                        self._ask(asked, reply, succeed, fail)
                    else:
                        succeed(asked)
                except Exception as error:
                    fail(as_serving_error(error, method.name))

            found = self._known.find(data) if predicts else None
            if found is not None:
                record.api, record.model = method.name, found.known.ref.name
                answer(found, self.predict_known)
                return
            try:
                request = _parse(method, data)
                record.api, record.model = method.name, _model_named(request)
                if large is not None and len(data) <= reading.LARGE_BYTES and claims_many(request):
                    large(answer, request)
                    return
            except Exception as error:
                fail(as_serving_error(error, method.name))
                return
            answer(request)
            if predicts:
                self._known.keep(data, request)

        return behaviour

    def _with_timings(self, asked: Asked, context: Any, reply: Replying, started_s: float) -> Asked:
        """Return `asked`, whose answer also tells where the time went if the caller asks for it."""
        detail = timings.asked_for(context.invocation_metadata() or ())
        if detail is None:
            return asked

        def response(answer: Answer[Any]) -> Any:
            made = asked.response(answer)
            reply.trailing(timings.ANSWER_KEY, timings.to_text(
                _timings(answer, time.monotonic() - started_s)))
            return made

        traced = self._stages and detail == "stages"
        return Asked(replace(asked.call, traced=traced), response)

    def _ask(self, asked: Asked, reply: Replying, succeed: Callable[[Any], None],
             fail: Callable[[ServingError], None]) -> None:
        def done(outcome: Answer[Any] | ServingError) -> None:
            if isinstance(outcome, ServingError):
                fail(outcome)
                return
            try:
                succeed(asked.response(outcome))
            except Exception as error:
                fail(as_serving_error(error, asked.call.method))

        ticket = self._pipeline.submit(asked.call, done)
        reply.when_gone(ticket.give_up)

    def _finish(self, record: _Record, code: Code) -> None:
        """Tell metrics and log of a call that is answered."""
        seconds = time.monotonic() - record.started_s
        self._pipeline.metrics.request(
            record.model, record.api, GRPC, code, seconds, version=record.progress.version,
            signature=record.progress.signature)
        ours = code in OUR_FAULT and record.api  # a message that cannot be parsed is not
        level = logging.WARNING if ours else logging.DEBUG
        if log.isEnabledFor(level):
            self._log(level, record, code, seconds)

    def _log(self, level: int, record: _Record, code: Code, seconds: float) -> None:
        """Log one call: numbers, and names that are ours."""
        known = self._pipeline.metrics.knows(record.model)
        logs.event("request", level, method=record.method, code=code.name,
                   ms=round(seconds * 1000, 3), model=record.model if known else None,
                   version=record.progress.version, signature=record.progress.signature or None,
                   rows=record.progress.rows, bytes=record.size,
                   request_id=logs.request_id(header_of(record.context, "x-request-id")))


@dataclass(slots=True)
class _Record:
    """What metrics and log want to know of a call.

    Attributes:
        method: that was called.
        context: gRPC's, of the call.
        size: of the request in bytes.
        started_s: when, on the clock of `time.monotonic`.
        api: the method once its message is understood: before, TensorFlow Serving counts nothing.
        model: the name that the request gives.
        progress: how far the pipeline got.
    """

    method: str
    context: Any
    size: int
    started_s: float
    api: str = ""
    model: str = ""
    progress: Progress = field(default_factory=Progress)


def header_of(context: Any, name: str) -> str | None:
    """Return what the caller's metadata says under a name."""
    return next((str(value) for key, value in context.invocation_metadata() or () if key == name),
                None)


def _replying(behaviour: Behaviour) -> reading.Behaviour:
    """Return a behaviour as a handler of grpcio's has it."""
    return lambda data, context, send: behaviour(data, context, Reply(context, send))


def _timings(answer: Answer[Any], total_s: float) -> timings.Timings:
    stages = answer.stages
    if stages is None:
        return timings.Timings(queue_s=answer.queue_s, model_s=answer.run_s, total_s=total_s)
    return timings.Timings(queue_s=answer.queue_s, tokenize_s=stages.tokenize_s,
                           model_s=stages.model_s, decode_s=stages.decode_s, total_s=total_s)


def _model_named(request: Any) -> str:
    """Return the model's name that a request gives, empty where it gives none."""
    if isinstance(request, serving_pb2.MultiInferenceRequest):
        return request.tasks[0].model_spec.name if request.tasks else ""
    spec = getattr(request, "model_spec", None)
    return "" if spec is None else str(spec.name)


def _spec_of(request: Any) -> serving_pb2.ModelSpec:
    if not request.HasField("model_spec"):
        raise InvalidRequest("Missing ModelSpec")
    spec: serving_pb2.ModelSpec = request.model_spec
    return spec


def _ran(answer: Answer[Any]) -> messages.ModelRef:
    return messages.ModelRef(answer.name, version=answer.version)


def _signature(spec: serving_pb2.ModelSpec) -> str:
    return spec.signature_name or messages.SERVING_DEFAULT


def deadline_of(context: Any, now_s: float) -> Deadline:
    """Return when the caller gives up; None for never (LI05).

    Without a deadline grpcio tells 9.2e18 s, which neither a lock nor TensorFlow takes.
    """
    left = context.time_remaining()
    return now_s + left if left is not None and left < MAX_DEADLINE_S else None


def _parse(method: methods.Method, data: bytes) -> Any:
    try:
        return methods.parse(method.request, data, where=f"request of {method.name}")
    except InvalidRequest as error:  # gRPC itself answers so when its stubs cannot parse
        raise ServerFailure(error.details) from error
