"""What a prepared graph saves a load, and whether it answers as the SavedModel beside it.

    python -m benchmarks.prepared > benchmarks/results/prepared.json

A classifier of the server benchmarks is loaded, warmed up and proven in this process, as a server
does beside other calls, in alternating rounds: with TensorFlow's optimiser over `saved_model.pb`,
and the graph that the export has prepared. Then both are asked the same texts. Prints one JSON
object: processor time of each load; the longest pieces of a load, and of letting a version go, in
which nobody else had the interpreter lock; outputs that differ in any bit, of how many; and
processor time of a call, prepared by plain, the median over rounds. Engines are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.client import machine
from tf_infer.prepared import read_prepared
from tf_infer.server import memory

ROWS, TEXTS = (1, 8, 32), 256


def load(folder: Path, way: str) -> tuple[Any, float, list[float]]:
    """Return the servable of a version, the processor time of its load, and `held` of it."""
    from tf_infer.server.config import ModelConfig, ServerConfig
    from tf_infer.server.cpus import SHORT_TURNS
    from tf_infer.server.servable import load_version
    from tf_infer.server.session_config import session_config

    config = ServerConfig(classifier_engine="saved_model", models=(
        ModelConfig(name=folder.parent.name, base_path=str(folder.parent.resolve())),))
    settings = session_config(config)
    if way == "plain":  # whoever configures the optimiser, if only by default, has their way
        settings.graph_options.rewrite_options.SetInParent()
    began = time.process_time()
    with SHORT_TURNS:
        (servable, _), pieces = held(
            lambda: load_version(folder, config, settings=settings, gently=True))
    return servable, time.process_time() - began, pieces


def let_go(servables: list[Any]) -> list[float]:
    """Close the only servable of a list, as a server does; return `held` of it."""
    def act() -> None:
        servables.pop().close()
        memory.give_back()

    return held(act)[1]


def held(act: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Return what a call gives, and the longest times for which its thread kept the lock.

    In milliseconds of that thread's processor time between two turns of this one, which asks for
    the interpreter lock all the time; so what others do on the machine counts little.
    """
    pieces: list[float] = []
    with ThreadPoolExecutor(1) as own:
        clock = time.pthread_getcpuclockid(own.submit(threading.get_ident).result())
        doing, last = own.submit(act), time.clock_gettime(clock)
        while not doing.done():
            time.sleep(0.0005)
            now = time.clock_gettime(clock)
            pieces.append(round(1000 * (now - last), 1))
            last = now
        return doing.result(), sorted(pieces, reverse=True)[:5]


def differing(servables: dict[str, Any], texts: list[bytes]) -> tuple[int, int]:
    """Return how many outputs differ in any bit, and of how many."""
    outputs = sorted(servables["plain"].signatures["serving_default"].outputs)
    other = count = 0
    for rows in ROWS:
        for begin in range(0, TEXTS, rows):
            asked = {"text": np.array(texts[begin:begin + rows], object)}
            plain, prepared = (servable.run("serving_default", asked, outputs=outputs,
                                            timeout_s=None) for servable in servables.values())
            other += sum(plain[name].tolist() != prepared[name].tolist() for name in outputs)
            count += len(outputs)
    return other, count


def calls(servables: dict[str, Any], texts: list[bytes], rows: int, rounds: int) -> float:
    """Return the processor time of a call of some rows, prepared by plain."""
    spent: dict[str, list[float]] = {way: [] for way in servables}
    for number in range(rounds):
        for way in (list(servables) if number % 2 else list(servables)[::-1]):
            began = time.process_time()
            for one in range(max(2, 32 // rows)):
                at = (number * 97 + one * rows) % (len(texts) - rows)
                servables[way].run("serving_default", outputs=("label", "score"), timeout_s=None,
                                   inputs={"text": np.array(texts[at:at + rows], object)})
            spent[way].append(time.process_time() - began)
    return statistics.median(b / a for a, b in zip(spent["plain"], spent["prepared"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=models.CACHE, help="exported models")
    parser.add_argument("--model", choices=sorted(models.CLASSIFIERS), default="tiny")
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20, help="of calls")
    arguments = parser.parse_args()
    folder = models.exported(arguments.cache, arguments.model) / "1"
    if read_prepared(folder) is None:
        raise SystemExit(f"{folder} has no prepared graph: remove it, and it is exported again")
    texts = [text.encode() for text in models.mixed_texts()]
    spent: dict[str, list[float]] = {"plain": [], "prepared": []}
    servables: dict[str, Any] = {}
    kept: dict[str, dict[str, list[list[float]]]] = {
        way: {"load": [], "unload": []} for way in spent}
    from tf_infer.server import servable  # noqa: F401  TensorFlow, which never goes

    memory.settle()
    for _ in range(arguments.loads + 1):
        for way in spent:
            if way in servables:
                kept[way]["unload"].append(let_go([servables.pop(way)]))
            servables[way], seconds, pieces = load(folder, way)
            spent[way].append(round(seconds, 2))
            kept[way]["load"].append(pieces)
            print(f"{way}: {seconds:.2f} s {kept[way]}", file=sys.stderr)
    for way in spent:  # the first loads what a process loads once
        del spent[way][0], kept[way]["load"][0]
    servables = {way: servables[way] for way in spent}
    other, count = differing(servables, texts)
    sizes = {path.name: path.stat().st_size for path in
             (folder / "saved_model.pb", *(folder / "assets.extra/prepared").glob("*.pb"))}
    print(json.dumps({
        "machine": machine(), "model": arguments.model, "load_cpu_s": spent,
        "prepared / plain": round(statistics.median(spent["prepared"])
                                  / statistics.median(spent["plain"]), 3),
        "lock_held_ms": kept,
        "outputs": count, "outputs_that_differ": other, "bytes": sizes,
        "call, prepared / plain": {rows: round(calls(servables, texts, rows, arguments.rounds), 3)
                                   for rows in ROWS}}, indent=1))


if __name__ == "__main__":
    main()
