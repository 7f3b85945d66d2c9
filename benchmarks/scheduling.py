"""What the text scheduler's decisions are worth, in a model of a server: no server is measured.

Callers, or arrivals at random, meet one worker whose runs take a constant plus a constant for each
padded token; the lengths are those of real texts, in bytes for the decision and in tokens for the
run. `arrival` takes whoever came first, up to 32 rows; `ours` is `batching.next_batch` told what a
run costs beside its tokens; `learned` finds that out by itself with `pace.py`, from times that are
off by 15 %. The open load is 80 % of what `arrival` reaches with 16 callers. Prints one JSON
object. Needs the extra `oracles`.

    python -m benchmarks.scheduling [--seconds 60]

Texts are sst2's training rows of the folder in TF_INFER_SHARED (default ../shared), "short" one by
one and "mixed" one to five joined; the tokenizer is WordPiece with a vocabulary learned from them.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers

from tf_infer.config import ShapeGrid
from tf_infer.server import rows
from tf_infer.server.batching import (
    RUN_TOKENS,
    Batch,
    TextLimits,
    Waiting,
    limits_for,
    next_batch,
)
from tf_infer.server.pace import Pace

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
MAX_ROWS = 32
GRIDS = {"4 widths": (16, 32, 64, 128), "7 widths": (16, 24, 32, 48, 64, 96, 128)}
# seconds a run, seconds a padded token
COSTS = {"tiny": (1e-3, 2e-6), "small": (1e-3, 60e-6), "base": (5e-3, 150e-6)}


class Text(NamedTuple):
    """A text's length in tokens, as the scheduler estimates it and as it is."""

    estimated: int
    tokens: int


Choose = Callable[[list[Waiting]], tuple[int, ...]]


def read_texts(seed: int = 0) -> dict[str, list[Text]]:
    """Return the lengths of real texts."""
    with open(SHARED / "data" / "sst2" / "train.jsonl", encoding="utf-8") as file:
        lines = [json.loads(line)["text"] for line in file]
    tokenizer = tokenizers.BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(lines, vocab_size=8000, show_progress=False)
    rng = random.Random(seed)
    rng.shuffle(lines)
    mixed, place = [], 0
    while place + 5 < len(lines) and len(mixed) < 3000:
        count = rng.choice([1, 1, 1, 2, 3, 5])
        mixed.append(" ".join(lines[place:place + count]))
        place += count
    return {name: [Text(rows.longest_row({"text": np.array([text.encode()], object)}),
                        len(encoded.ids) + 2)
                   for text, encoded in zip(texts, tokenizer.encode_batch(texts))]
            for name, texts in (("short", lines[:3000]), ("mixed", mixed))}


def simulate(choose: Choose, texts: list[Text], widths: tuple[int, ...],
             cost: tuple[float, float], *, seconds: float, callers: int = 0,
             rate: float = 0.0) -> dict[str, float]:
    """Let requests arrive and one worker run batches; return rate and waiting times in ms."""
    rng, order = random.Random(1), itertools.count()
    waiting: dict[int, tuple[Waiting, Text, float]] = {}
    events: list[tuple[float, int, tuple[float, ...] | None]] = []  # when, order, arrivals served
    for _ in range(callers or 1):
        heapq.heappush(events, (rng.random() * 0.01, next(order), None))
    times: list[float] = []
    batches, idle, now = 0, True, 0.0
    while events and now < seconds:
        now, _, served = heapq.heappop(events)
        if served is None:
            text, ticket = rng.choice(texts), next(order)
            waiting[ticket] = Waiting(ticket, "", 1, text.estimated), text, now
            if rate:
                heapq.heappush(events, (now + rng.expovariate(rate), next(order), None))
        else:
            idle = True
            times += [now - arrived for arrived in served]
            for _ in served if callers else ():  # an answered caller asks again
                heapq.heappush(events, (now + rng.random() * 1e-4, next(order), None))
        if idle and waiting and not (events and events[0][0] - now < 1e-4):
            taken = [waiting.pop(ticket) for ticket in choose([w for w, _, _ in waiting.values()])]
            longest = min(widths[-1], max(text.tokens for _, text, _ in taken))
            width = next(size for size in widths if size >= longest)
            ends = now + cost[0] + cost[1] * width * len(taken)
            heapq.heappush(events, (ends, next(order), tuple(when for _, _, when in taken)))
            idle, batches = False, batches + 1
    times.sort()
    return {"rate": round(len(times) / now, 1), "p50_ms": round(1e3 * times[len(times) // 2], 1),
            "p99_ms": round(1e3 * times[int(len(times) * 0.99)], 1),
            "rows": round(len(times) / batches, 1)}


def policies(widths: tuple[int, ...], cost: tuple[float, float]) -> dict[str, Choose]:
    """Return the decisions that are compared."""
    grid = ShapeGrid(rows=(1, MAX_ROWS), tokens=widths)
    rng, pace = random.Random(2), Pace()

    def ours(waiting: list[Waiting]) -> tuple[int, ...]:
        limits = limits_for(grid, compiled=False, run_tokens=cost[0] / cost[1])
        return _chosen(waiting, limits).tickets

    def learned(waiting: list[Waiting]) -> tuple[int, ...]:
        nonlocal pace
        limits = limits_for(grid, compiled=False, run_tokens=pace.run_tokens(RUN_TOKENS))
        batch = _chosen(waiting, limits)
        tokens = batch.rows * batch.width
        pace = pace.seen(tokens, (cost[0] + cost[1] * tokens) * rng.lognormvariate(0, 0.15))
        return batch.tickets

    return {"arrival": lambda waiting: tuple(item.ticket for item in waiting[:MAX_ROWS]),
            "ours": ours, "learned": learned}


def _chosen(waiting: list[Waiting], limits: TextLimits) -> Batch:
    batch = next_batch(waiting, limits)
    assert batch is not None
    return batch


def decision_us(waiting: int = 1000) -> dict[str, float]:
    """Return what one decision costs with many waiting: at best and at worst."""
    mixed = [Waiting(i, "k", 1, cost) for i, cost in zip(range(waiting), itertools.cycle((5, 40)))]
    lonely = [Waiting(waiting, "k", 1, 128), *mixed]
    return {name: round(min(timeit.repeat(lambda items=items: next_batch(items, TextLimits()),
                                          number=100, repeat=5)) * 1e4, 1)
            for name, items in (("batch full early", mixed), ("nobody fits", lonely))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of modelled time a case")
    seconds = parser.parse_args().seconds
    results = []
    for (name, texts), (grid, widths), (speed, cost) in itertools.product(
            read_texts().items(), GRIDS.items(), COSTS.items()):
        choices, limit = policies(widths, cost), 0.0
        for load in ({"callers": 16}, {"callers": 64}, {"rate": 0.8}):
            for policy, choose in choices.items():
                given = {"rate": 0.8 * limit} if "rate" in load else load
                found = simulate(choose, texts, widths, cost, seconds=seconds, **given)
                limit = limit or found["rate"]
                results.append({"texts": name, "grid": grid, "speed": speed, **load,
                                "policy": policy, **found})
    print(json.dumps({"decision_us": decision_us(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
