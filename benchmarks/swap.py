"""A new version while the server is under load: what callers feel of it, and what it takes.

    python -m benchmarks.swap > benchmarks/results/swap.json

A server of its own process answers an open loop at half of what it can do (benchmarks/load.py, on
the same cores). A new version directory appears under its final name, as an export leaves it; the
server sees, loads, warms up, proves and takes it, and lets the old one go. `swap` are the calls
that were due from the moment the directory was there until the old version had ended, `steady`
those of the six seconds before. Then the same directory's way from nothing: seconds from the start
of a process to the first answer, ours without warm-up against a script that imports TensorFlow,
loads the SavedModel and asks it once, in alternating rounds; what warm-up and golden samples add.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import contestants, models
from benchmarks.client import machine
from benchmarks.contestants import QUIET, Running
from benchmarks.load import as_json
from benchmarks.server import OUTPUTS, PROBE, measure, say

SHARE = 0.5
SWAP_S = 120.0
TEXT = "tf_infer gRPC"
SCRIPT = """
import os, sys, time
import tensorflow as tf, tensorflow_text
model = tf.saved_model.load(sys.argv[1])
model.signatures["serving_default"](text=tf.constant(["Where is the parcel?"]))["label"].numpy()
"""


def swaps(model: Path, count: int, flags: list[str]) -> dict[str, Any]:
    """Swap a version `count` times under load."""
    from tf_infer.client import Client

    with tempfile.TemporaryDirectory(prefix="tf-infer-swap-", dir=model.parent) as folder:
        base = Path(folder) / model.name
        shutil.copytree(model / "1", base / "1")
        server = contestants.ours(base, *flags, name=TEXT, warm=True)
        running = Running(server, PROBE)
        try:
            texts = models.mixed_texts()
            measure(running, running.load(texts, callers=16, seconds=2.0, outputs=OUTPUTS))
            most = measure(running, running.load(texts, callers=64, seconds=4.0, warm_s=1.0,
                                                 outputs=OUTPUTS))["per_s"]
            running.freeze(frozen=False)
            say(f"{most} calls/s at most")
            rows = []
            with Client(running.address) as client:
                for number in range(count):
                    rows.append(_swap(running, client, base, number + 2, SHARE * most, texts))
                    say(str(rows[-1]))
        finally:
            running.stop()
    return {"most_per_s": most, "rate_per_s": round(SHARE * most, 1), "swaps": rows,
            "failed": sum(row["failed"] for row in rows),
            "p99 swap / steady": round(statistics.median(row["ratio"] for row in rows), 3)}


def _swap(running: Running, client: Any, base: Path, version: int, rate: float,
          texts: list[str]) -> dict[str, Any]:
    """Replace the version before `version` under load; return what the calls felt."""
    shutil.copytree(base / str(version - 1), base / f".tmp-{version}")
    steady_s = 6.0
    load = running.load(texts, rate=rate, seconds=SWAP_S, seed=version, outputs=OUTPUTS, trace=True)
    stop = Path(base.parent) / f"stop-{version}"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", str(stop)], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, cwd=models.ROOT)
    assert process.stdin is not None
    process.stdin.write(as_json(load))
    process.stdin.close()
    time.sleep(2.0 + steady_s)
    began = time.time()
    os.rename(base / f".tmp-{version}", base / str(version))
    available = _until(client, base.name, version, "AVAILABLE") - began
    shutil.rmtree(base / str(version - 1))
    ended = _until(client, base.name, version - 1, "END")
    time.sleep(0.5)
    stop.touch()
    assert process.stdout is not None
    calls = json.loads(process.stdout.read())["trace"]
    process.wait()
    during = [call for call in calls if began <= call[0] < ended]
    before = [call for call in calls if began - steady_s <= call[0] < began]
    return {"swap_s": round(ended - began, 2), "available_s": round(available, 2),
            "failed": sum(bool(call[2]) for call in calls), "calls": len(during),
            "steady": _percentiles(before), "swap": _percentiles(during),
            "ratio": round(_percentiles(during)["p99_ms"] / _percentiles(before)["p99_ms"], 3)}


def _until(client: Any, name: str, version: int, state: str) -> float:
    """Return the time at which a version has reached a state."""
    from tf_infer.errors import ModelNotFound

    while True:
        try:
            found = {row.version: row.state for row in client.status(name).versions}
        except ModelNotFound:
            found = {}
        if found.get(version, "END" if state == "END" else "") == state:
            return time.time()
        time.sleep(0.02)


def _percentiles(calls: list[list[Any]]) -> dict[str, float]:
    spent = sorted(call[1] for call in calls)
    return {f"p{share}_ms": spent[math.ceil(share / 100 * len(spent)) - 1]
            for share in (50, 90, 99)} | {"max_ms": spent[-1]}


# ---------------------------------------------------------------------------- from nothing


def first_answers(model: Path, rounds: int) -> dict[str, Any]:
    """Time the way from the start of a process to its first answer."""
    spent: dict[str, list[float]] = {"import and load": [], "ours": []}
    for number in range(rounds + 1):  # the first round fills the caches of the disk
        for way in (list(spent) if number % 2 else list(spent)[::-1]):
            seconds = _ours_s(model) if way == "ours" else _script_s(model)
            say(f"{way}: {seconds:.2f} s")
            if number:
                spent[way].append(seconds)
    return {"median_s": {way: round(statistics.median(times), 2) for way, times in spent.items()},
            "ours / import and load": round(statistics.median(
                a / b for a, b in zip(spent["ours"], spent["import and load"])), 3),
            "with warm-up and golden samples": _told(model)}


def _script_s(model: Path) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", SCRIPT, str(model / "1")], check=True,
                   capture_output=True, env=os.environ | QUIET)
    return time.perf_counter() - started


def _ours_s(model: Path) -> float:
    running = Running(contestants.ours(model, name=TEXT), PROBE)
    running.stop()
    return running.start_s


def _told(model: Path) -> str:
    """Return what a server with warm-up and golden samples says of its start."""
    running = Running(contestants.ours(model, name=TEXT, warm=True), PROBE)
    text = running.log.read_text(encoding="utf-8")
    running.stop()
    found = re.search(r"version 1: (loaded .*)", text)
    return found.group(1) if found else text[-300:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=models.CACHE, help="exported models")
    parser.add_argument("--model", choices=sorted(models.CLASSIFIERS), default="tiny")
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5, help="of the way to the first answer")
    parser.add_argument("--flags", nargs="*", default=[], help="for the server that swaps")
    arguments = parser.parse_args()
    model = models.exported(arguments.cache, arguments.model)
    found: dict[str, Any] = {"python": platform.python_version(), "machine": machine(),
                             "model": arguments.model}
    if arguments.swaps:
        found["swap"] = swaps(model, arguments.swaps, arguments.flags)
    if arguments.rounds:
        found["first answer"] = first_answers(model, arguments.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
