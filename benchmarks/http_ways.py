"""What a REST call costs beside its model: the short way (server/http_short.py), and aiohttp's.

    python -m benchmarks.http_ways > benchmarks/results/http_ways.json

Prints one JSON object. Two servers without TensorFlow answer at once what a classifier of six
classes answers; one of them has no short way. Both get the same short texts in turns, each in a
process of its own, from the load generator of benchmarks/server.py on the same cores. Medians over
the rounds, and of the rounds' ratios: processor time of a call, and calls a second. A busy machine
changes the ratios little, and the figures much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.client import machine
from benchmarks.contestants import Contestant
from benchmarks.server import PROBE, in_turns, keep, measure, medians, started
from tf_infer.server.contracts import Arrays, LoadTimes
from tf_infer.server.fakes import EchoServable, signature
from tf_infer.wire import serving_pb2

WAYS, CALLERS = ("short", "aiohttp"), (1, 16, 64)
TEXT = {"text": (serving_pb2.DT_STRING, (-1,))}
OUTPUTS = {"label": (serving_pb2.DT_STRING, (-1,)), "score": (serving_pb2.DT_FLOAT, (-1,)),
           "scores": (serving_pb2.DT_FLOAT, (-1, 6)), "logits": (serving_pb2.DT_FLOAT, (-1, 6))}


class Answers(EchoServable):
    """Answers each text alike."""

    def __init__(self) -> None:
        super().__init__({"serving_default": signature(TEXT, OUTPUTS)})
        draw = np.random.default_rng(0)
        self._row = {"label": np.array([b"location"], object), "score": np.float32([0.25]),
                     "scores": draw.random((1, 6), np.float32),
                     "logits": draw.standard_normal((1, 6), np.float32)}

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        rows = len(inputs["text"])
        return {name: np.repeat(self._row[name], rows, axis=0) for name in outputs}


def serve(way: str, port: int) -> None:
    """Serve until the process is ended."""
    from tf_infer.server import http_short
    from tf_infer.server.app import Server
    from tf_infer.server.config import ModelConfig, ServerConfig

    http_short.KNOWN = http_short.KNOWN and way == WAYS[0]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "1").mkdir()
        config = ServerConfig(models=(ModelConfig(name="m", base_path=folder),), rest_port=port,
                              port=0, socket_path=f"{folder}/grpc", poll_s=0)
        with Server(config, load=lambda path: (Answers(), LoadTimes())):
            threading.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--serve", nargs=2, metavar=("WAY", "PORT"), help="be one of the servers")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve[0], int(arguments.serve[1]))
    group = [Contestant(name=way, form="instances", path="/v1/models/m:predict", command=(
        sys.executable, "-m", "benchmarks.http_ways", "--serve", way, "{port}")) for way in WAYS]
    texts = models.short_texts()
    cells: dict[str, Any] = {}
    before = machine()
    with started(group, PROBE) as running:
        for number in range(arguments.rounds + 1):
            for count in CALLERS:
                for one in in_turns(running, number):
                    load = one.load(texts, callers=count, seed=number, warm_s=0.2,
                                    seconds=arguments.seconds if number else 0.5)
                    keep(cells, f"closed {count}", one, measure(one, load), number)
    print(json.dumps({
        "machine": before, "rounds": arguments.rounds, "seconds": arguments.seconds,
        "median": medians(cells), "short / aiohttp": {load: {what: round(statistics.median(
            mine[what] / theirs[what] for mine, theirs in zip(*(row[way] for way in WAYS))), 3)
            for what in ("cpu_ms", "per_s")} for load, row in cells.items()}}, indent=1))


if __name__ == "__main__":
    main()
