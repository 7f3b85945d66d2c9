"""A contestant's end of the pipe: load, say so, then answer each line of standard input by a line.

The settings are its argument, in JSON. Whatever a library prints goes to standard error. Needs the
standard library alone; benchmarks/pipes.py is the other end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

THREADS = len(os.sched_getaffinity(0))
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def run(load: Callable[[dict[str, Any]], Answer]) -> None:
    """Load, then answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    started = time.perf_counter()
    answer = load(json.loads(sys.argv[1]))
    tell({"load_s": round(time.perf_counter() - started, 2), **memory_mb()})
    for line in sys.stdin:
        tell({**answer(json.loads(line)), **memory_mb()})


def memory_mb() -> dict[str, float]:
    """Return what this process holds, of that pages of files, and the most that it has held."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: round(int(lines[key].split()[0]) / 1024, 1)
            for name, key in (("resident_mb", "VmRSS"), ("file_mb", "RssFile"),
                              ("peak_mb", "VmHWM"))}
