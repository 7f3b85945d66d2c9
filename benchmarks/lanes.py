"""What a decoder's run costs in a pool of one thread (a lane), and in TensorFlow's pool of eight.

    python -m benchmarks.lanes --peers DIR > benchmarks/results/lanes.json

Prints one JSON object. An exported version with int8 weights is loaded as the server loads it; its
SavedModel continues prompts of 32 tokens in both ways in turn, the same prompts for both. Medians
over the rounds of new tokens a second and of processor milliseconds a token, and of the rounds'
ratios, lane / pool. For machines of one or two CPUs, where an operation has one thread and the
server gives lanes (docs/runtime.md).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import decoders
from benchmarks.client import machine
from benchmarks.models import CACHE
from tf_infer.server.lanes import MOST_ROWS, Lanes

FORM, ROWS, WAYS = "served-int8", (1, MOST_ROWS), ("pool", "lane")


def main() -> None:
    from tf_infer.server import servable
    from tf_infer.server.config import ServerConfig
    from tf_infer.server.session_config import LANES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--shape", choices=sorted(decoders.SHAPES), default="gpt2")
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    folder = decoders.form(FORM, arguments.shape, arguments.cache, arguments.peers)
    prompts = [row["text"].encode() for row in decoders.prompts(
        arguments.shape, arguments.cache, arguments.peers)[decoders.PROMPTS[0]]]
    loaded, _ = servable.load_version(
        folder / decoders.MODEL / "1",
        ServerConfig(models=(), intra_op_threads=1, golden_replay=False, warmup=False))

    if not loaded._lanes.count:  # type: ignore[attr-defined]
        raise SystemExit("Run it on a machine of one or two CPUs, or under `taskset -c 0,1`: where "
                         "there are more the server gives no lanes.")

    def measure(texts: list[bytes], way: str) -> dict[str, float]:
        loaded._lanes = LANES if way == "lane" else Lanes(0)  # type: ignore[attr-defined]
        began, used = time.perf_counter(), time.process_time()
        found = loaded.run("serving_default", {"prompt": np.array(texts, object)},
                           outputs=("length",), timeout_s=None)
        took, spent = time.perf_counter() - began, time.process_time() - used
        tokens = int(found["length"].sum())
        return {"tokens_per_s": tokens / took, "cpu_ms_per_token": 1000 * spent / tokens}

    found: dict[str, Any] = {}
    for rows in ROWS:
        ways: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for number in range(arguments.rounds + 1):
            begin = number * rows % (len(prompts) - rows)
            for way in sorted(ways, reverse=bool(number % 2)):
                measured = measure(prompts[begin:begin + rows], way)
                if number:
                    ways[way].append(measured)
        found[f"{rows} rows"] = {
            **{way: {name: round(statistics.median(one[name] for one in told), 2)
                     for name in told[0]} for way, told in ways.items()},
            "ratio": {name: round(statistics.median(
                lane[name] / pool[name] for lane, pool in zip(ways["lane"], ways["pool"])), 3)
                for name in ways["lane"][0]}}
        print(rows, found[f"{rows} rows"], file=sys.stderr)
    loaded.close()
    print(json.dumps({"shape": arguments.shape, "machine": machine(),
                      "rounds": arguments.rounds, **found}, indent=1))


if __name__ == "__main__":
    main()
