"""A load of prompts in a process of its own: streamed, or one answer a call, over gRPC.

    echo '{"target": "localhost:8500", ...}' | python -m benchmarks.generation_load

prints one JSON object: a record a request. Requests start at random times of a given mean rate
(open loop, latency counts from the time a request was due), or each caller sends its next when it
has its answer (closed loop).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

GRACE_S = 60.0  # for the answers that are still due at the end


@dataclass(frozen=True, kw_only=True)
class GenerationLoad:
    """What to send where.

    Attributes:
        target: "host:port".
        model: its name.
        stream: GenerationService, piece by piece; else signature `generate` of Predict.
        requests: (prompt, new tokens), taken in this order, over and over.
        rate: requests a second of the open loop; 0 for the closed loop.
        callers: of the closed loop.
        seconds: how long requests are sent.
        seed: of the arrivals.
    """

    target: str
    model: str
    stream: bool
    requests: Sequence[tuple[str, int]]
    rate: float = 0.0
    callers: int = 1
    seconds: float = 10.0
    seed: int = 0


async def run(load: GenerationLoad) -> dict[str, Any]:
    """Run a load; return seconds of all, and a record of each request that was answered."""
    import grpc

    channel = grpc.aio.insecure_channel(load.target)
    await asyncio.wait_for(channel.channel_ready(), 30)
    ask = streamed(channel, load) if load.stream else whole(channel, load)
    records: list[dict[str, float]] = []
    failures: dict[str, int] = {}
    started = time.perf_counter()

    async def one(place: int, due_s: float) -> None:
        prompt, wanted = load.requests[place % len(load.requests)]
        try:
            first_s, tokens, pieces = await ask(prompt, wanted)
        except grpc.aio.AioRpcError as error:
            failures[error.code().name] = failures.get(error.code().name, 0) + 1
            return
        end_s = time.perf_counter() - started
        records.append({"due_s": due_s, "first_s": first_s - started, "end_s": end_s,
                        "tokens": tokens, "pieces": pieces})

    async def caller(number: int) -> None:
        place, now_s = number, time.perf_counter() - started
        while True:  # once at least, however slowly this process came so far
            await one(place, now_s)
            place, now_s = place + load.callers, time.perf_counter() - started
            if now_s >= load.seconds:
                return

    running: list[asyncio.Task[None]] = []
    if load.rate:
        draw, due_s = random.Random(load.seed), 0.0
        while (due_s := due_s + draw.expovariate(load.rate)) < load.seconds:
            await asyncio.sleep(max(0.0, started + due_s - time.perf_counter()))
            running.append(asyncio.ensure_future(one(len(running), due_s)))
    else:
        running = [asyncio.ensure_future(caller(number)) for number in range(load.callers)]
    if running:
        _, late = await asyncio.wait(running, timeout=load.seconds + GRACE_S)
        for task in late:
            task.cancel()
        if late:
            failures["no answer"] = len(late)
    await channel.close()
    return {"records": records, "failures": failures}


def streamed(channel: Any, load: GenerationLoad) -> Any:
    """Return what asks for one prompt piece by piece: when its first token came, tokens, pieces."""
    from tf_infer.wire import generation_pb2 as pb
    from tf_infer.wire import methods

    method = channel.unary_stream(
        methods.GENERATE.path, request_serializer=pb.GenerateRequest.SerializeToString,
        response_deserializer=pb.GenerateResponse.FromString)

    async def ask(prompt: str, wanted: int) -> tuple[float, int, int]:
        request = pb.GenerateRequest(
            model=pb.ModelChoice(name=load.model), prompt=prompt.encode(),
            options=pb.GenerateOptions(max_new_tokens=wanted, temperature=0.0))
        first_s, tokens, pieces = 0.0, 0, 0
        async for answer in method(request):
            pieces += 1
            tokens = answer.new_tokens
            if tokens and not first_s:
                first_s = time.perf_counter()
        return first_s, tokens, pieces

    return ask


def whole(channel: Any, load: GenerationLoad) -> Any:
    """Return what asks for one prompt and gets one answer."""
    import numpy as np

    from tf_infer.wire import messages, methods

    method = channel.unary_unary(methods.PREDICT.path)

    async def ask(prompt: str, wanted: int) -> tuple[float, int, int]:
        request = messages.predict_request(
            messages.ModelRef(load.model), {
                "prompt": np.array([prompt.encode()], object),
                "max_new_tokens": np.array([wanted], np.int32)},
            signature="generate", outputs=("text", "length")).SerializeToString()
        answer = messages.read_predict_response(await method(request), where="answer")
        return time.perf_counter(), int(answer.outputs["length"][0]), 1

    return ask


def as_json(load: GenerationLoad) -> str:
    """Return what the process of a load is given."""
    return json.dumps(asdict(load))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(GenerationLoad(**json.loads(sys.stdin.read()))))))
