"""Our decoders beside KerasHub, llama.cpp, OpenVINO, CTranslate2 and torch, same weights for all.

    python -m benchmarks.decode --peers DIR --shape gpt2 --prompt 32 > gpt2-32.json
    python -m benchmarks.decode --peers DIR --shape gpt2 --only tf_infer llama --rows 1
    python -m benchmarks.decode --peers DIR --minutes 12       # rounds end before that

Prints one JSON object. Every contestant is a process of its own that has two threads and is frozen
(SIGSTOP) when it is not its turn. In each round every contestant has its turn at every cell (prompt
length x rows): a whole call of 64 new tokens, prefill included, and a call of one new token. The
first round warms up. Figures are medians over the rounds with their least and greatest value;
a ratio is the median of the rounds' ratios.

    tokens_per_s    new tokens of all rows by the seconds of a whole call
    first_ms        seconds of a call of one new token: time to the first token
    prefill_per_s   prompt tokens of all rows by the same seconds
    step_per_s      tokens after the first, by the seconds between the two calls
    same_first, same_all    share of rows whose first id, share of all ids in front of a row's first
                    difference, equal those of torch float32; weights are random, so logits are flat
    memory_mb       resident when loaded, and the most there was at the end

Greedy, end ids ignored. Peers live in environments below `--peers`; who is missing, does not start
or fails is left out, which standard error and `left_out` say:

    for name in llama openvino ct2 torch; do python3.11 -m venv peers/$name; done
    peers/torch/bin/pip install torch transformers
    peers/ct2/bin/pip install ctranslate2 torch transformers
    peers/openvino/bin/pip install openvino-genai openvino-tokenizers optimum-intel nncf torch
    peers/llama/bin/pip download --no-deps --no-binary :all: llama-cpp-python
    mkdir peers/llama/src; tar xf llama_cpp_python-*.tar.gz -C peers/llama/src --strip-components=1
    peers/llama/bin/pip install peers/llama/src torch transformers sentencepiece

(GCC 12 drops the stores of the tile configuration in llama.cpp 0c1e570, which then ends with an
illegal instruction on CPUs with AMX: put `asm volatile("" : : "r"(&tc) : "memory");` before
`_tile_loadconfig` in ggml/src/ggml-cpu/amx/mmq.cpp.)

KerasHub runs in this Python. Converted models go into `--cache`; see benchmarks/decoders.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import decoders
from benchmarks.client import machine
from benchmarks.contestants import QUIET
from benchmarks.server import say

HERE = Path(__file__).resolve().parent
REFERENCE = "torch float32"
PATIENCE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One way to run a decoder.

    Attributes:
        name: in the results.
        script: of benchmarks/peers/.
        form: what the script is asked for.
        model: a form of benchmarks/decoders.py.
        venv: environment below `--peers`; "" for this Python.
        first: whether calls of one token are measured too.
    """

    name: str
    script: str
    form: str
    model: str
    venv: str = ""
    first: bool = True


CONTESTANTS = (
    Contestant(name="tf_infer engine int8", script="ours", form="engine", model="ours-engine"),
    *(Contestant(name=f"tf_infer portable {precision}", script="ours", form="saved_model",
                 model=f"ours-{precision}") for precision in ("bfloat16", "int8")),
    Contestant(name="llama.cpp q8_0", script="llama", form="flash", model="q8_0.gguf",
               venv="llama"),
    *(Contestant(name=f"OpenVINO {name} int8 {precision}", script="openvino",
                 form=f"{form}-{precision}", model="openvino-int8", venv="openvino")
      for form, name in (("loop", "loop"), ("genai", "GenAI")) for precision in ("f32", "bf16")),
    Contestant(name="CTranslate2 int8", script="ct2", form="int8", model="ct2-int8", venv="ct2"),
    Contestant(name="torch bfloat16", script="torch", form="bfloat16", model="checkpoint",
               venv="torch"),
    Contestant(name=REFERENCE, script="torch", form="float32", model="checkpoint", venv="torch"),
    Contestant(name="KerasHub graph", script="keras", form="graph", model="checkpoint"),
    # XLA compiles each length anew, which a call of one token would double.
    Contestant(name="KerasHub XLA", script="keras", form="xla", model="checkpoint", first=False),
)


class Cell(NamedTuple):
    """One load: prompts of a length, and how many at once."""

    prompt: int
    rows: int

    def __str__(self) -> str:
        return f"prompt {self.prompt}, {self.rows} rows"


# ---------------------------------------------------------------------------- running


class Running:
    """A contestant's process.

    Raises:
        RuntimeError: it ended, or did not answer for PATIENCE_S.
    """

    def __init__(self, contestant: Contestant, model: Path, peers: Path | None) -> None:
        self.contestant = contestant
        python = (peers or Path()) / contestant.venv / "bin/python"
        command = [str(python.absolute()) if contestant.venv else sys.executable,
                   str(HERE / "peers" / f"{contestant.script}_decoder.py"),
                   json.dumps({"model": str(model), "form": contestant.form,
                               "positions": decoders.POSITIONS})]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "2")
        path = f"{HERE / 'peers'}:{HERE.parent}"
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True, env=os.environ | QUIET | threads | {"PYTHONPATH": path})
        self.loaded = self._answer()

    def ask(self, prompts: Sequence[dict[str, Any]], new_tokens: int) -> dict[str, Any]:
        """Let the process run for one call, and return its answer."""
        self.freeze(frozen=False)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({
            "ids": [one["ids"] for one in prompts], "texts": [one["text"] for one in prompts],
            "new_tokens": new_tokens}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.freeze()
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE_S)
        if not ready or not (line := self.process.stdout.readline()):
            self.stop()
            raise RuntimeError(f"{self.contestant.name} "
                               + ("ended; what it said is above" if ready else "did not answer"))
        found: dict[str, Any] = json.loads(line)
        return found

    def freeze(self, *, frozen: bool = True) -> None:
        """Stop the process, or let it go on."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """End the process and what it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def started(group: Sequence[Contestant], shape: str, arguments: argparse.Namespace,
            left_out: dict[str, str]) -> Iterator[list[Running]]:
    """Start contestants one after the other, frozen, and end them afterwards."""
    with ExitStack() as stack:
        found = []
        for one in group:
            if one.venv and not (arguments.peers and (arguments.peers / one.venv).is_dir()):
                left_out[one.name] = f"no environment {one.venv!r} below --peers"
                say(f"left out: {one.name}: {left_out[one.name]}")
                continue
            try:
                model = decoders.form(one.model, shape, arguments.cache, arguments.peers)
                running = Running(one, model, arguments.peers)
            except RuntimeError as error:
                left_out[one.name] = str(error)
                say(f"left out: {one.name}: {error}")
                continue
            stack.callback(running.stop)
            running.freeze()
            say(f"{one.name} ready: {running.loaded}")
            found.append(running)
        yield found


Cells = dict[Cell, dict[str, list[dict[str, Any]]]]  # cell -> contestant -> one result a round


def compare(group: list[Running], cells: Sequence[Cell], prompts: dict[int, list[dict[str, Any]]],
            rounds: int, until_s: float, left_out: dict[str, str]) -> Cells:
    """Measure everybody in alternating rounds, none begun that would end after `until_s`.

    Who fails is noted in `left_out`, and does not take part any more.
    """
    found: Cells = {}
    longest_s = 0.0
    for number in range(rounds + 1):
        began_s = time.monotonic()
        if number > 1 and began_s + longest_s > until_s:
            say(f"no time for round {number} of {rounds}")
            break
        for cell in cells:
            for one in list(group if number % 2 else group[::-1]):
                try:
                    result = measure(one, cell, prompts[cell.prompt], number)
                except RuntimeError as error:
                    say(f"left out from here on: {error}")
                    group.remove(one)
                    left_out[one.contestant.name] = f"{error}, at {cell}"
                    continue
                say(f"  round {number} {cell}: {one.contestant.name:22} "
                    f"{result['seconds']:.3f} s, first {result['first_s']} s")
                if number:
                    row = found.setdefault(cell, {})
                    row.setdefault(one.contestant.name, []).append(result)
        longest_s = time.monotonic() - began_s
    return found


def measure(one: Running, cell: Cell, prompts: Sequence[dict[str, Any]], number: int
            ) -> dict[str, Any]:
    """Ask for a whole call, and for one of a single token, with prompts of their own.

    Nobody sees a prompt twice in four rounds: some keep what they have read.
    """
    first, whole = (
        [prompts[(place + row) % len(prompts)] for row in range(cell.rows)]
        for place in (2 * number * cell.rows, (2 * number + 1) * cell.rows))
    answer = one.ask(whole, decoders.NEW_TOKENS)
    first_s = round(one.ask(first, 1)["seconds"], 4) if one.contestant.first else None
    return {"seconds": answer["seconds"], "first_s": first_s, "ids": answer["ids"],
            "peak_mb": answer["peak_mb"], **rates(cell, answer["seconds"], first_s)}


# ---------------------------------------------------------------------------- reporting


def rates(cell: Cell, whole_s: float, first_s: float | None) -> dict[str, float]:
    """Return what the seconds of both calls come to."""
    found = {"tokens_per_s": cell.rows * decoders.NEW_TOKENS / whole_s}
    if first_s is not None:
        found |= {"first_ms": 1000 * first_s, "prefill_per_s": cell.rows * cell.prompt / first_s}
        if whole_s > first_s:
            found["step_per_s"] = cell.rows * (decoders.NEW_TOKENS - 1) / (whole_s - first_s)
    return found


RATES = ("tokens_per_s", "first_ms", "prefill_per_s", "step_per_s")


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return median, least and greatest of every figure over the rounds."""
    found = {}
    for name in RATES:
        values = [result[name] for result in results if name in result]
        if values:
            found[name] = [round(value, 1) for value in (
                statistics.median(values), min(values), max(values))]
    return found


def agreement(ids: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return which share of rows begins alike, and of ids stands before a first difference."""
    equal = [next((place for place, (a, b) in enumerate(zip(row, other)) if a != b), len(other))
             for row, other in zip(ids, reference)]
    return {"same_first": round(sum(count > 0 for count in equal) / len(equal), 3),
            "same_all": round(sum(equal) / sum(map(len, reference)), 3)}


def ratios(row: dict[str, list[dict[str, Any]]], ours: str, name: str = "tokens_per_s"
           ) -> dict[str, float]:
    """Return the median over the rounds of one of ours by each peer, and by the best of a round."""
    found = {}
    theirs = {peer: results for peer, results in row.items()
              if not peer.startswith("tf_infer") and name in results[0]}
    for peer, results in theirs.items():
        found[peer] = [a[name] / b[name] for a, b in zip(row[ours], results)]
    if theirs:
        found["the best of them"] = [a[name] / max(b[name] for b in others)
                                     for a, *others in zip(row[ours], *theirs.values())]
    return {peer: round(statistics.median(values), 3) for peer, values in found.items()}


def report(cells: Cells) -> dict[str, Any]:
    """Return the results of one shape."""
    found: dict[str, Any] = {}
    for cell, row in cells.items():
        told: dict[str, Any] = {name: summary(results) for name, results in row.items()}
        if REFERENCE in row:
            for name, results in row.items():
                told[name] |= agreement(results[-1]["ids"], row[REFERENCE][-1]["ids"])
        mine = [name for name in row if name.startswith("tf_infer")]
        found[str(cell)] = {"contestants": told, "ratios": {
            name: {"tokens_per_s": ratios(row, name),
                   "prefill_per_s": ratios(row, name, "prefill_per_s")} for name in mine}}
    return found


def shape_part(shape: str, arguments: argparse.Namespace, until_s: float) -> dict[str, Any]:
    """Compare everybody on one shape."""
    group = [one for one in CONTESTANTS if not arguments.only or any(
        word in one.name for word in arguments.only)]
    prompts = decoders.prompts(shape, arguments.cache, arguments.peers)
    cells = [Cell(prompt, rows) for prompt in arguments.prompt for rows in arguments.rows]
    left_out: dict[str, str] = {}
    with started(group, shape, arguments, left_out) as running:
        found = compare(list(running), cells, prompts, arguments.rounds, until_s, left_out)
        memory: dict[str, dict[str, Any]] = {
            one.contestant.name: dict(one.loaded) for one in running}
    for row in found.values():
        for name, results in row.items():
            memory[name]["peak_mb"] = max(memory[name]["peak_mb"], results[-1]["peak_mb"])
    return {"rounds": max((len(one) for row in found.values() for one in row.values()), default=0),
            "cells": report(found), "loaded": memory, "left_out": left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--cache", type=Path, default=decoders.CACHE, help="converted models")
    parser.add_argument("--shape", nargs="+", choices=sorted(decoders.SHAPES),
                        default=["gpt2", "llama"])
    parser.add_argument("--prompt", nargs="+", type=int, choices=decoders.PROMPTS,
                        default=list(decoders.PROMPTS))
    parser.add_argument("--rows", nargs="+", type=int, choices=decoders.ROWS,
                        default=list(decoders.ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=60.0,
                        help="begin no round that would end later")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD",
                        help="contestants with one of these words in their name")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that those frozen are ended
    until_s = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {
        "python": platform.python_version(), "machine": machine(),
        "new_tokens": decoders.NEW_TOKENS}
    found["shapes"] = {shape: shape_part(shape, arguments, until_s) for shape in arguments.shape}
    found["load_after"] = round(os.getloadavg()[0], 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
