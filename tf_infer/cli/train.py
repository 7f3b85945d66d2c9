"""`tf-infer train`: fit a model directory to a file of examples, go on after Ctrl-C, evaluate."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer import config as configs
from tf_infer.cli.json_text import json_text
from tf_infer.config import DistillConfig, TrainConfig
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.tasks.base import Task
    from tf_infer.train.distill import Teacher
    from tf_infer.train.loop import History

EXAMPLES = """examples:
  tf-infer train models/intents --data train.jsonl --validation dev.jsonl --epochs 10
  tf-infer train models/intents --data train.csv.gz --test test.csv --json
  tf-infer train models/intents --data train.jsonl --resume     go on after Ctrl-C
  tf-infer train models/intents --test test.jsonl               evaluate only
  tf-infer train models/small --teacher models/intents --data train.jsonl   distillation
  tf-infer train models/writer --data stories.txt --block-tokens 256 --learning-rate 2e-3
  tf-infer train models/writer --data novel.txt.gz --validation val.txt --epoch-steps 500

files: .jsonl with "text" and "label" (or "labels", "text_pair"), .csv with the same names in its
first line, .txt (one document, for decoders); each also as .gz.
tensorboard --logdir runs shows the curves; with --tensorboard DIR the graph of a step and pictures
of validation, too.
"""

# What each setting is, for --help; the names are those of TrainConfig.
HELP = {
    "epochs": "passes over the data",
    "batch_rows": "rows of one step",
    "learning_rate": "highest rate, reached after the warm-up",
    "warmup_fraction": "share of all steps in which the rate grows from 0",
    "decay": "how the rate falls afterwards: linear, cosine, none",
    "weight_decay": "AdamW's, of matrices",
    "epsilon": "AdamW's; 1e-3 suits bags of n-grams",
    "clip_norm": "global norm of the gradient, or none",
    "label_smoothing": "share of the target spread over all classes",
    "token_dropout": "share of ids hidden in training",
    "average_decay": "keep a moving average of the weights with this decay, or none",
    "patience": "epochs without a better validation result before the end, or none",
    "seed": "of order and dropout",
    "validation_fraction": "taken from the data without --validation; 0 runs every epoch",
    "block_tokens": "length of a decoder's training row",
    "epoch_steps": "of a decoder: steps of an epoch, over rows from random places, or none",
}

# Likewise of DistillConfig; the options begin with --distill-.
DISTILL_HELP = {
    "temperature": "divides the logits of both before they are compared",
    "labels": "share of the loss that compares with the labels instead of the teacher; with 0 the "
              "rows of a classifier need none",
    "hidden": "weight of the squared difference of the pooled vectors",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    from tf_infer.cli.watchers import add_watchers

    parser.epilog = EXAMPLES
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR",
                        help="what `tf-infer build` wrote; its weights are replaced at the end")
    parser.add_argument("--data", type=Path, metavar="FILE", help="training rows")
    parser.add_argument("--validation", type=Path, metavar="FILE",
                        help="rows that choose the best epoch")
    parser.add_argument("--test", type=Path, metavar="FILE", help="rows to evaluate at the end")
    parser.add_argument("--run-dir", type=Path, metavar="DIR",
                        help="checkpoints and TensorBoard scalars (default: runs/ and the model's "
                             "name)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run-dir")
    add_watchers(parser)
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="a TrainConfig as JSON; the options below go before it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    settings = parser.add_argument_group("settings (default)")
    for field in dataclasses.fields(TrainConfig):
        settings.add_argument(f"--{field.name.replace('_', '-')}", dest=f"set_{field.name}",
                              metavar=str(field.default).lower(), help=HELP[field.name])
    teacher = parser.add_argument_group("distillation (default)")
    teacher.add_argument("--teacher", type=Path, metavar="MODEL_DIR",
                         help="learn from the answers of this model, too")
    for field in dataclasses.fields(DistillConfig):
        teacher.add_argument(f"--distill-{field.name}", dest=f"distill_{field.name}",
                             metavar=str(field.default), help=DISTILL_HELP[field.name])


def train_config(arguments: argparse.Namespace) -> TrainConfig:
    """Read --config and lay the options over it.

    Raises:
        ConfigError: a value is no number, or breaks a rule of TrainConfig.
    """
    base = configs.load(TrainConfig, arguments.config) if arguments.config else TrainConfig()
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(TrainConfig):
        word = getattr(arguments, f"set_{field.name}")
        if word is not None:
            # "none" is a word of `decay`, and no value of the others.
            none = word == "none" and field.name != "decay"
            changes[field.name] = None if none else value_of(word)
    read: TrainConfig = configs.from_json(TrainConfig, {**configs.to_json(base), **changes},
                                          where="train")
    return read


def distill_config(arguments: argparse.Namespace) -> DistillConfig:
    """Read the options of distillation.

    Raises:
        ConfigError: a value is no number or breaks a rule of DistillConfig, or there is no teacher.
    """
    given = {field.name: word for field in dataclasses.fields(DistillConfig)
             if (word := getattr(arguments, f"distill_{field.name}")) is not None}
    configs.check(arguments.teacher is not None or not given, "--teacher",
                  "a model directory with options of distillation", None)
    read: DistillConfig = configs.from_json(
        DistillConfig, {name: value_of(word) for name, word in given.items()}, where="distill")
    return read


def value_of(word: str) -> Any:
    """Read a word as a number if it is one."""
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def run(arguments: argparse.Namespace) -> int:
    """Train, evaluate, print; 130 and the way to go on after Ctrl-C."""
    if arguments.data is None and arguments.test is None:
        raise ConfigError("--data: expected a file of training rows, or --test to evaluate only, "
                          "got neither.")
    run_dir = arguments.run_dir or Path("runs") / arguments.model_dir.resolve().name
    config, distill = train_config(arguments), distill_config(arguments)
    if not arguments.quiet:
        _log_to_stderr()
    try:
        result = _train(arguments, config, distill, run_dir)
    except KeyboardInterrupt:
        _say_how_to_resume(arguments, run_dir)
        return 130
    print(json_text(result) if arguments.json else describe(result))
    return 0


def _train(arguments: argparse.Namespace, config: TrainConfig, distill: DistillConfig,
           run_dir: Path) -> dict[str, Any]:
    from tf_infer.cli.watchers import watchers_of
    from tf_infer.tasks import build
    from tf_infer.train import data, loop

    progress = False if arguments.quiet else None
    task = build.load(arguments.model_dir)
    test = data.read(arguments.test) if arguments.test else None
    result: dict[str, Any] = {"model": str(arguments.model_dir)}
    if arguments.data is not None:
        validation = data.read(arguments.validation) if arguments.validation else None
        history = loop.fit(task, data.read(arguments.data), config, validation=validation,
                           run_dir=run_dir, resume=arguments.resume, progress=progress,
                           teacher=_teacher(arguments, distill),
                           watchers=watchers_of(arguments, run_dir, validation or test or ()))
        _replace_weights(task, arguments.model_dir)
        result |= _told(history, run_dir)
    if test is not None:
        result["test"] = loop.evaluate(task, test, block_tokens=config.block_tokens,
                                       progress=progress)
    return result


def _teacher(arguments: argparse.Namespace, distill: DistillConfig) -> Teacher | None:
    from tf_infer.tasks import build
    from tf_infer.train.distill import Teacher

    if arguments.teacher is None:
        return None
    return Teacher(task=build.load(arguments.teacher), config=distill)


def _told(history: History, run_dir: Path) -> dict[str, Any]:
    return {"run_dir": str(run_dir), "epochs": list(history.epochs),
            "best_epoch": history.best_epoch, "stopped_early": history.stopped_early}


def _replace_weights(task: Task, folder: Path) -> None:
    """Write the weights beside those of the model, then rename them over."""
    from tf_infer.networks.build import WEIGHTS_FILE, save_weights

    with tempfile.TemporaryDirectory(prefix=".weights.", dir=folder) as staged:
        save_weights(task.network, Path(staged))
        (Path(staged) / WEIGHTS_FILE).replace(folder / WEIGHTS_FILE)


def _say_how_to_resume(arguments: argparse.Namespace, run_dir: Path) -> None:
    from tf_infer.train import checkpoint

    print("tf-infer train: interrupted; the model is as it was.", file=sys.stderr)
    if arguments.data is not None and (run_dir / checkpoint.FILE).exists():
        print(f"Every finished epoch is in {run_dir}. Run the same command with --resume to go "
              "on.", file=sys.stderr)


def describe(result: dict[str, Any]) -> str:
    """Return the result as text."""
    lines = []
    if "epochs" in result:
        why = "stopped early" if result["stopped_early"] else "all epochs run"
        lines.append(f"{result['model']}: {len(result['epochs'])} epochs ({why}), best "
                     f"{result['best_epoch']}; run in {result['run_dir']}")
    if "test" in result:
        test = result["test"]
        lines.append("test: " + ", ".join(f"{name} {value:.4g}" for name, value in test.items()
                                          if name != "classes"))
        for name, score in test.get("classes", {}).items():
            lines.append(f"  {name}: precision {score['precision']:.3f}, recall "
                         f"{score['recall']:.3f}, F1 {score['f1']:.3f}, {score['rows']} rows")
    return "\n".join(lines)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("tf_infer.train")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
