"""A load generator in a process of its own, cheap enough to share two cores with the server.

    echo '{"protocol": "http", "target": "http://localhost:8501/...", ...}' |
        python -m benchmarks.load

prints one JSON object for each line that it reads. One process, one thread: HTTP/1.1 with
keep-alive, and gRPC on one connection (benchmarks/http2.py), straight on asyncio's transports, the
same for every server.
(`tf_infer.profiling.load` has a thread for each caller, which two cores would feel; so would they
grpcio's client, which "grpcio" in place of "grpc" takes, with futures on one channel.)
Closed loop: `callers` each send their next request when they have their answer. Open loop: requests
start at random times of a given mean rate, whether or not earlier ones have been answered, and
their latency counts from the time they were due.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import select
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Union
from urllib.parse import urlsplit

from benchmarks import http2
from tf_infer.errors import Code

MAX_CONNECTIONS = 256
MAX_STREAMS = 4096
PREDICT = "/tensorflow.serving.PredictionService/Predict"
GRACE_S = 20.0  # for the answers that are still due at the end
STOP = Path(sys.argv[1]) if sys.argv[1:] and __name__ == "__main__" else None  # ends an open loop


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send where.

    Attributes:
        protocol: "grpc", "http", or "grpcio" for gRPC by its own client.
        target: "host:port" of gRPC, a URL of HTTP.
        form: how a text becomes a request's body, a key of `HTTP_FORMS`; gRPC has one.
        model, outputs: of gRPC requests.
        requests: texts, or numbers for the trivial model.
        callers: of the closed loop; 0 for the open loop.
        rate: requests a second of the open loop.
        seconds, warm_s: measured, and before that not measured.
        seed: of the order and of the open loop's times.
        deadline_s: of each gRPC call.
        trace: whether the result holds every call: when it was due on the clock of `time.time`,
            milliseconds, and the failure or "".
    """

    protocol: str
    target: str
    requests: Sequence[Any]
    form: str = "instances"
    model: str = ""
    outputs: Sequence[str] = ()
    callers: int = 0
    rate: float = 0.0
    seconds: float = 5.0
    warm_s: float = 0.0
    seed: int = 0
    deadline_s: float = 30.0
    trace: bool = False


HTTP_FORMS: dict[str, Callable[[Any], Any]] = {
    "instances": lambda value: {"instances": [value]},
    "text": lambda value: {"text": value},
    "texts": lambda value: {"texts": [value]},
    "v2": lambda value: {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES",
                                     "data": [value]}]},
}


@dataclass
class Tally:
    """What came of the calls; `done` may be called from any one thread at a time."""

    load: Load
    started_s: float = field(default_factory=time.perf_counter)
    started_cpu_s: float = field(default_factory=time.process_time)
    latencies: list[float] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[float, float, str]] = field(default_factory=list)

    @property
    def from_s(self) -> float:
        """When measuring begins."""
        return self.started_s + self.load.warm_s

    @property
    def until_s(self) -> float:
        """When it ends."""
        return self.from_s + self.load.seconds

    def done(self, due_s: float, failure: str = "") -> None:
        """Count a call that was due at a time and has just been answered."""
        now_s = time.perf_counter()
        if self.load.trace:
            self.calls.append((round(time.time() - (now_s - due_s), 4),
                               round(1000 * (now_s - due_s), 3), failure))
        measured_s = now_s if self.load.callers else due_s
        if not self.from_s <= measured_s < self.until_s:
            return
        if failure:
            self.failures[failure] = self.failures.get(failure, 0) + 1
        else:
            self.latencies.append(now_s - due_s)

    def result(self) -> dict[str, Any]:
        """Return counts, calls a second, and milliseconds."""
        spent = sorted(self.latencies)

        def at(share: float) -> float:
            return round(1000 * spent[min(len(spent) - 1, int(share * len(spent)))], 3)

        cpu_share = (time.process_time() - self.started_cpu_s) / (
            time.perf_counter() - self.started_s)
        found: dict[str, Any] = {"calls": len(spent), "failures": self.failures,
                                 "per_s": round(len(spent) / self.load.seconds, 1),
                                 "load_cpus": round(cpu_share, 2)}
        if self.load.trace:
            found["trace"] = self.calls
        if spent:
            found |= {"p50_ms": round(1000 * statistics.median(spent), 3), "p90_ms": at(0.9),
                      "p99_ms": at(0.99), "max_ms": round(1000 * spent[-1], 3)}
        return found


def due_times(load: Load) -> Iterator[float]:
    """Yield the seconds after the start at which an open loop sends, until it ends or STOP is."""
    draw, now, looked = random.Random(load.seed), 0.0, 0.0
    while now < load.warm_s + load.seconds:
        now += draw.expovariate(load.rate)
        if now > looked + 0.1:
            looked = now
            if STOP is not None and STOP.exists():
                return
        yield now


# ---------------------------------------------------------------------------- HTTP


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, answered: Callable[[_Connection, str], None]) -> None:
        self._answered, self._buffer = answered, bytearray()
        self.transport: Any = None
        self.due_s = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if (status := response_status(self._buffer)) is not None:
            self._buffer.clear()
            self._answered(self, "" if status == 200 else f"HTTP {status}")

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._answered(self, "connection lost")

    def send(self, request: bytes, due_s: float) -> None:
        self.due_s = due_s
        self.transport.write(request)


def response_status(data: bytes | bytearray) -> int | None:
    """Return the status of a whole HTTP/1.1 response, None while more of it is to come."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    place = head.find(b"content-length:")
    if place >= 0:
        length = int(head[place + 15:].split(b"\r\n", 1)[0])
        whole = len(data) >= end + 4 + length
    else:
        whole = data.endswith(b"0\r\n\r\n")  # chunked
    return int(head[9:12]) if whole else None


def http_requests(load: Load) -> list[bytes]:
    """Return whole requests, made before the clock runs."""
    url = urlsplit(load.target)
    head = (f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
            "Accept: application/json\r\nContent-Length: ")
    bodies = [json.dumps(HTTP_FORMS[load.form](value)).encode() for value in load.requests]
    return [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]


class _Stream:
    """One caller of gRPC; all have one connection."""

    def __init__(self, connection: http2.Http2) -> None:
        self._connection, self.due_s = connection, 0.0

    @property
    def transport(self) -> Any:
        return self._connection.transport

    def send(self, request: bytes, due_s: float) -> None:
        self.due_s = due_s
        self._connection.send(self, request)


Caller = Union[_Connection, _Stream]
Answered = Callable[[Any, str], None]  # whose request, and what went wrong


async def http_callers(load: Load, count: int, answered: Answered) -> list[Caller]:
    """Open a connection for each caller."""
    loop, url = asyncio.get_running_loop(), urlsplit(load.target)
    return [(await loop.create_connection(lambda: _Connection(answered), url.hostname,
                                          url.port))[1] for _ in range(count)]


async def grpc_callers(load: Load, count: int, answered: Answered) -> list[Caller]:
    """Open one connection for all callers."""
    def told(caller: _Stream, status: int) -> None:
        answered(caller, "" if status == 0 else (
            Code(status).name if status > 0 else "connection lost"))

    host, _, port = load.target.rpartition(":")
    _, made = await asyncio.get_running_loop().create_connection(
        lambda: http2.Http2(PREDICT, load.target, load.deadline_s, told), host, int(port))
    return [_Stream(made) for _ in range(count)]


async def in_turns(load: Load, requests: Sequence[bytes], most: int,
                   open_callers: Callable[[Load, int, Answered], Awaitable[list[Caller]]],
                   ) -> dict[str, Any]:
    """Run a load.

    Args:
        load: that is wanted.
        requests: to choose from.
        most: callers of an open loop.
        open_callers: makes them.
    """
    order = random.Random(load.seed)
    waiting: deque[float] = deque()  # due times of the open loop without a free caller
    free: list[Caller] = []
    ended, sent_all = asyncio.Event(), False

    def answered(connection: Caller, failure: str) -> None:
        if connection.due_s:
            tally.done(connection.due_s, failure)
        connection.due_s = 0.0
        now_s = time.perf_counter()
        if connection.transport is None:
            return
        if load.callers and now_s < tally.until_s:
            connection.send(order.choice(requests), now_s)
        elif waiting:
            connection.send(order.choice(requests), waiting.popleft())
        else:
            free.append(connection)
            if len(free) == count and (sent_all or (load.callers and now_s >= tally.until_s)):
                ended.set()

    count = load.callers or most
    callers = await open_callers(load, count, answered)
    free.extend(callers)
    tally = Tally(load)
    if load.callers:
        for connection in [free.pop() for _ in range(count)]:
            connection.send(order.choice(requests), time.perf_counter())
    else:
        for after_s in due_times(load):
            due_s = tally.started_s + after_s
            if (left := due_s - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            if free:
                free.pop().send(order.choice(requests), due_s)
            else:
                waiting.append(due_s)
        sent_all = True
        if len(free) == count:
            ended.set()
    left = tally.until_s - time.perf_counter() if load.callers else 0.0
    try:
        await asyncio.wait_for(ended.wait(), max(0.0, left) + GRACE_S)
    except asyncio.TimeoutError:
        tally.failures["no answer"] = count - len(free) + len(waiting)
    for caller in callers:
        if caller.transport is not None:
            caller.transport.close()
    return tally.result()


# ---------------------------------------------------------------------------- gRPC


def over_grpcio(load: Load) -> dict[str, Any]:
    """Run a load by gRPC's own client: futures whose callbacks send the next request."""
    import grpc

    requests, order = grpc_requests(load), random.Random(load.seed)
    channel = grpc.insecure_channel(load.target)
    grpc.channel_ready_future(channel).result(30)
    method = channel.unary_unary(PREDICT)
    lock, running, none_left = threading.Lock(), 0, threading.Event()
    tally = Tally(load)

    def send(due_s: float) -> None:
        nonlocal running
        with lock:
            running += 1
            none_left.clear()
        method.future(order.choice(requests), timeout=load.deadline_s).add_done_callback(
            lambda future: answered(future, due_s))

    def answered(future: Any, due_s: float) -> None:
        nonlocal running
        code = future.code()
        now_s = time.perf_counter()
        with lock:
            running -= 1
            tally.done(due_s, "" if code is grpc.StatusCode.OK else code.name)
            if not running:
                none_left.set()
        if load.callers and now_s < tally.until_s:
            send(now_s)

    if load.callers:
        for _ in range(load.callers):
            send(time.perf_counter())
        time.sleep(max(0.0, tally.until_s - time.perf_counter()))
    else:
        for after_s in due_times(load):
            due_s = tally.started_s + after_s
            if (left := due_s - time.perf_counter()) > 0:
                time.sleep(left)
            send(due_s)
    if not none_left.wait(GRACE_S):
        tally.failures["no answer"] = running
    channel.close()
    return tally.result()


def grpc_requests(load: Load) -> list[bytes]:
    """Return whole PredictRequests, made before the clock runs."""
    import numpy as np

    from tf_infer.wire import messages

    found = []
    for value in load.requests:
        array = (np.array([value.encode()], object) if isinstance(value, str)
                 else np.array([value], np.float32))
        name = "text" if isinstance(value, str) else "x"
        found.append(messages.predict_request(
            messages.ModelRef(load.model), {name: array}, outputs=load.outputs
        ).SerializeToString())
    return found


def ask(load: Load) -> str:
    """Send the first request alone, and return the answer as text; raise when it is none."""
    if load.protocol == "http":
        url = urlsplit(load.target)
        connection = http.client.HTTPConnection(url.netloc, timeout=load.deadline_s)
        body = json.dumps(HTTP_FORMS[load.form](load.requests[0]))
        connection.request("POST", url.path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        if response.status != 200:
            raise ConnectionError(f"HTTP {response.status}: {text[:200]}")
        return text
    import grpc

    from tf_infer.wire import messages

    with grpc.insecure_channel(load.target) as channel:
        method = channel.unary_unary(PREDICT)
        data = method(grpc_requests(load)[0], timeout=load.deadline_s)
    return str(messages.read_predict_response(data, where="answer").outputs)


def run(load: Load) -> dict[str, Any]:
    """Run a load in this process."""
    if load.protocol == "grpcio":
        return over_grpcio(load)
    if load.protocol == "grpc":
        return asyncio.run(in_turns(load, grpc_requests(load), MAX_STREAMS, grpc_callers))
    return asyncio.run(in_turns(load, http_requests(load), MAX_CONNECTIONS, http_callers))


def as_json(load: Load) -> str:
    """Return what the process of a load is given."""
    return json.dumps(asdict(load))


class Generator:
    """A process that runs loads, one after the other; to start one takes longer than a warm-up."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).resolve().parent.parent)

    def run(self, load: Load) -> dict[str, Any]:
        """Run a load there, and return what `run` returns; the process ends with this one.

        Raises:
            RuntimeError: it ended, or does not end in time.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        print(as_json(load), file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], load.seconds + 120)[0]:
            self._process.kill()
        told = self._process.stdout.readline()
        if not told:
            raise RuntimeError(f"the load generator ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(told)
        return found


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(run(Load(**json.loads(line)))), flush=True)
