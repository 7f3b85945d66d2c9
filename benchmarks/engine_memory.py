"""What a decoder's LiteRT engine holds in memory, part by part.

    python -m benchmarks.engine_memory --shape gpt2 --peers DIR > memory.json

Prints one JSON object: resident MB of this process, which has Python, NumPy and the engine and no
TensorFlow, by stage and by what is mapped.

    process     before the engine
    loaded      every graph has run once
    slots N     N slots have been read full, each in parts behind what it holds, and stepped
    a_slot      what one slot more holds, of those after the first

    heap        what malloc has: LiteRT's and XNNPACK's graphs, Python's objects
    arrays      NumPy's caches, inputs and outputs, and malloc's large pieces
    weights     packed for the machine's kernels, once for all graphs
    file        pages of the model file and of libraries, which the system may take back

What others hold is in benchmarks/decode.py: `loaded`, `resident_mb` and `end_mb`.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path

import numpy as np

from benchmarks import decoders
from benchmarks.models import CACHE
from tf_infer.engines import litert

READ = 40  # ids at once, so that most of a slot is read behind what it holds


def resident() -> dict[str, float]:
    """Return resident MB of this process, in all and by what is mapped."""
    found: collections.Counter[str] = collections.Counter()
    part = ""
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            part = part_of(" ".join(words[5:]))
        elif words[0] == "Rss:":
            found[part] += int(words[1])
            found["all"] += int(words[1])
    return {name: round(size / 1024, 1) for name, size in sorted(found.items())}


def part_of(mapped: str) -> str:
    """Return what a mapping is for, by the name that the system gives it."""
    if mapped == "[heap]":
        return "heap"
    if mapped.startswith("/memfd:"):
        return "weights"
    return "file" if mapped.startswith("/") else "arrays"


def fill(engine: litert.LiteRTEngine, slot: int) -> None:
    """Read a slot full, but for one id, and step it."""
    ids = np.random.default_rng(slot).integers(0, engine.vocab_size, engine.positions)
    last = engine.positions - 1
    for start in range(0, last, READ):
        engine.read(slot, ids[start:min(start + READ, last)].astype(np.int32), start)
    engine.step(np.full(engine.slots, 1, np.int32), np.full(engine.slots, last, np.int32), [slot])


def stages(folder: Path, threads: int) -> dict[str, dict[str, float]]:
    """Return what is resident, stage by stage."""
    found = {"process": resident()}
    engine = litert.load(folder, threads=threads)
    found["loaded"] = resident()
    for slot in range(engine.slots):
        fill(engine, slot)
        if slot + 1 in (1, 8, engine.slots):
            found[f"slots {slot + 1}"] = resident()
    more, first = found[f"slots {engine.slots}"], found["slots 1"]
    found["a_slot"] = {name: round((more[name] - first.get(name, 0.0)) / (engine.slots - 1), 2)
                       for name in more}
    found["cache"] = {"a_slot": round(engine.cache_bytes / engine.slots / 2**20, 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--shape", choices=sorted(decoders.SHAPES), default="gpt2")
    parser.add_argument("--folder", type=Path, help="of an engine, instead of a shape's")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    folder = arguments.folder or decoders.form("ours-engine", arguments.shape, arguments.cache,
                                               arguments.peers)
    assert "tensorflow" not in sys.modules, "TensorFlow's memory would count too"
    print(json.dumps({"shape": None if arguments.folder else arguments.shape, "unit": "MB resident",
                      "stages": stages(folder, arguments.threads)}, indent=2))


if __name__ == "__main__":
    main()
