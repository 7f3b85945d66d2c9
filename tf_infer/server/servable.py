"""SavedModelServable: one version of any SavedModel in a version-1 session.

The file of the server that runs TensorFlow. Why a session, and why its own run call: see
docs/runtime.md.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401  registers TF-Text's ops, as TensorFlow Serving links them
from tensorflow.python.client import pywrap_tf_session

from tf_infer.config import ClassifierConfig
from tf_infer.errors import (
    Code,
    InvalidRequest,
    ModelNotFound,
    ServerFailure,
    ServingError,
    exception_for,
)
from tf_infer.manifest import (
    EXTRA_FOLDER,
    MANIFEST_FILE,
    WARMUP_FILE,
    ModelManifest,
    check_files,
    read_manifest,
)
from tf_infer.server import cpus
from tf_infer.server.config import ServerConfig
from tf_infer.server.contracts import Arrays, LoadTimes, Run, Servable, StageTimes
from tf_infer.server.denormals import flushed
from tf_infer.server.encoder_engines import engine_of, replay_atol, within
from tf_infer.server.engine_servable import EngineServable
from tf_infer.server.halves import Halves, divisible, order_of, worth_it
from tf_infer.server.lanes import EVERY, Lanes
from tf_infer.server.lite_servable import load_lite
from tf_infer.server.loading import (
    PREPARED,
    GentleSession,
    Loaded,
    free,
    load,
    load_prepared,
    prepared_graph,
)
from tf_infer.server.logs import event
from tf_infer.server.metrics import Metrics, counted
from tf_infer.server.own_thread import slowest, sure, within_grid
from tf_infer.server.quick_graph import CALLERS_THREAD, Call, QuickCalls, is_by_shape
from tf_infer.server.quick_runs import MAKING_S, QuickRuns, kind_of
from tf_infer.server.scheduler import TIMED_OUT
from tf_infer.server.session_config import (
    FEW_CPUS,
    LANES,
    for_version,
    has_lanes,
    session_config,
    without_optimiser,
)
from tf_infer.server.tracing import Step, stage_times
from tf_infer.server.warmup import replay_golden, warm_up
from tf_infer.wire import serving_pb2

FRAGILE_OP = b"FastWordpiece"  # begins the names of TF-Text's operations of this kind


class _Ends(NamedTuple):
    """The C handles of a signature's tensors."""

    inputs: dict[str, Any]
    outputs: dict[str, Any]
    by_shape: bool = False  # see quick_runs.py


class _Options(NamedTuple):
    """Serialized RunOptions, and whether the thread that asks does the run."""

    data: bytes
    here: bool


class SavedModelServable:
    """A loaded version directory; see `contracts.Servable`.

    Args:
        path: version directory with saved_model.pb.
        tags: of the meta graph.
        settings: ConfigProto of the session; None takes that of a server without flags.
        metrics: is told of every run.
        gently: others are being answered meanwhile. A thread that gives way to theirs does the
            runs until `loaded`, but for those of QuickCalls, which whoever asks does.
        asked: how many calls there have been so far; a gentle load rests while there are some.
        prepared: the graph to be run in place of saved_model.pb's; None runs that.

    Raises:
        ModelNotFound: no saved_model.pb, or no meta graph with these tags.
        ServerFailure: DATA_LOSS, it cannot be read as a SavedModel.
        ServingError: TensorFlow cannot load it, with its own code.
    """

    def __init__(self, path: Path, *, tags: Sequence[str] = ("serve",), settings: Any = None,
                 metrics: Metrics | None = None, gently: bool = False,
                 asked: Callable[[], int] = lambda: 0, prepared: bytes | None = None) -> None:
        if not any((Path(path) / name).is_file()
                   for name in ("saved_model.pb", "saved_model.pbtxt")):
            raise ModelNotFound(
                "Could not find SavedModel .pb or .pbtxt at supplied export directory path: "
                f"{path}. Is the export or the copy still running, or was it interrupted?")
        self._metrics = metrics or Metrics(page=False)
        self._ends: dict[str, _Ends] = {}
        self._slowest_s: dict[str, float] = {}  # by signature, of runs within the grid
        self._few_cpus = cpus.usable() <= FEW_CPUS
        settings = settings or session_config(ServerConfig(models=()))
        self._lanes = LANES if has_lanes(settings) else Lanes(0)
        self.halves = Halves()
        self.manifest: ModelManifest | None = None
        self._behind = cpus.Behind(asked) if gently else None
        try:
            self._session = (functools.partial(GentleSession, self._behind) if self._behind
                             else tf.compat.v1.Session)(
                graph=tf.Graph(), config=settings)
        except BaseException:
            self.loaded()
            raise
        try:
            self._fragile = _is_fragile(Path(path))
            meta_graph, self._tensor = self._load(Path(path), tags, prepared)
            self.signatures: Mapping[str, serving_pb2.SignatureDef] = {
                name: serving_pb2.SignatureDef.FromString(definition.SerializeToString())
                for name, definition in meta_graph.signature_def.items()}
            self._quick, self._calls = QuickRuns(), QuickCalls(self._session)
        except BaseException:
            free(self._session)
            self.loaded()
            raise

    def loaded(self) -> None:
        """Do the runs from now on where those who ask for them are."""
        behind, self._behind = self._behind, None
        if behind is not None:
            behind.close()

    def _load(self, path: Path, tags: Sequence[str], prepared: bytes | None) -> Loaded:
        try:
            found = (load(self._session, path, tags, gently=self._behind is not None)
                     if prepared is None
                     else load_prepared(self._session, path, prepared, self._behind))
            self._session._extend_graph()
            return found
        except tf.errors.OpError as error:
            raise _translated(error) from error
        except Exception as error:  # the loader raises OSError, ValueError, RuntimeError, ...
            if "MetaGraphDef associated with tags" in str(error):
                raise ModelNotFound(
                    f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }} "
                    f"in {path}. To see those that are there, run `tf-infer inspect`.") from error
            raise ServerFailure(f"{path} cannot be loaded: {error} Copy the directory again, or "
                                "export it again.", code=Code.DATA_LOSS) from error

    def _ends_of(self, signature: str) -> _Ends:
        """Return the C handles of a signature, found once."""
        ends = self._ends.get(signature)
        if ends is None:
            definition = self.signatures[signature]
            inputs, outputs = (
                {name: self._handle(info.name) for name, info in side.items()}
                for side in (definition.inputs, definition.outputs))
            ends = _Ends(inputs, outputs, by_shape=self.manifest is None and is_by_shape(
                self._session.graph, definition.outputs.values()))
            self._ends[signature] = ends
        return ends

    def _handle(self, tensor: str) -> Any:
        try:
            return self._tensor(tensor)
        except (KeyError, ValueError) as error:  # TensorFlow's text; of a sparse tensor, no name
            raise InvalidRequest(f"Tensor {tensor or ':0'}, specified in either feed_devices or "
                                 "fetch_devices was not found in the Graph") from error

    def find_ends(self) -> None:
        """Find the handles of every signature whose tensors there are, so that no request has to.

        Of a large graph of other people that takes long, and whoever reads requests would do it.
        """
        for signature in self.signatures:
            with suppress(InvalidRequest):
                self._ends_of(signature)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None, whole: bool = True) -> Arrays:
        """Run one signature; see `contracts.Servable.run`.

        Without `whole`, of a version of ours only the wanted outputs are computed: for those who
        want the same ones each time.
        """
        kind, began_s = self._kind(signature, inputs, outputs), time.monotonic()
        quick = self._quick.quick(kind, timeout_s)
        short = quick or (self._few_cpus and self._quick.short(kind, timeout_s))
        call = self._calls.of(signature, inputs, outputs) if quick else None
        if call is not None:
            return self._call(kind, call, inputs, outputs)
        milliseconds = 0 if timeout_s is None else _milliseconds(timeout_s)
        bounded = self._few_cpus and within_grid(self.manifest, inputs)
        own = self._behind is None and (
            short or (bounded and sure(self._slowest_s.get(signature), timeout_s)))
        here = own or self._behind is not None
        own_s = time.thread_time() if own else 0.0
        with self.halves.entered() as alone, self._pool(inputs, here=here) as pool:
            options = _run_options(milliseconds, pool) if milliseconds or pool != EVERY else None
            cut = self._in_halves(signature, inputs, outputs, options, whole=whole) if (
                alone and bounded and here) else None
            found, other_s = cut or (
                self._run(signature, inputs, outputs, options, whole=whole), 0.0)
        # What a thread waits for while others compute is no time of its run; what another one
        # computes for it is, since the next run may have to be done without that one.
        took_s = time.thread_time() - own_s + other_s if own else time.monotonic() - began_s
        if bounded:
            self._slowest_s[signature] = slowest(self._slowest_s.get(signature), took_s)
        if kind is not None:
            self._quick.ran(kind, took_s)
            if self._quick.quick(kind, None) and (timeout_s is None or timeout_s > MAKING_S):
                self._calls.make(signature, self.signatures[signature], inputs, outputs)
        return found

    def _pool(self, inputs: Mapping[str, np.ndarray], *, here: bool = False
              ) -> AbstractContextManager[int]:
        """Have the number of the pool of a run while it lasts."""
        return nullcontext(CALLERS_THREAD) if here else self._lanes.one(inputs)

    def _in_halves(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str],
                   options: _Options | None, *, whole: bool) -> tuple[Arrays, float] | None:
        """Run a batch in two halves where that can be; see `Halves.run`."""
        if not self.halves.wanted or not divisible(self.manifest, signature, outputs):
            return None
        order = order_of(inputs)
        return None if order is None else self.halves.run(inputs, order, lambda half: self._run(
            signature, half, outputs, options, whole=whole))

    def quick(self, run: Run, timeout_s: float | None) -> Callable[[], Arrays] | None:
        """Return what does a run that takes next to nothing; see `contracts.Quick`."""
        kind = self._kind(*run)
        call = self._calls.of(*run) if self._quick.quick(kind, timeout_s) else None
        return None if call is None else functools.partial(
            self._call, kind, call, run.inputs, run.outputs)

    def _call(self, kind: Hashable, call: Call, inputs: Mapping[str, np.ndarray],
              outputs: Sequence[str]) -> Arrays:
        began_s = time.perf_counter()
        try:
            with flushed():
                values = call(*inputs.values())
            found = _named(outputs, values)
            self._quick.ran(kind, time.perf_counter() - began_s)
            return found
        except tf.errors.OpError as error:
            raise _translated(error) from error
        finally:
            self._metrics.graph_run(time.perf_counter() - began_s)

    def _kind(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str],
              ) -> Hashable:
        if self.manifest is not None or not self._ends_of(signature).by_shape:
            return None
        return kind_of(signature, inputs, outputs)

    def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                   outputs: Sequence[str], timeout_s: float | None, whole: bool = True,
                   ) -> tuple[Arrays, StageTimes]:
        """Run one signature and split its time; see `contracts.Traceable` and `run`.

        Cost: 4 to 10 us and 800 bytes more for each operation that runs (docs/runtime.md).
        """
        milliseconds = 0 if timeout_s is None else _milliseconds(timeout_s)
        steps = pywrap_tf_session.TF_NewBuffer()
        try:
            with self._pool(inputs) as pool:
                options = _run_options(milliseconds, pool, traced=True)
                arrays = self._run(signature, inputs, outputs, options, steps, whole=whole)
            return arrays, stage_times(_steps(pywrap_tf_session.TF_GetBuffer(steps)))
        finally:
            pywrap_tf_session.TF_DeleteBuffer(steps)

    def _run(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str],
             run_options: _Options | None, steps: Any = None, *, whole: bool) -> Arrays:
        if self._fragile:
            _check_survivable(self.signatures[signature], inputs)
        ends = self._ends_of(signature)
        feeds = {ends.inputs[name]: array for name, array in inputs.items()}
        if len(feeds) < len(inputs):
            _refuse_fed_twice(self.signatures[signature], inputs)
        # Other outputs are another graph to TensorFlow, and its first run takes 1.5 s for a small
        # BERT. One of ours computes all of them anyway; warm-up has run it.
        fetched = tuple(ends.outputs) if whole and self.manifest is not None else outputs
        fetches = [ends.outputs[name] for name in fetched]
        options = None if run_options is None else pywrap_tf_session.TF_NewBufferFromString(
            run_options.data)
        started = time.perf_counter()

        def compute() -> Any:
            with flushed(wanted=run_options is not None and run_options.here):
                return self._session._call_tf_sessionrun(options, feeds, fetches, [], steps)

        try:
            values = compute() if self._behind is None else self._behind(compute)
        except tf.errors.OpError as error:
            raise _translated(error) from error
        except UnicodeDecodeError as error:  # an op's text that quotes bytes of the request
            raise InvalidRequest(error.object.decode("utf-8", "replace")) from None
        finally:
            self._metrics.graph_run(time.perf_counter() - started)
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)
        found = dict(zip(fetched, values))
        return _named(outputs, [found[name] for name in outputs])

    def close(self) -> None:
        """Free the session."""
        self.loaded()
        self.halves.close()
        self._calls.close()
        free(self._session)


def _named(names: Sequence[str], values: Iterable[Any]) -> Arrays:
    """Return what TensorFlow found as arrays; one string alone comes as bytes."""
    return {name: np.asarray(value, object if isinstance(value, (bytes, str)) else None)
            for name, value in zip(names, values)}


def _is_fragile(path: Path) -> bool:
    """Return whether a version names an operation that a scalar string makes end the process."""
    files = [path / name for name in ("saved_model.pb", "saved_model.pbtxt")]
    return any(FRAGILE_OP in file.read_bytes() for file in files if file.is_file())


def _check_survivable(signature: serving_pb2.SignatureDef,
                      inputs: Mapping[str, np.ndarray]) -> None:
    """Refuse what would end the process inside TensorFlow (docs/runtime.md); nothing else.

    Raises:
        InvalidRequest: a scalar string for an input that is declared with a dimension or more.
    """
    for name, array in inputs.items():
        declared = signature.inputs[name].tensor_shape
        if (array.ndim == 0 and array.dtype.kind in "OSU" and not declared.unknown_rank
                and len(declared.dim) > 0):
            raise InvalidRequest(
                f"{name}: expected a string tensor of rank {len(declared.dim)}, got a scalar. "
                "Send one string as a vector of one.")


def _refuse_fed_twice(signature: serving_pb2.SignatureDef, given: Iterable[str]) -> None:
    """Raise what TensorFlow says of a tensor that two inputs name; by a dict it cannot be told.

    Raises:
        InvalidRequest: always.
    """
    fed = Counter(signature.inputs[name].name for name in given)
    raise InvalidRequest(f'Endpoint "{max(fed, key=lambda name: fed[name])}" fed more than once.')


def _milliseconds(timeout_s: float) -> int:
    return max(1, round(timeout_s * 1000))


@functools.lru_cache(maxsize=4096)
def _run_options(milliseconds: int, pool: int = EVERY, *, traced: bool = False) -> _Options:
    """Return RunOptions; 0 milliseconds are no limit, and a pool may be CALLERS_THREAD."""
    options = tf.compat.v1.RunOptions(timeout_in_ms=milliseconds, inter_op_thread_pool=pool)
    if traced:
        options.trace_level = tf.compat.v1.RunOptions.SOFTWARE_TRACE
    return _Options(options.SerializeToString(), pool == CALLERS_THREAD)


def _steps(run_metadata: bytes) -> Iterator[Step]:
    """Yield what ran, as a serialized RunMetadata tells it."""
    metadata = tf.compat.v1.RunMetadata.FromString(run_metadata)
    for device in metadata.step_stats.dev_stats:
        for node in device.node_stats:
            start_ns = node.all_start_nanos
            yield Step(node.node_name, start_ns + node.op_start_rel_nanos,
                       start_ns + node.op_end_rel_nanos)


def _translated(error: Any) -> ServingError:
    """Return TensorFlow's error with its own code and text (PR21, GE11)."""
    text = error.message or type(error).__name__
    if error.error_code == Code.DEADLINE_EXCEEDED:
        text = TIMED_OUT
    return exception_for(Code(error.error_code), text)


def load_version(path: Path, config: ServerConfig, metrics: Metrics | None = None,
                 settings: Any = None, *, gently: bool = False,
                 asked: Callable[[], int] = lambda: 0) -> tuple[Servable, LoadTimes]:
    """Load a version, with its engine, check its files, warm it up and replay its golden samples.

    Args:
        path: the version directory.
        config: how to load it.
        metrics: is told of the load, the warm-up and every run.
        settings: ConfigProto of the session; None takes what `config` asks for.
        gently: others are being answered meanwhile. The graph's runs give way to theirs; this
            thread, which holds the interpreter lock, does not. One row of each record runs where
            rows are no shapes: of a version of ours that is not compiled.
        asked: how many calls there have been so far; a gentle load rests while there are some.

    Raises:
        ServingError, ConfigError, ExportError: any of these fails; the version is closed again.
    """
    metrics = metrics or Metrics(page=False)
    lite = load_lite(path, config, metrics)
    if lite is not None:
        return lite
    started = time.perf_counter()
    manifest = None
    if (Path(path) / EXTRA_FOLDER / MANIFEST_FILE).is_file():
        manifest = read_manifest(path)
        check_files(path, manifest)
    widened = []
    with ExitStack() as opened:
        engine = engine_of(path, manifest, config.classifier_engine)
        if engine is not None:
            opened.callback(engine.close)
        with counted(lambda code, seconds: metrics.load(str(path), code, seconds)):
            wanted = settings or session_config(config)
            graph = _graph_of(Path(path), manifest, config.tags, wanted, metrics=metrics,
                              gently=gently, asked=asked)
        opened.callback(graph.close)
        graph.manifest = manifest
        graph.find_ends()
        servable: Servable = graph
        if engine is not None and manifest is not None:
            assert isinstance(manifest.task, ClassifierConfig)
            servable = EngineServable(graph, manifest, engine)
            widened.append(functools.partial(within, replay_atol(engine),
                                             manifest.task.temperature))
        loaded = time.perf_counter()
        few = gently and manifest is not None and manifest.compiled == "none"
        records = warm_up(servable, path, iterations=config.warmup_iterations, metrics=metrics,
                          most_rows=1 if few else None, intact=_has_digest(
                              manifest, WARMUP_FILE)) if config.warmup else 0
        warm = time.perf_counter()
        samples = replay_golden(servable, path, *widened) if config.golden_replay else 0
        proven = time.perf_counter()
        graph.loaded()
        if gently:  # of one row each, perhaps, and of a thread that gave way
            graph._slowest_s.clear()
        graph.halves.wanted = worth_it(
            usable=cpus.usable(), threads=wanted.intra_op_parallelism_threads,
            devices=[one.device_type for one in graph._session.list_devices()])
        opened.pop_all()
    return servable, LoadTimes(load_s=loaded - started, warmup_records=records,
                               warmup_s=warm - loaded, golden_samples=samples,
                               golden_s=proven - warm)


def _has_digest(manifest: ModelManifest | None, name: str) -> bool:
    return manifest is not None and f"{EXTRA_FOLDER}/{name}" in manifest.files


def _graph_of(path: Path, manifest: ModelManifest | None, tags: Sequence[str], settings: Any,
              **how: Any) -> SavedModelServable:
    """Load the graph that the export has prepared, or where that cannot be, saved_model.pb's."""
    prepared = prepared_graph(path, manifest, tags, settings)
    if prepared is not None:
        try:
            found = SavedModelServable(path, tags=tags, settings=without_optimiser(settings),
                                       prepared=prepared, **how)
            event("load", path=path, graph="prepared")
            return found
        except ServingError as error:
            event("load", logging.WARNING, path=path, passed_over=PREPARED, error=str(error))
    return SavedModelServable(path, tags=tags, settings=for_version(settings, manifest), **how)
