"""REST without HTTP: route and body -> Call, and the JSON of its answer.

Statements RP, RC, RM and RS13 of TensorFlow Serving's observed behaviour. All but predict goes
through the messages of gRPC, so that both protocols check and answer alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Union

from tf_infer.errors import InvalidRequest
from tf_infer.server import predict
from tf_infer.server.contracts import Arrays, Plan, Run, Signatures
from tf_infer.server.grpc_service import Asked, Deadline, Service, model_ref
from tf_infer.server.known_bodies import KnownBodies
from tf_infer.server.metrics import REST
from tf_infer.server.pipeline import Answer, Call
from tf_infer.server.rest_routes import Route
from tf_infer.server.versions import ModelRef
from tf_infer.wire import messages, rest, rest_examples, serving_pb2


class Formed(NamedTuple):
    """Outputs of a predict request, and the form that its answer has."""

    outputs: Arrays
    form: rest.Form


class RestCall(NamedTuple):
    """A request that the pipeline answers: its call, and the JSON made of the answer."""

    call: Call[Any]
    body: Callable[[Answer[Any]], bytes]


Begun = Union[RestCall, bytes]


class RestService:
    """The answers to every route.

    Args:
        service: answers the messages of gRPC.
        check_method_names: FL38.
    """

    def __init__(self, service: Service, *, check_method_names: bool = False) -> None:
        self._service = service
        self._check = check_method_names
        self._known = KnownBodies()

    def begin(self, route: Route, content: bytes, deadline: Deadline) -> Begun:
        """Return the call of a request, or its answer at once.

        Args:
            route: what is asked of which model.
            content: the body, inflated.
            deadline: on the clock of `time.monotonic`.

        Raises:
            ServingError: the body is not as it should be; the model is looked up later (RP18).
        """
        if route.kind == "predict":
            return self._predict(route.model, content, deadline)
        spec = messages.model_spec(route.model)
        if route.kind == "status":
            return rest_examples.status_json(self._service.status(
                serving_pb2.GetModelStatusRequest(model_spec=spec), deadline))
        if route.kind == "metadata":
            return _over(self._service.metadata(serving_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=[messages.SIGNATURE_DEF]), deadline),
                rest_examples.metadata_json)
        spec.signature_name, examples = rest_examples.read_examples(content)
        if route.kind == "classify":
            return _over(self._service.classify(serving_pb2.ClassificationRequest(
                model_spec=spec, input=examples), deadline),
                lambda response: rest_examples.classification_json(response.result))
        return _over(self._service.regress(serving_pb2.RegressionRequest(
            model_spec=spec, input=examples), deadline),
            lambda response: rest_examples.regression_json(response.result))

    def _predict(self, asked: messages.ModelRef, content: bytes, deadline: Deadline) -> RestCall:
        found = self._known.find(asked, content)
        if found is not None:
            known = found.known

            def plan(signatures: Signatures) -> Plan[Formed]:
                if signatures is known.signatures:
                    return found.plan()
                self._known.forget(known)
                return self._plan(asked, known.ref, content, rest.read_body(content), signatures)

            return RestCall(Call("Predict", known.ref, plan, deadline, REST), _written)
        body, ref = rest.read_body(content), model_ref(messages.model_spec(asked))
        return RestCall(Call("Predict", ref, lambda signatures: self._plan(
            asked, ref, content, body, signatures), deadline, REST), _written)

    def _plan(self, asked: messages.ModelRef, ref: ModelRef, content: bytes, body: rest.Body,
              signatures: Signatures) -> Plan[Formed]:
        name = body.signature or messages.SERVING_DEFAULT
        if name not in signatures:
            raise InvalidRequest(
                f'Serving signature name: "{name}" not found in signature def')
        taken = signatures[name].inputs
        inputs, form = rest.read_inputs(body, taken)
        signature = predict.find(signatures, name, check_method_name=self._check)
        predict.check_inputs(signature, inputs)
        outputs = tuple(predict.choose_outputs(signature, ()))
        plan = Plan((Run(name, inputs, outputs),), lambda found: Formed(found[0], form))
        self._known.keep(asked, ref, content, form, lambda other: rest.read_inputs(
            rest.read_body(other), taken), signatures, plan)
        return plan


def _written(answer: Answer[Formed]) -> bytes:
    return rest.write_outputs(answer.value.outputs, answer.value.form)


def _over(asked: Asked, written: Callable[[Any], bytes]) -> RestCall:
    """Return a call of gRPC as one of REST."""
    call = asked.call
    return RestCall(Call(call.method, call.model, call.plan, call.deadline_s, REST),
                    lambda answer: written(asked.response(answer)))


def weight(value: Any) -> int:
    """Return how many elements an answer's value has, as far as that is known."""
    return sum([array.size for array in value.outputs.values()]) if isinstance(value, Formed) else 0
