"""Our classifiers beside ONNX Runtime, OpenVINO, CTranslate2, torch, KerasHub: text to class id.

    python -m benchmarks.classify --peers DIR > classify.json
    python -m benchmarks.classify --peers DIR --shape minilm --only tf_infer OpenVINO --rows 1
    python -m benchmarks.classify --peers DIR --minutes 10     # rounds end before that
    python -m benchmarks.classify --accuracy --only tf_infer   # trained weights, test accuracy

Prints one JSON object. Every contestant is a process of its own that has a thread for each CPU and
is frozen (SIGSTOP) when it is not its turn. In each round every contestant has its turn at every
cell (kind of text x rows of a call): the same calls for all, other texts in the next round. "lines"
are lines of SST-2, "long" are texts of exactly 128 ids. The first round warms up. Figures are
medians over the rounds with their least and greatest value; a ratio is the median of the rounds'
ratios. The tokenizer is in every figure: the peers' is Hugging Face's, ours is in the graph.

    texts_per_s     texts by the seconds of all calls of a turn
    ms              median of a turn's calls
    cpu_ms          processor time of a call, all threads; those that wait by spinning included
    same            share of texts whose class is that of torch float32
    same_clear      the same among texts whose best class leads by more than CLEAR; weights are
                    random, a class's logits have a standard deviation of 1 over the texts
    error           root of the mean square difference of logits from torch float32
    wrong           whose same_clear is below SAME: its speed counts for nothing
    resident_mb     memory when loaded; peak_mb: the most there was

Ours are versions as `tf-infer export` writes them, loaded as the embedded server loads them.
On two CPUs the server gives an operation of TensorFlow one thread (docs/runtime.md).
"KerasHub" is such a version with KerasHub's own layers: our tokenizer and one graph around them;
once as the server loads it, and once with a thread for each CPU.
Peers pad a batch to its longest row; "by length" sorts the rows of a call and runs eight at a time;
"throughput" runs these at once, one stream a CPU. CTranslate2 leaves padding out. W8A8 is NNCF's,
calibrated on the texts; what is not in 8 bits is in float32, or with "bfloat16 beside" in that.

With `--accuracy` no peers take part. all-MiniLM-L6-v2 with heads trained on banking77 and sst2
(benchmarks/classifiers.py), in every form of ours: test accuracy, its difference from the plain
form in points, the largest difference of any logit, and texts/s over the test rows in batches of
32. A form that loses more than MAX_DROP points is flagged.

Peers live in environments below `--peers`; who is missing, does not start or fails is left out,
which standard error and `left_out` say:

    for name in onnx openvino ct2 torch; do python3.11 -m venv peers/$name; done
    peers/torch/bin/pip install torch transformers
    peers/onnx/bin/pip install onnxruntime onnx onnxscript sympy torch transformers
    peers/ct2/bin/pip install ctranslate2 torch transformers
    peers/openvino/bin/pip install openvino optimum-intel nncf torch
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import classifiers, pipes
from benchmarks.pipes import Contestant, Running
from benchmarks.server import say

PLAIN = "KerasHub float32"
THREADED = "saved_model-threads"  # see benchmarks/peers/ours_classifier.py
CALLS = {"lines": {1: 32, 8: 4, 32: 2}, "long": {1: 16, 8: 2, 32: 1}}  # of a turn, by rows
CLEAR, SAME, MAX_DROP = 1.0, 0.9, 0.5
FIGURES = ("texts_per_s", "ms", "cpu_ms")


def ours(name: str, model: str, form: str = "saved_model") -> Contestant:
    """Return a version of ours; `form` says what computes it."""
    return Contestant(name=name, script="ours_classifier", form=form, model=model)


FORMS = (
    *(ours(f"tf_infer portable {precision}", f"ours-{precision}")
      for precision in ("float32", "bfloat16", "int8")),
    ours("tf_infer portable int8 static", "ours-static"),
    *(ours(f"tf_infer {name} {precision}", f"ours-{kind}-{precision}", kind)
      for kind, name in (("litert", "LiteRT"), ("onnx", "ONNX"))
      for precision in ("int8", "float32")),
    ours("tf_infer LiteRT int8 static", "ours-litert-static", "litert"),
)
PEERS = (
    ours(PLAIN, "ours-plain"), ours(f"{PLAIN}, a thread for each CPU", "ours-plain", THREADED),
    *(Contestant(name=f"ONNX Runtime {name}", script="onnx_classifier", form=form,
                 model=f"onnx-{precision}", venv="onnx") for name, precision, form in (
                     ("float32", "float32", "32"), ("int8", "int8", "32"),
                     ("int8, by length", "int8", "8"))),
    *(Contestant(name=f"OpenVINO {name}", script="openvino_classifier", form=form,
                 model=f"openvino-{model}", venv="openvino") for name, model, form in (
                     ("float32", "float32", "f32-latency-32"),
                     ("bfloat16", "float32", "bf16-latency-32"),
                     ("bfloat16, by length", "float32", "bf16-latency-8"),
                     ("bfloat16, by length, throughput", "float32", "bf16-throughput-8"),
                     ("W8A8", "w8a8", "f32-latency-32"),
                     ("W8A8, bfloat16 beside", "w8a8", "bf16-latency-32"),
                     ("W8A8, bfloat16 beside, by length", "w8a8", "bf16-latency-8"))),
    Contestant(name="CTranslate2 int8", script="ct2_classifier", form="int8", model="ct2-int8",
               venv="ct2"),
    *(Contestant(name=f"torch {dtype}", script="torch_classifier", form=f"{dtype}-32",
                 model="checkpoint", venv="torch") for dtype in ("bfloat16", "float32")),
)


class Cell(NamedTuple):
    """One load: texts of a kind, and how many in a call."""

    kind: str
    rows: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.rows} rows"


# ---------------------------------------------------------------------------- speed


def calls_of(cell: Cell, number: int, count: int) -> list[list[int]]:
    """Return which texts, of `count`, the calls of a round take; the next round takes the next."""
    calls = CALLS[cell.kind][cell.rows]
    start = number * calls * cell.rows
    places = [place % count for place in range(start, start + calls * cell.rows)]
    return [places[i:i + cell.rows] for i in range(0, len(places), cell.rows)]


def measure(one: Running, cell: Cell, texts: Sequence[str], number: int) -> dict[str, Any]:
    """Let a contestant have its turn."""
    calls = calls_of(cell, number, len(texts))
    answer = one.ask({"batches": [[texts[place] for place in call] for call in calls]})
    result = {"texts_per_s": len(calls) * cell.rows / sum(answer["seconds"]),
              "ms": 1000 * statistics.median(answer["seconds"]),
              "cpu_ms": 1000 * answer["cpu_s"] / len(calls), "peak_mb": answer["peak_mb"],
              "places": [place for call in calls for place in call],
              "logits": [row for call in answer["logits"] for row in call]}
    say(f"  round {number} {cell}: {one.contestant.name:30} {result['texts_per_s']:7.1f} texts/s, "
        f"{result['cpu_ms']:.1f} ms of CPUs a call")
    return result


def agreement(results: pipes.Results, reference: np.ndarray) -> dict[str, Any]:
    """Return how near a contestant's logits are to the reference's [N, C], and its classes.

    A text that came twice counts once.
    """
    found = {place: logits for result in results
             for place, logits in zip(result["places"], result["logits"])}
    theirs, got = reference[list(found)], np.array(list(found.values()))      # [n, C]
    best = np.sort(theirs, axis=1)
    clear = best[:, -1] - best[:, -2] > CLEAR
    same = theirs.argmax(axis=1) == got.argmax(axis=1)
    same_clear = float(same[clear].mean()) if clear.any() else 1.0
    return {"same": round(float(same.mean()), 3), "same_clear": round(same_clear, 3),
            "clear_texts": int(clear.sum()), "wrong": same_clear < SAME,
            "error": round(float(np.sqrt(np.square(got - theirs).mean())), 4)}


def report(cells: pipes.Cells[Cell], texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the results of one shape; a ratio is to those peers that are not wrong."""
    found: dict[str, Any] = {}
    for cell, row in cells.items():
        reference = np.array(texts[cell.kind]["logits"])
        told = {name: {**pipes.summary(results, FIGURES), **agreement(results, reference)}
                for name, results in row.items()}
        right = {name: results for name, results in row.items() if not told[name]["wrong"]}
        mine = [name for name in right if name.startswith(pipes.OURS)]
        found[str(cell)] = {"contestants": told, "ratios": {
            name: pipes.ratios(right, name, "texts_per_s") for name in mine}}
        if mine:
            found[str(cell)]["best of ours"] = best_of_ours(right, mine)
    return found


def best_of_ours(row: dict[str, pipes.Results], mine: Sequence[str]) -> dict[str, Any]:
    """Return our fastest form, and its ratio to the best of the peers."""
    name = max(mine, key=lambda one: statistics.median(
        result["texts_per_s"] for result in row[one]))
    return {"name": name,
            "ratio": pipes.ratios(row, name, "texts_per_s").get("the best of them")}


def shape_part(shape: str, arguments: argparse.Namespace, until_s: float) -> dict[str, Any]:
    """Compare everybody on one shape."""
    texts = classifiers.texts(shape, arguments.cache, arguments.peers)
    cells = [Cell(kind, rows) for kind in arguments.texts for rows in arguments.rows]
    left_out: dict[str, str] = {}
    with pipes.started(pipes.chosen((*FORMS, *PEERS), arguments.only), settings(shape, arguments),
                       arguments.peers, left_out) as running:
        found = pipes.in_rounds(
            list(running), cells, lambda one, cell, number: measure(
                one, cell, texts[cell.kind]["texts"], number),
            arguments.rounds, until_s, left_out)
        loaded = pipes.loaded(running, found)
    return {"rounds": pipes.round_count(found), "cells": report(found, texts), "loaded": loaded,
            "left_out": left_out}


def settings(shape: str, arguments: argparse.Namespace) -> Any:
    """Return a function from a contestant to what its script is given."""
    def of(one: Contestant) -> dict[str, Any]:
        model = classifiers.form(one.model, shape, arguments.cache, arguments.peers)
        version = one.script == "ours_classifier"
        return {"model": str(model / "1" if version else model), "form": one.form,
                "checkpoint": str(model.parent / "checkpoint")}

    return of


# ---------------------------------------------------------------------------- accuracy


def accuracy_part(name: str, arguments: argparse.Namespace, until_s: float) -> dict[str, Any]:
    """Compare our forms on the test rows of a data set, with trained weights."""
    trained = classifiers.form("trained", name, arguments.cache, arguments.peers)
    classes = json.loads((trained / "task.json").read_text(encoding="utf-8"))["classes"]
    rows = classifiers.data_rows(name, "test")
    labels = np.array([classes.index(row.labels[0]) for row in rows])
    size = classifiers.ROWS[-1]
    batches = [[row.text for row in rows[i:i + size]] for i in range(0, len(rows), size)]
    left_out: dict[str, str] = {}

    def tested(one: Running, cell: str, number: int) -> dict[str, Any]:
        answer = one.ask({"batches": batches if number else batches[:4]})
        logits = np.concatenate([np.array(part) for part in answer["logits"]])
        got = logits.argmax(axis=1)
        right = 100 * float((got == labels[:len(got)]).mean())
        say(f"  round {number} {cell}: {one.contestant.name:30} {right:.2f} %")
        return {"texts_per_s": len(got) / sum(answer["seconds"]), "accuracy": right,
                "logits": logits, "peak_mb": answer["peak_mb"]}

    plain = next(one for one in PEERS if one.name == PLAIN)
    with pipes.started([*pipes.chosen(FORMS, arguments.only), plain], settings(name, arguments),
                       arguments.peers, left_out) as running:
        found = pipes.in_rounds(list(running), [name], tested, 1, until_s, left_out)
    return {"rows": len(rows), "forms": {
        one: judged(results[-1], found[name].get(PLAIN, [None])[-1])
        for one, results in found[name].items()}, "left_out": left_out}


def judged(result: dict[str, Any], plain: dict[str, Any] | None) -> dict[str, Any]:
    """Return a form's figures beside those of the plain form, where that could be run."""
    found = {name: round(result[name], 2) for name in ("accuracy", "texts_per_s")}
    if plain is None:
        return found
    same = np.mean(result["logits"].argmax(axis=1) == plain["logits"].argmax(axis=1))
    worst = np.abs(result["logits"] - plain["logits"]).max()
    points = round(result["accuracy"] - plain["accuracy"], 2)
    return {**found, "points": points, "flagged": points < -MAX_DROP,
            "same": round(float(same), 4), "worst": float(f"{worst:.3g}"),
            "speed": round(result["texts_per_s"] / plain["texts_per_s"], 2)}


def main() -> None:
    parser = pipes.parser(__doc__, rounds=3, minutes=60.0)
    parser.add_argument("--shape", nargs="+", choices=sorted(classifiers.SHAPES),
                        default=["bert", "minilm"])
    parser.add_argument("--texts", nargs="+", choices=("lines", "long"), default=["lines", "long"])
    parser.add_argument("--rows", nargs="+", type=int, choices=classifiers.ROWS, default=[1, 32])
    parser.add_argument("--accuracy", nargs="*", choices=sorted(classifiers.TRAINED),
                        help="test accuracy of our forms instead, on these data sets (all)")
    arguments = parser.parse_args()
    if arguments.accuracy is None:
        pipes.run({}, lambda until_s: {"shapes": {
            shape: shape_part(shape, arguments, until_s) for shape in arguments.shape}},
            arguments.minutes)
    else:
        names = arguments.accuracy or sorted(classifiers.TRAINED)
        pipes.run({}, lambda until_s: {"accuracy": {
            name: accuracy_part(name, arguments, until_s) for name in names}}, arguments.minutes)


if __name__ == "__main__":
    main()
