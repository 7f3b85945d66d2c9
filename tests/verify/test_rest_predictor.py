"""The REST path of a verification, against our server without TensorFlow."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from tests.server.restkit import Rest, serving
from tests.server.serverkit import free_port
from tf_infer.equality import Tolerance
from tf_infer.errors import (
    ConfigError,
    InvalidRequest,
    ModelNotFound,
    ServerFailure,
    ServerUnavailable,
    VerificationError,
)
from tf_infer.manifest import Sample
from tf_infer.verify import parity
from tf_infer.verify.rest_predictor import RestPredictor, can_travel


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with serving(tmp_path_factory.mktemp("rest")) as made:
        yield made


@pytest.fixture
def predictor(rest: Rest) -> Iterator[RestPredictor]:
    made = RestPredictor(rest.server.rest_address, "m")
    yield made
    made.close()


def strings(*items: bytes) -> np.ndarray:
    return np.array(items, object)


def test_numbers_come_back_in_their_dtype(predictor: RestPredictor) -> None:
    found = predictor("serving_default", {"x": np.float32([1.0, 0.1, -3e20])})
    assert found["y"].dtype == np.float32
    assert found["y"].tolist() == (np.float32([1.0, 0.1, -3e20]) / 2 + 2).tolist()


def test_texts_and_several_outputs_keep_their_names(predictor: RestPredictor) -> None:
    texts = strings("ünï\u2028 \"x\"".encode(), b"", "中文".encode())
    assert predictor("text", {"text": texts})["text"].tolist() == texts.tolist()
    found = predictor("two", {"a": texts, "b": np.float32([1, 2, 3])})
    assert found["a"].tolist() == texts.tolist()
    assert found["b"].tolist() == [1.0, 2.0, 3.0]


def test_bytes_go_as_base64_and_what_json_cannot_tell_is_known_before(
        predictor: RestPredictor) -> None:
    odd = strings(b"\xff\xfe")
    predictor("two", {"a": strings(b"x"), "b": np.float32([1])})
    assert not can_travel({"a": odd})
    assert can_travel({"a_bytes": odd, "b": np.float32([1])})
    assert can_travel({"a": strings(b"x")})


def test_a_refused_request_is_our_error(predictor: RestPredictor, rest: Rest) -> None:
    with pytest.raises(InvalidRequest, match="x must be small"):
        predictor("fails", {"x": np.float32([1])})
    with (closing(RestPredictor(rest.server.rest_address, "m", version=77)) as other,
          pytest.raises(ModelNotFound, match="77")):
        other("serving_default", {})
    with (closing(RestPredictor(f"localhost:{free_port()}", "m")) as nobody,
          pytest.raises(ServerUnavailable, match="does not answer over HTTP")):
        nobody("serving_default", {})


def test_a_planted_difference_is_found(rest: Rest) -> None:
    inputs = {"x": np.float32([2.0])}
    address = rest.server.rest_address
    right = [Sample("serving_default", inputs, {"y": np.float32([3.0])})]
    assert parity.verify({"rest": lambda: RestPredictor(address, "m")}, right,
                         Tolerance()).passed
    wrong = [Sample("serving_default", inputs, {"y": np.float32([3.1])})]
    with pytest.raises(VerificationError, match="serving_default/y"):
        parity.verify({"rest": lambda: RestPredictor(address, "m")}, wrong, Tolerance())


def test_an_answer_that_is_no_json_and_an_address_that_is_none_are_told(
        predictor: RestPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.client.HTTPResponse, "read", lambda self: b"<html>Bad Gateway</html>")
    with pytest.raises(ServerFailure, match="and no JSON"):
        predictor("serving_default", {"x": np.float32([1.0])})
    with pytest.raises(ConfigError, match="expected host:port, got localhost:abc"):
        RestPredictor("localhost:abc", "m")
