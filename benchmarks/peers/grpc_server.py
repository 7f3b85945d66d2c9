"""grpcio alone: Predict answers what was made beforehand. FORM says whether requests are parsed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

from tf_infer.wire import messages, methods, serving_pb2

ANSWER = serving_pb2.PredictResponse.FromString(messages.predict_response_bytes(
    "double", 1, "serving_default", {"y": np.array([2.0], np.float32)}))
ADDRESS = f"[::]:{os.environ['PORT']}"
OPTIONS = (("grpc.so_reuseport", 0),)


def unary(answer: Callable[..., Any]) -> grpc.GenericRpcHandler:
    """Return a handler of Predict, which parses requests and writes answers if FORM is "parsed"."""
    if os.environ["FORM"] == "parsed":
        how: dict[str, Any] = {"request_deserializer": serving_pb2.PredictRequest.FromString,
                               "response_serializer": serving_pb2.PredictResponse.SerializeToString}
    else:
        how = {}
    method = methods.PREDICT
    return grpc.method_handlers_generic_handler(
        method.service, {method.name: grpc.unary_unary_rpc_method_handler(answer, **how)})


def serve(answer: Any, threads: int) -> None:
    """Answer in threads."""
    server = grpc.server(ThreadPoolExecutor(threads), (unary(lambda request, context: answer),),
                         options=OPTIONS)
    server.add_insecure_port(ADDRESS)
    server.start()
    server.wait_for_termination()


async def serve_async(answer: Any) -> None:
    """Answer on asyncio's loop."""
    async def predict(request: Any, context: Any) -> Any:
        return answer

    server = grpc.aio.server(handlers=(unary(predict),), options=OPTIONS)
    server.add_insecure_port(ADDRESS)
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    answer: Any = ANSWER if os.environ["FORM"] == "parsed" else ANSWER.SerializeToString()
    threads = int(os.environ["WORKERS"])
    if threads:
        serve(answer, threads)
    else:
        asyncio.run(serve_async(answer))


if __name__ == "__main__":
    main()
