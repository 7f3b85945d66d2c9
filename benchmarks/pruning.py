"""Pruning and recovery on real data: accuracy, size and time of several settings, as JSON.

    python -m benchmarks.pruning                       banking77 and sst2
    python -m benchmarks.pruning banking77 --only half small
    python -m benchmarks.pruning banking77 --no-recovery
    python -m benchmarks.pruning --output benchmarks/results/pruning.json

A BERT of 4 layers, 128 wide, with BERT's uncased vocabulary is trained from nothing by our train
stage; then each setting prunes it by the training rows, and what is left learns again for a few
epochs, from the labels alone ("tuned") and from labels and the whole network ("distilled").
Accuracy is that of the test rows. Times are milliseconds of a call from text to label in a graph,
whole and pruned network in alternating rounds; the ratio is what to look at. Trained networks are
kept in --cache, so that a run that was stopped goes on.

Data and tokenizer: $TF_INFER_SHARED, else ../shared beside the project.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tf_infer.config import (
    ClassifierConfig,
    HubConfig,
    PackingConfig,
    ShapeGrid,
    TrainConfig,
    WordPieceConfig,
    to_json,
)
from tf_infer.networks.build import WEIGHTS_FILE
from tf_infer.optimize.prune import PruneSettings, prune
from tf_infer.optimize.timing import timed
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build, load, save
from tf_infer.train.data import Example, class_names, read, to_bytes
from tf_infer.train.distill import Teacher
from tf_infer.train.loop import evaluate, fit

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("TF_INFER_SHARED", ROOT.parent / "shared"))
CACHE = Path(os.environ.get("TF_INFER_BENCHMARKS", Path.home() / ".cache/tf_infer_benchmarks"))
NETWORK = HubConfig(backbone="BertBackbone", activation="gelu", pooler=False, arguments={
    "vocabulary_size": 30_522, "num_layers": 4, "num_heads": 4, "hidden_dim": 128,
    "intermediate_dim": 512, "max_sequence_length": 64, "dropout": 0.1})
FILES = {"banking77": ("train.jsonl.gz", None, "test.jsonl"),
         "sst2": ("train.jsonl", "dev.jsonl", "test.jsonl")}
TRAIN = {
    "banking77": TrainConfig(epochs=8, batch_rows=64, learning_rate=1.5e-3, label_smoothing=0.1,
                             patience=None, validation_fraction=0.0),
    "sst2": TrainConfig(epochs=3, batch_rows=64, learning_rate=7e-4, patience=None,
                        token_dropout=0.1)}
RECOVER_EPOCHS = {"banking77": 2, "sst2": 1}
SETTINGS = {
    "vocabulary": PruneSettings(vocabulary="used"),
    "neurons": PruneSettings(neurons=0.5),
    "heads": PruneSettings(heads=0.5),
    "half": PruneSettings(heads=0.5, neurons=0.5),
    "layers": PruneSettings(layers=2),
    "small": PruneSettings(layers=2, heads=0.5, neurons=0.5, vocabulary="used"),
}
ROUNDS = 9


def rows_of(name: str) -> tuple[list[Example], list[Example] | None, list[Example]]:
    """Return training, validation and test rows."""
    folder = SHARED / "data" / name
    training, validation, test = FILES[name]
    return (read(folder / training), read(folder / validation) if validation else None,
            read(folder / test))


def whole(name: str, cache: Path) -> Task:
    """Return the trained network; train it when it is not in the cache."""
    folder = cache / f"pruning_{name}"
    if not folder.exists():
        training, validation, _ = rows_of(name)
        task = build(ClassifierConfig(
            classes=class_names(training), codec=WordPieceConfig(), network=NETWORK,
            packing=PackingConfig(max_tokens=64), grid=ShapeGrid(tokens=(16, 32, 64)),
            pooling="mean"), tokenizer_dir=SHARED / "weights/tokenizers/bert_uncased")
        fit(task, training, TRAIN[name], validation=validation,
            run_dir=cache / f"pruning_{name}_run", resume=True)
        save(task, folder)
    return load(folder)


def measured(task: Task, test: list[Example], folder: Path) -> dict[str, Any]:
    """Return accuracy and size; the task is saved in `folder`, which may exist."""
    if not folder.exists():
        save(task, folder)
    return {"accuracy": round(100 * evaluate(task, test, progress=False)["accuracy"], 2),
            "parameters": sum(weight.shape.num_elements() for weight in task.network.weights),
            "megabytes": round((folder / WEIGHTS_FILE).stat().st_size / 1e6, 3)}


def run(name: str, setting: str, cache: Path, *, recover: bool) -> dict[str, Any]:
    """Prune by one setting, time, and recover in two ways."""
    training, validation, test = rows_of(name)
    reference = whole(name, cache)
    texts = [to_bytes(row.text) for row in training]
    began = time.perf_counter()
    pruned = prune(reference, SETTINGS[setting], texts)
    found: dict[str, Any] = {
        "data": name, "setting": setting, "settings": to_json(SETTINGS[setting]),
        "prune_seconds": round(time.perf_counter() - began, 1),
        "whole": measured(reference, test, cache / f"pruning_{name}"),
        "pruned": measured(pruned, test, cache / f"pruning_{name}_{setting}")}
    held = [to_bytes(row.text) for row in test]
    times = timed((reference, pruned), held, ROUNDS)
    for part, told in zip(("whole", "pruned"), times):
        found[part] |= {key: round(value, 3) for key, value in told.items()}
    train = replace(TRAIN[name], epochs=RECOVER_EPOCHS[name],
                    learning_rate=TRAIN[name].learning_rate / 2)
    ways = (("tuned", None), ("distilled", Teacher(task=reference))) if recover else ()
    for how, teacher in ways:
        student = load(cache / f"pruning_{name}_{setting}")
        history = fit(student, training, train, validation=validation, teacher=teacher,
                      run_dir=cache / f"pruning_{name}_{setting}_{how}", resume=True)
        found[how] = {
            "accuracy": round(100 * evaluate(student, test, progress=False)["accuracy"], 2),
            "seconds": round(sum(epoch["seconds"] for epoch in history.epochs), 1)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", default=list(FILES), help=f"of {', '.join(FILES)}")
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), metavar="SETTING",
                        help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--no-recovery", action="store_true", help="prune and time alone")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, help="write all results as one JSON list")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    results = []
    for name in arguments.data:
        for setting in arguments.only:
            results.append(run(name, setting, arguments.cache,
                               recover=not arguments.no_recovery))
            print(json.dumps(results[-1]), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
