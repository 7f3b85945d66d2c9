"""What the server counts, and the page that Prometheus reads (MO04 to MO15, WU15, MS17)."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
import tracemalloc
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import pytest

from tf_infer.errors import Code, InvalidRequest, Overloaded, ServerFailure, ServingError
from tf_infer.server import flags, registry
from tf_infer.server.config import Monitoring, read_monitoring_file
from tf_infer.server.metrics import MAX_UNKNOWN_MODELS, Metrics, Task, counted, respond
from tf_infer.server.registry import MAX_LABEL_SETS, OTHER, Counter, Gauge, Histogram

SUMS_PER_OBSERVATION = 20  # of `_sums`; two microseconds where such a sum takes 0.1


def samples(metrics: Metrics) -> dict[str, float]:
    """Return name and labels, as they stand in the page -> value."""
    lines = metrics.page().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
            for line in lines if not line.startswith("#")}


def buckets(metrics: Metrics, name: str, labels: str) -> list[tuple[str, float]]:
    """Return (le, cumulative count) of one histogram, in the page's order."""
    found = re.findall(rf'^{name}_bucket\{{{labels},le="([^"]+)"\}} (\d+)$',
                       metrics.page().decode(), re.MULTILINE)
    return [(limit, float(count)) for limit, count in found]


def serving(model: str = "m") -> Metrics:
    metrics = Metrics()
    metrics.loaded(model, 1, ["serving_default"])
    return metrics


# ---------------------------------------------------------------------- the page

@pytest.mark.parametrize(("name", "written"), [
    ("/tensorflow/serving/request_count", ":tensorflow:serving:request_count"),
    ("/tensorflow/cc/saved_model/load_latency", ":tensorflow:cc:saved_model:load_latency"),
    ("tf_infer_requests_total", "tf_infer_requests_total"),
    ("/a-b.c", ":a:b:c"),
    ("2nd", "_2nd"),
], ids=["mo05", "mo05-deep", "ours", "mo05-punctuation", "mo05-digit"])
def test_mo05_other_characters_than_letters_digits_and_underscores_are_colons(
        name: str, written: str) -> None:
    assert registry.exposed(name) == written


def test_mo04_every_metric_has_its_type_before_it() -> None:
    metrics = serving()
    metrics.request("m", "Predict", "GRPC", Code.OK, 0.01, version=1)
    lines = metrics.page().decode().splitlines()
    types = {}
    for line in lines:
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert kind in ("counter", "gauge", "histogram")
            assert name not in types, f"{name} has two types"
            types[name] = kind
        elif not line.startswith("#"):
            name = line.partition("{")[0]
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            assert types.get(name) in ("counter", "gauge") or types.get(base) == "histogram", line
    assert types[":tensorflow:serving:request_count"] == "counter"
    assert types[":tensorflow:serving:request_latency"] == "histogram"
    assert metrics.page().endswith(b"\n")


def test_mo12_backslashes_and_quotes_of_label_values_are_escaped() -> None:
    metrics = Metrics()
    metrics.request('a\\b"c', "Predict", "GRPC", Code.NOT_FOUND, 0.01)
    line = ':tensorflow:serving:request_count{model_name="a\\\\b\\"c",status="NOT_FOUND"} 1'
    assert line in metrics.page().decode().splitlines()


def test_mo12_a_line_break_in_a_name_forges_no_line() -> None:
    metrics = Metrics()
    metrics.request('x"} 1\nforged_total 666\n#', "Predict", "GRPC", Code.NOT_FOUND, 0.01)
    assert not any(line.startswith("forged") for line in metrics.page().decode().splitlines())
    assert "\\nforged_total" in metrics.page().decode()


def test_mo12_a_name_that_is_no_utf_8_does_not_break_the_page() -> None:
    metrics = Metrics()
    metrics.request("\udcff", "predict", "REST", Code.NOT_FOUND, 0.01)
    assert 'model_name="?"' in metrics.page().decode("utf-8")


def test_mo10_reading_the_page_changes_nothing() -> None:
    metrics = serving()
    metrics.request("m", "Predict", "GRPC", Code.OK, 0.01, version=1)
    assert metrics.page() == metrics.page()


@pytest.mark.parametrize(("text", "expected"), [
    ("prometheus_config { enable: true }", Monitoring(enabled=True)),
    ('prometheus_config { enable: true path: "/x" }', Monitoring(enabled=True, path="/x")),
    ("prometheus_config { enable: false }", Monitoring()),
    ("", Monitoring()),
], ids=["mo01", "mo02", "mo03-false", "mo03-empty"])
def test_mo01_mo02_mo03_the_monitoring_file_says_whether_and_where(
        text: str, expected: Monitoring, tmp_path: Path) -> None:
    path = tmp_path / "monitoring.config"
    path.write_text(text)
    assert flags.monitoring(flags.parse([
        "--rest_api_port=8501", f"--monitoring_config_file={path}"]).values) == expected
    assert Monitoring().path == "/monitoring/prometheus/metrics"


def test_fl25_a_monitoring_file_that_is_missing_or_no_text_proto_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "monitoring.config"
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_monitoring_file(path)
    path.write_text("prometheus_config { enable: maybe }")
    with pytest.raises(InvalidRequest, match="Invalid protobuf file: '"):
        read_monitoring_file(path)


def test_fl26_the_monitoring_file_is_not_read_without_rest() -> None:
    values = flags.parse(["--monitoring_config_file=/no/such/file"]).values
    assert flags.monitoring(values) == Monitoring()


@pytest.mark.parametrize(("path", "target", "status"), [
    ("/monitoring/prometheus/metrics", "/monitoring/prometheus/metrics", 200),
    ("/x", "/x", 200),
    ("/x", "/monitoring/prometheus/metrics", None),
    ("/x", "/x/", None),
    ("/x", "/x?a=1", 400),
    ("/x", "/x?", 400),
], ids=["mo01", "mo02", "mo02-default-is-gone", "mo02-slash", "mo11", "mo11-empty"])
def test_mo01_mo02_mo11_the_page_is_at_its_path_and_nowhere_else(
        path: str, target: str, status: int | None) -> None:
    metrics = serving()
    answer = respond(metrics, path, target)
    assert (answer and answer[0]) == status
    if answer and status == 200:
        assert answer[1] == metrics.page()
    if answer and status == 400:
        assert answer[1] == f"Unexpected path: {target}. Should be {path}".encode()


# ---------------------------------------------------------------------- requests

def test_mo06_requests_are_counted_by_model_and_code_failures_too() -> None:
    metrics = serving()
    for _ in range(3):
        metrics.request("m", "Predict", "GRPC", Code.OK, 0.01, version=1)
    metrics.request("m", "predict", "REST", Code.INVALID_ARGUMENT, 0.01)
    metrics.request("nobody", "Classify", "GRPC", Code.NOT_FOUND, 0.01)
    metrics.request("m", "", "REST", Code.OK, 0.01)  # GET /v1/models/m
    counts = {name: value for name, value in samples(metrics).items()
              if name.startswith(":tensorflow:serving:request_count{")}
    assert counts == {
        ':tensorflow:serving:request_count{model_name="m",status="OK"}': 4,
        ':tensorflow:serving:request_count{model_name="m",status="INVALID_ARGUMENT"}': 1,
        ':tensorflow:serving:request_count{model_name="nobody",status="NOT_FOUND"}': 1}


@pytest.mark.parametrize("api", ["MultiInference", "GetModelMetadata", "GetModelStatus",
                                 "HandleReloadConfigRequest"])
def test_ms19_other_methods_of_grpc_are_not_in_request_count(api: str) -> None:
    metrics = serving()
    metrics.request("m", api, "GRPC", Code.OK, 0.01, version=1)
    assert "request_count{" not in metrics.page().decode()
    assert "request_latency_count{" not in metrics.page().decode()
    assert f'method="{api}",protocol="GRPC",code="OK"}} 1' in metrics.page().decode()


@pytest.mark.parametrize(("api", "entrypoint"), [
    ("Predict", "GRPC"), ("Classify", "GRPC"), ("Regress", "GRPC"),
    ("predict", "REST"), ("classify", "REST"), ("regress", "REST")])
def test_mo07_the_latency_of_good_requests_is_a_histogram_by_api_and_entrypoint(
        api: str, entrypoint: str) -> None:
    metrics = serving()
    metrics.request("m", api, entrypoint, Code.OK, 0.002, version=1)
    metrics.request("m", api, entrypoint, Code.INTERNAL, 5.0, version=1)
    labels = f'model_name="m",API="{api}",entrypoint="{entrypoint}"'
    found = samples(metrics)
    assert found[f":tensorflow:serving:request_latency_count{{{labels}}}"] == 1
    assert found[f":tensorflow:serving:request_latency_sum{{{labels}}}"] == 2000


def test_mo07_what_is_no_inference_over_rest_has_no_latency() -> None:
    metrics = serving()
    metrics.request("m", "", "REST", Code.OK, 0.002)
    assert "request_latency_count{" not in metrics.page().decode()


def test_mo08_the_runtimes_latency_has_model_api_and_runtime() -> None:
    metrics = serving()
    metrics.runtime("m", "Predict", 0.0015)
    labels = 'model_name="m",API="Predict",runtime="TF1"'
    assert samples(metrics)[f":tensorflow:serving:runtime_latency_sum{{{labels}}}"] == 1500


def test_mo09_histograms_are_cumulative_with_the_limits_10_times_1_8_to_the_i() -> None:
    metrics = serving()
    for microseconds in (5, 10, 17, 33, 5_000_000_000):
        metrics.runtime("m", "Predict", microseconds / 1e6)
    found = buckets(metrics, ":tensorflow:serving:runtime_latency",
                    'model_name="m",API="Predict",runtime="TF1"')
    limits = [limit for limit, _ in found]
    assert limits[:8] == ["10", "18", "32.4", "58.32", "104.976", "188.957", "340.122", "612.22"]
    assert limits[-2:] == ["1.47476e+09", "+Inf"]
    assert len(limits) == 34
    counts = [count for _, count in found]
    # A value at a limit lies above it, as in TensorFlow's histograms.
    assert counts[:4] == [1, 3, 3, 4]
    assert counts[-2:] == [4, 5]
    assert counts == sorted(counts)


def test_mo15_the_examples_of_requests_are_counted_by_model() -> None:
    metrics = serving()
    metrics.examples("m", 3)
    metrics.examples("m", 5)
    found = samples(metrics)
    assert found[':tensorflow:serving:request_example_count_total{model="m"}'] == 8
    assert found[':tensorflow:serving:request_example_counts_bucket{model="m",le="4"}'] == 1


# ---------------------------------------------------------------------- runs and loads

def test_mo13_tensorflows_own_metrics_are_there_with_true_values() -> None:
    metrics = Metrics()
    metrics.load("/models/m/1", Code.OK, 0.5)
    metrics.load("/models/m/2", Code.NOT_FOUND, 0.25)
    metrics.graph_run(0.004)
    metrics.graph_run(0.002)
    found = samples(metrics)
    attempts = ":tensorflow:cc:saved_model:load_attempt_count"
    assert found[f'{attempts}{{model_path="/models/m/1",status="success"}}'] == 1
    assert found[f'{attempts}{{model_path="/models/m/2",status="fail"}}'] == 1
    assert found[':tensorflow:cc:saved_model:load_latency{model_path="/models/m/1"}'] == 500_000
    assert found[":tensorflow:core:graph_runs{}"] == 2
    assert found[":tensorflow:core:graph_run_time_usecs{}"] == 6000
    assert found[":tensorflow:core:graph_run_time_usecs_histogram_count{}"] == 2


def test_mo13_metrics_without_labels_start_at_zero() -> None:
    found = samples(Metrics())
    assert found[":tensorflow:core:graph_runs{}"] == 0
    assert found[":tensorflow:serving:batching_session:wrapped_run_count{}"] == 0


def test_mo14_batches_are_counted_with_the_time_their_requests_waited() -> None:
    metrics = serving()
    metrics.batch("m", "serving_default", [Task(2, 0.001), Task(3, 0.004)], 8)
    found = samples(metrics)
    session = ":tensorflow:serving:batching_session:"
    assert found[f"{session}wrapped_run_count{{}}"] == 1
    assert found[f'{session}queuing_latency_count{{thread_pool_name=""}}'] == 2
    assert found[f'{session}queuing_latency_sum{{thread_pool_name=""}}'] == 5000
    assert found[f"{session}input_batch_size_sum{{}}"] == 5
    assert found[f"{session}processed_batch_size_sum{{}}"] == 8
    assert found[f'{session}padding_size_sum{{execution_batch_size="8"}}'] == 3
    ours = 'model="m",signature="serving_default"'
    assert found[f"tf_infer_batch_rows_sum{{{ours}}}"] == 5
    assert found[f"tf_infer_batch_padding_ratio_sum{{{ours}}}"] == 3 / 8


def test_wu15_the_warm_up_has_latency_and_records_by_path_and_status() -> None:
    metrics = Metrics()
    metrics.warmup("/models/m/1", Code.OK, 0.3, 12)
    metrics.warmup("/models/m/2", Code.DATA_LOSS, 0.1, 4)
    found = samples(metrics)
    latency = ":tensorflow:serving:model_warmup_latency_sum"
    records = ":tensorflow:serving:model_warmup_records_read"
    assert found[f'{latency}{{model_path="/models/m/1",status="OK"}}'] == 300_000
    assert found[f'{records}{{model_path="/models/m/1",status="OK"}}'] == 12
    assert found[f'{records}{{model_path="/models/m/2",status="DATA_LOSS"}}'] == 4


@pytest.mark.parametrize(("error", "code"), [
    (None, Code.OK), (Overloaded("full"), Code.RESOURCE_EXHAUSTED),
    (ServerFailure("damaged", code=Code.DATA_LOSS), Code.DATA_LOSS),
    (KeyError("x"), Code.UNKNOWN)], ids=["ok", "overloaded", "damaged", "bug"])
def test_what_ends_in_an_error_is_told_with_its_code(error: Exception | None, code: Code) -> None:
    told: list[tuple[Code, float]] = []
    try:
        with counted(lambda code, seconds: told.append((code, seconds))):
            time.sleep(0.01)
            if error is not None:
                raise error
    except (KeyError, ServingError) as raised:
        assert raised is error
    ((told_code, seconds),) = told
    assert told_code is code
    assert 0.01 <= seconds < 5


@pytest.mark.parametrize("page", [True, False], ids=["monitored", "not-monitored"])
def test_ms17_a_counters_value_is_the_sum_of_its_label_sets(page: bool) -> None:
    metrics = Metrics(page=page)
    metrics.loaded("m", 1, ["serving_default"])
    metrics.request("m", "Predict", "GRPC", Code.OK, 0.01)
    metrics.request("m", "Predict", "GRPC", Code.INTERNAL, 0.01)
    metrics.load("/models/m/1", Code.OK, 0.5)
    assert metrics.counter_value("/tensorflow/serving/request_count") == 2
    assert metrics.counter_value("/tensorflow/cc/saved_model/load_attempt_count") == 1
    assert metrics.counter_value("/tensorflow/cc/saved_model/load_latency") == 500_000
    assert metrics.counter_value("tf_infer_requests_total") == 2
    assert metrics.counter_value("/tensorflow/serving/request_latency") == 0  # no counter
    assert metrics.counter_value("/no/such/metric") == 0


# ---------------------------------------------------------------------- ours

def test_our_requests_are_counted_by_version_signature_method_protocol_and_code() -> None:
    metrics = serving()
    metrics.request("m", "Predict", "GRPC", Code.OK, 0.02, version=1, signature="serving_default")
    labels = ('model="m",version="1",signature="serving_default",method="Predict",'
              'protocol="GRPC"')
    found = samples(metrics)
    assert found[f'tf_infer_requests_total{{{labels},code="OK"}}'] == 1
    assert found[f'tf_infer_request_seconds_bucket{{{labels},le="0.01"}}'] == 0
    assert found[f'tf_infer_request_seconds_bucket{{{labels},le="0.025"}}'] == 1


def test_our_histograms_take_a_value_at_the_limit_below_it_as_prometheus_says() -> None:
    metrics = serving()
    metrics.batch("m", "serving_default", [Task(8, 0.0)], 8)
    found = buckets(metrics, "tf_infer_batch_rows", 'model="m",signature="serving_default"')
    assert dict(found)["8"] == 1
    assert dict(found)["4"] == 0


def test_stages_have_a_histogram_each() -> None:
    metrics = serving()
    metrics.stage("m", 1, "serving_default", "queue", 0.25)
    metrics.stage("m", 1, "serving_default", "run", 0.5)
    found = samples(metrics)
    labels = 'model="m",version="1",signature="serving_default"'
    assert found[f'tf_infer_stage_seconds_sum{{{labels},stage="queue"}}'] == 0.25
    assert found[f'tf_infer_stage_seconds_sum{{{labels},stage="run"}}'] == 0.5


def test_a_version_that_is_gone_leaves_no_metrics_of_ours_behind() -> None:
    metrics = serving()
    metrics.loaded("m", 2, ["serving_default"])
    for version in (1, 2):
        metrics.request("m", "Predict", "GRPC", Code.OK, 0.02, version=version,
                        signature="serving_default")
        metrics.stage("m", version, "serving_default", "queue", 0.1)
    metrics.unloaded("m", 1)
    page = metrics.page().decode()
    assert 'version="1"' not in page
    assert 'version="2"' in page
    assert samples(metrics)[':tensorflow:serving:request_count{model_name="m",status="OK"}'] == 2


def test_gauges_are_read_when_the_page_is() -> None:
    metrics = Metrics()
    values = {(): 1}
    metrics.gauge("tf_infer_requests_in_flight", "Requests being answered.", (), lambda: values)
    assert samples(metrics)["tf_infer_requests_in_flight{}"] == 1
    values[()] = 7
    assert samples(metrics)["tf_infer_requests_in_flight{}"] == 7


# ---------------------------------------------------------------------- bounds

def test_mo06_a_million_unknown_models_do_not_grow_the_memory() -> None:
    metrics = serving()
    for number in range(MAX_UNKNOWN_MODELS + 50):
        metrics.request(f"no-{number}", "Predict", "GRPC", Code.NOT_FOUND, 0.01, version=None)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(20_000):
            metrics.request(f"more-{number}", "Predict", "GRPC", Code.NOT_FOUND, 0.01)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 10_000
    found = samples(metrics)
    count = ":tensorflow:serving:request_count"
    assert found[f'{count}{{model_name="no-99",status="NOT_FOUND"}}'] == 1
    assert f'{count}{{model_name="no-100",status="NOT_FOUND"}}' not in found
    assert found[f'{count}{{model_name="{OTHER}",status="NOT_FOUND"}}'] == 20_050
    assert found["tf_infer_unknown_models_total{}"] == 20_050
    # None is lost, and a model that is served keeps its name.
    metrics.loaded("late", 1, ["serving_default"])
    metrics.request("late", "Predict", "GRPC", Code.OK, 0.01, version=1)
    assert samples(metrics)[f'{count}{{model_name="late",status="OK"}}'] == 1
    assert metrics.counter_value("/tensorflow/serving/request_count") == 20_151


def test_mo06_a_long_unknown_name_is_not_kept() -> None:
    metrics = Metrics()
    metrics.request("x" * 257, "Predict", "GRPC", Code.NOT_FOUND, 0.01)
    metrics.request("y" * 256, "Predict", "GRPC", Code.NOT_FOUND, 0.01)
    page = metrics.page().decode()
    assert "xxx" not in page
    assert "y" * 256 in page


def test_signatures_and_versions_that_are_none_get_no_label() -> None:
    metrics = serving()
    for number in range(50):
        metrics.request("m", "Predict", "GRPC", Code.INVALID_ARGUMENT, 0.01, version=1,
                        signature=f"made-up-{number}")
        metrics.request("m", "Predict", "GRPC", Code.NOT_FOUND, 0.01, version=1000 + number)
    ours = [name for name in samples(metrics) if name.startswith("tf_infer_requests_total")]
    assert len(ours) == 2
    assert "made-up" not in metrics.page().decode()


@pytest.mark.parametrize("kind", ["counter", "histogram"])
def test_a_family_holds_a_bounded_number_of_label_sets(kind: str) -> None:
    family: Counter | Histogram
    if kind == "counter":
        family = Counter("c", labels=("a", "b"))
    else:
        family = Histogram("h", labels=("a", "b"), limits=(1.0,))
    for number in range(MAX_LABEL_SETS + 500):
        if isinstance(family, Counter):
            family.add((str(number), "x"))
        else:
            family.observe((str(number), "x"), 0.5)
    sums = [line for line in family.lines() if line.startswith(("c{", "h_count{"))]
    assert len(sums) == MAX_LABEL_SETS + 1
    assert next(line for line in sums if OTHER in line).endswith(
        f'{{a="{OTHER}",b="{OTHER}"}} 500')


# ---------------------------------------------------------------------- threads, cost

def test_nothing_is_lost_between_threads() -> None:
    metrics = serving()

    def work() -> None:
        for _ in range(2000):
            metrics.request("m", "Predict", "GRPC", Code.OK, 0.02, version=1,
                            signature="serving_default")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        page = metrics.page().decode()  # a page meanwhile agrees with itself
        for labels in re.findall(r"request_latency_count\{(.*)\} \d+", page):
            total = re.search(rf"request_latency_count\{{{labels}\}} (\d+)", page)
            last = re.search(rf'request_latency_bucket\{{{labels},le="\+Inf"\}} (\d+)', page)
            assert total and last and total[1] == last[1]
    for thread in threads:
        thread.join()
    found = samples(metrics)
    assert found[':tensorflow:serving:request_count{model_name="m",status="OK"}'] == 16_000
    latency = ':tensorflow:serving:request_latency_sum'
    assert found[f'{latency}{{model_name="m",API="Predict",entrypoint="GRPC"}}'] == 16_000 * 20_000


def _sums(counts: dict[int, int]) -> None:
    for value in range(2000):
        counts[value & 7] += value


def _spent_s(function: Callable[[], object]) -> float:
    """Return the processor time of this thread, which other work takes nothing of."""
    started_s = time.thread_time()
    function()
    return time.thread_time() - started_s


@pytest.mark.parametrize("kind", ["counter", "histogram"])
def test_an_observation_costs_less_than_two_microseconds(kind: str) -> None:
    labels = ("m", "Predict", "GRPC")
    counter = Counter("c", labels=("a", "b", "c"))
    histogram = Histogram("h", labels=("a", "b", "c"), limits=registry.exponential(10, 1.8, 33))

    def observations() -> None:
        for value in range(2000):
            if kind == "counter":
                counter.add(labels)
            else:
                histogram.observe(labels, value)

    counts = dict.fromkeys(range(8), 0)
    rounds = [(_spent_s(observations), _spent_s(lambda: _sums(counts))) for _ in range(9)]
    ours_s, sums_s = (min(spent) for spent in zip(*rounds))
    assert ours_s < SUMS_PER_OBSERVATION * sums_s  # as fast as the machine is


def test_limits_are_computed_as_tensorflow_does_by_repeated_multiplication() -> None:
    limits = registry.exponential(10, 1.8, 33)
    assert limits[0] == 10
    assert limits[1] == 18.0
    assert limits[32] == pytest.approx(10 * 1.8**32)
    assert bisect_left(limits, 18.0) == 1


# ---------------------------------------------------------------------- Prometheus's own word

def busy() -> Metrics:
    """Return metrics in which every family has a value."""
    metrics = serving()
    metrics.request("m", "Predict", "GRPC", Code.OK, 0.02, version=1, signature="serving_default")
    metrics.request('odd "name"\n\\', "predict", "REST", Code.NOT_FOUND, 0.02)
    metrics.runtime("m", "Predict", 0.01)
    metrics.stage("m", 1, "serving_default", "queue", 0.1)
    metrics.batch("m", "serving_default", [Task(1, 0.0)], 4)
    metrics.examples("m", 2)
    metrics.load("/models/m/1", Code.OK, 1.0)
    metrics.warmup("/models/m/1", Code.OK, 1.0, 3)
    metrics.graph_run(0.01)
    metrics.gauge("tf_infer_requests_in_flight", "Requests being answered.", (), lambda: {(): 3})
    return metrics


@pytest.mark.skipif(shutil.which("promtool") is None,
                    reason="promtool is not installed (Debian: apt-get install prometheus)")
def test_promtool_remarks_on_nothing_but_tensorflows_own_names() -> None:
    answer = subprocess.run(["promtool", "check", "metrics"], input=busy().page(),
                            capture_output=True, timeout=60, check=False)
    complaints = [line for line in (answer.stdout + answer.stderr).decode().splitlines() if line]
    assert answer.returncode in (0, 3), complaints  # 3: it reads well, and has remarks
    assert [line for line in complaints if not line.startswith(":tensorflow:")] == []


def test_a_gauge_is_a_family_of_its_own_kind() -> None:
    gauge = Gauge("g", "Help.", ("a",), lambda: {("x",): 2, ("b",): 1})
    assert list(gauge.lines()) == ["# HELP g Help.", "# TYPE g gauge",
                                   'g{a="b"} 1', 'g{a="x"} 2']


def test_without_a_page_only_counters_are_kept() -> None:
    metrics = Metrics(page=False)
    metrics.loaded("m", 1, ["serving_default"])
    metrics.request("m", "Predict", "GRPC", Code.OK, 0.01, version=1)
    metrics.runtime("m", "Predict", 0.01)
    page = metrics.page().decode()
    assert "request_latency_count{" not in page
    assert "runtime_latency_count{" not in page
    assert "request_count{" in page
