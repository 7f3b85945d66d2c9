"""What a prepared graph saves a load, and whether it answers as the SavedModel beside it.

    python -m benchmarks.prepared > benchmarks/results/prepared.json

A classifier of the server benchmarks is loaded, warmed up and proven in this process, as a server
does beside other calls, in alternating rounds: with TensorFlow's optimiser over `saved_model.pb`,
and the graph that the export has prepared. Then both are asked the same texts. Prints one JSON
object: processor time of each load; outputs that differ in any bit, of how many; and processor
time of a call, prepared by plain, the median over rounds. Engines are left out.
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

from benchmarks import models
from benchmarks.client import machine
from tf_infer.prepared import read_prepared

ROWS, TEXTS = (1, 8, 32), 256


def load(folder: Path, way: str) -> tuple[Any, float]:
    """Return the servable of a version, and the processor time that its load took."""
    from tf_infer.server.config import ModelConfig, ServerConfig
    from tf_infer.server.servable import load_version
    from tf_infer.server.session_config import session_config

    config = ServerConfig(classifier_engine="saved_model", models=(
        ModelConfig(name=folder.parent.name, base_path=str(folder.parent.resolve())),))
    settings = session_config(config)
    if way == "plain":  # whoever configures the optimiser, if only by default, has their way
        settings.graph_options.rewrite_options.SetInParent()
    began = time.process_time()
    servable, _ = load_version(folder, config, settings=settings, gently=True)
    return servable, time.process_time() - began


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
    for _ in range(arguments.loads):
        for way in spent:
            if way in servables:
                servables.pop(way).close()
            servables[way], seconds = load(folder, way)
            spent[way].append(round(seconds, 2))
            print(f"{way}: {seconds:.2f} s", file=sys.stderr)
    servables = {way: servables[way] for way in spent}
    other, count = differing(servables, texts)
    sizes = {path.name: path.stat().st_size for path in
             (folder / "saved_model.pb", *(folder / "assets.extra/prepared").glob("*.pb"))}
    print(json.dumps({
        "machine": machine(), "model": arguments.model, "load_cpu_s": spent,
        "prepared / plain": round(statistics.median(spent["prepared"])
                                  / statistics.median(spent["plain"]), 3),
        "outputs": count, "outputs_that_differ": other, "bytes": sizes,
        "call, prepared / plain": {rows: round(calls(servables, texts, rows, arguments.rounds), 3)
                                   for rows in ROWS}}, indent=1))


if __name__ == "__main__":
    main()
