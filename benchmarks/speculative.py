"""When does speculative decoding pay? Whole calls with and without guesses, in turns.

    python -m benchmarks.speculative CHECKPOINT TEXT.txt --guesses 2 4 --rows 1 8
    python -m benchmarks.speculative CHECKPOINT TEXT.txt --draft DIR --precision int8

CHECKPOINT is a Hugging Face directory of a decoder; prompts are pieces of the text. Greedy and with
temperature 1; signature `generate` with plain options beside `speculate`, both traced in this
process, which is what a SavedModel holds (the engine's guesses: speculative_engine.py). Prints
JSON, for each cell:

    same          share of the rows with the same ids; 1 in float32, but for ties of logits
    accepted      share of the guesses that held
    a_round       tokens that a round of the model wrote, 1 without guesses
    speed         seconds of a call without guesses by those with, median of the rounds, least and
                  greatest; above 1 it pays
    break_even    tokens that a round would have to write so that it pays: cost of a round by that
                  of a step
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.client import machine
from tf_infer.config import GenerationDefaults, ShapeGrid
from tf_infer.optimize import apply, plan
from tf_infer.tasks import build, options
from tf_infer.tasks.causal_lm import CausalLM

Ask = Callable[[np.ndarray, float], dict[str, np.ndarray]]


def decoder(checkpoint: Path, tokens: int, capacity: int) -> CausalLM:
    task = build.from_checkpoint(checkpoint, {
        "kind": "causal_lm", "name": "writer", "capacity": capacity,
        "grid": ShapeGrid(rows=(1, 8, 32), tokens=(tokens,)),
        "defaults": GenerationDefaults.within(capacity)}, max_tokens=tokens)
    assert isinstance(task, CausalLM)
    return task


def asker(task: CausalLM, signature: str) -> Ask:
    """Return a function of prompts [B] and a temperature."""
    function = task.signatures()[signature].function

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.float32)],
                 autograph=False)
    def call(prompts: tf.Tensor, temperature: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.shape(prompts)[0]
        given = {name: value for name, value in options.defaults_for(rows, task.config).items()
                 if name in options.PLAIN}
        given |= {"max_new_tokens": tf.fill([rows], task.config.capacity),
                  "temperature": tf.fill([rows], temperature),
                  "seed": tf.cast(tf.range(rows), tf.int64)}
        found: dict[str, tf.Tensor] = function(prompt=prompts, **given)
        return found

    return lambda prompts, temperature: {
        name: value.numpy() for name, value in call(tf.constant(prompts), temperature).items()}


def prompts_of(text: bytes, size: int, rows: int, seed: int) -> np.ndarray:
    starts = np.random.default_rng(seed).integers(0, max(1, len(text) - size), rows)
    return np.array([text[start:start + size] for start in starts], object)


def cell(plain: Ask, guessing: Ask, text: bytes, size: int, rows: int, temperature: float,
         rounds: int) -> dict[str, Any]:
    spent: dict[str, list[float]] = {"plain": [], "guessing": []}
    counts = dict.fromkeys(("rounds", "proposed", "accepted", "length"), 0)
    same: list[float] = []
    for number in range(rounds + 1):  # the first one builds what the graph holds
        prompts = prompts_of(text, size, rows, number)
        told = {}
        for name, ask in sorted({"plain": plain, "guessing": guessing}.items(),
                                reverse=bool(number % 2)):
            started = time.perf_counter()
            told[name] = ask(prompts, temperature)
            if number:
                spent[name].append(time.perf_counter() - started)
        same.append(float(np.mean(np.all(told["plain"]["ids"] == told["guessing"]["ids"], axis=1))))
        if number:
            for name in counts:
                counts[name] += int(told["guessing"][name].sum())
    ratios = [a / b for a, b in zip(spent["plain"], spent["guessing"])]
    a_round = counts["length"] / max(1, counts["rounds"])
    return {"rows": rows, "temperature": temperature, "same": round(statistics.mean(same), 3),
            "accepted": round(counts["accepted"] / max(1, counts["proposed"]), 3),
            "a_round": round(a_round, 2),
            "speed": [round(figure, 2) for figure in (
                statistics.median(ratios), min(ratios), max(ratios))],
            "break_even": round(a_round / statistics.median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--draft", type=Path, help="a checkpoint with the same tokenizer")
    parser.add_argument("--precision", default="", help="of a plan: float32, bfloat16, int8")
    parser.add_argument("--guesses", type=int, nargs="+", default=[4])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--tokens", type=int, default=64, help="most of a prompt")
    parser.add_argument("--bytes", type=int, default=200, help="of a prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens of a continuation")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    text = arguments.text.read_bytes()
    made = decoder(arguments.checkpoint, arguments.tokens, arguments.new)
    draft = (decoder(arguments.draft, arguments.tokens, arguments.new)
             if arguments.draft else None)

    def formed(task: CausalLM) -> CausalLM:
        return (apply.apply(task, plan.read_plan(arguments.precision))
                if arguments.precision else task)

    plain = asker(formed(made), "generate")
    cells = []
    for guesses in arguments.guesses:
        guessing = asker(formed(made.speculating(guesses, draft)), "speculate")
        cells += [{"guesses": guesses, **cell(plain, guessing, text, arguments.bytes, rows,
                                              temperature, arguments.rounds)}
                  for rows in arguments.rows for temperature in arguments.temperature]
    print(json.dumps({"machine": machine(), "checkpoint": arguments.checkpoint.name,
                      "precision": arguments.precision or "as built",
                      "draft": arguments.draft.name if arguments.draft else "prompt look-up",
                      "cells": cells}, indent=1))


if __name__ == "__main__":
    main()
