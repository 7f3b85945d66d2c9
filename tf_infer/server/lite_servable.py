"""LiteServable: a version's model.tflite, run by LiteRT, with --prefer_tflite_model (FL44)

As TensorFlow Serving has it (tflite_session.cc): the signatures are those that the file's metadata
tell; without them one, of the graph's inputs and outputs by their tensors' names. A run cannot be
stopped, and an operation that is not LiteRT's own (of TensorFlow, custom) fails the load.
"""

from __future__ import annotations

import importlib.util
import logging
import queue
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_infer.errors import (
    BackendMissing,
    Code,
    DeadlineExceeded,
    InvalidRequest,
    ServerFailure,
)
from tf_infer.manifest import ModelManifest
from tf_infer.server.config import ServerConfig
from tf_infer.server.contracts import Arrays, LoadTimes, Servable
from tf_infer.server.logs import event
from tf_infer.server.metrics import Metrics, counted
from tf_infer.server.scheduler import TIMED_OUT
from tf_infer.server.warmup import warm_up
from tf_infer.wire import dtypes, messages, serving_pb2
from tf_infer.wire.rest_arrays import dtype_text

LITE_FILE = "model.tflite"
METADATA = "signature_defs_metadata"  # in the file, by its name
PREDICT_METHOD = "tensorflow/serving/predict"
LIBRARY = "ai_edge_litert"
MISSING = ("model.tflite needs LiteRT: pip install 'tf_infer[server]', or leave "
           "--prefer_tflite_model out.")


class _Interpreter:
    """One interpreter of LiteRT, and the shapes that its inputs have now."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.lite: Any = Interpreter(model_content=content, num_threads=1)
        self.lite.allocate_tensors()
        self._shapes: dict[int, tuple[int, ...]] = {
            int(one["index"]): tuple(map(int, one["shape"]))
            for one in self.lite.get_input_details()}

    def run(self, inputs: Mapping[int, np.ndarray], outputs: Iterable[int]) -> list[np.ndarray]:
        """Return the tensors at `outputs` for these inputs."""
        others = {place: array.shape for place, array in inputs.items()
                  if self._shapes[place] != array.shape}
        for place, shape in others.items():
            self.lite.resize_tensor_input(place, shape)
        if others:
            self.lite.allocate_tensors()
            self._shapes |= others
        for place, array in inputs.items():
            self.lite.set_tensor(place, array)
        self.lite.invoke()
        return [self.lite.get_tensor(place) for place in outputs]


class LiteServable:
    """A loaded model.tflite; see `contracts.Servable`.

    Args:
        path: of the file, which is read whole.
        most: runs at once, each in an interpreter of its own, made when it is first needed.

    Raises:
        ServerFailure: the file is none that LiteRT runs.
        InvalidRequest: its metadata tell signatures that it has not.
    """

    def __init__(self, path: Path, *, most: int) -> None:
        self.manifest: ModelManifest | None = None
        self._path, self._content = path, path.read_bytes()
        # Places of runs; None is one whose interpreter is still to be made. What was used last goes
        # first, so that no more are made than run at once.
        self._free: queue.LifoQueue[_Interpreter | None] = queue.LifoQueue()
        for _ in range(most - 1):
            self._free.put(None)
        first = self._made()
        self._inputs = _places(first.lite.get_input_details())
        self._outputs = _places(first.lite.get_output_details())
        self.signatures: Mapping[str, serving_pb2.SignatureDef] = (
            self._told(_metadata(self._content)) or self._of_tensors(first.lite))
        self._free.put(first)

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Run one signature; see `contracts.Servable.run`."""
        definition = self.signatures[signature]
        fed = {}
        for position, (name, array) in enumerate(sorted(inputs.items())):
            wanted, given = definition.inputs[name].dtype, dtypes.by_array(array.dtype).enum
            if given != wanted:
                raise InvalidRequest(f"Expects arg[{position}] to be {dtype_text(wanted)} but "
                                     f"{dtype_text(given)} is provided")
            fed[self._inputs[definition.inputs[name].name]] = array
        fetched = [self._outputs[definition.outputs[name].name] for name in outputs]
        interpreter, left = self._taken(timeout_s), None
        try:
            values = interpreter.run(fed, fetched)
            left = interpreter  # of one that failed, tensors may have no memory any more
        except (ValueError, RuntimeError) as error:  # what LiteRT says names operations, no data
            raise ServerFailure(f"Failed to run TfLite interpreter: {error}") from error
        finally:
            self._free.put(left)
        return {name: np.asarray(value, object) if value.dtype.kind in "OSU" else value
                for name, value in zip(outputs, values)}

    def close(self) -> None:
        """Free the interpreters."""
        while not self._free.empty():
            self._free.get()

    # ------------------------------------------------------------------ interpreters

    def _made(self) -> _Interpreter:
        try:
            return _Interpreter(self._content)
        except (ValueError, RuntimeError) as error:
            raise ServerFailure(f"{self._path} cannot be run: {error} Convert it with the "
                                "operations of LiteRT alone.", code=Code.INTERNAL) from error

    def _taken(self, timeout_s: float | None) -> _Interpreter:
        try:
            found = self._free.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineExceeded(TIMED_OUT) from None
        try:
            return found or self._made()
        except BaseException:
            self._free.put(None)  # the next one may have more luck
            raise

    # ------------------------------------------------------------------ signatures

    def _told(self, signatures: Mapping[str, serving_pb2.SignatureDef],
              ) -> Mapping[str, serving_pb2.SignatureDef]:
        """Return the signatures of the metadata, with the names that the tensors have."""
        for key, definition in signatures.items():
            for side, ends in ((definition.inputs, self._inputs),
                               (definition.outputs, self._outputs)):
                for name, info in side.items():
                    found = next((one for one in (info.name, _bare(info.name)) if one in ends), "")
                    if not found:
                        raise InvalidRequest(f"{self._path}: signature {key}: {name} references an "
                                             f"unknown tensor '{info.name}'")
                    info.name = found
        return signatures

    def _of_tensors(self, lite: Any) -> Mapping[str, serving_pb2.SignatureDef]:
        """Return the one signature of a file that tells none."""
        made = serving_pb2.SignatureDef(method_name=PREDICT_METHOD)
        for details, side in ((lite.get_input_details(), made.inputs),
                              (lite.get_output_details(), made.outputs)):
            for one in details:
                info = side[_bare(one["name"])]
                info.name = one["name"]
                info.dtype = _dtype(one["dtype"])  # type: ignore[assignment]
                for size in one["shape"]:
                    info.tensor_shape.dim.add(size=int(size))
        return {messages.SERVING_DEFAULT: made}


def _places(details: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    return {one["name"]: int(one["index"]) for one in details}


def _bare(name: str) -> str:
    """Return a tensor's name without the number of its output."""
    return name.partition(":")[0]


def _dtype(kind: Any) -> int:
    return (serving_pb2.DT_STRING if np.dtype(kind).kind in "SUO"
            else dtypes.by_array(np.dtype(kind)).enum)


def _metadata(content: bytes) -> dict[str, serving_pb2.SignatureDef]:
    """Return the signatures that a file's metadata tell; none where they tell nothing of it."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    model = schema.Model.GetRootAs(content, 0)
    for place in range(model.MetadataLength()):
        entry = model.Metadata(place)
        if entry.Name() == METADATA.encode():
            table = flexbuffers.GetRoot(bytearray(
                model.Buffers(entry.Buffer()).DataAsNumpy().tobytes())).AsMap
            return {str(key.AsKey): serving_pb2.SignatureDef.FromString(bytes(value.AsStringBytes))
                    for key, value in zip(table.Keys, table.Values)}
    return {}


def load_lite(path: Path, config: ServerConfig, metrics: Metrics,
              ) -> tuple[Servable, LoadTimes] | None:
    """Load a version's model.tflite, warm it up, and return it with the times that took.

    Args:
        path: the version directory.
        config: how to load it.
        metrics: is told of the load and the warm-up.

    Returns:
        None where the SavedModel is to be loaded: nobody prefers the other, it is not there, or
        LiteRT is missing and there is a SavedModel, which is logged.

    Raises:
        BackendMissing: LiteRT is missing, and there is no SavedModel.
        ServingError: the file cannot be run, or a warm-up record fails.
    """
    file = Path(path) / LITE_FILE
    if not config.prefer_tflite or not file.is_file():
        return None
    if importlib.util.find_spec(LIBRARY) is None:
        if not (Path(path) / "saved_model.pb").is_file():
            raise BackendMissing(MISSING)
        event("load", logging.WARNING, path=path, passed_over=LITE_FILE, error=MISSING)
        return None
    started = time.perf_counter()
    with counted(lambda code, seconds: metrics.load(str(path), code, seconds)):
        servable = LiteServable(file, most=config.tflite_runs)
    loaded = time.perf_counter()
    event("load", path=path, graph=LITE_FILE)
    records = warm_up(servable, path, iterations=config.warmup_iterations,
                      metrics=metrics) if config.warmup else 0
    return servable, LoadTimes(load_s=loaded - started, warmup_records=records,
                               warmup_s=time.perf_counter() - loaded)
