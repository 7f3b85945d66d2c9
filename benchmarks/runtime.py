"""Which runtime carries a served model: a version-1 session or a TF2 signature?

Five ways of calling one SavedModel are measured in one process and printed as JSON: the public
`Session.run`, the session's own run call beneath it, a session callable, a TF2 signature, and its
flat form with a private cancellation manager. docs/runtime.md draws the conclusion.

    python benchmarks/runtime.py > runtime.json
"""

# ruff: noqa: B023 (every lambda is called before its loop goes on)
from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2
from tensorflow.python.client import pywrap_tf_session as tf_session
from tensorflow.python.eager import cancellation

LOOP_STEPS = 2_000_000_000  # minutes of tf.while_loop on any machine
CALLS = 2000


class Model(tf.Module):
    """One signature per question that the prototype asks."""

    def __init__(self) -> None:
        self.count = tf.Variable(0, dtype=tf.int64)
        keys = tf.constant([b"a", b"b"])
        self.table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(keys, tf.constant([1, 2], tf.int64)), -1)

    def signatures(self) -> dict[str, Any]:
        def of(function: Callable[..., Any], **specs: tf.TensorSpec) -> Any:
            return tf.function(function).get_concrete_function(**specs)

        vector = tf.TensorSpec([None], tf.float32, name="x")
        return {
            "double": of(lambda x: {"y": x * 2.0}, x=vector),
            "strings": of(lambda x: {"y": tf.strings.join([x, "!"])},
                          x=tf.TensorSpec([None], tf.string, name="x")),
            "lookup": of(lambda x: {"y": self.table.lookup(x)},
                         x=tf.TensorSpec([None], tf.string, name="x")),
            "spin": of(self._spin, x=vector),
            "count": of(lambda: {"y": self.count.assign_add(1)}),
            "types": of(lambda a, b, c: {"a": a, "b": b, "c": c},
                        a=tf.TensorSpec(None, tf.bfloat16, name="a"),
                        b=tf.TensorSpec(None, tf.half, name="b"),
                        c=tf.TensorSpec(None, tf.complex64, name="c")),
            "matmul": of(lambda x: {"y": tf.linalg.matmul(x, x)},
                         x=tf.TensorSpec([None, None], tf.float32, name="x")),
        }

    def _spin(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        total = tf.while_loop(lambda i, _: i < LOOP_STEPS, lambda i, t: (i + 1, t + 1.0),
                              (tf.constant(0, tf.int64), tf.reduce_sum(x)))[1]
        return {"y": total[None]}


class Session:
    """The version-1 loader, which TensorFlow Serving uses too."""

    def __init__(self, path: str) -> None:
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            graph = tf.compat.v1.saved_model.load(self.session, ["serve"], path)
        self.session._extend_graph()
        self.definitions = graph.signature_def
        self.callables: dict[str, Any] = {}

    def tensors(self, signature: str) -> tuple[dict[str, Any], dict[str, Any]]:
        get, spec = self.session.graph.get_tensor_by_name, self.definitions[signature]
        return ({k: get(v.name) for k, v in spec.inputs.items()},
                {k: get(v.name) for k, v in spec.outputs.items()})

    def public(self, signature: str, feeds: dict[str, Any], timeout_s: float | None) -> Any:
        inputs, outputs = self.tensors(signature)
        options = None if timeout_s is None else tf.compat.v1.RunOptions(
            timeout_in_ms=int(timeout_s * 1000))
        return self.session.run(outputs, {inputs[k]: v for k, v in feeds.items()}, options=options)

    def direct(self, signature: str, feeds: dict[str, Any], timeout_s: float | None) -> Any:
        inputs, outputs = self.tensors(signature)
        options = None if timeout_s is None else tf_session.TF_NewBufferFromString(
            tf.compat.v1.RunOptions(timeout_in_ms=int(timeout_s * 1000)).SerializeToString())
        try:
            values = self.session._call_tf_sessionrun(
                options, {inputs[k]._as_tf_output(): v for k, v in feeds.items()},
                [t._as_tf_output() for t in outputs.values()], [], None)
        finally:
            if options is not None:
                tf_session.TF_DeleteBuffer(options)
        return dict(zip(outputs, values))

    def callable(self, signature: str, feeds: dict[str, Any], timeout_s: float | None) -> Any:
        inputs, outputs = self.tensors(signature)
        call = self.callables.get(f"{signature}{timeout_s}")
        if call is None:
            options = tf.compat.v1.RunOptions(timeout_in_ms=int((timeout_s or 0) * 1000))
            made = config_pb2.CallableOptions(run_options=options)
            made.feed.extend(t.name for t in inputs.values())
            made.fetch.extend(t.name for t in outputs.values())
            call = self.callables[f"{signature}{timeout_s}"] = (
                self.session._make_callable_from_options(made))
        return dict(zip(outputs, call(*(feeds[k] for k in inputs))))


class Signature:
    """The TF2 loader; a run is stopped by a cancellation manager, which is private."""

    def __init__(self, path: str) -> None:
        self.loaded = tf.saved_model.load(path)

    def run(self, signature: str, feeds: dict[str, Any], timeout_s: float | None) -> Any:
        function = self.loaded.signatures[signature]
        arguments = {k: tf.constant(v) for k, v in feeds.items()}
        if timeout_s is None:
            return {k: v.numpy() for k, v in function(**arguments).items()}
        manager = cancellation.CancellationManager()
        timer = threading.Timer(timeout_s, manager.start_cancel)
        timer.start()
        try:
            return {k: v.numpy()
                    for k, v in manager.get_cancelable_function(function)(**arguments).items()}
        finally:
            timer.cancel()

    def flat(self, signature: str, feeds: dict[str, Any], timeout_s: float | None) -> Any:
        function = self.loaded.signatures[signature]
        flat = [tf.constant(feeds[name]) for name in sorted(feeds)]  # as captured
        result = function._call_flat(flat, function.captured_inputs)
        values = result.values() if isinstance(result, dict) else result
        return [v.numpy() for v in values]


def outcome(call: Callable[[], Any]) -> str:
    """Return what a call ends with, shortened; never raises."""
    started = time.perf_counter()
    try:
        value = call()
        text = f"ok {value}"
    except Exception as error:
        code = getattr(error, "error_code", None)
        text = f"{type(error).__name__} code={code} {error}"
    return f"[{time.perf_counter() - started:.2f} s] " + " ".join(text.split())[:220]


def microseconds(call: Callable[[], Any], calls: int = CALLS) -> float:
    """Return the median time of a call in us."""
    for _ in range(50):
        call()
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(sorted(times)[calls // 2] * 1e6, 1)


def python_progress(call: Callable[[], Any]) -> float:
    """Return how fast another Python thread runs beside the call; 1 = as if alone, 0 = GIL held."""
    ticks = 0
    stop = threading.Event()

    def spin() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1

    def rate(work: Callable[[], Any]) -> float:
        nonlocal ticks
        ticks, started = 0, time.perf_counter()
        work()
        return ticks / (time.perf_counter() - started)

    thread = threading.Thread(target=spin)
    thread.start()
    alone = rate(lambda: time.sleep(0.5))
    beside = rate(lambda: [call() for _ in range(10)])
    stop.set()
    thread.join()
    return round(beside / alone, 2)


def crash_probe(path: str, kind: str) -> str:
    """Feed a scalar string to a string vector in a process of its own; say how it ended."""
    done = subprocess.run([sys.executable, __file__, "--probe", path, kind], capture_output=True,
                          text=True, timeout=180)
    return f"exit {done.returncode}: {done.stdout.strip()[-300:]}"


def probe(path: str, kind: str) -> None:
    run = runners(path)[kind]
    for signature in ("strings", "lookup"):
        for value in (np.array(b"scalar", object), np.array([[b"a", b"b"]], object)):
            print(signature, value.shape, outcome(lambda: run(signature, {"x": value}, None)))


def runners(path: str) -> dict[str, Callable[..., Any]]:
    session, signature = Session(path), Signature(path)
    return {"session.run": session.public, "session direct": session.direct,
            "session callable": session.callable, "signature": signature.run,
            "signature flat": signature.flat}


def measure(path: str) -> dict[str, Any]:
    report: dict[str, Any] = {"machine": platform.platform(), "cpus": os.cpu_count(),
                              "tensorflow": tf.__version__}
    big = np.random.default_rng(0).standard_normal((700, 700)).astype(np.float32)
    for name, run in runners(path).items():
        one = {"x": np.ones(1, np.float32)}
        row: dict[str, Any] = {
            "us": microseconds(lambda: run("double", one, None)),
            "us_with_deadline": microseconds(lambda: run("double", one, 10.0)),
            "us_string": microseconds(
                lambda: run("strings", {"x": np.array([b"a"], object)}, None)),
            "wrong_dtype": outcome(lambda: run("double", {"x": np.ones(1, np.int32)}, None)),
            "other_rank": outcome(lambda: run("double", {"x": np.ones((1, 2), np.float32)}, None)),
            "variable": [outcome(lambda: run("count", {}, None)) for _ in range(2)],
            "table": outcome(lambda: run("lookup", {"x": np.array([b"b"], object)}, None)),
            "types": outcome(lambda: run("types", {
                "a": np.ones(2, tf.bfloat16.as_numpy_dtype), "b": np.ones((1, 1), np.float16),
                "c": np.array(1 + 2j, np.complex64)}, None)),
            "op_error": outcome(lambda: run("matmul", {"x": np.ones((2, 3), np.float32)}, None)),
            "python_beside": python_progress(lambda: run("matmul", {"x": big}, None)),
        }
        if name != "signature flat":
            before = threading.active_count()
            row["deadline"] = outcome(lambda: run("spin", one, 0.5))
            used = time.process_time()
            time.sleep(1.0)
            row["cpu_s_in_the_second_after"] = round(time.process_time() - used, 2)
            row["threads_left"] = threading.active_count() - before
        row["scalar_string"] = crash_probe(path, name)
        report[name] = row
    return report


def main() -> None:
    if sys.argv[1:2] == ["--probe"]:
        probe(*sys.argv[2:4])
        return
    with tempfile.TemporaryDirectory() as folder:
        model = Model()
        tf.saved_model.save(model, folder, signatures=model.signatures())
        print(json.dumps(measure(folder), indent=1))


if __name__ == "__main__":
    main()
