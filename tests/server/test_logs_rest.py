"""No text of a REST request stands in a log line, and a request is one line."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from tests.server.serverkit import free_port, make_versions, running
from tests.server.test_logs import HOSTILE, SECRET, logged
from tf_infer.server import logs
from tf_infer.server.config import ModelConfig
from tf_infer.server.fakes import load_echo

QUOTED = urllib.parse.quote(HOSTILE, safe="")
ROW = json.dumps({"instances": [HOSTILE]})
REQUESTS = (
    ("POST", "/v1/models/m:predict", ROW),
    ("POST", f"/v1/models/{QUOTED}:predict", ROW),
    ("POST", f"/v1/models/m/labels/{QUOTED}:predict", ROW),
    ("POST", f"/v1/models/m:{QUOTED}", ROW),
    ("POST", f"/v1/models/m:predict?{QUOTED}", ROW),
    ("POST", "/v1/models/m:predict",
     json.dumps({"instances": [HOSTILE], "signature_name": HOSTILE})),
    ("POST", "/v1/models/m:predict", json.dumps({"inputs": {HOSTILE: [HOSTILE]}})),
    ("POST", "/v1/models/m:predict", '{"instances": [' + SECRET),
    ("POST", "/v1/models/m:classify", json.dumps({"examples": [{HOSTILE: HOSTILE}]})),
    ("POST", "/v1/models/m:regress", json.dumps({"examples": [HOSTILE]})),
    ("GET", f"/v1/models/{QUOTED}", None),
    ("GET", f"/v1/models/m/versions/{QUOTED}", None),
    ("GET", f"/v1/models/{QUOTED}/metadata", None),
    ("DELETE", f"/v1/{QUOTED}", None),
)


@pytest.mark.parametrize("form", logs.FORMATS)
def test_no_text_of_a_rest_request_stands_in_a_log_line(form: str, tmp_path: Path) -> None:
    base, port = make_versions(tmp_path / "m", "1"), free_port()
    models = (ModelConfig(name="m", base_path=str(base)),)
    statuses = []
    with logged(tmp_path / "log", form) as lines, running(models, load_echo, rest_port=port):
        for method, target, body in REQUESTS:
            connection = http.client.HTTPConnection("localhost", port, timeout=20)
            connection.request(method, target, body, {
                "X-Request-Id": SECRET, SECRET: SECRET, "User-Agent": SECRET})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
            connection.close()
    text = "\n".join(lines)
    assert statuses[0] == 200
    assert statuses.count(200) < 3
    assert SECRET not in text
    assert "FORGED" not in text
    assert len([line for line in lines if "request" in line]) == len(REQUESTS)


def test_a_rest_call_is_one_json_line_with_numbers_and_names_of_ours(tmp_path: Path) -> None:
    base, port = make_versions(tmp_path / "m", "1"), free_port()
    models = (ModelConfig(name="m", base_path=str(base)),)
    body = json.dumps({"instances": ["a", "b"]})
    with logged(tmp_path / "log", "json") as lines, running(models, load_echo, rest_port=port):
        connection = http.client.HTTPConnection("localhost", port, timeout=20)
        connection.request("POST", "/v1/models/m:predict", body, {
            "X-Request-Id": "0af7651916cd43dd8448eb211c80319c"})
        assert connection.getresponse().status == 200
        connection.close()
    (request,) = [line for line in map(json.loads, lines) if line["event"] == "request"]
    request.pop("ts")
    assert 0 < request.pop("ms") < 60_000
    assert request == {
        "level": "DEBUG", "event": "request", "method": "REST predict", "code": "OK", "model": "m",
        "version": 1, "signature": "serving_default", "rows": 2, "bytes": len(body),
        "request_id": "0af7651916cd43dd8448eb211c80319c"}


def test_FL07_FL09_FL10_scripts_that_wait_for_tensorflow_servings_words_find_them(
        tmp_path: Path) -> None:
    base, port, rest_port = make_versions(tmp_path / "m", "1"), free_port(), free_port()
    models = (ModelConfig(name="m", base_path=str(base)),)
    with (logged(tmp_path / "log", "text", verbose=False) as lines,
          running(models, load_echo, host="0.0.0.0", port=port, rest_port=rest_port,
                  socket_path=str(tmp_path / "s"))):
        pass
    told = [line.partition(" INFO ")[2] for line in lines]
    start = told.index(f"Running gRPC ModelServer at 0.0.0.0:{port} ...")
    assert told[start + 1:start + 4] == [
        f"Running gRPC ModelServer at UDS: {tmp_path}/s ...",
        f"Exporting HTTP/REST API at:localhost:{rest_port} ...", "Entering the event loop ..."]
