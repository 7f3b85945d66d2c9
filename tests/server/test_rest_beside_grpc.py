"""REST and gRPC of one server: one queue of batches, TLS for one, MultiInference for one, and runs
that are done by the thread that has read the request."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.restkit import serving
from tests.server.serverkit import call, predict_request, refused
from tests.server.test_server_tls import trusting, write
from tf_infer.server.serving_batching import BatchingParameters
from tf_infer.wire import methods, tensors

WAIT_S = 20


def test_BA23_requests_of_both_share_a_batch(tmp_path: Path) -> None:
    batching = BatchingParameters(max_batch_size=2, batch_timeout_micros=60_000_000,
                                  num_batch_threads=1)
    with (serving(tmp_path, batching=batching) as rest,
          grpc.insecure_channel(rest.server.addresses[0]) as channel):
        waiting = channel.unary_unary(
            methods.PREDICT.path, methods.PREDICT.request.SerializeToString,
            methods.PREDICT.response.FromString).future(
                predict_request(x=np.float32([2])), timeout=WAIT_S)
        assert rest.predict({"instances": [4.0]}).json() == {"predictions": [4.0]}
        answer = waiting.result(WAIT_S)
        assert tensors.read_all(answer.outputs)["y"].tolist() == [3.0]
        assert rest.model.runs == ["serving_default"]


def test_TL07_REST_stays_plain_HTTP(tmp_path: Path) -> None:
    config = write(tmp_path / "ssl", client_verify=True)
    with serving(tmp_path, ssl_config_file=config) as rest:
        assert rest.predict({"instances": [2.0]}).json() == {"predictions": [3.0]}
        with grpc.secure_channel(rest.server.addresses[0], trusting(
                key="client.key", certificate="client.pem")) as channel:
            call(channel, methods.PREDICT, predict_request(x=np.float32([2])))


def test_quick_runs_are_answered_by_both_and_by_no_thread_of_the_scheduler(tmp_path: Path) -> None:
    with (serving(tmp_path) as rest,
          grpc.insecure_channel(rest.server.addresses[0]) as channel):
        by: list[str] = []
        run = rest.model.run

        def noted(*given: Any, **named: Any) -> Any:
            by.append(threading.current_thread().name)
            return run(*given, **named)

        rest.model.__dict__.update(run=noted, quick=lambda run, timeout_s: functools.partial(
            noted, run.signature, run.inputs, outputs=run.outputs, timeout_s=timeout_s))
        for number in range(3):
            assert rest.predict({"instances": [2.0 * number]}).json() == {
                "predictions": [number + 2.0]}
            answer = call(channel, methods.PREDICT, predict_request(x=np.float32([number])))
            assert tensors.read_all(answer.outputs)["y"].tolist() == [number / 2 + 2]
        failing = predict_request(x=np.float32([1]))
        failing.model_spec.signature_name = "fails"
        assert refused(channel, methods.PREDICT, failing) == (
            "INVALID_ARGUMENT", "assertion failed: [x must be small]")
        assert rest.predict({"signature_name": "fails", "instances": [1.0]}).status == 400
        assert len(by) == 8 and not any("tf-infer-run" in name for name in by), by
        rest.model.__dict__.pop("quick")
        call(channel, methods.PREDICT, predict_request(x=np.float32([1])))
        assert "tf-infer-run" in by[-1]
        assert rest.server.pipeline.wait_idle(WAIT_S)


@pytest.mark.parametrize("verb", ["multi_inference", "multiInference", "multiinference"])
def test_MI14_multi_inference_has_no_form_in_REST(tmp_path: Path, verb: str) -> None:
    with serving(tmp_path) as rest:
        answer = rest.post(f"/v1/models/m:{verb}", {"tasks": []})
        assert answer.status == 400
        assert answer.error() == f"Malformed request: POST /v1/models/m:{verb}"
