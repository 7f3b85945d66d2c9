"""What a running server counts (MO06 to MO08, MO14, MO15, MS17, MS19); no TensorFlow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np
import pytest

from tests.server.serverkit import call, make_versions, predict_request, refused, running
from tf_infer.config import ClassifierConfig, ShapeGrid
from tf_infer.errors import Code, InvalidRequest
from tf_infer.manifest import ModelManifest
from tf_infer.server import gauges
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, Monitoring
from tf_infer.server.contracts import LoadTimes, Servable, StageTimes
from tf_infer.server.decide import State
from tf_infer.server.fakes import EchoServable, signature
from tf_infer.server.metrics import Metrics
from tf_infer.server.serving_batching import BatchingParameters
from tf_infer.server.versions import Versions
from tf_infer.wire import methods, serving_pb2

FLOAT, TEXT = serving_pb2.DT_FLOAT, serving_pb2.DT_STRING
SIGNATURES = {
    "serving_default": signature({"text": (TEXT, (-1,))}, {"text": (TEXT, (-1,))}),
    "slow": signature({"text": (TEXT, (-1,))}, {"text": (TEXT, (-1,))}),
    "fails": signature({"text": (TEXT, (-1,))}, {"text": (TEXT, (-1,))}),
    "regress": signature({"inputs": (TEXT, (-1,))}, {"outputs": (FLOAT, (-1,))},
                         "tensorflow/serving/regress"),
    "classify": signature({"inputs": (TEXT, (-1,))},
                          {"classes": (TEXT, (-1, 1)), "scores": (FLOAT, (-1, 1))},
                          "tensorflow/serving/classify"),
}
BEGUN, RELEASE = threading.Event(), threading.Event()


class Model(EchoServable):
    """Echoes; `slow` waits until it is let go, `fails` fails."""

    def __init__(self) -> None:
        super().__init__(SIGNATURES)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        if signature == "fails":
            raise InvalidRequest("no", code=Code.OUT_OF_RANGE)
        if signature == "slow":
            BEGUN.set()
            RELEASE.wait(20)
        if "inputs" in inputs:
            rows = len(inputs["inputs"])
            made = {"classes": np.array([[b"yes"]] * rows, object),
                    "scores": np.ones((rows, 1), np.float32), "outputs": np.ones(rows, np.float32)}
            return {name: made[name] for name in outputs}
        return {name: inputs[name] for name in outputs}


def load(path: Path) -> tuple[Servable, LoadTimes]:
    return Model(), LoadTimes()


Running = tuple[Server, grpc.Channel]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    BEGUN.clear(), RELEASE.clear()
    base = make_versions(tmp_path / "m", "3")
    models = (ModelConfig(name="m", base_path=str(base)),)
    with running(models, load, monitoring=Monitoring(enabled=True)) as both:
        yield both
        RELEASE.set()


def samples(server: Server, name: str) -> dict[str, float]:
    """Return labels -> value of the lines of one name."""
    lines = server.metrics.page().decode().splitlines()
    return {line[len(name) + 1:line.rindex("}")]: float(line.rpartition(" ")[2])
            for line in lines if line.startswith(name + "{")}


def requests(server: Server) -> dict[str, float]:
    return samples(server, ":tensorflow:serving:request_count")


def example_request(kind: Callable[[], Any], signature_name: str, rows: int) -> Any:
    request = kind()
    request.model_spec.name, request.model_spec.signature_name = "m", signature_name
    for _ in range(rows):
        request.input.example_list.examples.add()
    return request


def test_mo06_failures_are_counted_under_the_name_that_the_request_gave(served: Running) -> None:
    server, channel = served
    call(channel, methods.PREDICT, predict_request(text=["x"]))
    call(channel, methods.PREDICT, predict_request(text=["x"]))
    refused(channel, methods.PREDICT, predict_request("nobody", text=["x"]))
    refused(channel, methods.PREDICT, predict_request("m", "fails", text=["x"]))
    refused(channel, methods.PREDICT, predict_request("m", "no-such-signature", text=["x"]))
    refused(channel, methods.PREDICT, serving_pb2.PredictRequest())
    assert requests(server) == {
        'model_name="m",status="OK"': 2,
        'model_name="nobody",status="NOT_FOUND"': 1,
        'model_name="m",status="OUT_OF_RANGE"': 1,
        'model_name="m",status="FAILED_PRECONDITION"': 1,
        'model_name="",status="INVALID_ARGUMENT"': 1}


def test_mo06_a_request_that_cannot_be_parsed_is_counted_as_ours_alone(served: Running) -> None:
    server, channel = served
    with pytest.raises(grpc.RpcError):
        channel.unary_unary(methods.PREDICT.path)(b"\xff\xff\xff", timeout=10)
    assert requests(server) == {}
    ours = samples(server, "tf_infer_requests_total")
    assert ours == {'model="",version="",signature="",method="",protocol="GRPC",'
                    'code="INTERNAL"': 1}


def test_mo06_a_caller_that_gives_up_is_counted(served: Running) -> None:
    server, channel = served
    code, _ = refused(channel, methods.PREDICT, predict_request("m", "slow", text=["x"]),
                      timeout=0.3)
    assert code == "DEADLINE_EXCEEDED"
    end = time.monotonic() + 30
    while not requests(server) and time.monotonic() < end:
        time.sleep(0.01)
    ((labels, count),) = requests(server).items()
    assert count == 1
    assert labels in ('model_name="m",status="CANCELLED"',
                      'model_name="m",status="DEADLINE_EXCEEDED"')


def test_ms19_status_metadata_and_reload_are_not_in_request_count(served: Running) -> None:
    server, channel = served
    status = serving_pb2.GetModelStatusRequest()
    status.model_spec.name = "m"
    call(channel, methods.GET_MODEL_STATUS, status)
    metadata = serving_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "m"
    call(channel, methods.GET_MODEL_METADATA, metadata)
    assert requests(server) == {}
    ours = samples(server, "tf_infer_requests_total")
    assert {labels.split("method=")[1]: count for labels, count in ours.items()} == {
        '"GetModelStatus",protocol="GRPC",code="OK"': 1,
        '"GetModelMetadata",protocol="GRPC",code="OK"': 1}


def test_mo07_mo08_good_requests_have_latencies_by_their_api(served: Running) -> None:
    server, channel = served
    call(channel, methods.PREDICT, predict_request(text=["x"]))
    call(channel, methods.CLASSIFY,
         example_request(serving_pb2.ClassificationRequest, "classify", 2))
    call(channel, methods.REGRESS, example_request(serving_pb2.RegressionRequest, "regress", 3))
    refused(channel, methods.PREDICT, predict_request("m", "fails", text=["x"]))
    assert samples(server, ":tensorflow:serving:request_latency_count") == {
        f'model_name="m",API="{api}",entrypoint="GRPC"': 1
        for api in ("Predict", "Classify", "Regress")}
    assert samples(server, ":tensorflow:serving:runtime_latency_count") == {
        f'model_name="m",API="{api}",runtime="TF1"': 1
        for api in ("Predict", "Classify", "Regress")}


def test_mo07_mo08_a_request_takes_at_least_as_long_as_its_run(served: Running) -> None:
    server, channel = served

    def release() -> None:
        BEGUN.wait(20)
        time.sleep(0.2)
        RELEASE.set()

    threading.Thread(target=release).start()
    call(channel, methods.PREDICT, predict_request("m", "slow", text=["x"]))
    (request_us,) = samples(server, ":tensorflow:serving:request_latency_sum").values()
    (runtime_us,) = samples(server, ":tensorflow:serving:runtime_latency_sum").values()
    assert 200_000 <= runtime_us <= request_us < 20_000_000
    stages = samples(server, "tf_infer_stage_seconds_sum")
    labels = 'model="m",version="3",signature="slow",stage='
    assert stages[f'{labels}"run"'] >= 0.2
    assert 0 <= stages[f'{labels}"queue"'] < stages[f'{labels}"run"']


def test_mo14_batches_are_counted_with_the_time_their_requests_waited(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    models = (ModelConfig(name="m", base_path=str(base)),)
    parameters = BatchingParameters(max_batch_size=4, batch_timeout_micros=50_000,
                                    allowed_batch_sizes=(4,))
    with running(models, load, monitoring=Monitoring(enabled=True),
                 batching=parameters) as (server, channel):
        call(channel, methods.PREDICT, predict_request(text=["x"]))
        call(channel, methods.PREDICT, predict_request(text=["x", "y", "z", "w"]))
        session = ":tensorflow:serving:batching_session:"
        assert samples(server, f"{session}wrapped_run_count") == {"": 2}
        assert samples(server, f"{session}queuing_latency_count") == {'thread_pool_name=""': 2}
        (waited_us,) = samples(server, f"{session}queuing_latency_sum").values()
        assert 40_000 < waited_us < 5_000_000
        assert samples(server, f"{session}padding_size_sum") == {'execution_batch_size="4"': 3}
        assert samples(server, "tf_infer_batch_rows_sum") == {
            'model="m",signature="serving_default"': 5}
        assert samples(server, "tf_infer_batch_padding_ratio_sum") == {
            'model="m",signature="serving_default"': 0.75}


@pytest.mark.parametrize(("rows", "compiled", "expected"), [
    (3, "none", 3), (0, "xla", 1), (1, "xla", 1), (3, "xla", 4), (4, "xla", 4), (9, "xla", 12)])
def test_a_compiled_model_runs_rows_of_its_grid(
        rows: int, compiled: Literal["none", "xla"], expected: int) -> None:
    manifest = ModelManifest(name="m", version=1, grid=ShapeGrid(rows=(1, 4), tokens=(8,)),
                             signatures=(), task=ClassifierConfig(classes=("a", "b")),
                             compiled=compiled)
    assert gauges.rows_run(manifest, rows) == expected
    assert gauges.rows_run(None, rows) == rows


def test_a_call_that_is_traced_tells_its_stages_to_the_metrics(tmp_path: Path) -> None:
    class Traced(Model):
        def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                       outputs: Sequence[str], timeout_s: float | None,
                       ) -> tuple[dict[str, np.ndarray], StageTimes]:
            arrays = self.run(signature, inputs, outputs=outputs, timeout_s=timeout_s)
            return arrays, StageTimes(tokenize_s=0.25, model_s=0.5, decode_s=0.125)

    base = make_versions(tmp_path / "m", "1")
    models = (ModelConfig(name="m", base_path=str(base)),)
    with running(models, lambda path: (Traced(), LoadTimes()),
                 monitoring=Monitoring(enabled=True)) as (server, channel):
        call(channel, methods.PREDICT, predict_request(text=["x"]))
        assert len(samples(server, "tf_infer_stage_seconds_count")) == 2
        call(channel, methods.PREDICT, predict_request(text=["x"]),
             metadata=(("tf-infer-timings", "stages"),))
        found = samples(server, "tf_infer_stage_seconds_sum")
    labels = 'model="m",version="1",signature="serving_default",stage='
    assert {stage: found[f'{labels}"{stage}"'] for stage in ("tokenize", "model", "decode")} == {
        "tokenize": 0.25, "model": 0.5, "decode": 0.125}


def test_mo15_the_examples_of_classify_and_regress_are_counted(served: Running) -> None:
    server, channel = served
    call(channel, methods.CLASSIFY,
         example_request(serving_pb2.ClassificationRequest, "classify", 2))
    call(channel, methods.REGRESS, example_request(serving_pb2.RegressionRequest, "regress", 3))
    total = samples(server, ":tensorflow:serving:request_example_count_total")
    assert total == {'model="m"': 5}


def test_our_requests_say_how_far_a_failed_one_got(served: Running) -> None:
    server, channel = served
    refused(channel, methods.PREDICT, predict_request("m", "fails", text=["x"]))
    refused(channel, methods.PREDICT, predict_request("m", "no-such-signature", text=["x"]))
    end = 'method="Predict",protocol="GRPC",code='
    assert samples(server, "tf_infer_requests_total") == {
        f'model="m",version="3",signature="fails",{end}"OUT_OF_RANGE"': 1,
        f'model="m",version="3",signature="",{end}"FAILED_PRECONDITION"': 1}


def test_ms17_a_reload_tells_how_much_counters_grew_meanwhile(tmp_path: Path) -> None:
    first = make_versions(tmp_path / "m", "1")
    second = make_versions(tmp_path / "n", "1")
    channels: list[grpc.Channel] = []

    def busy_load(path: Path) -> tuple[Servable, LoadTimes]:
        for channel in channels:  # while the second model loads, the first answers
            call(channel, methods.PREDICT, predict_request(text=["x"]))
            call(channel, methods.PREDICT, predict_request(text=["x"]))
        return Model(), LoadTimes()

    models = (ModelConfig(name="m", base_path=str(first)),)
    with running(models, busy_load) as (_, channel):
        call(channel, methods.PREDICT, predict_request(text=["x"]))
        channels.append(channel)
        request = serving_pb2.ReloadConfigRequest(metric_names=[
            "/tensorflow/serving/request_count", "/no/such/metric"])
        for name, base in (("m", first), ("n", second)):
            request.config.model_config_list.config.add(
                name=name, base_path=str(base), model_platform="tensorflow")
        response = call(channel, methods.RELOAD_CONFIG, request)
    assert {metric.name: metric.int64_value_increase for metric in response.metric} == {
        "/tensorflow/serving/request_count": 2, "/no/such/metric": 0}


def test_a_model_has_its_name_from_the_moment_it_is_configured(tmp_path: Path) -> None:
    metrics, known = Metrics(), []

    def observed(path: Path) -> tuple[Servable, LoadTimes]:
        known.append(metrics.knows("m"))
        return Model(), LoadTimes()

    versions = Versions(observed, poll_s=0, metrics=metrics)
    try:
        assert not metrics.knows("m")
        base = make_versions(tmp_path / "m", "1")
        versions.configure((ModelConfig(name="m", base_path=str(base)),))
        assert known == [True]
    finally:
        versions.stop()


def test_gauges_show_what_is_in_flight_and_which_versions_there_are(served: Running) -> None:
    server, channel = served
    assert samples(server, "tf_infer_requests_in_flight") == {"": 0}
    assert samples(server, "tf_infer_version_state") == {
        'model="m",version="3",state="AVAILABLE"': 1}
    assert samples(server, "tf_infer_models_available") == {'model="m"': 1}
    answers = [channel.unary_unary(
        methods.PREDICT.path, serving_pb2.PredictRequest.SerializeToString,
        serving_pb2.PredictResponse.FromString).future(
            predict_request("m", "slow", text=["x"]), timeout=20) for _ in range(3)]
    end = time.monotonic() + 30
    while samples(server, "tf_infer_requests_in_flight") != {"": 3} and time.monotonic() < end:
        time.sleep(0.01)
    assert samples(server, "tf_infer_requests_in_flight") == {"": 3}
    RELEASE.set()
    for answer in answers:
        answer.result()
    assert server.pipeline.wait_idle(10)
    assert samples(server, "tf_infer_requests_in_flight") == {"": 0}


def test_every_attempt_to_load_a_version_is_measured(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    attempts: list[Path] = []

    def moody(path: Path) -> tuple[Servable, LoadTimes]:
        attempts.append(path)
        if path.name == "2" and len(attempts) < 4:
            raise InvalidRequest("golden samples differ", code=Code.FAILED_PRECONDITION)
        return Model(), LoadTimes()

    models = (ModelConfig(name="m", base_path=str(base)),)
    with running(models, moody, monitoring=Monitoring(enabled=True), max_load_retries=2,
                 load_retry_interval_s=0) as (server, _):
        make_versions(base, "2")
        server.versions.poll()
        end = time.monotonic() + 30
        while server.versions.status("m", 2)[0].state is not State.AVAILABLE \
                and time.monotonic() < end:
            time.sleep(0.01)
        assert samples(server, "tf_infer_version_load_seconds_count") == {
            'model="m",code="OK"': 2, 'model="m",code="FAILED_PRECONDITION"': 2}


def test_a_model_without_a_version_is_not_available(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    models = (ModelConfig(name="m", base_path=str(base)),)
    with running(models, load) as (server, _):
        (tmp_path / "m" / "1").rmdir()
        server.versions.poll()
        end = time.monotonic() + 30
        while samples(server, "tf_infer_models_available") != {'model="m"': 0} \
                and time.monotonic() < end:
            time.sleep(0.01)
        assert samples(server, "tf_infer_models_available") == {'model="m"': 0}


def test_a_version_that_was_unloaded_leaves_no_series_of_ours(tmp_path: Path) -> None:
    base = make_versions(tmp_path / "m", "1")
    models = (ModelConfig(name="m", base_path=str(base)),)
    with running(models, load, monitoring=Monitoring(enabled=True)) as (server, channel):
        call(channel, methods.PREDICT, predict_request(text=["x"]))
        assert 'version="1"' in server.metrics.page().decode()
        make_versions(base, "2")
        server.versions.poll()
        end = time.monotonic() + 30
        while samples(server, "tf_infer_version_state") != {
                'model="m",version="1",state="END"': 1,
                'model="m",version="2",state="AVAILABLE"': 1} and time.monotonic() < end:
            time.sleep(0.01)
        call(channel, methods.PREDICT, predict_request(text=["x"]))
        ours = samples(server, "tf_infer_requests_total")
        assert len(ours) == 1
        assert 'version="2"' in next(iter(ours))
        assert requests(server) == {'model_name="m",status="OK"': 2}


def test_the_process_is_on_the_page(served: Running) -> None:
    server, _ = served
    assert samples(server, "process_resident_memory_bytes")[""] > 10e6
    assert samples(server, "process_open_fds")[""] > 3
    assert samples(server, "process_max_fds")[""] > samples(server, "process_open_fds")[""]
    assert samples(server, "process_cpu_seconds_total")[""] > 0
    assert abs(samples(server, "process_start_time_seconds")[""] - time.time()) < 60


def test_promtool_remarks_on_nothing_of_ours(served: Running) -> None:
    import shutil
    import subprocess

    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    server, channel = served
    call(channel, methods.PREDICT, predict_request(text=["x"]))
    answer = subprocess.run(["promtool", "check", "metrics"], input=server.metrics.page(),
                            capture_output=True, timeout=60, check=False)
    complaints = (answer.stdout + answer.stderr).decode().splitlines()
    assert answer.returncode in (0, 3), complaints
    assert [line for line in complaints if line and not line.startswith(":tensorflow:")] == []
