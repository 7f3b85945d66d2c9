"""REST and gRPC of one server: one queue of batches, TLS for one, MultiInference for one."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

from tests.server.restkit import serving
from tests.server.serverkit import call, predict_request
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


@pytest.mark.parametrize("verb", ["multi_inference", "multiInference", "multiinference"])
def test_MI14_multi_inference_has_no_form_in_REST(tmp_path: Path, verb: str) -> None:
    with serving(tmp_path) as rest:
        answer = rest.post(f"/v1/models/m:{verb}", {"tasks": []})
        assert answer.status == 400
        assert answer.error() == f"Malformed request: POST /v1/models/m:{verb}"
