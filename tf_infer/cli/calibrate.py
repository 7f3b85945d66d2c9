"""`tf-infer calibrate`: make a classifier's scores believable, by labelled texts new to it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer import config as configs
from tf_infer.cli.json_text import json_text
from tf_infer.errors import BackendMissing, ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from tf_infer.config import ClassifierConfig
    from tf_infer.tasks.base import Task
    from tf_infer.train.data import Example
    from tf_infer.verify.reliability import Fitted

EPILOG = """examples:
  tf-infer calibrate runs/intents --texts dev.jsonl
  tf-infer calibrate runs/intents --texts dev.jsonl --output runs/intents_sure --plot sure.png
  tf-infer calibrate runs/topics --texts dev.jsonl --thresholds --json

files: as of `tf-infer train`, with labels in every row; texts that the model was not trained on.
The temperature that fits them best divides the logits; it and, with --thresholds, the score from
which each of several labels is given are written into task.json, from where the next export takes
them into the version's manifest. No label changes by a temperature, only how sure it looks (of
several labels: where thresholds are 0.5, or fitted by --thresholds beside it). What
is told of afterwards is measured on texts that the fit had not seen: each half by the other.
The temperature lies between 0.05 and 20; where all of n texts are right, which no temperature fits
best, it is fitted as if one of n + 2 were not. Either is said.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR",
                        help="a classifier, as `tf-infer train` left it")
    parser.add_argument("--texts", required=True, type=Path, metavar="FILE", help="labelled texts")
    parser.add_argument("--thresholds", action="store_true",
                        help="of several labels: fit each one's threshold by its F1, too")
    parser.add_argument("--output", type=Path, metavar="DIR",
                        help="write a new model directory instead of changing MODEL_DIR")
    parser.add_argument("--plot", type=Path, metavar="FILE.png",
                        help="reliability diagram before and after; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Fit, write, print; return 0."""
    from tf_infer.config import ClassifierConfig
    from tf_infer.tasks import build
    from tf_infer.train import data
    from tf_infer.verify.reliability import fit

    _check_places(arguments)
    task = build.load(arguments.model_dir)
    config = task.config
    if not isinstance(config, ClassifierConfig):
        raise ConfigError(f"{arguments.model_dir}: expected a classifier, got a model of kind "
                          f"{config.kind!r}, which has no scores of classes.")
    if arguments.thresholds and not config.multi_label:
        raise ConfigError("--thresholds: expected a model that gives several labels, got one that "
                          "gives the best. Leave the option out.")
    examples = data.read(arguments.texts)
    targets = data.class_targets(examples, config)
    found = fit(logits_of(task, examples), targets, temperature=config.temperature,
                thresholds=config.thresholds, fit_thresholds=arguments.thresholds)
    changed = dataclasses.replace(
        config, temperature=round(found.temperature, 6),
        thresholds=found.thresholds or config.thresholds)
    folder = _write(arguments, changed)
    if arguments.plot:
        _draw(found, arguments.plot)
    if arguments.json:
        print(json_text({"model": str(folder), **dataclasses.asdict(found)}))
    else:
        print("\n".join(_lines(found, config, folder)))
    return 0


def _check_places(arguments: argparse.Namespace) -> None:
    if arguments.output and arguments.output.exists():
        raise ConfigError(f"--output: expected a directory that does not exist, got "
                          f"{arguments.output}.")
    if arguments.plot:
        if not arguments.plot.absolute().parent.is_dir():
            raise ConfigError(f"--plot: expected a file in a folder that exists, got "
                              f"{arguments.plot}.")
        try:
            import tf_infer.pictures  # noqa: F401
        except ImportError as error:
            raise BackendMissing("--plot needs matplotlib: pip install 'tf_infer[report]'"
                                 ) from error


def logits_of(task: Task, examples: Sequence[Example]) -> np.ndarray:
    """Return the logits of examples, [N, C]; progress on a terminal.

    Raises:
        DataError: some are no numbers; names the row by place.
    """
    import numpy as np

    from tf_infer.cli import texts
    from tf_infer.config import ClassifierConfig
    from tf_infer.train.data import to_bytes
    from tf_infer.verify.predictors import GraphPredictor

    assert isinstance(task.config, ClassifierConfig)
    predict, rows = GraphPredictor(task.signatures()), task.config.grid.rows[-1]
    found = []
    for start in range(0, len(examples), rows):
        batch = examples[start:start + rows]
        inputs = {"text": [to_bytes(one.text) for one in batch]}
        if task.config.pair:
            inputs["text_pair"] = [to_bytes(one.text_pair or "") for one in batch]
        found.append(predict("serving_default", {
            name: np.array(values, object) for name, values in inputs.items()})["logits"])
        texts.progress(min(start + rows, len(examples)), len(examples))
    logits = np.concatenate(found)
    for row in np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist():
        raise DataError(f"{examples[row].place}: expected logits that are numbers, got NaN or "
                        "infinity. Do the weights overflow? Train the model again.")
    return logits


def _write(arguments: argparse.Namespace, config: ClassifierConfig) -> Path:
    """Write the configuration over that of the model, or into a copy of it."""
    from tf_infer.tasks.build import TASK_FILE

    if not arguments.output:
        folder: Path = arguments.model_dir
        configs.dump_whole(config, folder / TASK_FILE)
        return folder
    parent = arguments.output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".model.", dir=parent) as staged:
        copied = Path(shutil.copytree(arguments.model_dir, Path(staged) / "model"))
        configs.dump(config, copied / TASK_FILE)
        os.rename(copied, arguments.output)
    output: Path = arguments.output
    return output


def _draw(found: Fitted, path: Path) -> None:
    from tf_infer import pictures

    def draw(axes: Any) -> None:
        pictures.reliability(axes, found.before.bins, color=pictures.ORANGE,
                             label=f"before, error {found.before.error:.3f}")
        pictures.reliability(axes, found.after.bins,
                             label=f"after, error {found.after.error:.3f}")

    path.write_bytes(pictures.png(draw, (5.2, 5.0)))


def _lines(found: Fitted, config: ClassifierConfig, folder: Path) -> Iterator[str]:
    before, after = found.before, found.after
    what = "F1 of all decisions" if config.multi_label else "accuracy"
    yield f"{found.rows} texts; temperature {config.temperature:g} -> {found.temperature:.4f}"
    if found.bounded:
        yield f"the temperature is bounded: {found.bounded}"
    yield f"calibration error {before.error:.4f} -> {after.error:.4f}"
    yield f"negative log-likelihood {before.nats:.4f} -> {after.nats:.4f} nats"
    yield f"{what} {100 * before.right:.2f} % -> {100 * after.right:.2f} %"
    if found.thresholds is not None:
        for name, limit in zip(config.classes, found.thresholds):
            yield f"  threshold {limit:.4f}  {name}"
    yield f"written: {folder}/task.json; the next export takes it into the manifest"
