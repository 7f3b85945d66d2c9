"""How long does the first call of each length and batch take, after warm-up?

    python -m benchmarks.first_calls > benchmarks/results/first_calls.json
    python -m benchmarks.first_calls --model saved_models/writer --new 16

Each round is a process of its own: a server loads the version, replays its warm-up requests, and is
then asked over gRPC for every cell of the version's grid (rows x tokens), in another order each
round, by texts that warm-up has not seen. Prints one JSON object:

    load_s, warmup_s, warmup_cpu_s     of the version, each round; `records` warm-up requests
    cells[kind]    for each cell the first call, the median of the later ones, and their difference,
                   the pause: medians over the rounds, and the longest pause of any round;
                   `spread_ms` is how far the slowest of the later calls lay above their median
    options        the same for the first call that asks for something, of one row
    broken         cells whose pause (the median) is above the bound

Without --model a decoder of random weights is exported: 6 layers of width 384, bytes as tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.client import machine
from benchmarks.contestants import free_ports
from benchmarks.models import ROOT

BOUND_MS = 50.0
NAME = "writer"
ROWS, TOKENS, POSITIONS = (1, 8, 32), (16, 64, 128), 192
# what `generate` is asked for: None is a call of serving_default
KINDS: dict[str, dict[str, Any] | None] = {
    "serving_default": None, "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_p": 0.9}, "asked": {"temperature": 0.0, "stop": ["zqx"]}}
OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0}, "typical_p": {"temperature": 1.0, "typical_p": 0.5},
    "logprobs": {"logprobs": 2}, "stop": {"stop": ["zqx"]}, "stop_ids": {"stop_ids": [5]},
    "banned": {"banned": ["zqx"]}, "logit_bias": {"logit_bias": {5: 1.0}},
    "repetition_penalty": {"repetition_penalty": 1.2}, "min_new_tokens": {"min_new_tokens": 2},
    "forced_prefix": {"forced_prefix": "a"}, "choices": {"choices": ["yes", "no"]}}
TEXT = "Once upon a time there was a little robot who wanted to know why the sky is blue. "


def export(folder: Path, layers: int, width: int, capacity: int) -> Path:
    """Write a decoder of random weights; return the folder of its versions."""
    from benchmarks.forms import save_version
    from tf_infer import config
    from tf_infer.tasks import build

    task = build.build(config.CausalLMConfig(
        network=config.SmallTransformerConfig(
            width=width, layers=layers, heads=max(1, width // 64), hidden=4 * width,
            max_positions=POSITIONS),
        packing=config.PackingConfig(max_tokens=TOKENS[-1], end=False, truncation="left"),
        grid=config.ShapeGrid(rows=ROWS, tokens=TOKENS), capacity=capacity,
        defaults=config.GenerationDefaults(max_new_tokens=capacity)), seed=0)
    return save_version(task, folder / NAME, NAME).parent


# ---------------------------------------------------------------------------- one round


def measure(base_dir: Path, seed: int, new: int, later: int) -> dict[str, Any]:
    """Serve the newest version in this process, and ask it."""
    from tf_infer.client import Client
    from tf_infer.manifest import read_manifest
    from tf_infer.server.app import Server
    from tf_infer.server.config import ModelConfig, ServerConfig
    from tf_infer.server.contracts import LoadTimes, Servable
    from tf_infer.server.servable import load_version

    told: dict[str, Any] = {}
    config = ServerConfig(models=(ModelConfig(name=NAME, base_path=str(base_dir)),),
                          port=free_ports(1)[0], host="localhost", poll_s=0)

    def load(path: Path) -> tuple[Servable, LoadTimes]:
        begun_s = time.process_time()
        servable, times = load_version(path, config)
        told.update(load_s=times.load_s, warmup_s=times.warmup_s, records=times.warmup_records,
                    load_and_warmup_cpu_s=time.process_time() - begun_s, path=str(path))
        return servable, times

    with Server(config, load=load) as server, Client(server.addresses[0]) as client:
        grid = read_manifest(Path(told["path"])).grid
        texts = _texts(client, grid.tokens)
        told["grid"] = {"rows": list(grid.rows), "tokens": list(grid.tokens)}
        cells = [(kind, rows, tokens) for kind in KINDS for rows in grid.rows
                 for tokens in grid.tokens]
        random.Random(seed).shuffle(cells)
        told["cells"] = [
            {"kind": kind, "rows": rows, "tokens": tokens, **_timed(
                _asking(client, [texts[tokens]] * rows, KINDS[kind], new), later)}
            for kind, rows, tokens in cells]
        one = texts[grid.tokens[0]]
        told["options"] = [{"option": name, **_timed(_asking(client, [one], asked, new), later)}
                           for name, asked in OPTIONS.items()]
    return told


def _texts(client: Any, buckets: Sequence[int]) -> dict[int, str]:
    """Return a text of as many tokens as each bucket has; the server counts them."""
    from tf_infer.export.warmup import texts_of_lengths

    def count(texts: Sequence[bytes]) -> list[int]:
        # A few at a time, so that no run has more rows than the grid.
        found: list[int] = []
        for text in texts:
            mask = client.predict(NAME, {"text": [text]}, signature="encode")["mask"]
            found.append(int(mask.sum()))
        return found

    return {tokens: text.decode()
            for tokens, text in zip(buckets, texts_of_lengths(count, TEXT, buckets))}


def _asking(client: Any, prompts: list[str], asked: Mapping[str, Any] | None, new: int
            ) -> Callable[[], Any]:
    if asked is None:
        return lambda: client.generate(NAME, prompts, timeout_s=600)
    known = {name: asked[name] for name in ("temperature", "top_p", "stop", "logprobs")
             if name in asked}
    others = {name: value for name, value in asked.items() if name not in known}
    return lambda: client.generate(NAME, prompts, max_new_tokens=new, options=others or None,
                                   timeout_s=600, **known)


def _timed(ask: Callable[[], Any], later: int) -> dict[str, Any]:
    spent = []
    for _ in range(1 + later):
        begun_s = time.perf_counter()
        ask()
        spent.append((time.perf_counter() - begun_s) * 1e3)
    usual = statistics.median(spent[1:])
    return {"first_ms": spent[0], "later_ms": usual, "pause_ms": spent[0] - usual,
            "spread_ms": max(spent[1:]) - usual}


# ---------------------------------------------------------------------------- all rounds


def together(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the medians of rows that are named alike, in the order of the first round's names."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in found:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    figures = ("first_ms", "later_ms", "pause_ms", "spread_ms")
    return [{**dict(zip(names, key)),
             **{figure: round(statistics.median(row[figure] for row in rows), 1)
                for figure in figures},
             "longest_pause_ms": round(max(row["pause_ms"] for row in rows), 1)}
            for key, rows in sorted(groups.items(), key=lambda item: str(item[0]))]


def report(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    cells = together([row for one in rounds for row in one["cells"]], ("kind", "rows", "tokens"))
    return {
        "grid": rounds[0]["grid"], "records": rounds[0]["records"],
        **{name: [round(one[name], 2) for one in rounds]
           for name in ("load_s", "warmup_s", "load_and_warmup_cpu_s")},
        "bound_ms": BOUND_MS, "longest_pause_ms": max(row["pause_ms"] for row in cells),
        "broken": [row for row in cells if row["pause_ms"] > BOUND_MS],
        "cells": {kind: [{name: value for name, value in row.items() if name != "kind"}
                         for row in cells if row["kind"] == kind] for kind in KINDS},
        "options": together([row for one in rounds for row in one["options"]], ("option",))}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a decoder's versions")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--new", type=int, default=8, help="tokens of a continuation")
    parser.add_argument("--later", type=int, default=5, help="calls of a cell behind the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.round is not None:
        print(json.dumps(measure(arguments.model, arguments.round, arguments.new,
                                 arguments.later)))
        return
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or export(Path(folder), arguments.layers, arguments.width,
                                          arguments.new)
        rounds = []
        for number in range(arguments.rounds):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.first_calls", "--model", str(model), "--new",
                 str(arguments.new), "--later", str(arguments.later), "--round", str(number)],
                stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number}: warm-up {rounds[-1]['warmup_s']:.1f} s", file=sys.stderr)
    what = (arguments.model.name if arguments.model
            else f"{arguments.layers} layers of width {arguments.width}")
    print(json.dumps({"machine": before, "load_after": round(os.getloadavg()[0], 2),
                      "model": what, "new_tokens": arguments.new, **report(rounds)}, indent=2))


if __name__ == "__main__":
    main()
