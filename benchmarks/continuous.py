"""Continuous against static batching: our server, mixed lengths, Poisson arrivals.

    python -m benchmarks.continuous --shape mini > benchmarks/results/continuous.json
    python -m benchmarks.continuous --form served-int8 --servers static engine --minutes 5.5

Prints one JSON object. All servers serve one version. `static` answers the signature `generate`
through Predict, where requests run together until the longest of them has ended; `continuous`
answers GenerationService, where each joins and leaves by itself, through the same SavedModel;
`engine` does so through the version's engine, where it carries one, which is another numeric form.
Each is a process of its own, frozen when it is not its turn; so is the load
(benchmarks/generation_load.py).

Prompts are pieces of real stories of 8 to 150 words, answers have 4 to 128 tokens, both spread
evenly over the logarithm of their length, the same in the same order for all.

    seconds         of one load: what was asked for, or, where that is longer, three of the longest
                    calls that static has with 32 callers
    capacity        tokens/s with 32 callers who each wait for their answer; a call counts with the
                    share of its time that lies in the last three quarters of the load, also one
                    that ends behind it
    rates           Poisson arrivals at shares of what each did with those callers, a result a
                    round; tokens/s of those that ended in the last three quarters of the time
    per_token_ms    from the time a request was due to its end, by its tokens
    first_ms        to its first token; a static answer comes whole
    at equal p99    for each rate of static: tokens/s that the others can do before their p99 of
                    per_token_ms is above static's, read off between the two nearest rates ("at
                    least" where no rate was too much), and first_ms at the last rate below it
    streaming       what a token costs more in pieces than whole: one caller, and eight
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import contestants, decoders, models
from benchmarks.client import machine
from benchmarks.contestants import Contestant, Running
from benchmarks.generation_load import GenerationLoad, as_json
from benchmarks.server import say

CALLERS, REQUESTS = 32, 512
WORDS, TOKENS = (8, 150), (4, decoders.SERVED_CAPACITY)
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
STATIC, CONTINUOUS, ENGINE = "static", "continuous", "engine"
CALLS = 3  # of static, one behind the other, that a load has room for
Cells = dict[str, dict[float, list[dict[str, Any]]]]  # server -> share -> one result a round
BATCHING = """max_batch_size { value: 32 } batch_timeout_micros { value: 10000 }
max_enqueued_batches { value: 1000 } num_batch_threads { value: 1 }
"""


def requests(seed: int = 0) -> list[tuple[str, int]]:
    """Return prompts and how many tokens to produce."""
    draw = random.Random(seed)
    path = models.SHARED / "data/tinystories_sample/train.txt"
    words = path.read_text(encoding="utf-8").split()[:200_000]

    def spread(least: int, most: int) -> int:
        return round(math.exp(draw.uniform(math.log(least), math.log(most))))

    found = []
    for _ in range(REQUESTS):
        count = spread(*WORDS)
        start = draw.randrange(len(words) - count)
        found.append((" ".join(words[start:start + count]), spread(*TOKENS)))
    return found


class Point(NamedTuple):
    """What a server did at one rate of arrivals, medians of the rounds.

    Attributes:
        tokens_per_s: of the requests that ended.
        p99: of the milliseconds of a token.
        first_ms: p50 and p99 of the milliseconds to the first token.
    """

    tokens_per_s: float
    p99: float
    first_ms: dict[str, float]


class Decoding(Running):
    """A server of a decoder."""

    def ask(self, request: Any, timeout_s: float = 60.0) -> str:
        """Return how many tokens a prompt's answer has."""
        load = GenerationLoad(
            target=self.address, model=decoders.MODEL, stream=self.contestant.name != STATIC,
            requests=[request], seconds=0.01)
        found = measured(load)
        if not found["records"]:
            raise ConnectionError(str(found["failures"]))
        return str(found["records"][0]["tokens"])


def measured(load: GenerationLoad) -> dict[str, Any]:
    """Run a load in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.generation_load"],
                          input=as_json(load), capture_output=True, text=True,
                          timeout=load.seconds + 180, cwd=models.ROOT)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(server: Decoding, **values: Any) -> dict[str, Any]:
    """Give a server a load, and return figures."""
    server.freeze(frozen=False)
    before = server.cpu_s()
    found = measured(GenerationLoad(target=server.address, model=decoders.MODEL,
                                    stream=server.contestant.name != STATIC, **values))
    spent = server.cpu_s() - before
    server.freeze()
    speed = ended if values.get("rate") else made
    result = figures(found["records"], found["failures"], speed(found["records"],
                                                                values["seconds"]))
    result["cpu_ms_per_token"] = round(1000 * spent / result["tokens"], 3)
    say(f"  {server.contestant.name:10} {values.get('rate') or values.get('callers')}: {result}")
    return result


# ---------------------------------------------------------------------------- reporting


def ended(records: Sequence[dict[str, float]], seconds: float) -> float:
    """Return tokens a second of the requests that ended while others came.

    The first quarter is left out: what ends then does not make up for what begins.
    """
    tokens = sum(one["tokens"] for one in records if seconds / 4 <= one["end_s"] < seconds)
    return round(tokens / (0.75 * seconds), 1)


def made(records: Sequence[dict[str, float]], seconds: float) -> float:
    """Return tokens a second of callers who ask again when they are answered.

    All of them ask throughout, so a call's tokens are spread over its time, and those that end
    behind the load count, too: a batch may take longer than the load.
    """
    begin_s, tokens = seconds / 4, 0.0
    for one in records:
        inside = min(one["end_s"], seconds) - max(one["due_s"], begin_s)
        tokens += one["tokens"] * max(0.0, inside) / (one["end_s"] - one["due_s"])
    return round(tokens / (seconds - begin_s), 1)


def figures(records: Sequence[dict[str, float]], failures: dict[str, int], tokens_per_s: float
            ) -> dict[str, Any]:
    """Return what a load's records come to."""
    if not records:
        raise RuntimeError(f"no request was answered: {failures}")
    tokens = sum(one["tokens"] for one in records)
    per_token = sorted(1000 * (one["end_s"] - one["due_s"]) / max(1, one["tokens"])
                       for one in records)
    first = sorted(1000 * (one["first_s"] - one["due_s"]) for one in records)
    gaps = [1000 * (one["end_s"] - one["first_s"]) / (one["tokens"] - 1)
            for one in records if one["pieces"] > 1 and one["tokens"] > 1]
    return {
        "requests": len(records), "failures": failures, "tokens": int(tokens),
        "tokens_per_s": tokens_per_s,
        "longest_call_s": round(max(one["end_s"] - one["due_s"] for one in records), 2),
        "per_token_ms": {"p50": at(per_token, 0.5), "p99": at(per_token, 0.99)},
        "first_ms": {"p50": at(first, 0.5), "p99": at(first, 0.99)},
        **({"between_tokens_ms": round(statistics.median(gaps), 2)} if gaps else {}),
        "tokens_per_piece": round(tokens / sum(one["pieces"] for one in records), 2)}


def at(ordered: Sequence[float], share: float) -> float:
    """Return the value that a share of the others lie below."""
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def reached_at(points: Sequence[Point], bound: float) -> tuple[float, Point] | None:
    """Return the tokens a second at which p99 reaches a bound, and the last rate below it.

    Args:
        points: of every rate of arrivals, in its order.
        bound: of the p99.

    The last rate below the bound before the first one above it counts, and what lies between the
    two, straight over the logarithm of p99. None where the lowest rate is above it already.
    """
    below: Point | None = None
    for point in points:
        if point.p99 > bound:
            if below is None:
                return None
            share = math.log(bound / below.p99) / math.log(point.p99 / below.p99)
            speed = below.tokens_per_s + share * (point.tokens_per_s - below.tokens_per_s)
            return speed, below
        below = point
    return (below.tokens_per_s, below) if below else None


def equal_p99(cells: Cells) -> dict[str, Any]:
    """Return, for each p99 that static had, how much more the others do before they have it."""
    points = {name: [_point(results) for _, results in sorted(row.items())]
              for name, row in cells.items()}
    found = {}
    for static in sorted(points[STATIC], key=lambda point: point.p99):
        told: dict[str, Any] = {STATIC: {"tokens_per_s": static.tokens_per_s,
                                         "first_ms": static.first_ms}}
        for name in points.keys() - {STATIC}:
            reached = reached_at(points[name], static.p99)
            if reached:
                speed, below = reached
                told[name] = {
                    "tokens_per_s": round(speed, 1), "ratio": round(speed / static.tokens_per_s, 2),
                    "at least": all(point.p99 <= static.p99 for point in points[name]),
                    "first_ms": below.first_ms}
        found[f"p99 {static.p99} ms"] = told
    return found


def _point(results: Sequence[dict[str, Any]]) -> Point:
    def middle(figures: Iterable[float]) -> float:
        return round(statistics.median(figures), 2)

    return Point(
        middle(one["tokens_per_s"] for one in results),
        middle(one["per_token_ms"]["p99"] for one in results),
        {share: middle(one["first_ms"][share] for one in results) for share in ("p50", "p99")})


def overhead(static: dict[str, Any], streamed: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds that a token takes whole, in pieces, and the difference."""
    found = {"whole_ms": static["per_token_ms"]["p50"],
             "streamed_ms": streamed["per_token_ms"]["p50"]}
    return found | {"more_ms": round(found["streamed_ms"] - found["whole_ms"], 3)}


# ---------------------------------------------------------------------------- parts


def servers(base: Path, names: Sequence[str]) -> list[Contestant]:
    """Return the servers of one model."""
    flags = {STATIC: ("--enable_batching", "--batching_parameters_file={folder}/batching.txt"),
             CONTINUOUS: ("--decode_engine=saved_model",), ENGINE: ("--decode_engine=litert",)}
    if not any(base.glob("*/assets.extra/engines/litert")):
        del flags[ENGINE]
    return [contestants.ours(base, *more, name=name, files={"batching.txt": BATCHING})
            for name, more in flags.items() if name in names]


def compare(group: Sequence[Decoding], seconds: float, rounds: int, until_s: float
            ) -> dict[str, Any]:
    """Measure capacity and streaming, then every rate, in turns."""
    asked = requests()
    # Before anything counts, twice: first runs of a size take long.
    first = {one.contestant.name: run(one, requests=asked, callers=CALLERS, seconds=3.0)
             for one in (*group, *group)}
    seconds = max(seconds, CALLS * first[STATIC]["longest_call_s"])
    capacity = {one.contestant.name: run(one, requests=asked, callers=CALLERS, seconds=seconds)
                for one in group}
    pieces = streaming(group, min(4.0, seconds))
    mean = statistics.mean(tokens for _, tokens in asked)
    cells: Cells = {one.contestant.name: {} for one in group}
    for number, share in itertools.product(range(rounds), SHARES):
        if time.monotonic() + 1.3 * len(group) * seconds > until_s:
            say(f"no time for a share of {share}")
            break
        for one in group if number % 2 else list(reversed(group)):
            name = one.contestant.name
            cells[name].setdefault(share, []).append(run(
                one, requests=asked, seconds=seconds, seed=number,
                rate=share * capacity[name]["tokens_per_s"] / mean))
    return {"seconds": round(seconds, 1), "capacity": capacity, "rates": cells,
            "at equal p99": equal_p99(cells), "streaming": pieces}


def streaming(group: Sequence[Decoding], seconds: float) -> dict[str, Any]:
    """Measure answers whole and in pieces, of the same prompts."""
    asked = [(prompt, TOKENS[1]) for prompt, _ in requests(1)]
    found: dict[str, Any] = {}
    for callers in (1, 8):
        pair = {one.contestant.name: run(one, requests=asked, callers=callers, seconds=seconds)
                for one in group}
        found |= {f"{callers} callers, {name}": overhead(pair[STATIC], pair[name])
                  for name in pair if name != STATIC}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=models.CACHE, help="exported models")
    parser.add_argument("--peers", type=Path, help="makes the checkpoint, see benchmarks/decode.py")
    parser.add_argument("--shape", choices=sorted(decoders.SHAPES), default="mini")
    parser.add_argument("--form", default="served-float32",
                        help="an export of benchmarks/decoders.py")
    parser.add_argument("--servers", nargs="+", choices=(STATIC, CONTINUOUS, ENGINE),
                        default=[STATIC, CONTINUOUS, ENGINE], help="with static among them")
    parser.add_argument("--seconds", type=float, default=15.0, help="of one load, at least")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin nothing that ends later")
    arguments = parser.parse_args()
    if STATIC not in arguments.servers:
        parser.error(f"--servers: expected {STATIC} among them, which the others are held against")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that who is frozen is ended
    base = decoders.form(arguments.form, arguments.shape, arguments.cache, arguments.peers)
    until_s = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"python": platform.python_version(), "machine": machine(),
                             "shape": arguments.shape, "form": arguments.form}
    with ExitStack() as stack:
        group = []
        for contestant in servers(base / decoders.MODEL, arguments.servers):
            one = Decoding(contestant, (requests()[0][0], 4))
            stack.callback(one.stop)
            one.freeze()
            say(f"{contestant.name} started in {one.start_s:.1f} s")
            group.append(one)
        found |= compare(group, arguments.seconds, arguments.rounds, until_s)
        found["resident_mb"] = {one.contestant.name: one.resident_mb() for one in group}
    found["load_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
