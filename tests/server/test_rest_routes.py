"""Which request a method and a target ask for (RS01 to RS11, RS21)."""

from __future__ import annotations

import pytest

from tf_infer.errors import InvalidRequest
from tf_infer.server import rest_routes
from tf_infer.server.rest_routes import Route, route_of
from tf_infer.wire.messages import ModelRef

M = ModelRef("m")


@pytest.mark.parametrize("kind", ["predict", "classify", "regress"])
@pytest.mark.parametrize(("choice", "model"), [
    ("", M), ("/versions/3", ModelRef("m", version=3)),
    ("/versions/0003", ModelRef("m", version=3)), ("/labels/stable", ModelRef("m", label="stable")),
    ("/versions/9223372036854775807", ModelRef("m", version=2**63 - 1))])
def test_rs01_a_post_names_model_version_and_verb(kind: str, choice: str, model: ModelRef) -> None:
    found = route_of("POST", f"/v1/models/m{choice}:{kind}")
    assert (found.kind, found.model) == (kind, model)


@pytest.mark.parametrize(("target", "expected"), [
    ("/v1/models/m", Route("status", M)), ("/v1/models/m/metadata", Route("metadata", M)),
    ("/v1/models/m/versions/3", Route("status", ModelRef("m", version=3))),
    ("/v1/models/m/versions/3/metadata", Route("metadata", ModelRef("m", version=3))),
    ("/v1/models/m/labels/a", Route("status", ModelRef("m", label="a"))),
    ("/v1/models/m/labels/a/metadata", Route("metadata", ModelRef("m", label="a"))),
    ("/v1/models/metadata", Route("status", ModelRef("metadata"))),
])
def test_rs02_a_get_is_status_or_metadata(target: str, expected: Route) -> None:
    assert route_of("GET", target) == expected


MALFORMED = [
    ("GET", "/v1/"), ("GET", "/v1/models/"), ("GET", "/v1/models/m/"), ("GET", "/v1/models/m/x"),
    ("GET", "/v1/modelsm"), ("POST", "/v1/models/m"), ("POST", "/v1/models/m:generate"),
    ("POST", "/v1/models/:predict"), ("POST", "/v1/models/m:predict/"),
    ("POST", "/v1/models/m/metadata:predict"), ("GET", "/v1/models/m/labels/"),
    ("GET", "/v1//models/m"), ("POST", "/v1/models/a/b:predict"),
    ("POST", "/v1/models/a:b:predict"),
    # RS05
    ("GET", "/v1/models/m:predict"), ("POST", "/v1/models/m/metadata"),
    ("PUT", "/v1/models/m:predict"), ("DELETE", "/v1/models/m"), ("PATCH", "/v1/models/m:predict"),
    ("HEAD", "/v1/models/m"), ("OPTIONS", "/v1/models/m"), ("TRACE", "/v1/models/m"),
    # RS07
    ("POST", "/v1/models/m/versions/x:predict"), ("GET", "/v1/models/m/versions/-1"),
    ("GET", "/v1/models/m/versions/1a"), ("GET", "/v1/models/m/versions/"),
    ("GET", "/v1/models/m/versions/\N{ARABIC-INDIC DIGIT ONE}"),
    # RS08, RS09, RS11
    ("POST", "/v1/models/m:PREDICT"), ("POST", "/v1/models/m:Predict"),
    ("POST", "/v1/models/m:predict?x=1"), ("POST", "/v1/models/m:predict?"),
    ("GET", "/v1/models/m/versions/1/labels/a"), ("GET", "/v1/models/m/labels/a/versions/1"),
    ("GET", "/v1/models/m/metadata?x"), ("POST", "/v1/models/m:predict#x"),
]


@pytest.mark.parametrize(("method", "target"), MALFORMED)
def test_rs03_rs05_rs07_rs09_rs11_all_else_is_malformed(method: str, target: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        route_of(method, target)
    assert caught.value.details == f"Malformed request: {method} {target}"


@pytest.mark.parametrize(("target", "below"), [
    ("/v1/", True), ("/V1/x", True), ("/v1/\n", True), ("/v1", False), ("/", False), ("", False),
    ("/v2/models/m", False), ("//v1/models", False), ("/v11/", False), ("/x/v1/", False)])
def test_rs04_only_what_is_below_v1_is_ours(target: str, below: bool) -> None:
    assert rest_routes.is_api(target) is below


def test_rs06_a_model_must_be_named() -> None:
    for target in ("/v1/models", "/v1/models/versions/3", "/v1/models/labels/x/metadata"):
        with pytest.raises(InvalidRequest, match=r"Missing model name in request\.$"):
            route_of("GET", target)


@pytest.mark.parametrize("number", ["9223372036854775808", "1" * 30, "1" * 5000])
def test_rs07_a_version_beyond_int64_is_refused(number: str) -> None:
    for method, target in (("GET", f"/v1/models/m/versions/{number}"),
                           ("POST", f"/v1/models/m/versions/{number}:predict")):
        with pytest.raises(InvalidRequest, match=r"Failed to convert version: \d+ to numeric\."):
            route_of(method, target)


def test_rs08_routes_ignore_case_but_names_do_not() -> None:
    assert route_of("POST", "/V1/Models/M/Versions/3:predict") == Route(
        "predict", ModelRef("M", version=3))
    assert route_of("GET", "/v1/MODELS/m/LABELS/a/metadata") == Route(
        "metadata", ModelRef("m", label="a"))
    assert route_of("GET", "/v1/models/m/METADATA") == Route("status", M)


def test_rs09_the_query_belongs_to_the_name() -> None:
    assert route_of("GET", "/v1/models/m?x=1") == Route("status", ModelRef("m?x=1"))
    assert route_of("GET", "/v1/models/m?") == Route("status", ModelRef("m?"))


@pytest.mark.parametrize(("sent", "name"), [
    ("a%20b", "a b"), ("a%2Fb%3Ac", "a/b:c"), ("%E4%B8%AD", "中"), ("a+b", "a+b"), ("100%", "100%"),
    ("%zz", "%zz"), ("%2525", "%25"), ("%ff", "\N{REPLACEMENT CHARACTER}")])
def test_rs10_names_and_labels_are_percent_decoded(sent: str, name: str) -> None:
    assert route_of("POST", f"/v1/models/{sent}:predict").model == ModelRef(name)
    assert route_of("GET", f"/v1/models/m/labels/{sent}").model == ModelRef("m", label=name)


@pytest.mark.parametrize(("sent", "target"), [
    ("/v1/models/m?x", "/v1/models/m?x"), ("http://h:1/v1/models/m?x", "/v1/models/m?x"),
    ("http://h", "/"), ("*", "*"), ("//v1/models", "//v1/models"), ("x:1", "x:1"),
    ("/a?u=http://h/v1/", "/a?u=http://h/v1/")])
def test_scheme_and_host_of_a_target_do_not_count(sent: str, target: str) -> None:
    assert rest_routes.path_and_query(sent) == target


def test_rs21_a_browser_asks_with_options_and_its_origin() -> None:
    assert rest_routes.is_preflight("OPTIONS", "http://a.example")
    assert rest_routes.is_preflight("OPTIONS", "https://a.example")
    for origin in (None, "", "null", "file:///", "ftp://a.example"):
        assert not rest_routes.is_preflight("OPTIONS", origin)
    assert not rest_routes.is_preflight("GET", "http://a.example")
