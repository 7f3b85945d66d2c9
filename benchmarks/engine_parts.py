"""What a decoder's LiteRT engine spends where, beside the limit of the machine's memory.

    python -m benchmarks.engine_parts --shape gpt2 --peers DIR > parts.json

Prints one JSON object: medians over alternating rounds of wall and CPU milliseconds, and how many
sweeps that is. A sweep reads once what a step must read, the weights of its matrices, on every
thread and does nothing else with it (NumPy's maximum of bytes): no step of one row can take less.
On a machine that others use, `--threads 1` and CPU time say more than wall time.

    step R at L          one token of each of R rows that hold L positions
    read RxT apart       R prompts of T ids, slot by slot
    read RxT together    the same by `read_many`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import decoders
from benchmarks.models import CACHE
from tf_infer.engines import litert
from tf_infer.engines.contracts import Part

STEPS = ((1, 32), (1, 96), (8, 32), (8, 96), (32, 32), (32, 96), (8, 256), (32, 256))
READS = ((1, 16), (1, 32), (1, 64), (1, 128), (1, 256), (8, 16), (8, 32), (32, 32), (4, 64))
SWEEP = "sweep"


def weight_bytes(path: Path) -> int:
    """Return how many bytes of int8 matrices a step of one row multiplies with."""
    from tensorflow.lite.python import schema_py_generated as schema

    model = schema.Model.GetRootAs(path.read_bytes())
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(place) for place in range(graph.TensorsLength())]
    sizes = {tensor.Buffer(): model.Buffers(tensor.Buffer()).DataLength() for tensor in tensors
             if tensor.Type() == schema.TensorType.INT8}
    return sum(sizes.values())


def sweeper(count: int, threads: int) -> Callable[[], None]:
    """Return what reads `count` bytes once, a part of them on each thread."""
    parts = np.array_split(np.random.default_rng(0).integers(-99, 99, count, np.int8), threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(np.max, parts)) and None


def works(engine: litert.LiteRTEngine) -> dict[str, Callable[[], Any]]:
    """Return what is measured of an engine."""
    ids = np.random.default_rng(1).integers(0, engine.vocab_size, (engine.slots, engine.positions))
    prompts = ids.astype(np.int32)
    tokens = prompts[:, 0].copy()
    # Pages that nobody has written to are one and the same page of zeros to the machine.
    engine.read_many([Part(0, prompts[0])])
    for slot in range(1, engine.slots):
        engine.restore(slot, engine.save(0, engine.positions))

    def step(rows: int, held: int) -> None:
        engine.step(tokens, np.full(engine.slots, held, np.int32), range(rows))

    def apart(rows: int, count: int) -> None:
        for slot in range(rows):
            engine.read(slot, prompts[slot, :count], 0)

    def together(rows: int, count: int) -> None:
        engine.read_many([Part(slot, prompts[slot, :count]) for slot in range(rows)])

    found: dict[str, Callable[[], Any]] = {}
    for rows, held in STEPS:
        if rows <= engine.slots and held < engine.positions:
            found[f"step {rows} at {held}"] = lambda rows=rows, held=held: step(rows, held)
    for rows, count in READS:
        if rows <= engine.slots and count <= engine.positions:
            found[f"read {rows}x{count} apart"] = lambda rows=rows, count=count: apart(rows, count)
            if rows > 1:
                found[f"read {rows}x{count} together"] = (
                    lambda rows=rows, count=count: together(rows, count))
    return found


def measured(work: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Return wall and CPU milliseconds of one call, of as many as take about `seconds`."""
    work()
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    while count < 2 or time.perf_counter() - started < seconds:
        work()
        count += 1
    return (1000 * (time.perf_counter() - started) / count,
            1000 * (time.process_time() - cpu) / count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--shape", choices=sorted(decoders.SHAPES), default="gpt2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of one work in one round")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    folder = decoders.form("ours-engine", arguments.shape, arguments.cache, arguments.peers)
    started = time.perf_counter()
    engine = litert.load(folder, threads=arguments.threads)
    loaded_s = time.perf_counter() - started
    path = folder / engine.manifest.file
    count = weight_bytes(path)
    every = {SWEEP: sweeper(count, arguments.threads), **works(engine)}
    rounds = [{name: measured(work, arguments.seconds) for name, work in every.items()}
              for _ in range(arguments.rounds)]
    found = {}
    for name in every:
        wall, cpu = zip(*(one[name] for one in rounds))
        found[name] = {
            "wall_ms": round(statistics.median(wall), 2), "least_ms": round(min(wall), 2),
            "cpu_ms": round(statistics.median(cpu), 2),
            "sweeps": round(statistics.median(one[name][0] / one[SWEEP][0] for one in rounds), 2)}
    print(json.dumps({
        "shape": arguments.shape, "threads": arguments.threads, "rounds": arguments.rounds,
        "weight_bytes": count, "file_bytes": path.stat().st_size, "load_s": round(loaded_s, 2),
        "cache_mb": round(engine.cache_bytes / 2**20, 1),
        "sweep_gb_per_s": round(count / found[SWEEP]["wall_ms"] / 1e6, 1),
        "parts": found}, indent=2))


if __name__ == "__main__":
    main()
