"""What a run costs in TensorFlow's pool, in the thread that asks for it, and cut in two halves.

    python -m benchmarks.own_thread > benchmarks/results/own_thread.json
    python -m benchmarks.own_thread minilm

Prints one JSON object. One small BERT (benchmarks/models.py) is loaded as the server loads it;
calls of short texts are made in all ways in turn, the same texts for all. Medians over the rounds
of milliseconds and processor milliseconds a call, and of the rounds' ratios: own thread / pool, and
two halves at once / own thread, of as many rows as the server cuts (server/halves.py).
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.client import machine
from tf_infer.server.halves import LEAST_ROWS

ROWS, ROUNDS, CALLS = (1, 8, 16, 32), 15, 10


def measure(call: Callable[[np.ndarray], Any], batches: list[np.ndarray]) -> tuple[float, float]:
    """Return milliseconds and processor milliseconds of a call."""
    began, used = time.perf_counter(), time.process_time()
    for batch in batches:
        call(batch)
    return tuple(1000 * (now - then) / len(batches) for now, then in (
        (time.perf_counter(), began), (time.process_time(), used)))  # type: ignore[return-value]


def named(values: Iterable[float]) -> dict[str, float]:
    """Return a measurement's figures by their names."""
    return {name: round(value, 3) for name, value in zip(("ms", "cpu_ms"), values)}


def ratio(mine: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> dict[str, float]:
    """Return the medians of the rounds' ratios."""
    return named(statistics.median(a / b for a, b in zip(*columns))
                 for columns in zip(zip(*mine), zip(*theirs)))


def main() -> None:
    from tf_infer.server import servable
    from tf_infer.server.config import ServerConfig

    model = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    path = models.exported(models.CACHE, model) / "1"
    loaded, _ = servable.load_version(path, ServerConfig(
        models=(), classifier_engine="saved_model", intra_op_threads=1, golden_replay=False))

    def call(texts: np.ndarray) -> Any:
        return loaded.run("serving_default", {"text": texts}, outputs=("label", "score"),
                          timeout_s=None)

    texts = np.array([text.encode() for text in models.short_texts()], object)
    found: dict[str, Any] = {}
    for rows in ROWS:
        ways: dict[str, list[tuple[float, float]]] = {name: [] for name in (
            "pool", "own thread", *(["halves"] if rows >= LEAST_ROWS else []))}
        for number in range(ROUNDS + 1):
            begin = number * CALLS * rows % (len(texts) - CALLS * rows)
            batches = [texts[begin + i * rows:begin + (i + 1) * rows] for i in range(CALLS)]
            for way in sorted(ways, reverse=bool(number % 2)):
                loaded._few_cpus = way != "pool"  # type: ignore[attr-defined]
                loaded.halves.wanted = way == "halves"  # type: ignore[attr-defined]
                measured = measure(call, batches)
                if number:
                    ways[way].append(measured)
        found[f"{rows} rows"] = {
            **{way: named([statistics.median(column) for column in zip(*values)])
               for way, values in ways.items()},
            "ratio": ratio(ways["own thread"], ways["pool"]),
            **({"ratio of halves": ratio(ways["halves"], ways["own thread"])}
               if "halves" in ways else {})}
        print(rows, found[f"{rows} rows"], file=sys.stderr)
    loaded.close()
    print(json.dumps({"model": model, "machine": machine(), "rounds": ROUNDS, "calls": CALLS,
                      **found}, indent=1))


if __name__ == "__main__":
    main()
