"""Predict requests of known forms: run and answered as those of none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.server.serverkit import call, make_versions, refused, running
from tf_infer.errors import InvalidRequest
from tf_infer.server import predict
from tf_infer.server.config import ModelConfig
from tf_infer.server.fakes import load_echo, signature
from tf_infer.server.grpc_service import model_ref
from tf_infer.server.known_requests import MOST, SELDOM, SMALL_BYTES, KnownRequests
from tf_infer.server.versions import ModelRef
from tf_infer.wire import messages, methods, serving_pb2, tensors, varint

TEXT = {"text": (serving_pb2.DT_STRING, (-1,))}
NUMBERS = {"x": (serving_pb2.DT_FLOAT, (1, 2))}
SIGNATURES = {"serving_default": signature(TEXT, TEXT)}


def request(text: bytes, model: str = "m", **options: str) -> serving_pb2.PredictRequest:
    made: serving_pb2.PredictRequest = messages.predict_request(
        messages.ModelRef(model), {"text": np.array([text], object)}, **options)
    return made


def kept(known: KnownRequests, *requests: serving_pb2.PredictRequest) -> None:
    """Let each be the one in `SELDOM` whose form is kept."""
    for one in requests:
        for _ in range(SELDOM):
            known.keep(one.SerializeToString(), one)


def test_what_is_known_of_a_request_plans_what_the_request_plans() -> None:
    known, other = KnownRequests(model_ref), request(b"another")
    assert known.find(other.SerializeToString()) is None
    kept(known, request(b"one"))
    found = known.find(other.SerializeToString())
    assert found is not None
    assert (found.known.ref, found.known.signature) == (ModelRef("m"), "serving_default")
    for _ in range(2):
        mine, theirs = (found.known.plan(SIGNATURES, found.array).runs[0],
                        predict.plan(SIGNATURES, other).runs[0])
        assert mine.inputs["text"].tolist() == theirs.inputs["text"].tolist() == [b"another"]
        assert mine._replace(inputs={}) == theirs._replace(inputs={})
    answer = {"text": np.zeros(1)}
    assert found.known.plan(SIGNATURES, found.array).finish([answer]) is answer


def test_a_version_with_other_signatures_is_asked_anew() -> None:
    known = KnownRequests(model_ref)
    kept(known, request(b"one"))
    found = known.find(request(b"two").SerializeToString())
    assert found is not None and found.known.plan(SIGNATURES, found.array)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match='key "serving_default" not found'):
            found.known.plan({"other": SIGNATURES["serving_default"]}, found.array)
    strange = {"serving_default": signature({"ids": TEXT["text"]}, TEXT)}
    with pytest.raises(InvalidRequest, match="input tensor alias not found in signature: text"):
        found.known.plan(strange, found.array)
    assert found.known.plan(SIGNATURES, found.array).runs[0].outputs == ("text",)


def test_a_bounded_number_of_forms_is_known_and_one_request_in_some_is_looked_at() -> None:
    known = KnownRequests(model_ref)
    forms = [request(b"a", model=f"model {number}") for number in range(MOST + 2)]
    kept(known, *forms)
    found = [known.find(form.SerializeToString()) is not None for form in forms]
    assert found == [False] * 2 + [True] * MOST
    late = request(b"a", model="late")
    known.keep(late.SerializeToString(), late)
    for _ in range(SELDOM - 1):
        assert known.find(forms[2].SerializeToString()) is None
        known.keep(forms[0].SerializeToString(), forms[0])
    assert known.find(late.SerializeToString()) is not None
    assert known.find(forms[0].SerializeToString()) is None


def test_what_is_large_or_asks_for_nothing_is_not_kept() -> None:
    known = KnownRequests(model_ref)
    nameless = request(b"a")
    nameless.model_spec.name = ""
    unknown = request(b"a")
    unknown.inputs["text"].dtype = 99
    for one in (nameless, unknown, request(b"a" * SMALL_BYTES)):
        kept(known, one)
        assert known.find(one.SerializeToString()) is None


def test_a_request_with_fields_that_nobody_knows_is_not_kept() -> None:
    known, data = KnownRequests(model_ref), request(b"a").SerializeToString()
    strange = serving_pb2.PredictRequest.FromString(data + varint.field(99, b"alice"))
    kept(known, strange)
    assert known.find(strange.SerializeToString()) is None


def test_what_is_known_of_a_request_holds_nothing_of_its_value() -> None:
    known = KnownRequests(model_ref)
    numbers = {"serving_default": signature(NUMBERS, NUMBERS)}
    kept(known, request(b"Alice"))
    found = known.find(request(b"other").SerializeToString())
    assert found is not None
    assert found.known.plan(SIGNATURES, found.array).runs[0].inputs["text"].tolist() == [b"other"]
    assert found.known._planned is not None
    assert "Alice" not in repr([found.known.form, found.known._request, found.known._planned])
    for values in (np.float32([[1, 2]]), np.float64([[3, 4]])):
        first, other = (messages.predict_request(messages.ModelRef("m"), {"x": array})
                        for array in (values, values[:, ::-1].copy()))
        kept(known, first)
        found = known.find(other.SerializeToString())
        assert found is not None
        run, = found.known.plan(numbers, found.array).runs
        assert run.inputs["x"].tolist() == values[:, ::-1].tolist()
        assert not tensors.to_array(found.known._request.inputs["x"]).any()


def test_callers_of_one_form_get_each_their_own_answer_and_errors_as_ever(tmp_path: Path) -> None:
    models = (ModelConfig(name="m", base_path=str(make_versions(tmp_path, "1", "2"))),)
    with running(models, load_echo) as (_, channel):
        for number in range(2 * SELDOM + 2):
            text = b"x" * number * 20
            answer = call(channel, methods.PREDICT, request(text))
            assert answer.outputs["text"].string_val == [text]
            assert answer.model_spec.version.value == 2
            assert refused(channel, methods.PREDICT, request(text, model="n"))[0] == "NOT_FOUND"
            code, told = refused(channel, methods.PREDICT, request(text, signature="s"))
            assert (code, 'key "s" not found' in told) == ("FAILED_PRECONDITION", True)
            code, told = refused(channel, methods.PREDICT, request(text, outputs=["o"]))
            assert (code, "not found in signature: o" in told) == ("INVALID_ARGUMENT", True)
