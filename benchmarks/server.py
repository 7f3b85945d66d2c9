"""Our server beside MLServer, LitServe, FastAPI, Ray Serve and BentoML, on one SavedModel each.

    python -m benchmarks.server --peers DIR > benchmarks/results/server.json
    python -m benchmarks.server --model minilm --rounds 3 --seconds 3
    python -m benchmarks.server --peers DIR --tune     # settings of the peers, then end

Prints one JSON object. Every server runs in processes of its own, the load generator
(benchmarks/load.py) in another one on the same cores. In each round every server has its turn at
every load; whose turn it is not is frozen. A figure is the median over the rounds; a ratio is the
median of the rounds' ratios, within a round against the best peer at that load. The texts are real
(benchmarks/models.py); all servers must give the same labels before anything is measured.

    closed 1, 16, 64    callers that each wait for their answer
    open 50 %, 80 %     random arrivals at a share of what the best peer did with 64 callers
    cpu_ms              processor time of the server (all its processes) by call
    engine              our server with the LiteRT engine of the version, in float32 as all others;
                        the rest of ours and every peer run the SavedModel beside it
    trivial             x * 2 in our server: what a call costs when the model costs nothing; beside
                        it grpcio alone, which answers what was made beforehand: with threads and on
                        asyncio's loop, with requests parsed ("parsed") and not ("bytes"). "by
                        bar" says how far each is from the goals, "ours" which share of a call's
                        processor time in our server is not grpcio's

gRPC is asked as cheaply as REST is (benchmarks/http2.py); `--grpc_client grpcio` takes grpcio's
own client, which costs the two cores about 0.15 ms more a call.
How to install the peers, and their settings: benchmarks/contestants.py, benchmarks/peers/.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import contestants, models
from benchmarks.client import machine
from benchmarks.contestants import Contestant, Running
from benchmarks.load import Generator, Load

CALLERS = (1, 16, 64)
OPEN = (0.5, 0.8)
OUTPUTS = ("label", "score")
PROBE = "Where is the parcel?"
CHECKED = 20
CALLS_BAR, P50_BAR_MS = 2500, 1.0  # of the trivial model: with 16 callers, and with one
BARE = (("parsed", 4), ("bytes", 4), ("parsed", 0))  # threads, 0 for asyncio
Cells = dict[str, dict[str, list[dict[str, Any]]]]  # load -> server -> one result a round

generator = functools.cache(Generator)


def measure(running: Running, load: Load) -> dict[str, Any]:
    """Run one load against one server, by the process that runs all loads."""
    running.freeze(frozen=False)
    before = running.cpu_s()
    found = generator().run(load)
    spent = running.cpu_s() - before
    running.freeze()
    whole = found["calls"] * (load.seconds + load.warm_s) / load.seconds
    return found | {"cpu_ms": round(1000 * spent / whole, 3) if whole else None}


@contextmanager
def started(group: Sequence[Contestant], probe: Any) -> Iterator[list[Running]]:
    """Start servers one after the other, freeze them, and stop them at the end."""
    with ExitStack() as stack:
        found = []
        for contestant in group:
            try:
                running = Running(contestant, probe)
            except RuntimeError as error:
                if not contestant.peer:
                    raise
                say(f"left out: {error}")
                continue
            stack.callback(running.stop)
            say(f"{contestant.name} started in {running.start_s:.1f} s")
            running.freeze()
            found.append(running)
        yield found


def in_turns(group: Sequence[Running], number: int) -> Sequence[Running]:
    """Return the servers in the order of a round."""
    return group if number % 2 else group[::-1]


def check_equal(group: Sequence[Running], texts: Sequence[str]) -> None:
    """Raise unless all servers find the same labels."""
    answers: dict[str, list[str]] = {}
    for running in group:
        running.freeze(frozen=False)
        told = [running.ask(text) for text in texts]
        running.freeze()
        answers[running.contestant.name] = [
            next(name for name in models.CLASSES if f'"{name}"' in text or f"b'{name}'" in text)
            for text in told]
    first = next(iter(answers.values()))
    wrong = [name for name, labels in answers.items() if labels != first]
    if wrong:
        raise RuntimeError(f"other labels from {', '.join(wrong)}")


def compare(group: Sequence[Running], texts: Sequence[str], rounds: int, seconds: float,
            callers: Sequence[int]) -> Cells:
    """Measure every server at every load, in alternating rounds; the first round warms up."""
    cells: Cells = {}
    for number in range(rounds + 1):
        length = {"seconds": seconds, "warm_s": 0.5} if number else {"seconds": 1.0}
        for count in callers:
            for running in in_turns(group, number):
                load = running.load(texts, callers=count, seed=number, outputs=OUTPUTS, **length)
                keep(cells, f"closed {count}", running, measure(running, load), number)
        if not number:
            continue
        rate = max(cells[f"closed {callers[-1]}"][running.contestant.name][-1]["per_s"]
                   for running in (peers_of(group) or group))
        for share in OPEN:
            for running in in_turns(group, number):
                load = running.load(texts, rate=share * rate, seed=number, outputs=OUTPUTS,
                                    **length)
                keep(cells, f"open {share:.0%}", running, measure(running, load), number)
    return cells


def keep(cells: Cells, name: str, running: Running, result: dict[str, Any], number: int) -> None:
    """Keep a result, but not of the round that warms up."""
    say(f"  round {number} {name:10} {running.contestant.name:34} {result}")
    if number:
        cells.setdefault(name, {}).setdefault(running.contestant.name, []).append(result)


def peers_of(group: Sequence[Running]) -> list[Running]:
    """Return those that are not ours."""
    return [running for running in group if running.contestant.peer]


# ---------------------------------------------------------------------------- reporting


def medians(cells: Cells) -> dict[str, Any]:
    """Return the median of every figure over the rounds."""
    def one(results: list[dict[str, Any]]) -> dict[str, Any]:
        names = [name for name in results[0] if name not in ("failures", "calls")]
        found: dict[str, Any] = {name: round(statistics.median(
            result.get(name) or 0.0 for result in results), 3) for name in names}
        failed = sum(sum(result["failures"].values()) for result in results)
        return found | ({"failed": failed} if failed else {})

    return {load: {server: one(results) for server, results in row.items()}
            for load, row in cells.items()}


def ratios(cells: Cells, group: Sequence[Running]) -> dict[str, Any]:
    """Return ours against the best peer of each round: throughput, and its p99 by theirs."""
    theirs = [running.contestant.name for running in peers_of(group)]
    mine = [running.contestant.name for running in group if not running.contestant.peer]
    found: dict[str, Any] = {}
    for load, row in cells.items():
        rounds = range(len(next(iter(row.values()))))
        for name in mine:
            pairs = []
            for number in rounds:
                if not theirs:
                    continue
                best = max((row[peer][number] for peer in theirs), key=lambda one: one["per_s"])
                low = min(row[peer][number]["p99_ms"] for peer in theirs)
                pairs.append((row[name][number]["per_s"] / best["per_s"],
                              row[name][number]["p99_ms"] / best["p99_ms"],
                              row[name][number]["p99_ms"] / low))
            if pairs:
                found[f"{load}: {name}"] = {
                    what: round(statistics.median(column), 3) for what, column in zip(
                        ("throughput / fastest peer", "p99 / fastest peer", "p99 / least peer p99"),
                        zip(*pairs))}
    return found


def against(cells: Cells, one: str, other: str) -> dict[str, float]:
    """Return the throughput of one of ours by another's, at every closed load."""
    return {load: round(statistics.median(
        a["per_s"] / b["per_s"] for a, b in zip(row[one], row[other])), 3)
        for load, row in cells.items() if load.startswith("closed") and {one, other} <= set(row)}


def say(line: str) -> None:
    """Tell how far it is, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- parts


TEXT, REST = "tf_infer gRPC", "tf_infer REST"
ENGINE_TEXT, ENGINE_REST = "tf_infer engine gRPC", "tf_infer engine REST"
ARRIVAL, ALONE = "tf_infer gRPC --enable_batching", "tf_infer gRPC --scheduler=none"


def texts_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare all servers on texts."""
    model = models.exported(arguments.cache, arguments.model)
    plain = "--classifier_engine=saved_model"
    group = [contestants.ours(model, name=ENGINE_TEXT),
             contestants.ours(model, name=ENGINE_REST, rest=True),
             contestants.ours(model, plain, name=TEXT),
             contestants.ours(model, plain, name=REST, rest=True),
             contestants.ours(model, plain, "--scheduler=none", name=ALONE),
             contestants.in_arrival_order(model, plain)]
    if arguments.peers:
        group += [contestants.peer(name, model, arguments.peers, best) for name, (best, *_)
                  in contestants.SETTINGS.items() if (arguments.peers / name).is_dir()]
    group = [asked_by(arguments.grpc_client, one) for one in group
             if chosen(one.name, arguments.only)]
    found: dict[str, Any] = {}
    with started(group, PROBE) as running:
        check_equal(running, models.mixed_texts()[:CHECKED])
        for kind, texts in (("short", models.short_texts()), ("mixed", models.mixed_texts())):
            if kind not in arguments.texts:
                continue
            say(f"{kind} texts")
            cells = compare(running, texts, arguments.rounds, arguments.seconds, CALLERS)
            found[kind] = {"median": medians(cells), "ratios": ratios(cells, running),
                           "ours / in arrival order": against(cells, TEXT, ARRIVAL),
                           "ours / no joining": against(cells, TEXT, ALONE)}
        found["servers"] = {one.contestant.name: {
            "start_s": round(one.start_s, 1), "resident_mb": one.resident_mb()}
            for one in running}
    return found


def trivial_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what a call costs in our server when the model costs nothing."""
    model = models.exported(arguments.cache, models.TRIVIAL)
    group = [contestants.ours(model, name=TEXT),
             contestants.ours(model, name=REST, rest=True),
             *(contestants.bare(model, form, threads) for form, threads in BARE)]
    group = [asked_by(arguments.grpc_client, one) for one in group
             if chosen(one.name, arguments.only)]
    with started(group, 1.0) as running:
        cells: Cells = {}
        for number in range(arguments.rounds + 1):
            for count in CALLERS:
                length = ({"seconds": arguments.seconds, "warm_s": 0.5} if number
                          else {"seconds": 0.5})
                for one in in_turns(running, number):
                    load = one.load([1.0], callers=count, **length)
                    keep(cells, f"closed {count}", one, measure(one, load), number)
    return {"median": medians(cells), "REST / gRPC": against(cells, REST, TEXT),
            "bars": {"calls/s, 16 callers": CALLS_BAR, "p50 ms, 1 caller": P50_BAR_MS},
            **bars(cells, [one.contestant.name for one in running])}


def bars(cells: Cells, names: Sequence[str]) -> dict[str, Any]:
    """Return what came of the goals of the trivial model, ours and by grpcio alone.

    Args:
        cells: of the trivial model.
        names: of the servers in them.
    """
    def median(load: str, name: str, figure: str) -> float:
        return statistics.median(one[figure] or 0.0 for one in cells[load][name])

    many, alone = f"closed {CALLERS[1]}", f"closed {CALLERS[0]}"
    found: dict[str, Any] = {"by bar": {name: {
        "calls/s / bar": round(median(many, name, "per_s") / CALLS_BAR, 2),
        "p50 / bar": round(median(alone, name, "p50_ms") / P50_BAR_MS, 2)} for name in names}}
    parsed = [name for name in names if name.endswith(", parsed")]
    if TEXT in names and parsed:
        found["ours"] = {load: round(statistics.median(
            1 - min(row[name][place]["cpu_ms"] for name in parsed) / one["cpu_ms"]
            for place, one in enumerate(row[TEXT])), 3) for load, row in cells.items()}
    return found


def tune_part(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every peer with several settings, to find its best."""
    model = models.exported(arguments.cache, arguments.model)
    found: dict[str, Any] = {}
    for name, settings in contestants.SETTINGS.items():
        if not (arguments.peers / name).is_dir() or not chosen(name, arguments.only):
            continue
        cells: Cells = {}
        for setting in settings:
            one = contestants.peer(name, model, arguments.peers, setting)
            with started([one], PROBE) as running:
                for count in CALLERS[1:] * arguments.rounds:
                    load = running[0].load(models.short_texts(), callers=count, warm_s=1.0,
                                           seconds=arguments.seconds)
                    result, key = measure(running[0], load), str(setting)
                    say(f"{name} {key} {count} {result}")
                    cells.setdefault(f"closed {count}", {}).setdefault(key, []).append(result)
        found[name] = medians(cells)
    return found


def chosen(name: str, only: Sequence[str]) -> bool:
    """Whether a server is wanted."""
    return not only or any(word in name for word in only)


def asked_by(client: str, one: Contestant) -> Contestant:
    """Return a server that is asked by a client of gRPC if it speaks that."""
    return replace(one, protocol=client) if one.protocol == "grpc" else one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=models.CACHE, help="exported models")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--model", choices=sorted(models.CLASSIFIERS), default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--texts", nargs="+", default=["short", "mixed"])
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD",
                        help="servers with one of these words in their name")
    parser.add_argument("--part", nargs="+", default=["texts", "trivial"],
                        choices=("texts", "trivial"))
    parser.add_argument("--grpc_client", choices=("grpc", "grpcio"), default="grpc",
                        help="what gRPC is asked by; see benchmarks/load.py")
    parser.add_argument("--tune", action="store_true", help="measure settings of the peers, end")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "python": platform.python_version(), "machine": machine(), "model": arguments.model,
        "rounds": arguments.rounds, "seconds": arguments.seconds,
        "grpc_client": arguments.grpc_client}
    if arguments.tune:
        found["tune"] = tune_part(arguments)
    else:
        parts = {"texts": texts_part, "trivial": trivial_part}
        found |= {name: parts[name](arguments) for name in arguments.part}
    found["load_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
