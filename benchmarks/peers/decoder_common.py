"""What all contestants of benchmarks/decode.py share: a process that answers for one model.

It is given {"model": folder or file, "form": ...} as its argument, loads, and says so in a line of
JSON; then it answers each line of its standard input, {"ids": [[...]], "texts": [...],
"new_tokens": n}, with the seconds that this took and the ids. Rows of a request are equally long.
Whatever a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

THREADS = 2
Ids = list[list[int]]


class Asked(NamedTuple):
    """Prompts as ids [B, P] and as texts that encode to them, and how many tokens to produce."""

    ids: Ids
    texts: list[str]
    new_tokens: int


Generate = Callable[[Asked], Ids]


def run(load: Callable[[dict[str, Any]], Generate]) -> None:
    """Load, then answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    started = time.perf_counter()
    generate = load(json.loads(sys.argv[1]))
    tell({"load_s": round(time.perf_counter() - started, 2), **memory_mb()})
    for line in sys.stdin:
        asked = Asked(**json.loads(line))
        started = time.perf_counter()
        ids = generate(asked)
        spent = time.perf_counter() - started
        if [len(row) for row in ids] != [asked.new_tokens] * len(asked.ids):
            raise RuntimeError(f"expected {len(asked.ids)} rows of {asked.new_tokens} new tokens, "
                               f"got {[len(row) for row in ids]}")
        tell({"seconds": spent, "ids": ids, **memory_mb()})


def memory_mb() -> dict[str, float]:
    """Return what this process holds, and the most that it has held."""
    with open("/proc/self/status", encoding="utf-8") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {name: round(int(lines[key].split()[0]) / 1024, 1)
            for name, key in (("resident_mb", "VmRSS"), ("peak_mb", "VmHWM"))}
