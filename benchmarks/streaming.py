"""What streaming costs a token: gRPC and server-sent events against the generator alone.

    python benchmarks/streaming.py --callers 1 8 --tokens 300 --every-ms 5

A server process runs a generator without a model, which writes a token every few milliseconds for
each caller; the token's text is the time when it was made. Told in JSON, for each number of
callers: CPU time of the server's process, and of the generator's own thread in it, per token
beyond that of the generator with a listener that does nothing; and how long after it was made a
token is in the caller's hands (another process on the same machine). Rounds alternate; medians of
rounds. A last figure, `flood`, is how many tokens a second one caller gets of a generator that
never waits: what waits goes out as one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_infer.client.aio import AsyncClient
from tf_infer.config import CausalLMConfig, ShapeGrid
from tf_infer.manifest import ModelManifest, SignatureSpec
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.server.contracts import LoadTimes
from tf_infer.server.fakes import EchoServable
from tf_infer.server.generation import GenerationRequest, Listener, Piece, Token
from tf_infer.server.generators import NEEDED

WAYS = ("alone", "grpc", "sse")


class _Ticket:
    def __init__(self) -> None:
        self.over = False

    def cancel(self) -> None:
        self.over = True


class Clock:
    """Writes the time, `max_new_tokens` times, each `min_p` thousand seconds apart.

    One thread writes for all callers, as a slot engine's does.
    """

    def __init__(self) -> None:
        self.thread_s = 0.0  # of CPU, of the thread that writes
        self._waiting: list[tuple[GenerationRequest, Listener, _Ticket]] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: GenerationRequest, listener: Listener) -> _Ticket:
        ticket = _Ticket()
        with self._changed:
            self._waiting.append((request, listener, ticket))
            self._changed.notify()
        return ticket

    def close(self) -> None:
        pass

    def _run(self) -> None:
        running: list[list[Any]] = []
        every_s = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting or running))
                for request, listener, ticket in self._waiting:
                    every_s = float(request.options.get("min_p", 0.0))
                    running.append([int(request.options["max_new_tokens"]), 0, listener, ticket])
                self._waiting.clear()
            due_s = time.monotonic() + every_s
            for row in list(running):
                row[1] += 1
                last = row[1] == row[0]
                text = b"%d " % time.monotonic_ns()
                row[2](Piece(text=text, tokens=(Token(id=row[1] % 1000, piece=text),),
                             finish_reason="length" if last else None, prompt_tokens=4,
                             new_tokens=row[1], score=-float(row[1])))
                if last or row[3].over:
                    running.remove(row)
            self.thread_s = time.thread_time()
            if every_s:
                time.sleep(max(0.0, due_s - time.monotonic()))


def manifest() -> ModelManifest:
    return ModelManifest(name="clock", version=1, task=CausalLMConfig(), grid=ShapeGrid(),
                         signatures=tuple(SignatureSpec(name=name, inputs=(), outputs=())
                                          for name in NEEDED))


def serve() -> None:
    """Serve the clock; answer lines of standard input by the process's CPU seconds."""
    clock = Clock()

    def load(path: Path) -> tuple[EchoServable, LoadTimes]:
        servable = EchoServable()
        servable.manifest = manifest()
        return servable, LoadTimes()

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "clock" / "1").mkdir(parents=True)
        ports = [_free_port(), _free_port()]
        config = ServerConfig(models=(ModelConfig(
            name="clock", base_path=str(Path(folder) / "clock")),), port=ports[0],
            rest_port=ports[1], host="localhost", poll_s=0)
        with Server(config, load=load, generate=lambda lease: clock):
            print(json.dumps(ports), flush=True)
            for line in sys.stdin:
                if line.startswith("alone"):
                    _alone(clock, *json.loads(line[5:]))
                print(json.dumps([time.process_time(), clock.thread_s]), flush=True)


def _alone(clock: Clock, callers: int, tokens: int, every_s: float) -> None:
    ends = threading.Semaphore(0)

    def listener(event: Any) -> None:
        if event.finish_reason is not None:
            ends.release()

    for _ in range(callers):
        clock.submit(GenerationRequest(prompt=b"", options={
            "max_new_tokens": tokens, "min_p": every_s}), listener)
    for _ in range(callers):
        ends.acquire()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


class Served:
    """The server's process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, "--serve"], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.grpc, self.rest = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def cpu_s(self, task: str = "") -> tuple[float, float]:
        """Return the CPU seconds of the process and of the generator's thread, behind a task."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{task}\n")
        self._process.stdin.flush()
        process_s, thread_s = json.loads(self._line())
        return process_s, thread_s

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


async def grpc_caller(client: AsyncClient, tokens: int, every_s: float, late: list[float]) -> None:
    async for piece in client.stream("clock", "", max_new_tokens=tokens,
                                     options={"min_p": every_s}, timeout_s=600):
        now = time.monotonic_ns()
        late += [(now - int(part)) / 1e6 for part in piece.text.split()]


async def sse_caller(session: Any, port: int, tokens: int, every_s: float, late: list[float]
                     ) -> None:
    body = {"model": "clock", "prompt": "", "max_tokens": tokens, "min_p": every_s, "stream": True}
    async with session.post(f"http://localhost:{port}/v1/completions", json=body) as answer:
        async for line in answer.content:
            if line.startswith(b"data: {"):
                text = json.loads(line[6:])["choices"][0]["text"]
                now = time.monotonic_ns()
                late += [(now - int(part)) / 1e6 for part in text.split()]


async def ask(way: str, served: Served, callers: int, tokens: int, every_s: float) -> list[float]:
    import aiohttp

    late: list[float] = []
    if way == "grpc":
        async with AsyncClient(f"localhost:{served.grpc}") as client:
            await asyncio.gather(*(grpc_caller(client, tokens, every_s, late)
                                   for _ in range(callers)))
    else:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(sse_caller(session, served.rest, tokens, every_s, late)
                                   for _ in range(callers)))
    return late


def measure(served: Served, way: str, callers: int, tokens: int, every_s: float
            ) -> tuple[tuple[float, float], list[float]]:
    """Return CPU us per token, of process and thread, and how many ms late each token came."""
    begin = served.cpu_s()
    late: list[float] = []
    if way == "alone":
        end = served.cpu_s(f"alone{json.dumps([callers, tokens, every_s])}")
    else:
        late = asyncio.run(ask(way, served, callers, tokens, every_s))
        end = served.cpu_s()
    process_us, thread_us = ((b - a) / (callers * tokens) * 1e6 for a, b in zip(begin, end))
    return (process_us, thread_us), late


def rounds(served: Served, callers: int, tokens: int, every_s: float, count: int
           ) -> dict[str, Any]:
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    threads: dict[str, list[float]] = {way: [] for way in WAYS}
    late: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(count + 1):
        for way in WAYS:
            (process_us, thread_us), came = measure(served, way, callers, tokens, every_s)
            if number:  # the first round warms up
                costs[way].append(process_us)
                threads[way].append(thread_us)
                late[way] += came
    found: dict[str, Any] = {"callers": callers, "alone_us": _median(costs["alone"]),
                             "alone_thread_us": _median(threads["alone"])}
    for way in WAYS[1:]:
        sorted_ms = sorted(late[way])
        found[way] = {
            "server_cpu_us_per_token": round(
                _median(costs[way]) - _median(costs["alone"]), 1),
            "thread_cpu_us_per_token": round(
                _median(threads[way]) - _median(threads["alone"]), 1),
            "late_ms_p50": round(sorted_ms[len(sorted_ms) // 2], 3),
            "late_ms_p99": round(sorted_ms[len(sorted_ms) * 99 // 100], 3)}
    return found


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1)


def flood(served: Served, way: str, tokens: int) -> int:
    started_s = time.monotonic()
    asyncio.run(ask(way, served, 1, tokens, 0.0))
    return round(tokens / (time.monotonic() - started_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--every-ms", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    served = Served()
    try:
        found = [rounds(served, callers, arguments.tokens, arguments.every_ms / 1e3,
                        arguments.rounds) for callers in arguments.callers]
        floods = {way: flood(served, way, 20_000) for way in WAYS[1:]}
    finally:
        served.close()
    print(json.dumps({"tokens": arguments.tokens, "every_ms": arguments.every_ms,
                      "rounds": found, "flood_tokens_per_s": floods}, indent=2))


if __name__ == "__main__":
    main()
