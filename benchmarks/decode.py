"""Our decoders beside KerasHub, llama.cpp, OpenVINO, CTranslate2 and torch, same weights for all.

    python -m benchmarks.decode --peers DIR --shape gpt2 --prompt 32 > gpt2-32.json
    python -m benchmarks.decode --peers DIR --shape gpt2 --only tf_infer llama --rows 1
    python -m benchmarks.decode --peers DIR --minutes 12       # rounds end before that
    python -m benchmarks.decode --peers DIR --lengths mixed    # rows end at 8 to 64 new tokens

Prints one JSON object. Every contestant is a process of its own that has a thread for each CPU,
where its name does not say "one thread", and is frozen (SIGSTOP) when it is not its turn. In each
round every contestant has its turn at every cell (prompt length x rows): a whole call of 64 new
tokens, prefill included, and a call of one new token. The first round warms up. Figures are medians
over the rounds with their least and greatest value; a ratio is the median of the rounds' ratios.

    tokens_per_s    new tokens of all rows by the seconds of a whole call
    first_ms        seconds of a call of one new token: time to the first token
    prefill_per_s   prompt tokens of all rows by the same seconds
    step_per_s      tokens after the first, by the seconds between the two calls
    same_first, same_all    share of rows whose first id, share of all ids in front of a row's first
                    difference, equal those of torch float32; weights are random, so logits are flat
    loaded          MB resident when loaded (`resident_mb`), after the last call (`end_mb`), of
                    which pages of files that the system may take back (`end_file_mb`), and the
                    most there was (`peak_mb`)

"tf_infer sweep of int8 weights" computes nothing: it reads the engine's int8 weights once for a
prompt and once a token, a part on each CPU. Nobody with weights of 8 bits has more tokens a second
at one row, whatever the engine: its ratio to a peer is the most that could be.

Greedy, end ids ignored. With `--lengths mixed` each row wants a number of tokens of its own, and
only these count; who cannot let a row end makes all rows as long as the longest (all but our
portable forms). Peers live in environments below `--peers`; who is missing, does not start
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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks import decoders, pipes
from benchmarks.pipes import Contestant, Running
from benchmarks.server import say

REFERENCE = "torch float32"


@dataclass(frozen=True, kw_only=True)
class Decoder(Contestant):
    """One way to run a decoder.

    Attributes:
        first: whether calls of one token are measured too.
    """

    first: bool = True


CONTESTANTS = (
    Decoder(name="tf_infer engine int8", script="ours_decoder", form="engine",
            model="ours-engine"),
    Decoder(name="tf_infer sweep of int8 weights", script="ours_decoder", form="sweep",
            model="ours-engine"),
    *(Decoder(name=f"tf_infer portable {precision}", script="ours_decoder", form="saved_model",
              model=f"ours-{precision}") for precision in ("bfloat16", "int8")),
    Decoder(name="tf_infer portable int8, one thread", script="ours_decoder", form="saved_model-1",
            model="ours-int8"),
    Decoder(name="tf_infer portable int8, one thread, no AMX", script="ours_decoder",
            form="saved_model-vnni-1", model="ours-int8"),
    Decoder(name="llama.cpp q8_0", script="llama_decoder", form="flash", model="q8_0.gguf",
            venv="llama"),
    *(Decoder(name=f"OpenVINO {name} int8 {precision}", script="openvino_decoder",
              form=f"{form}-{precision}", model="openvino-int8", venv="openvino")
      for form, name in (("loop", "loop"), ("genai", "GenAI")) for precision in ("f32", "bf16")),
    Decoder(name="CTranslate2 int8", script="ct2_decoder", form="int8", model="ct2-int8",
            venv="ct2"),
    Decoder(name="torch bfloat16", script="torch_decoder", form="bfloat16", model="checkpoint",
            venv="torch"),
    Decoder(name=REFERENCE, script="torch_decoder", form="float32", model="checkpoint",
            venv="torch"),
    Decoder(name="KerasHub graph", script="keras_decoder", form="graph", model="checkpoint"),
    Decoder(name="KerasHub graph, one thread", script="keras_decoder", form="graph-1",
            model="checkpoint"),
    # XLA compiles each length anew, which a call of one token would double.
    Decoder(name="KerasHub XLA", script="keras_decoder", form="xla", model="checkpoint",
            first=False),
)


class Cell(NamedTuple):
    """One load: prompts of a length, and how many at once."""

    prompt: int
    rows: int
    mixed: bool = False

    def __str__(self) -> str:
        return f"prompt {self.prompt}, {self.rows} rows" + ", mixed lengths" * self.mixed


def measure(one: Running, cell: Cell, prompts: Sequence[dict[str, Any]], number: int
            ) -> dict[str, Any]:
    """Ask for a whole call, and for one of a single token, with prompts of their own.

    Nobody sees a prompt twice in four rounds: some keep what they have read.
    """
    first, whole = (
        [prompts[(place + row) % len(prompts)] for row in range(cell.rows)]
        for place in (2 * number * cell.rows, (2 * number + 1) * cell.rows))
    lengths = decoders.lengths(cell.rows, number if cell.mixed else None)
    answer = ask(one, whole, lengths)
    first_s = (round(ask(one, first, [1] * cell.rows)["seconds"], 4) if one.contestant.first
               else None)
    say(f"  round {number} {cell}: {one.contestant.name:22} {answer['seconds']:.3f} s, "
        f"first {first_s} s")
    return {"seconds": answer["seconds"], "first_s": first_s, "ids": answer["ids"],
            **{key: answer[key] for key in ("peak_mb", "resident_mb", "file_mb")},
            **rates(cell, sum(lengths), answer["seconds"], first_s)}


def ask(one: Running, prompts: Sequence[dict[str, Any]], lengths: Sequence[int]
        ) -> dict[str, Any]:
    """Let a contestant continue prompts, each by so many tokens."""
    return one.ask({"ids": [prompt["ids"] for prompt in prompts],
                    "texts": [prompt["text"] for prompt in prompts], "lengths": lengths})


# ---------------------------------------------------------------------------- reporting


def rates(cell: Cell, tokens: int, whole_s: float, first_s: float | None) -> dict[str, float]:
    """Return what the seconds of both calls come to; the whole one was asked for `tokens`."""
    found = {"tokens_per_s": tokens / whole_s}
    if first_s is not None:
        found |= {"first_ms": 1000 * first_s, "prefill_per_s": cell.rows * cell.prompt / first_s}
        if whole_s > first_s:
            found["step_per_s"] = (tokens - cell.rows) / (whole_s - first_s)
    return found


RATES = ("tokens_per_s", "first_ms", "prefill_per_s", "step_per_s")


def agreement(ids: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict[str, float]:
    """Return which share of rows begins alike, and of ids stands before a first difference."""
    equal = [next((place for place, (a, b) in enumerate(zip(row, other)) if a != b), len(other))
             for row, other in zip(ids, reference)]
    return {"same_first": round(sum(count > 0 for count in equal) / len(equal), 3),
            "same_all": round(sum(equal) / sum(map(len, reference)), 3)}


def report(cells: pipes.Cells[Cell]) -> dict[str, Any]:
    """Return the results of one shape."""
    found: dict[str, Any] = {}
    for cell, row in cells.items():
        told: dict[str, Any] = {name: pipes.summary(results, RATES)
                                for name, results in row.items()}
        if REFERENCE in row:
            for name, results in row.items():
                told[name] |= agreement(results[-1]["ids"], row[REFERENCE][-1]["ids"])
        mine = [name for name in row if name.startswith(pipes.OURS)]
        found[str(cell)] = {"contestants": told, "ratios": {
            name: {rate: pipes.ratios(row, name, rate)
                   for rate in ("tokens_per_s", "prefill_per_s")} for name in mine}}
    return found


def shape_part(shape: str, arguments: argparse.Namespace, until_s: float) -> dict[str, Any]:
    """Compare everybody on one shape."""
    prompts = decoders.prompts(shape, arguments.cache, arguments.peers)
    cells = [Cell(prompt, rows, arguments.lengths == "mixed")
             for prompt in arguments.prompt for rows in arguments.rows]
    left_out: dict[str, str] = {}

    def settings(one: Contestant) -> dict[str, Any]:
        model = decoders.form(one.model, shape, arguments.cache, arguments.peers)
        return {"model": str(model), "form": one.form, "positions": decoders.POSITIONS}

    with pipes.started(pipes.chosen(CONTESTANTS, arguments.only), settings, arguments.peers,
                       left_out) as running:
        found = pipes.in_rounds(
            list(running), cells, lambda one, cell, number: measure(
                one, cell, prompts[cell.prompt], number), arguments.rounds, until_s, left_out)
        told = pipes.loaded(running, found)
    return {"rounds": pipes.round_count(found), "cells": report(found), "loaded": told,
            "left_out": left_out}


def main() -> None:
    parser = pipes.parser(__doc__, rounds=3, minutes=60.0)
    parser.add_argument("--shape", nargs="+", choices=sorted(decoders.SHAPES),
                        default=["gpt2", "llama"])
    parser.add_argument("--prompt", nargs="+", type=int, choices=decoders.PROMPTS,
                        default=list(decoders.PROMPTS))
    parser.add_argument("--rows", nargs="+", type=int, choices=decoders.ROWS,
                        default=list(decoders.ROWS))
    parser.add_argument("--lengths", choices=("equal", "mixed"), default="equal")
    arguments = parser.parse_args()
    told = {"lengths": arguments.lengths, "new_tokens": decoders.NEW_TOKENS}
    pipes.run(told, lambda until_s: {"shapes": {
        shape: shape_part(shape, arguments, until_s) for shape in arguments.shape}},
        arguments.minutes)


if __name__ == "__main__":
    main()
