"""REST bodies of known forms: run and answered as those of none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.restkit import SIGNATURES, serving
from tf_infer.errors import InvalidRequest, ServingError
from tf_infer.server.contracts import Plan, Signatures
from tf_infer.server.fakes import signature
from tf_infer.server.grpc_service import Service
from tf_infer.server.known_bodies import KnownBodies
from tf_infer.server.known_requests import MOST, SELDOM, SMALL_BYTES
from tf_infer.server.pipeline import Pipeline
from tf_infer.server.rest_routes import Route, route_of
from tf_infer.server.rest_service import RestCall, RestService
from tf_infer.server.versions import ModelRef
from tf_infer.wire import serving_pb2 as pb

ROUTE = route_of("POST", "/v1/models/m:predict")
NUMBER = {"x": (pb.DT_FLOAT, (-1,))}


def body_of(text: str, **more: Any) -> bytes:
    return json.dumps({"signature_name": "text", **more, "instances": [text]}).encode()


@pytest.fixture
def service() -> RestService:
    return RestService(Service(Pipeline(None, None)))  # type: ignore[arg-type]


def planned(service: RestService, body: bytes, signatures: Signatures = SIGNATURES,
            route: Route = ROUTE) -> Plan[Any]:
    begun = service.begin(route, body, None)
    assert isinstance(begun, RestCall)
    return begun.call.plan(signatures)


def known(service: RestService, body: bytes, route: Route = ROUTE) -> bool:
    """Return whether a body is of a known form."""
    return service._known.find(route.model, body) is not None


def seen(service: RestService, *bodies: bytes) -> None:
    """Let each be the one in `SELDOM` whose form is kept."""
    for body in bodies:
        for _ in range(SELDOM):
            planned(service, body)


def test_what_is_known_of_a_body_plans_what_the_body_plans(service: RestService) -> None:
    first, other = planned(service, body_of("one")), body_of("another")
    assert known(service, other)
    begun = service.begin(ROUTE, other, 7.0)
    assert isinstance(begun, RestCall)
    call, fresh = begun.call, service.begin(route_of("POST", "/v1/models/n:predict"), other, 7.0)
    assert isinstance(fresh, RestCall)
    assert (call.model.name, call.method, call.entrypoint, call.deadline_s) == (
        "m", fresh.call.method, fresh.call.entrypoint, 7.0)
    run, = call.plan(SIGNATURES).runs
    expected, = fresh.call.plan(SIGNATURES).runs
    assert run.inputs["text"].tolist() == expected.inputs["text"].tolist() == [b"another"]
    assert run._replace(inputs={}) == expected._replace(inputs={})
    outputs: Any = {"text": run.inputs["text"]}
    assert call.plan(SIGNATURES).finish([outputs]) == first.finish([outputs])


def test_a_version_with_other_signatures_is_asked_anew(service: RestService) -> None:
    seen(service, body_of("one"))
    others: dict[str, tuple[Signatures, str]] = {
        "gone": ({"other": SIGNATURES["text"]}, 'name: "text" not found'),
        "numbers": ({"text": signature(NUMBER, NUMBER)}, "<text of 5 characters> Type: String")}
    for signatures, text in others.values():
        with pytest.raises(InvalidRequest, match=text):
            planned(service, body_of("wrong"), signatures)
        assert not known(service, body_of("right"))
        seen(service, body_of("right"))
        assert known(service, body_of("right"))
    wider = {"text": signature({"words": (pb.DT_STRING, (-1,))},
                               {"a": (pb.DT_STRING, (-1,)), "b": (pb.DT_STRING, (-1,))})}
    for _ in range(SELDOM + 1):
        run, = planned(service, body_of("x"), wider).runs
        assert (list(run.inputs), sorted(run.outputs)) == (["words"], ["a", "b"])
    assert known(service, body_of("y"))


def test_a_bounded_number_of_forms_is_known_and_one_body_in_some_is_looked_at(
        service: RestService) -> None:
    def tries(body: bytes) -> int:
        count = 0
        while not known(service, body):
            planned(service, body)
            count += 1
        return count

    forms = [body_of("a") + b" " * number for number in range(MOST + 2)]
    assert [tries(form) for form in forms] == [1] + [SELDOM] * (MOST + 1)
    assert [known(service, form) for form in forms] == [False] * 2 + [True] * MOST


def test_a_form_is_known_of_the_model_that_was_asked(service: RestService) -> None:
    seen(service, body_of("a"))
    for target in ("/v1/models/n:predict", "/v1/models/m/versions/1:predict",
                   "/v1/models/m/labels/l:predict"):
        assert not known(service, body_of("a"), route_of("POST", target))


@pytest.mark.parametrize("body", [
    body_of("a" * SMALL_BYTES), b'{"instances": [1.5]}', b'{"signature_name": "two", '
    b'"instances": [{"a": "x", "b": 1.0}]}'], ids=["large", "number", "inputs"])
def test_what_is_large_or_no_single_text_is_not_kept(service: RestService, body: bytes) -> None:
    seen(service, body)
    assert not known(service, body)


def test_a_reading_that_fails_keeps_nothing(service: RestService) -> None:
    def read(body: bytes) -> Any:
        raise ServingError("no")

    bodies, plan, ref = KnownBodies(), planned(service, body_of("a")), ModelRef("m")
    for _ in range(SELDOM):
        bodies.keep(ROUTE.model, ref, body_of("a"), "row", read, SIGNATURES, plan)
    assert bodies.find(ROUTE.model, body_of("a")) is None


@pytest.mark.parametrize("body", [
    body_of("one", user="alice"), body_of("one", number=7), body_of("one", never=None),
    b'{"signature_name": "text", "instances": ["one"], "instances": ["alice"]}',
    b'{"signature_name": "text", "inputs": {"user": "alice", "text": ["one"]}}',
    b'{"signature_name": "text", "inputs": {"\\u0061lice": 7, "text": ["one"]}}'],
    ids=["string", "number", "null", "twice", "nested", "escape"])
def test_a_body_that_tells_more_than_its_text_is_not_kept(service: RestService, body: bytes,
                                                         ) -> None:
    seen(service, body)
    assert planned(service, body).runs[0].inputs["text"].tolist() == [b"one"]
    assert not known(service, body)


@pytest.mark.parametrize("body", [
    body_of("Alice"), b' { "instances" : [ {"text":"Alice"} ] , "signature_name":"text"}\n',
    b'{"signature_name": "text", "inputs": {"text": ["Alice"]}}'], ids=["row", "object", "column"])
def test_what_is_known_of_a_body_holds_nothing_of_its_text(service: RestService, body: bytes,
                                                          ) -> None:
    seen(service, body)
    found = service._known.find(ROUTE.model, body.replace(b"Alice", b"other"))
    assert found is not None
    assert "Alice" not in repr(found.known)
    assert found.plan().runs[0].inputs["text"].tolist() == [b"other"]
    finish: Any = found.plan().finish
    assert [cell.cell_contents for cell in finish.__closure__] == [
        "column" if b"inputs" in body else "row"]


def test_callers_of_one_form_get_each_their_own_answer_and_errors_as_ever(tmp_path: Path) -> None:
    with serving(tmp_path) as rest:
        for number in range(3 * SELDOM):
            text = "x" * number + ("é" if number % 2 else "")  # which json writes as an escape
            assert rest.predict(json.loads(body_of(text))).json() == {"predictions": [text]}
            unknown = rest.predict(json.loads(body_of(text)), model="n")
            assert (unknown.status, "Servable not found" in unknown.error()) == (404, True)
            broken = rest.post("/v1/models/m:predict", body_of(text)[:-1])
            assert (broken.status, "JSON Parse error" in broken.error()) == (400, True)
        assert known_of(rest) > 0


def known_of(rest: Any) -> int:
    """Return how many forms a server knows."""
    count: Callable[[Any], int] = len
    return count(rest.server._rest._service._known._known)
