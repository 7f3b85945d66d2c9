"""Does the server last? Long and hostile runs, bounded, each with what is counted.

    python -m benchmarks.soak > benchmarks/results/soak.json         # all, about an hour
    python -m benchmarks.soak --part malformed --malformed 2000      # one, shorter

Prints one JSON object.

    grow        calls over gRPC while versions are swapped: memory, descriptors, threads
    mixed       calls at once with inputs that tell them apart: does everyone get his own answer?
    malformed   what is no request, over gRPC and REST (benchmarks/hostile.py), with healthy calls
                beside it that have to be answered
    idle        connections that say nothing, up to the limit of descriptors and beyond it
    killed      SIGKILL of one of two servers while a client balances over both
    disk        the log goes to a full disk

Decoders, streams and callers who leave: benchmarks/endurance.py.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import platform
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contestants, hostile, models
from benchmarks.client import machine
from benchmarks.contestants import Contestant, Running
from benchmarks.load import as_json
from benchmarks.server import say

PROBE = "Where is the parcel?"
TEXTS = 300
HEALTHY_S = 10.0
Report = dict[str, Any]


def server(model: Path, *flags: str, rest: bool = False, files: int = 0, log: str = "",
           ) -> Contestant:
    """Return our server for one model.

    Args:
        model: the folder of its versions.
        flags: further ones.
        rest: open REST, too.
        files: limit of descriptors; 0 leaves it.
        log: where its log goes; empty for a file of ours.
    """
    one = contestants.ours(model, *flags, name="tf_infer", warm=True)
    command = list(one.command) + (["--rest_api_port={second}"] if rest else [])
    limits = f"ulimit -n {files}; " if files else ""
    goal = f" > {log} 2>&1" if log else ""
    return Contestant(name="tf_infer", peer=False, protocol="grpc", path=one.path,
                      command=("bash", "-c", f'{limits}exec "$@"{goal}', "bash", *command))


@contextmanager
def running(contestant: Contestant) -> Iterator[Running]:
    """Start a server, and stop it at the end."""
    found = Running(contestant, PROBE if "double" not in contestant.path else 1.0)
    try:
        yield found
    finally:
        found.stop()


def held(pid: int) -> dict[str, float]:
    """Return what a process holds: memory in MB, descriptors, threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    words = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if ":" in line
             and len(line.split()) > 1}
    return {"resident_mb": round(int(words["VmRSS"]) / 1024, 1), "threads": int(words["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def faults(one: Running) -> int:
    """Return how many faults of its own a server has logged."""
    return one.log.read_text(encoding="utf-8", errors="replace").count(" fault ")


# ---------------------------------------------------------------------------- grow


def grow(arguments: argparse.Namespace) -> Report:
    """Swap versions under load, and see what grows."""
    from tf_infer.client import Client

    model = models.exported(arguments.cache, models.BAG)
    calls, failures, samples = 0, 0, []
    with tempfile.TemporaryDirectory(prefix="tf-infer-soak-", dir=arguments.cache) as folder:
        base = Path(folder) / model.name
        shutil.copytree(model / "1", base / "1")
        with running(server(base)) as one, Client(one.address) as client:
            texts = models.mixed_texts()
            each = arguments.calls / max(1, arguments.swaps)
            for version in range(2, arguments.swaps + 2):
                stop = Path(folder) / f"stop-{version}"
                load = one.load(texts, rate=arguments.rate, seconds=3600.0, seed=version,
                                outputs=("label", "score"))
                began = time.monotonic()
                with _loading(as_json(load), stop) as process:
                    shutil.copytree(base / str(version - 1), base / f".{version}")
                    os.rename(base / f".{version}", base / str(version))
                    _wait(client, base.name, version)
                    shutil.rmtree(base / str(version - 1))
                    time.sleep(max(0.0, each / arguments.rate - (time.monotonic() - began)))
                    stop.touch()
                    told = json.loads(process.communicate()[0])
                calls += told["calls"]
                failures += sum(told["failures"].values())
                samples.append(held(one.process.pid) | {"calls": calls})
                say(f"version {version}: {samples[-1]}")
            found_faults = faults(one)
    late = samples[len(samples) // 5:]  # memory pools fill at first
    slope = np.polyfit([s["calls"] for s in late], [s["resident_mb"] for s in late], 1)[0]
    return {"calls": calls, "swaps": arguments.swaps, "failed": failures, "faults": found_faults,
            "mb_by_10000_calls": round(float(slope) * 10_000, 3),
            "mb_by_swap": round(float(slope) * calls / max(1, arguments.swaps), 3),
            "first": samples[0], "fifth": late[0], "last": samples[-1],
            "resident_mb": [s["resident_mb"] for s in samples],
            "descriptors": sorted({s["descriptors"] for s in samples})}


@contextmanager
def _loading(text: str, stop: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.load", str(stop)], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=models.ROOT)
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.close()
    process.stdin = None  # communicate() would flush it
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _wait(client: Any, name: str, version: int) -> None:
    """Wait until a version answers and no other does."""
    while client.status(name).available != (version,):
        time.sleep(0.05)


# ---------------------------------------------------------------------------- mixed


def mixed(arguments: argparse.Namespace) -> Report:
    """Ask concurrently with inputs that tell the calls apart, and compare every answer."""
    found: Report = {}
    bag = models.exported(arguments.cache, models.BAG)
    trivial = models.exported(arguments.cache, models.TRIVIAL)
    share = arguments.mixed // 4
    with running(server(bag, rest=True)) as one:
        ask = Texts(one)
        found["text scheduler"] = at_once(one, ask.request, ask.right, share)
        found["REST"] = over_rest(one, ask, share)
    with running(server(trivial)) as one:
        found["no joining"] = at_once(one, numbers, doubled, share)
    batched = contestants.in_arrival_order(trivial)
    with running(Contestant(name="tf_infer", peer=False, protocol="grpc", path=batched.path,
                            files=batched.files, command=batched.command)) as one:
        found["--enable_batching"] = at_once(one, numbers, doubled, share)
    return found


class Texts:
    """Requests of one to four of the texts, and what each text is answered with when alone."""

    def __init__(self, one: Running) -> None:
        from tf_infer.client import Client

        self._texts = models.mixed_texts()[:TEXTS]
        with Client(one.address) as client:
            self._alone = {text: client.predict(models.BAG, {"text": [text]},
                                                outputs=["logits"])["logits"][0]
                           for text in self._texts}

    def choose(self, draw: random.Random) -> list[str]:
        """Return some texts."""
        return draw.choices(self._texts, k=draw.randrange(1, 5))

    def request(self, draw: random.Random, number: int) -> tuple[bytes, Any]:
        """Return a request, and what `right` needs to judge its answer."""
        from tf_infer.wire import messages

        texts = self.choose(draw)
        array = np.array([text.encode() for text in texts], object)
        return messages.predict_request(messages.ModelRef(models.BAG), {"text": array}, outputs=[
            "logits"]).SerializeToString(), texts

    def right(self, texts: list[str], outputs: Any) -> bool:
        """Whether the logits are those of these texts."""
        logits = np.asarray(outputs["logits"])
        return logits.shape[0] == len(texts) and all(
            np.allclose(row, self._alone[text], atol=1e-4) for row, text in zip(logits, texts))


def numbers(draw: random.Random, number: int) -> tuple[bytes, Any]:
    """Return a request of a few numbers that no other request has."""
    from tf_infer.wire import messages

    array = np.float32([number, *(draw.random() for _ in range(draw.randrange(4)))])
    return messages.predict_request(messages.ModelRef(models.TRIVIAL), {
        "x": array}).SerializeToString(), array


def doubled(array: Any, outputs: Any) -> bool:
    """Whether the answer is twice the request."""
    return bool(np.array_equal(outputs["y"], 2 * array))


def at_once(one: Running, make: Callable[[random.Random, int], tuple[bytes, Any]],
            right: Callable[[Any, Any], bool], count: int, window: int = 64) -> Report:
    """Keep `window` calls in flight; one in fifty is cancelled at once, one has 1 ms of time."""
    import grpc

    from tf_infer.wire import messages

    tally: collections.Counter[str] = collections.Counter()
    free, draw = threading.Semaphore(window), random.Random(0)

    def ended(future: Any, judged: Any) -> None:
        code = future.code().name
        if code not in ("OK", "CANCELLED", "DEADLINE_EXCEEDED"):
            say(f"{code}: {future.details()}")
        if code == "OK":
            outputs = messages.read_predict_response(future.result(), where="answer").outputs
            code = "right" if right(judged, outputs) else "WRONG"
        tally[code] += 1
        free.release()

    with grpc.insecure_channel(one.address) as channel:
        method = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for number in range(count):
            data, judged = make(draw, number)
            free.acquire()
            hurry = draw.randrange(50)
            future = method.future(data, timeout=0.001 if hurry == 1 else 60.0)
            future.add_done_callback(lambda future, judged=judged: ended(future, judged))
            if hurry == 0:
                future.cancel()
        for _ in range(window):
            free.acquire()
    return dict(tally) | {"faults": faults(one)}


def over_rest(one: Running, ask: Texts, count: int, threads: int = 16) -> Report:
    """The same over REST, on keep-alive connections."""
    import http.client

    port = rest_port(one)

    def work(seed: int) -> collections.Counter[str]:
        draw, tally = random.Random(seed), collections.Counter[str]()
        connection = http.client.HTTPConnection("localhost", port, timeout=60)
        for _ in range(count // threads):
            texts = ask.choose(draw)
            connection.request("POST", f"/v1/models/{models.BAG}:predict",
                               json.dumps({"instances": texts}))
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                tally[str(response.status)] += 1
                continue
            logits = {"logits": [row["logits"] for row in answer["predictions"]]}
            tally["right" if ask.right(texts, logits) else "WRONG"] += 1
        return tally

    with ThreadPoolExecutor(threads) as pool:
        return dict(sum(pool.map(work, range(threads)), collections.Counter[str]()))


def rest_port(one: Running) -> int:
    """Return the REST port of a server, from its own words."""
    text = one.log.read_text(encoding="utf-8", errors="replace")
    return int(text.split("REST at http://localhost:")[1].split("/")[0])


# ---------------------------------------------------------------------------- malformed


class Healthy:
    """A caller beside the trouble, over gRPC and REST in turn; each call has a new connection."""

    def __init__(self, one: Running) -> None:
        self._one, self._stop = one, threading.Event()
        self.spent: list[float] = []
        self.failures: collections.Counter[str] = collections.Counter()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        from benchmarks.load import Load, ask

        port = rest_port(self._one)
        grpc_load = self._one.load([PROBE], deadline_s=HEALTHY_S)
        rest_load = Load(protocol="http", target=f"http://localhost:{port}/v1/models/bag:predict",
                         requests=[PROBE], deadline_s=HEALTHY_S)
        for load in itertools.cycle((grpc_load, rest_load)):
            if self._stop.wait(0.05):
                return
            started = time.perf_counter()
            try:
                ask(load)
                self.spent.append(time.perf_counter() - started)
            except Exception as error:
                self.failures[f"{load.protocol}: {type(error).__name__}"] += 1

    def __enter__(self) -> Healthy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def report(self) -> Report:
        spent = sorted(self.spent)
        return {"answered": len(spent), "failed": dict(self.failures),
                "p50_ms": round(1000 * spent[len(spent) // 2], 1),
                "max_ms": round(1000 * spent[-1], 1)}


def malformed(arguments: argparse.Namespace) -> Report:
    """Send what is no request, and ask healthily beside it."""
    model = models.exported(arguments.cache, models.BAG)
    with running(server(model, rest=True)) as one:
        with Healthy(one) as healthy:
            time.sleep(2.0)
            before = held(one.process.pid)
            found = {"gRPC messages": _messages(one, arguments.malformed // 2),
                     "connections": _connections(one, arguments.malformed // 2)}
            time.sleep(3.0)
        return found | {"healthy": healthy.report(), "alive": one.process.poll() is None,
                        "faults": faults(one), "before": before, "after": held(one.process.pid)}


def _messages(one: Running, count: int, window: int = 64) -> Report:
    import grpc

    from tf_infer.wire import messages, methods

    tally: collections.Counter[str] = collections.Counter()
    free, draw = threading.Semaphore(window), random.Random(1)
    whole = messages.predict_request(messages.ModelRef(models.BAG), {
        "text": np.array([b"where is it", b"x"], object)}).SerializeToString()
    paths = [methods.PREDICT, methods.PREDICT, methods.CLASSIFY, methods.REGRESS,
             methods.MULTI_INFERENCE, methods.GET_MODEL_METADATA, methods.GET_MODEL_STATUS]

    def ended(future: Any, kind: str) -> None:
        tally[f"{kind}: {future.code().name}"] += 1
        free.release()

    with grpc.insecure_channel(one.address) as channel:
        made = [channel.unary_unary(method.path) for method in paths]
        for _ in range(count):
            kind, data = hostile.grpc_message(draw, whole)
            free.acquire()
            draw.choice(made).future(data, timeout=30.0).add_done_callback(
                lambda future, kind=kind: ended(future, kind))
        for _ in range(window):
            free.acquire()
    return dict(sorted(tally.items()))


def _connections(one: Running, count: int) -> Report:
    grpc_port, port = int(one.address.rpartition(":")[2]), rest_port(one)

    def play(seed: int) -> str:
        draw = random.Random(seed)
        if seed % 4 == 0:
            case, where = hostile.grpc_connection(draw), grpc_port
        else:
            case, where = hostile.rest_connection(draw, "/v1/models/bag:predict"), port
        return f"{case.kind}: {hostile.play(where, case)}"

    with ThreadPoolExecutor(16) as pool:
        tally = collections.Counter(pool.map(play, range(count)))
    return dict(sorted(tally.items()))


# ---------------------------------------------------------------------------- idle


def idle(arguments: argparse.Namespace) -> Report:
    """Hold silent connections: many, and more than the server has descriptors for."""
    model = models.exported(arguments.cache, models.BAG)
    with running(server(model, rest=True)) as one:
        before = held(one.process.pid)
        with _silent(one, arguments.idle) as made:
            with Healthy(one) as healthy:
                time.sleep(8.0)
            during = held(one.process.pid)
        time.sleep(5.0)  # until all have been seen to go
        many = {"connections": made, "healthy": healthy.report(), "faults": faults(one),
                "before": before, "during": during, "after": held(one.process.pid)}
    return {"many": many, "too many": _too_many(model)}


def _too_many(model: Path, files: int = 1024) -> Report:
    """Ask by a connection from before, and by new ones, while all descriptors are taken."""
    from tf_infer.client import Client

    tally: collections.Counter[str] = collections.Counter()
    with running(server(model, rest=True, files=files)) as one, Client(one.address) as client:
        client.predict(models.BAG, {"text": [PROBE]})
        with _silent(one, files + 500) as made:
            during = held(one.process.pid)
            for _ in range(100):
                client.predict(models.BAG, {"text": [PROBE]})
                tally["by the connection from before"] += 1
            try:
                with Client(one.address, timeout_s=2.0) as late:
                    late.predict(models.BAG, {"text": [PROBE]})
                    tally["by a new connection"] += 1
            except Exception as error:
                tally[f"by a new connection: {type(error).__name__}"] += 1
        with Healthy(one) as healthy:
            time.sleep(4.0)
        return {"connections": made, "during": during, "answered": dict(tally),
                "healthy afterwards": healthy.report(), "after": held(one.process.pid),
                "faults": faults(one)}


@contextmanager
def _silent(one: Running, count: int) -> Iterator[int]:
    """Hold silent connections, half of them to each port; yield how many were taken."""
    ports = itertools.cycle((int(one.address.rpartition(":")[2]), rest_port(one)))
    made: list[socket.socket] = []
    for port in itertools.islice(ports, count):
        with suppress(OSError):
            made.append(socket.create_connection(("localhost", port), timeout=2.0))
    try:
        yield len(made)
    finally:
        for one_socket in made:
            one_socket.close()


# ---------------------------------------------------------------------------- killed


def killed(arguments: argparse.Namespace) -> Report:
    """Kill one of two servers while a client asks both; no call may be lost."""
    from tf_infer.client import Client

    model = models.exported(arguments.cache, models.BAG)
    tally: collections.Counter[str] = collections.Counter()
    slowest, stop = [0.0], threading.Event()
    with running(server(model)) as first, running(server(model)) as second, Client(
            [first.address, second.address], timeout_s=10.0) as client:
        def work() -> None:
            while not stop.is_set():
                started = time.perf_counter()
                try:
                    client.predict(models.BAG, {"text": [PROBE]}, outputs=["label"])
                    tally["answered"] += 1
                except Exception as error:
                    tally[type(error).__name__] += 1
                slowest[0] = max(slowest[0], time.perf_counter() - started)

        threads = [threading.Thread(target=work) for _ in range(16)]
        for thread in threads:
            thread.start()
        time.sleep(5.0)
        before = tally["answered"]
        second.process.send_signal(signal.SIGKILL)
        time.sleep(5.0)
        stop.set()
        for thread in threads:
            thread.join()
    return dict(tally) | {"before the kill": before, "slowest_ms": round(1000 * slowest[0], 1)}


# ---------------------------------------------------------------------------- disk


def disk(arguments: argparse.Namespace) -> Report:
    """Let the log go to a full disk, every call logged."""
    model = models.exported(arguments.cache, models.BAG)
    with running(server(model, "--verbose", log="/dev/full")) as one:
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.load"], capture_output=True, text=True, check=True,
            input=as_json(one.load(models.short_texts(), callers=16, seconds=5.0)),
            cwd=models.ROOT)
        return dict(json.loads(told.stdout)) | {"alive": one.process.poll() is None}


PARTS: dict[str, Callable[[argparse.Namespace], Report]] = {
    "grow": grow, "mixed": mixed, "malformed": malformed, "idle": idle, "killed": killed,
    "disk": disk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=models.CACHE, help="exported models")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--calls", type=int, default=200_000, help="of `grow`")
    parser.add_argument("--swaps", type=int, default=50, help="of `grow`")
    parser.add_argument("--rate", type=float, default=400.0, help="calls a second of `grow`")
    parser.add_argument("--mixed", type=int, default=100_000, help="calls of `mixed`")
    parser.add_argument("--malformed", type=int, default=20_000)
    parser.add_argument("--idle", type=int, default=10_000, help="silent connections")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    found: Report = {"python": platform.python_version(), "machine": machine(),
                     "descriptors": [soft, hard]}
    for name in arguments.part:
        say(name)
        found[name] = PARTS[name](arguments)
        say(json.dumps(found[name]))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
