"""What a server counts: TensorFlow Serving's metrics under their own names, and more under ours.

Statements MO05 to MO15, WU15 and MS17 of TensorFlow Serving's observed behaviour. Times come in
seconds; TensorFlow's names hold whole microseconds, as theirs do. An observation costs about a
microsecond, and what a caller sends cannot make memory grow: a model that was never configured gets
a label of its own only while there are fewer than `MAX_UNKNOWN_MODELS` such names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

from tf_infer.errors import Code, ServingError
from tf_infer.server.registry import (
    OTHER,
    Counter,
    Family,
    Gauge,
    Histogram,
    Labels,
    Number,
    exponential,
    page,
)

MAX_UNKNOWN_MODELS = 100
MAX_NAME_CHARS = 256
RUNTIME = "TF1"  # as TensorFlow Serving calls a session, which ours is

GRPC, REST = "GRPC", "REST"
_COUNTED = frozenset({"Predict", "Classify", "Regress"})  # of gRPC's methods (MO06, MS19)
_TIMED = _COUNTED | {"predict", "classify", "regress"}  # MO07

_LATENCIES = exponential(10, 1.8, 33)
_SIZES = exponential(1, 2, 14)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)
_LOAD_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ROWS = tuple(float(2**power) for power in range(11))
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


class Task(NamedTuple):
    """What one request brought into a batch, and how long it had waited."""

    rows: int
    queue_s: float


class Metrics:
    """The numbers of one server. Every method may be called from any thread.

    Args:
        page: whether somebody will ask for the page. Without it only counters are kept, which a
            reload may ask for at any time (MS17).
    """

    def __init__(self, *, page: bool = True) -> None:
        self._seen, self._histogram = page, Histogram if page else _Unseen
        self._unknown: set[str] = set()
        self._signatures: dict[tuple[str, str], frozenset[str]] = {}
        self._models: set[str] = set()
        self._lock = threading.Lock()
        self._families: dict[str, Family] = {}

        self._requests = self._counter("/tensorflow/serving/request_count",
                                       labels=("model_name", "status"))
        self._latency = self._microseconds("/tensorflow/serving/request_latency",
                                           ("model_name", "API", "entrypoint"))
        self._runtime = self._microseconds("/tensorflow/serving/runtime_latency",
                                           ("model_name", "API", "runtime"))
        self._example_counts = self._theirs("/tensorflow/serving/request_example_counts",
                                            ("model",), exponential(1, 2, 15))
        self._example_total = self._counter("/tensorflow/serving/request_example_count_total",
                                            labels=("model",))
        self._warmups = self._microseconds("/tensorflow/serving/model_warmup_latency",
                                           ("model_path", "status"))
        self._warmup_records = self._counter("/tensorflow/serving/model_warmup_records_read",
                                             labels=("model_path", "status"))
        self._loads = self._counter("/tensorflow/cc/saved_model/load_attempt_count",
                                    labels=("model_path", "status"))
        self._load_us = self._counter("/tensorflow/cc/saved_model/load_latency",
                                      labels=("model_path",))
        self._runs = self._counter("/tensorflow/core/graph_runs")
        self._run_us = self._counter("/tensorflow/core/graph_run_time_usecs")
        self._run_times = self._theirs("/tensorflow/core/graph_run_time_usecs_histogram", (),
                                       exponential(1000, 2, 20))
        session = "/tensorflow/serving/batching_session"
        self._batches = self._counter(f"{session}/wrapped_run_count")
        self._queuing = self._theirs(f"{session}/queuing_latency", ("thread_pool_name",),
                                     exponential(100, 1.2, 52))
        self._task_rows = self._theirs(f"{session}/input_batch_size", (), _SIZES)
        self._run_rows = self._theirs(f"{session}/processed_batch_size", (), _SIZES)
        self._padding = self._theirs(f"{session}/padding_size", ("execution_batch_size",), _SIZES)

        one = ("model", "version", "signature")
        self._our_requests = self._counter(
            "tf_infer_requests_total", "Requests that were answered, by gRPC code.",
            (*one, "method", "protocol", "code"))
        self._our_seconds = self._ours(
            "tf_infer_request_seconds", "From a request's arrival to its answer, errors too.",
            (*one, "method", "protocol"), _SECONDS)
        self._stages = self._ours(
            "tf_infer_stage_seconds",
            "Time of a request in one stage: queue, run; of traced ones tokenize, model, decode.",
            (*one, "stage"), _SECONDS)
        self._batch_rows = self._ours(
            "tf_infer_batch_rows", "Rows of requests that one run answered, without padding.",
            ("model", "signature"), _ROWS)
        self._batch_padding = self._ours(
            "tf_infer_batch_padding_ratio", "Share of a run's rows that is padding, 0 to 1.",
            ("model", "signature"), _SHARES)
        self._version_loads = self._ours(
            "tf_infer_version_load_seconds",
            "An attempt to load a version, warm-up and golden samples included, by gRPC code.",
            ("model", "code"), _LOAD_SECONDS)
        version = ("model", "version")
        self._generations = self._counter(
            "tf_infer_generations_total", "Generation requests that have ended, by finish reason, "
            "code of the error, or cancelled.", (*version, "reason"))
        self._new_tokens = self._counter("tf_infer_generated_tokens_total",
                                         "Tokens that were generated piece by piece.", version)
        self._prompt_tokens = self._counter(
            "tf_infer_prompt_tokens_total", "Tokens of prompts that were generated from, and "
            "whether they were read or found among saved beginnings.", (*version, "source"))
        self._guesses = self._counter(
            "tf_infer_guessed_tokens_total", "Tokens that were guessed and read with the last one "
            "of a text: accepted where they were what was chosen, else refused.",
            (*version, "outcome"))
        self._first_token = self._ours("tf_infer_first_token_seconds", "From a generation "
                                       "request's arrival to its first token.", version, _SECONDS)
        self._token = self._ours("tf_infer_token_seconds", "Time of each further token.", version,
                                 _TOKEN_SECONDS)
        self._unknown_models = self._counter(
            "tf_infer_unknown_models_total",
            f'Requests for models never configured that are counted as "{OTHER}".')

    # ------------------------------------------------------------------ which labels there are

    def configured(self, models: Iterable[str]) -> None:
        """Take these models' names as labels from now on."""
        with self._lock:
            self._models.update(models)

    def knows(self, model: str) -> bool:
        """Whether a name is one of ours, and not one that a caller made up."""
        return model in self._models

    def loaded(self, model: str, version: int, signatures: Collection[str]) -> None:
        """Take these names as labels from now on: a version is available."""
        with self._lock:
            self._models.add(model)
            self._signatures[model, str(version)] = frozenset(signatures)

    def unloaded(self, model: str, version: int) -> None:
        """Drop what our own metrics hold of a version that is gone."""
        with self._lock:
            self._signatures.pop((model, str(version)), None)
        for family in (self._our_requests, self._our_seconds, self._stages, self._generations,
                       self._new_tokens, self._prompt_tokens, self._guesses, self._first_token,
                       self._token):
            family.forget(model=model, version=str(version))

    def _model(self, name: str) -> str:
        """Return the label of the model that a request names (MO06), of a bounded number."""
        if name in self._models or name in self._unknown:
            return name
        with self._lock:
            if len(self._unknown) < MAX_UNKNOWN_MODELS and len(name) <= MAX_NAME_CHARS:
                self._unknown.add(name)
                return name
        self._unknown_models.add()
        return OTHER

    def _labels(self, model: str, version: int | None, signature: str) -> Labels:
        """Return the labels of our own metrics; empty where a request did not get so far.

        Args:
            model: its label, see `_model`.
            version, signature: what ran, if it is known.
        """
        number = "" if version is None else str(version)
        known = self._signatures.get((model, number), ())
        return model, number if known else "", signature if signature in known else ""

    # ------------------------------------------------------------------ what happened

    def request(self, model: str, api: str, entrypoint: str, code: Code, seconds: float, *,
                version: int | None = None, signature: str = "") -> None:
        """Count one answered request, whatever came of it.

        Args:
            model: the name that the request gave, loaded or not.
            api: gRPC's method, or what was asked of REST ("predict", "status"); empty for nothing
                that there is.
            entrypoint: GRPC or REST.
            code: OK or the failure's.
            seconds: from arrival to answer.
            version, signature: what ran, as far as the request got.
        """
        name = self._model(model)
        if entrypoint == REST or api in _COUNTED:
            self._requests.add((name, code.name))
        labels = (*self._labels(name, version, signature), api, entrypoint)
        self._our_requests.add((*labels, code.name))
        if self._seen:
            if code is Code.OK and api in _TIMED:
                self._latency.observe((name, api, entrypoint), _us(seconds))
            self._our_seconds.observe(labels, seconds)

    def runtime(self, model: str, api: str, seconds: float) -> None:
        """Record how long a request's runs took, the wait for a batch included (MO08).

        Args:
            model: name of a loaded model.
            api: Predict, Classify, Regress, MultiInference, over REST too.
            seconds: from handing the runs over to having their outputs.
        """
        if self._seen:
            self._runtime.observe((self._model(model), api, RUNTIME), _us(seconds))

    def stage(self, model: str, version: int, signature: str, stage: str, seconds: float) -> None:
        """Record how long a request was in one stage.

        Args:
            model, version, signature: what ran.
            stage: "queue" or "run", and of a call that asked for it "tokenize", "model", "decode".
            seconds: of this request, whoever shared the run.
        """
        if self._seen:
            labels = self._labels(self._model(model), version, signature)
            self._stages.observe((*labels, stage), seconds)

    def examples(self, model: str, count: int) -> None:
        """Record how many tf.Examples a request held (MO15)."""
        name = self._model(model)
        self._example_counts.observe((name,), count)
        self._example_total.add((name,), count)

    def batch(self, model: str, signature: str, tasks: Sequence[Task], padded_rows: int) -> None:
        """Record one run that answered one request or several (MO14).

        Args:
            model, signature: what ran; names of ours, not of callers.
            tasks: the requests in it.
            padded_rows: rows that were run, those of `tasks` and the padding.
        """
        self._batches.add()
        if not self._seen:
            return
        rows = 0
        for task in tasks:
            rows += task.rows
            self._task_rows.observe((), task.rows)
            self._queuing.observe(("",), _us(task.queue_s))
        self._run_rows.observe((), padded_rows)
        self._padding.observe((str(padded_rows),), padded_rows - rows)
        labels = (model, signature)
        self._batch_rows.observe(labels, rows)
        self._batch_padding.observe(labels, (padded_rows - rows) / padded_rows
                                    if padded_rows else 0.0)

    def graph_run(self, seconds: float) -> None:
        """Record one run of a session, whatever came of it."""
        microseconds = _us(seconds)
        self._runs.add()
        self._run_us.add((), microseconds)
        self._run_times.observe((), microseconds)

    def load(self, model_path: str, code: Code, seconds: float) -> None:
        """Count one attempt to load a version directory."""
        self._loads.add((model_path, "success" if code is Code.OK else "fail"))
        self._load_us.add((model_path,), _us(seconds))

    def version_load(self, model: str, code: Code, seconds: float) -> None:
        """Record one attempt to make a version of a configured model available."""
        self._version_loads.observe((model, code.name), seconds)

    def warmup(self, model_path: str, code: Code, seconds: float, records: int) -> None:
        """Record the replay of a version's warm-up file (WU15); not called without one."""
        labels = (model_path, code.name)
        self._warmups.observe(labels, _us(seconds))
        self._warmup_records.add(labels, records)

    def first_token(self, labels: Labels, seconds: float) -> None:
        """Record how long a generation request waited for its first token."""
        self._first_token.observe(labels, seconds)

    def tokens(self, labels: Labels, count: int, seconds: float) -> None:
        """Record how long the next tokens of a generation took, all of them."""
        for _ in range(count):
            self._token.observe(labels, seconds / count)

    def generation(self, labels: Labels, reason: str, prompt: int, cached: int, new: int) -> None:
        """Count a generation request that has ended, and its tokens."""
        self._generations.add((*labels, reason))
        self._new_tokens.add(labels, new)
        self._prompt_tokens.add((*labels, "read"), prompt - cached)
        self._prompt_tokens.add((*labels, "cached"), cached)

    def guesses(self, labels: Labels, proposed: int, accepted: int) -> None:
        """Count the guesses for a generation request that has ended."""
        self._guesses.add((*labels, "accepted"), accepted)
        self._guesses.add((*labels, "refused"), proposed - accepted)

    # ------------------------------------------------------------------ reading

    def gauge(self, name: str, help: str, labels: Sequence[str],
              read: Callable[[], Mapping[Labels, Number]], *,
              kind: Literal["counter", "gauge"] = "gauge") -> None:
        """Show what `read` returns, label values -> number, whenever the page is asked for."""
        self._families[name] = Gauge(name, help, labels, read, kind=kind)

    def counter_value(self, name: str) -> int:
        """Return the sum of a counter's values, 0 for a name that is none (MS17).

        Args:
            name: as TensorFlow writes it ("/tensorflow/serving/request_count"), or one of ours.
        """
        family = self._families.get(name)
        return family.total() if isinstance(family, Counter) else 0

    def page(self) -> bytes:
        """Return the page that Prometheus reads; its type is `registry.CONTENT_TYPE`."""
        return page(self._families.values())

    # ------------------------------------------------------------------ building

    def _counter(self, name: str, help: str = "", labels: Sequence[str] = ()) -> Counter:
        family = self._families[name] = Counter(name, help, labels)
        return family

    def _microseconds(self, name: str, labels: Sequence[str]) -> Histogram:
        return self._theirs(name, labels, _LATENCIES)

    def _theirs(self, name: str, labels: Sequence[str], limits: Sequence[float]) -> Histogram:
        family = self._families[name] = self._histogram(name, "", labels, limits=limits,
                                                        inclusive=False)
        return family

    def _ours(self, name: str, help: str, labels: Sequence[str], limits: Sequence[float],
              ) -> Histogram:
        family = self._families[name] = self._histogram(name, help, labels, limits=limits)
        return family


def respond(metrics: Metrics, path: str, target: str) -> tuple[int, bytes] | None:
    """Answer a GET of the HTTP port, if it is the page's (MO01, MO02, MO11).

    Args:
        metrics: to show.
        path: where the page is.
        target: of the request, with its query.

    Returns:
        HTTP status and body, their type being `registry.CONTENT_TYPE`; None for another's target.
    """
    if target == path:
        return 200, metrics.page()
    if target.partition("?")[0] == path:
        return 400, f"Unexpected path: {target}. Should be {path}".encode("utf-8", "replace")
    return None


@contextmanager
def counted(tell: Callable[[Code, float], None]) -> Iterator[None]:
    """Tell with which code, and after how many seconds, the inside of the context ended."""
    started, code = time.perf_counter(), Code.OK
    try:
        yield
    except ServingError as error:
        code = error.code
        raise
    except Exception:
        code = Code.UNKNOWN
        raise
    finally:
        tell(code, time.perf_counter() - started)


class _Unseen(Histogram):
    """A histogram that nobody will look at."""

    def observe(self, labels: Labels, value: Number) -> None:
        """Do nothing."""


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
