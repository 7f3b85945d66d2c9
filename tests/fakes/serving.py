"""A gRPC server without a model, for tests of the client: it answers what the test tells it to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from tf_infer.wire import methods

ROOT = Path(__file__).resolve().parents[2]

Answer = Callable[[Any, grpc.ServicerContext], Any]


class FakeServer:
    """Serves `answers` (method -> function of request and context) on a free port.

    Attributes:
        address: "localhost:<port>".
        requests: (method name, request, metadata) of every call, in order of arrival.
    """

    def __init__(self, answers: dict[methods.Method, Answer], *,
                 credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.requests: list[tuple[str, Any, dict[str, str]]] = []
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8), options=[
                ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0)])
        for method, answer in answers.items():
            handler = grpc.unary_unary_rpc_method_handler(
                self._recording(method, answer), request_deserializer=method.request.FromString,
                response_serializer=lambda message: message if isinstance(message, bytes)
                else message.SerializeToString())
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
                method.service, {method.name: handler}),))
        name = f"localhost:{port}"
        bound = (self._server.add_insecure_port(name) if credentials is None
                 else self._server.add_secure_port(name, credentials))
        self.address = f"localhost:{bound}"
        self._server.start()

    def _recording(self, method: methods.Method, answer: Answer) -> Answer:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.requests.append((method.name, request,
                                      dict(context.invocation_metadata())))
            return answer(request, context)
        return handle

    def stop(self, grace_s: float = 0) -> None:
        """Refuse new calls, cancel those that are not done within `grace_s`."""
        self._server.stop(grace_s).wait()

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class KillableServer:
    """An echo server in a process of its own, which answers after `delay_s` and can be killed."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.serving", str(delay_s)], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def __enter__(self) -> KillableServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self._process.kill()
        self._process.wait()


def echo(request: Any, context: grpc.ServicerContext) -> Any:
    """Answer Predict with its own inputs, typed as TensorFlow Serving does when asked so."""
    from tf_infer.wire import serving_pb2 as pb
    response = pb.PredictResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = request.model_spec.version.value or 1
    response.model_spec.signature_name = request.model_spec.signature_name
    for name in request.inputs:
        response.outputs[name].CopyFrom(request.inputs[name])
    return response


def main() -> None:
    """Serve an echo until standard input ends; print the address first."""
    delay_s = float(sys.argv[1])

    def slow(request: Any, context: grpc.ServicerContext) -> Any:
        time.sleep(delay_s)
        return echo(request, context)

    with FakeServer({methods.PREDICT: slow}) as server:
        print(server.address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
