"""A running server's REST: routes, bodies, codes, headers (statements RS, RP, RC, RM, FL, MO)."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.restkit import Rest, serving
from tests.server.serverkit import call, free_port, make_versions, predict_request, running
from tf_infer.errors import TABLE, BackendMissing, exception_for
from tf_infer.server import rest as rest_module
from tf_infer.server.config import ModelConfig, Monitoring
from tf_infer.server.fakes import load_echo
from tf_infer.server.serving_batching import BatchingParameters
from tf_infer.wire import methods, serving_pb2

PREDICT, STATUS = "/v1/models/m:predict", "/v1/models/m"


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    base = make_versions(tmp_path_factory.mktemp("rest") / "m", "1", "2")
    model = ModelConfig(name="m", base_path=str(base), labels={"stable": 2})
    odd = ModelConfig(name="a/b c", base_path=str(base))
    with serving(tmp_path_factory.mktemp("other"), model, odd, labels_for_unavailable=True,
                 monitoring=Monitoring(enabled=True)) as found:
        yield found


# ---------------------------------------------------------------------------- predict


def test_rs01_rp01_rp02_predict_answers_in_the_form_of_the_request(rest: Rest) -> None:
    for target in (PREDICT, "/v1/models/m/versions/2:predict", "/v1/models/m/labels/stable:predict",
                   "/V1/MODELS/m:predict"):
        answer = rest.post(target, {"instances": [1, 2.0, 5]})
        assert (answer.status, answer.json()) == (200, {"predictions": [2.5, 3.0, 4.5]})
        answer = rest.post(target, {"inputs": {"x": [1, 2, 5]}})
        assert (answer.status, answer.json()) == (200, {"outputs": [2.5, 3.0, 4.5]})
    assert rest.post(PREDICT, {"instances": [2]}).body == b'{"predictions": [3.0]}'


def test_rp03_rp05_several_inputs_and_outputs_are_objects(rest: Rest) -> None:
    rows = [{"a": "x", "b": 1.5}, {"a": "y", "b": 2.5}]
    body = {"signature_name": "two", "instances": rows}
    assert rest.post(PREDICT, body).json() == {"predictions": rows}
    body = {"signature_name": "two", "inputs": {"a": ["x"], "b": [1.5]}}
    assert rest.post(PREDICT, body).json() == {"outputs": {"a": ["x"], "b": [1.5]}}


def test_rp14_an_unknown_signature_is_a_bad_request(rest: Rest) -> None:
    answer = rest.post(PREDICT, {"signature_name": "none", "instances": [1]})
    assert answer.status == 400
    assert answer.error() == 'Serving signature name: "none" not found in signature def'
    assert rest.post(PREDICT, {"signature_name": 5, "instances": [1]}).status == 400


def test_rp18_the_body_is_read_before_the_model_is_looked_up(rest: Rest) -> None:
    assert rest.predict(b"{", model="unknown").status == 400
    assert rest.predict({"instances": [1]}, model="unknown").status == 404
    assert rest.predict({}, model="unknown").status == 404  # what is missing is seen later


def test_rp29_a_dtype_that_json_cannot_hold_is_unimplemented_in_columns(rest: Rest) -> None:
    answer = rest.post(PREDICT, {"signature_name": "half", "inputs": [1.5]})
    assert answer.status == 501
    assert "Conversion of JSON Value: 1.5 to type: half" in answer.error()
    assert rest.post(PREDICT, {"signature_name": "half", "instances": [1.5]}).status == 400


def test_rp32_a_signature_without_inputs_cannot_be_called(rest: Rest) -> None:
    answer = rest.post(PREDICT, {"signature_name": "no_inputs", "inputs": {}})
    assert (answer.status, answer.error()) == (
        400, "Failed to get input map for signature: no_inputs")


def test_rp33_inputs_with_a_default_must_be_given(tmp_path: Path) -> None:
    with serving(tmp_path) as rest:
        rest.model.signatures["serving_default"].defaults["x"].dtype = serving_pb2.DT_FLOAT
        try:
            assert "Missing named input: x" in rest.predict({"inputs": {}}).error()
        finally:
            rest.model.signatures["serving_default"].defaults.clear()


def test_rp37_a_runs_own_error_keeps_its_text(rest: Rest) -> None:
    answer = rest.post(PREDICT, {"signature_name": "fails", "instances": [1]})
    assert (answer.status, answer.error()) == (400, "assertion failed: [x must be small]")


def test_base64_rows_for_several_inputs_lack_the_others(rest: Rest) -> None:
    answer = rest.post(PREDICT, {"signature_name": "two", "instances": [{"b64": "aGk="}]})
    assert answer.status == 400
    assert "input size does not match signature: 1!=2" in answer.error()


def test_a_fault_of_ours_is_told_without_its_text(rest: Rest) -> None:
    answer = rest.post(PREDICT, {"signature_name": "breaks", "instances": [1]})
    assert answer.status == 500
    assert "secret" not in answer.error()


def test_pr27_method_names_are_looked_at_when_asked_for(tmp_path: Path) -> None:
    body = {"signature_name": "odd", "instances": [2]}
    with serving(tmp_path) as rest:
        assert rest.predict(body).status == 200
    with serving(tmp_path, check_method_names=True) as rest:
        assert rest.predict(body).status == 500


# ---------------------------------------------------------------------------- classify, regress


def test_rc02_rc03_classify_and_regress_answer_below_results(rest: Rest) -> None:
    body = {"signature_name": "classify", "examples": [{"f": 1}, {"f": 2}]}
    answer = rest.post("/v1/models/m:classify", body)
    assert answer.json() == {"results": [[["no", 0.25], ["yes", 3.0]]] * 2}
    body = {"signature_name": "regress", "context": {"c": "x"}, "examples": [{"f": 1}, {"f": 2}]}
    answer = rest.post("/v1/models/m/versions/2:regress", body)
    assert answer.body == b'{"results": [0.0, 1.0]}'


def test_rc09_an_unknown_signature_is_a_bad_request(rest: Rest) -> None:
    for verb in ("classify", "regress"):
        body = {"signature_name": "none", "examples": [{"f": 1}]}
        answer = rest.post(f"/v1/models/m:{verb}", body)
        assert answer.status == 400
        assert "No signature was found" in answer.error()


def test_rc10_an_unknown_model_is_not_found_once_the_body_is_understood(rest: Rest) -> None:
    assert rest.post("/v1/models/none:classify", {"examples": [{"f": 1}]}).status == 404
    assert rest.post("/v1/models/none:regress", {"examples": []}).status == 400


# ---------------------------------------------------------------------------- status, metadata


def test_rm01_rm02_status_of_versions(rest: Rest) -> None:
    one = {"version": "2", "state": "AVAILABLE",
           "status": {"error_code": "OK", "error_message": ""}}
    for target in (STATUS, "/v1/models/m/versions/2", "/v1/Models/m"):
        assert rest.get(target).json() == {"model_version_status": [one]}
    answer = rest.get("/v1/models/none")
    assert (answer.status, answer.error()) == (404, "Could not find any versions of model none")
    answer = rest.get("/v1/models/m/versions/7")
    assert (answer.status, answer.error()) == (404, "Could not find version 7 of model m")


def test_rm03_a_label_does_not_narrow_the_status(rest: Rest) -> None:
    assert rest.get("/v1/models/m/labels/none").json() == rest.get(STATUS).json()


def test_rm04_rm06_rm07_metadata_of_a_version(rest: Rest) -> None:
    for choice in ("", "/versions/2", "/labels/stable"):
        found = rest.get(f"/v1/models/m{choice}/metadata").json()
        assert found["model_spec"] == {"name": "m", "signature_name": "", "version": "2"}
        signatures = found["metadata"]["signature_def"]["signature_def"]
        assert set(signatures) == set(rest.model.signatures)
        assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert rest.get("/v1/models/m/labels/none/metadata").status == 400
    assert rest.get("/v1/models/none/metadata").status == 404


# ---------------------------------------------------------------------------- routes


@pytest.mark.parametrize(("method", "target"), [
    ("GET", "/v1/"), ("PUT", PREDICT), ("GET", PREDICT), ("POST", "/v1/models/m/metadata"),
    ("DELETE", STATUS), ("PATCH", PREDICT), ("POST", "/v1/models/m:PREDICT"),
    ("POST", "/v1/models/m:predict?x=1"), ("POST", "/v1/models/m:predict?"),
    ("GET", "/v1/models/m/versions/x"), ("POST", "/v1/models/m:generate")])
def test_rs03_rs05_rs08_rs09_malformed_requests_say_what_they_were(
        rest: Rest, method: str, target: str) -> None:
    answer = rest.ask(method, target, b"{}" if method != "GET" else None)
    assert (answer.status, answer.error()) == (400, f"Malformed request: {method} {target}")


def test_rs04_outside_v1_there_is_nothing(rest: Rest) -> None:
    for target in ("/", "/v1", "/v2/models/m", "/favicon.ico"):
        answer = rest.get(target)
        assert answer.status == 404
        assert answer.headers["Content-Type"] != "application/json"


def test_rs06_a_model_must_be_named(rest: Rest) -> None:
    answer = rest.get("/v1/models")
    assert (answer.status, answer.error()) == (400, "Missing model name in request.")


def test_rs07_a_version_beyond_int64_is_refused(rest: Rest) -> None:
    assert rest.get(f"/v1/models/m/versions/{2**63}").status == 400


def test_rs09_a_query_belongs_to_the_name(rest: Rest) -> None:
    answer = rest.get("/v1/models/m?x=1")
    assert (answer.status, answer.error()) == (404, "Could not find any versions of model m?x=1")


def test_rs10_names_are_percent_decoded(rest: Rest) -> None:
    assert rest.predict({"instances": [2]}, model="a%2Fb%20c").json() == {"predictions": [3.0]}
    assert rest.get("/v1/models/a%2fb%20c").status == 200


def test_rs14_every_code_has_its_status(tmp_path: Path) -> None:
    with serving(tmp_path) as rest:
        for row in TABLE[1:]:
            error = exception_for(row.code, f"text of {row.code.name}")

            def fail(*_: Any, error: Any = error, **__: Any) -> Any:
                raise error

            rest.model.run = fail  # type: ignore[method-assign]
            answer = rest.predict({"instances": [1]})
            assert (answer.status, answer.error()) == (row.http_status, f"text of {row.code.name}")


def test_rs15_rs16_unknown_models_versions_and_labels(rest: Rest) -> None:
    body = {"instances": [1]}
    answer = rest.predict(body, model="none")
    assert (answer.status, answer.error()) == (
        404, "Servable not found for request: Latest(none)")
    answer = rest.post("/v1/models/m/versions/7:predict", body)
    assert (answer.status, answer.error()) == (
        404, "Servable not found for request: Specific(m, 7)")
    answer = rest.post("/v1/models/m/labels/none:predict", body)
    assert answer.status == 400
    assert "Unrecognized servable version label" in answer.error()


def test_ge10_error_texts_are_not_cut(rest: Rest) -> None:
    name = "n" * 3000
    assert rest.predict({"instances": [1]}, model=name).error().endswith(f"Latest({name})")


# ---------------------------------------------------------------------------- bodies, headers


def test_rs12_every_answer_is_json(rest: Rest) -> None:
    for answer in (rest.get(STATUS), rest.get("/v1/models/m/metadata"), rest.get("/v1/"),
                   rest.predict({"instances": [1]}), rest.predict(b"")):
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "nonsense"])
def test_rs17_the_requests_content_type_is_ignored(rest: Rest, kind: str) -> None:
    assert rest.post(PREDICT, {"instances": [2]}, Content_Type=kind).status == 200


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate, gzip"])
def test_rs18_a_gzip_body_is_inflated(rest: Rest, encoding: str) -> None:
    body = gzip.compress(b'{"instances": [2]}')
    assert rest.post(PREDICT, body, Content_Encoding=encoding).json() == {"predictions": [3.0]}


def test_rs18_other_encodings_are_not_looked_at(rest: Rest) -> None:
    for encoding in ("identity", "br", "GZIP"):
        assert rest.post(PREDICT, b'{"instances": [2]}', Content_Encoding=encoding).status == 200


def test_rs18_a_broken_gzip_body_counts_as_empty(rest: Rest) -> None:
    whole = gzip.compress(b'{"instances": [2]}')
    for body in (b'{"instances": [2]}', whole[:-1], whole[:10], whole + b"x", b""):
        answer = rest.post(PREDICT, body, Content_Encoding="gzip")
        assert (answer.status, answer.error()) == (
            400, "JSON Parse error: The document is empty")


def test_rs18_a_body_may_not_swell_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest_module, "MAX_INFLATED_BYTES", 1000)
    assert rest_module.inflate(gzip.compress(b" " * 1000), "gzip") == b" " * 1000
    assert rest_module.inflate(gzip.compress(b" " * 1001), "gzip") == b""


def test_rs18_the_bound_is_a_hundred_megabytes() -> None:
    assert rest_module.MAX_INFLATED_BYTES == 100 * 1024 * 1024


def test_rs19_answers_are_never_compressed(rest: Rest) -> None:
    body = {"instances": [1.0] * 5000}
    answer = rest.post(PREDICT, body, Accept_Encoding="gzip, deflate, br")
    assert "Content-Encoding" not in answer.headers
    assert answer.json() == {"predictions": [2.5] * 5000}


def test_rs20_a_connection_is_kept_also_after_errors(rest: Rest) -> None:
    with rest.socket() as one:
        for target, status in ((STATUS, b"200"), ("/v1/", b"400"), ("/", b"404"), (STATUS, b"200")):
            one.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head, _, body = one.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            while len(body) < length:
                body += one.recv(65536)


def test_rs20_chunked_bodies_are_read(rest: Rest) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"instances"'
        yield b": [2, 4"
        yield b"]}"

    rest.connection.request("POST", PREDICT, chunks(), encode_chunked=True,
                            headers={"Transfer-Encoding": "chunked"})
    assert json.loads(rest.connection.getresponse().read()) == {"predictions": [3.0, 4.0]}


def test_rs21_browsers_may_ask_from_everywhere(rest: Rest) -> None:
    for target in (PREDICT, "/v1/anything"):
        answer = rest.ask("OPTIONS", target, Origin="http://a.example")
        assert (answer.status, answer.body) == (200, b"")
        answer = rest.ask("OPTIONS", target)
        assert (answer.status, answer.error()) == (400, f"Malformed request: OPTIONS {target}")
    assert rest.ask("OPTIONS", "/", Origin="http://a.example").status == 404


def test_rs22_fl16_cors_headers_come_with_the_flag_alone(rest: Rest, tmp_path: Path) -> None:
    expected = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Methods": "POST, GET",
                "Access-Control-Allow-Headers": "Content-Type"}
    with serving(tmp_path, rest_cors=True) as other:
        for method, target in (("GET", STATUS), ("GET", "/v1/"), ("POST", PREDICT),
                               ("OPTIONS", PREDICT)):
            for found, there in ((other, expected), (rest, {})):
                headers = found.ask(method, target, Origin="http://a.example").headers
                assert {name: value for name, value in headers.items()
                        if name.startswith("Access-Control-")} == there


def test_rs23_rest_listens_on_all_addresses(tmp_path: Path) -> None:
    with serving(tmp_path, host="0.0.0.0") as rest:
        for address in ("127.0.0.1", "127.0.0.2", *(["::1"] if _has_ipv6() else [])):
            with socket.create_connection((address, rest.port), timeout=10) as one:
                one.sendall(b"GET /v1/models/m HTTP/1.0\r\n\r\n")
                assert one.recv(100).startswith(b"HTTP/1.0 200")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_rs25_head_below_v1_is_malformed(rest: Rest) -> None:
    answer = rest.ask("HEAD", STATUS)
    assert (answer.status, answer.body) == (400, b"")


def test_li02_bodies_and_answers_may_be_large(rest: Rest) -> None:
    text = "x" * 5_000_000
    answer = rest.post(PREDICT, {"signature_name": "text", "instances": [text, text]})
    assert answer.json() == {"predictions": [text, text]}
    numbers = [float(number) for number in range(30_000)]
    assert rest.post(PREDICT, {"instances": numbers}).json() == {
        "predictions": [number / 2 + 2 for number in numbers]}


# ---------------------------------------------------------------------------- timeouts


def test_rs24_a_run_longer_than_the_limit_is_gone(tmp_path: Path) -> None:
    with serving(tmp_path, rest_timeout_s=0.2) as rest:
        for name in ("waits", "deaf"):  # one that listens to its limit, one that does not
            answer = rest.predict({"signature_name": name, "instances": [1]})
            assert answer.status == 504
            assert "Timed out" in answer.error()
        assert rest.predict({"instances": [2]}).status == 200


def test_ba17_rs24_a_limit_that_passes_in_the_batching_queue_is_429(tmp_path: Path) -> None:
    patient = BatchingParameters(max_batch_size=4, batch_timeout_micros=10_000_000)
    with serving(tmp_path, rest_timeout_s=0.2, batching=patient) as rest:
        answer = rest.predict({"instances": [1]})
        assert answer.status == 429
        assert "timeout exceeded while waiting in batching queue" in answer.error()
        assert rest.predict({"instances": [2, 3, 4, 5]}).status == 200


def test_fl15_without_a_limit_a_run_may_take_its_time(tmp_path: Path) -> None:
    given: list[float | None] = []
    with serving(tmp_path, rest_timeout_s=None) as rest:
        run = rest.model.run

        def watched(*args: Any, timeout_s: float | None, **options: Any) -> Any:
            given.append(timeout_s)
            return run(*args, timeout_s=timeout_s, **options)

        rest.model.run = watched  # type: ignore[method-assign]
        assert rest.predict({"instances": [2]}).status == 200
    with serving(tmp_path, rest_timeout_s=20.0) as rest:
        run = rest.model.run
        rest.model.run = watched  # type: ignore[method-assign]
        assert rest.predict({"instances": [2]}).status == 200
    assert given[0] is None
    assert given[1] is not None
    assert 10 < given[1] <= 20


def test_li14_the_limit_is_not_grpcs(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    with running((ModelConfig(name="m", base_path=str(base)),), load_echo, rest_port=free_port(),
                 rest_timeout_s=0.001) as (server, channel):
        seen: list[float | None] = []
        submit = server.pipeline.submit

        def watched(asked: Any, done: Any) -> Any:
            seen.append(asked.deadline_s)
            return submit(asked, done)

        server.pipeline.submit = watched  # type: ignore[method-assign]
        call(channel, methods.PREDICT, predict_request(text=["a"]), timeout=None)
        assert seen == [None]


# ---------------------------------------------------------------------------- start


def test_fl10_there_is_no_rest_without_a_port(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    with running((ModelConfig(name="m", base_path=str(base)),), load_echo) as (server, _):
        assert server.rest_address == ""


def test_fl11_the_port_of_grpc_is_grpcs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, port = make_versions(tmp_path / "m", "1"), free_port()
    with running((ModelConfig(name="m", base_path=str(base)),), load_echo, port=port,
                 rest_port=port) as (server, channel):
        assert server.rest_address == ""
        assert call(channel, methods.PREDICT, predict_request(text=["a"])).outputs
    assert "--rest_api_port must differ from --port" in caplog.text


def test_fl12_a_port_that_is_taken_stops_rest_alone(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = make_versions(tmp_path / "m", "1")
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        for host in ("0.0.0.0", "localhost"):
            caplog.clear()
            with running((ModelConfig(name="m", base_path=str(base)),), load_echo, host=host,
                         rest_port=taken.getsockname()[1]) as (server, channel):
                assert server.rest_address == ""
                assert call(channel, methods.PREDICT, predict_request(text=["a"])).outputs
            assert "http_failed" in caplog.text


def test_without_its_library_the_port_is_refused_before_models_load(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    monkeypatch.setitem(sys.modules, "tf_infer.server.rest", None)
    with pytest.raises(BackendMissing, match=r"tf_infer\[server\]"), serving(tmp_path):
        pass


def test_the_summary_says_where_rest_is(rest: Rest) -> None:
    assert f"REST at http://localhost:{rest.port}/v1/models/" in rest.server.summary()


# ---------------------------------------------------------------------------- pages


def test_mo01_mo11_the_page_of_metrics_is_there(rest: Rest) -> None:
    rest.predict({"instances": [1]})
    path = "/monitoring/prometheus/metrics"
    answer = rest.get(path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain")
    line = ':tensorflow:serving:request_count{model_name="m",status="OK"}'
    assert line in answer.body.decode()
    assert rest.get(f"{path}?x=1").status == 400


def test_mo02_mo03_the_page_can_move_and_is_off_by_default(tmp_path: Path) -> None:
    with serving(tmp_path) as rest:
        assert rest.get("/monitoring/prometheus/metrics").status == 404
    with serving(tmp_path, monitoring=Monitoring(enabled=True, path="/x")) as rest:
        assert rest.get("/x").status == 200
        assert rest.get("/monitoring/prometheus/metrics").status == 404


def test_mo06_mo07_requests_are_counted_failures_too(tmp_path: Path) -> None:
    with serving(tmp_path, monitoring=Monitoring(enabled=True)) as rest:
        rest.predict({"instances": [1]})
        rest.predict(b"{")
        rest.predict({"instances": [1]}, model="none")
        rest.get(STATUS)
        rest.get("/v1/nothing")
        page = rest.get("/monitoring/prometheus/metrics").body.decode()
        name = ":tensorflow:serving:request_count"
        for model, code, count in (("m", "OK", 2), ("m", "INVALID_ARGUMENT", 1),
                                   ("none", "NOT_FOUND", 1), ("", "INVALID_ARGUMENT", 1)):
            assert f'{name}{{model_name="{model}",status="{code}"}} {count}\n' in page
        labels = 'model_name="m",API="predict",entrypoint="REST"'
        assert f":tensorflow:serving:request_latency_count{{{labels}}} 1\n" in page
        assert 'request_latency_count{model_name="m",API="status"' not in page
        labels = 'model="m",version="",signature="",method="status",protocol="REST",code="OK"'
        assert f"tf_infer_requests_total{{{labels}}} 1\n" in page


def test_healthz_says_that_the_process_lives(rest: Rest) -> None:
    assert rest.get("/healthz").status == 200


def test_readyz_says_whether_every_model_has_a_version_that_answers(tmp_path: Path) -> None:
    models = [ModelConfig(name=name, base_path=str(make_versions(tmp_path / name)))
              for name in ("good", "empty")]
    make_versions(tmp_path / "good", "1")
    (tmp_path / "empty").mkdir()
    with serving(tmp_path, models[0], poll_s=0.05) as rest:
        answer = rest.get("/readyz")
        assert (answer.status, answer.json()) == (200, {"ready": True, "not_available": []})
        rest.server.versions._models = tuple(models)
        answer = rest.get("/readyz")
        assert (answer.status, answer.json()) == (503, {"ready": False, "not_available": ["empty"]})
        make_versions(tmp_path / "empty", "1")
        end = time.monotonic() + 10
        while rest.get("/readyz").status != 200 and time.monotonic() < end:
            time.sleep(0.02)
        assert rest.get("/readyz").status == 200


def test_the_pipeline_is_told_that_a_call_came_by_rest(rest: Rest) -> None:
    seen: list[Any] = []
    submit = rest.server.pipeline.submit

    def watched(asked: Any, done: Any) -> Any:
        seen.append((asked.method, asked.entrypoint))
        return submit(asked, done)

    rest.server.pipeline.submit = watched  # type: ignore[method-assign]
    try:
        rest.predict({"instances": [1]})
        rest.post("/v1/models/m:classify", {"signature_name": "classify", "examples": [{"f": 1}]})
    finally:
        rest.server.pipeline.submit = submit  # type: ignore[method-assign]
    assert seen == [("Predict", "REST"), ("Classify", "REST")]
