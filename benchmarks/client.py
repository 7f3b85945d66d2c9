"""The thin client against bare generated stubs and tensorflow-serving-api, in alternating rounds.

    python benchmarks/client.py                 # prints one JSON object
    python benchmarks/client.py --rounds 5      # quicker
    python benchmarks/client.py > benchmarks/results/client.json

A server in a process of its own answers Predict with bytes prepared for the test, so every way of
asking has the same work behind it. The ways take turns in each round; a figure is the median over
the rounds of the median call. Ratios are medians of the rounds' ratios.

    client       tf_infer.Client.predict: arrays in, arrays out
    bare         our generated messages and a grpc stub, nothing around them
    tensorflow   tensorflow-serving-api's stub with make_tensor_proto and make_ndarray, if installed

`content` and `typed` name the encoding of the answer: tensor_content, or one number after another
in float_val as TensorFlow Serving answers. The bare stub reads the first by numpy.frombuffer, which
is the fastest there is. `command_line_s` are whole processes of commands that do their work: three
calls to the server, and a SavedModel read from disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

SMALL = np.float32([[1.0, 2.0, 3.0, 4.0]])
LARGE = np.random.default_rng(0).normal(size=(1, 100_000)).astype(np.float32)
SAVED_MODEL = Path(__file__).resolve().parent.parent / "tests" / "golden" / "inspect"
CASES = {"small": (SMALL, 300), "large": (LARGE, 40)}


# ---------------------------------------------------------------------------- the server


def serve() -> None:
    """Answer Predict until standard input ends; the model's name chooses the prepared answer."""
    import grpc

    from tf_infer.wire import messages, methods
    from tf_infer.wire import serving_pb2 as pb
    from tf_infer.wire.messages import ModelRef, VersionState

    answers = {f"{name}-{form}": messages.predict_response_bytes(
        "m", 1, "serving_default", {"y": array}, content=form == "content")
        for name, (array, _) in CASES.items() for form in ("content", "typed")}

    def answer(request: bytes, context: Any) -> bytes:
        return answers[next(key for key in answers if key.encode() in request[:64])]

    number = {"dtype": "DT_FLOAT", "tensor_shape": pb.TensorShapeProto(
        dim=[{"size": -1}, {"size": 4}])}
    about = messages.metadata_response(ModelRef("m", version=1), {
        "serving_default": pb.SignatureDef(inputs={"x": pb.TensorInfo(**number)},
                                           outputs={"y": pb.TensorInfo(**number)})})
    status = messages.status_response([VersionState(version=1, state="AVAILABLE")])
    handlers = {methods.PREDICT: answer,
                methods.GET_MODEL_METADATA: lambda request, context: about.SerializeToString(),
                methods.GET_MODEL_STATUS: lambda request, context: status.SerializeToString()}
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[
        ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)])
    for method, handler in handlers.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(method.service, {
            method.name: grpc.unary_unary_rpc_method_handler(handler)}),))
    print(server.add_insecure_port("localhost:0"), flush=True)
    server.start()
    sys.stdin.read()


# ---------------------------------------------------------------------------- the ways of asking


def client_way(address: str) -> Callable[[str, np.ndarray], np.ndarray]:
    from tf_infer.client import Client

    client = Client(address)
    return lambda model, array: client.predict(model, {"x": array})["y"]


def bare_way(address: str) -> Callable[[str, np.ndarray], np.ndarray]:
    import grpc

    from tf_infer.wire import serving_pb2 as pb

    channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    stub = channel.unary_unary("/tensorflow.serving.PredictionService/Predict",
                               request_serializer=pb.PredictRequest.SerializeToString,
                               response_deserializer=pb.PredictResponse.FromString)

    def ask(model: str, array: np.ndarray) -> np.ndarray:
        request = pb.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = "serving_default"
        tensor = request.inputs["x"]
        tensor.dtype = pb.DT_FLOAT
        for size in array.shape:
            tensor.tensor_shape.dim.add().size = size
        tensor.tensor_content = array.tobytes()
        answer = stub(request, timeout=10.0).outputs["y"]
        shape = [dim.size for dim in answer.tensor_shape.dim]
        if answer.tensor_content:
            return np.frombuffer(answer.tensor_content, np.float32).reshape(shape)
        return np.array(answer.float_val, np.float32).reshape(shape)

    return ask


def tensorflow_way(address: str) -> Callable[[str, np.ndarray], np.ndarray] | None:
    try:
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    except ImportError:
        return None
    stub = prediction_service_pb2_grpc.PredictionServiceStub(
        grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]))

    def ask(model: str, array: np.ndarray) -> np.ndarray:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        request.model_spec.signature_name = "serving_default"
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
        answer: np.ndarray = tf.make_ndarray(stub.Predict(request, timeout=10.0).outputs["y"])
        return answer

    return ask


# ---------------------------------------------------------------------------- measuring


def median_call_us(ask: Callable[[str, np.ndarray], np.ndarray], model: str, array: np.ndarray,
                   calls: int) -> float:
    spent = []
    for _ in range(calls):
        started = time.perf_counter()
        ask(model, array)
        spent.append(time.perf_counter() - started)
    return statistics.median(spent) * 1e6


def start_up() -> dict[str, float]:
    """Return time and memory of `import tf_infer, tf_infer.client`, the best of five processes."""
    code = ("import time; t = time.perf_counter(); import tf_infer, tf_infer.client\n"
            "s = time.perf_counter() - t\nimport resource, sys\n"
            "print(s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,\n"
            "      sum(m.split('.')[0] in ('tensorflow', 'keras') for m in sys.modules))")
    runs = [list(map(float, subprocess.run([sys.executable, "-c", code], capture_output=True,
                                           text=True, check=True).stdout.split()))
            for _ in range(5)]
    return {"import_s": round(min(run[0] for run in runs), 3),
            "resident_mb": round(min(run[1] for run in runs), 1),
            "tensorflow_modules": runs[0][2]}


def command_line(address: str) -> dict[str, float]:
    """Return the seconds of whole processes of the question commands, the best of five."""
    words = {"predict": ["predict", "small-typed", "--input", "x=[[1, 2, 3, 4]]"],
             "status": ["status", "small-typed"], "inspect": ["inspect", "small-typed"]}
    commands = {name: [*arguments, "--address", address] for name, arguments in words.items()}
    commands["inspect on disk"] = ["inspect", str(SAVED_MODEL)]
    found = {}
    for name, arguments in commands.items():
        spent = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "tf_infer", *arguments], capture_output=True,
                           check=True)
            spent.append(time.perf_counter() - started)
        found[name] = round(min(spent), 3)
    return found


def machine() -> dict[str, Any]:
    """Return cores, model and the flags that decide speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = dict([part.strip() for part in line.split(":", 1)] for line in lines if ":" in line)
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    return {"cpus": os.cpu_count(), "model": told.get("model name", platform.machine()),
            "flags": [flag for flag in wanted if flag in told.get("flags", "").split()],
            "load_before": round(os.getloadavg()[0], 2)}


def measure(address: str, rounds: int) -> dict[str, Any]:
    ways = {"client": client_way(address), "bare": bare_way(address)}
    with_tensorflow = tensorflow_way(address)
    if with_tensorflow is not None:
        ways["tensorflow"] = with_tensorflow
    rows: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first round warms up
        for case, (array, calls) in CASES.items():
            for form in ("content", "typed"):
                for way in (list(ways) if number % 2 else list(ways)[::-1]):
                    ask, model = ways[way], f"{case}-{form}"
                    if number == 0:
                        np.testing.assert_array_equal(ask(model, array), array)
                    spent = median_call_us(ask, model, array, calls)
                    if number:
                        rows.setdefault(f"{way} {case} {form}", []).append(spent)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(rows[one], rows[other])), 3)

    ratios = {"small: client / bare": ratio("client small content", "bare small content"),
              "small typed: client / bare": ratio("client small typed", "bare small typed"),
              "large content: client / bare content": ratio(
                  "client large content", "bare large content"),
              "large typed: client / bare content": ratio(
                  "client large typed", "bare large content"),
              "large typed / content of the client": ratio(
                  "client large typed", "client large content")}
    for case in CASES:
        for form in ("content", "typed"):
            if "tensorflow" in ways:
                ratios[f"{case} {form}: tensorflow / client"] = ratio(
                    f"tensorflow {case} {form}", f"client {case} {form}")
    return {"median_us": {name: round(statistics.median(spent), 1)
                          for name, spent in rows.items()}, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import google.protobuf
    import grpc

    found: dict[str, Any] = {
        "python": platform.python_version(), "protobuf": google.protobuf.__version__,
        "grpcio": grpc.__version__, "numpy": np.__version__, "machine": machine(),
        "rounds": arguments.rounds, "start_up": start_up()}
    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = f"localhost:{server.stdout.readline().strip()}"
        found["command_line_s"] = command_line(address)
        found |= measure(address, arguments.rounds)
    finally:
        server.kill()
        server.wait()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
