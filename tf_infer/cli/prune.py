"""`tf-infer prune`: a smaller model directory, by what given texts need, compared with the whole"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer import config as configs
from tf_infer.cli.json_text import json_text
from tf_infer.cli.texts import check_pairs
from tf_infer.cli.train import value_of
from tf_infer.config import CausalLMConfig, check
from tf_infer.errors import DataError

if TYPE_CHECKING:
    from tf_infer.networks.cuts import Kept
    from tf_infer.optimize.prune import PruneSettings
    from tf_infer.optimize.texts import Text
    from tf_infer.tasks.base import Task
    from tf_infer.train.data import Example

EPILOG = """a number below 1 is a share, any other one a count. Importance: layers by how far the
answers move without them, heads and neurons by the gradient of the answers, ids by whether the
texts use them. What is removed is gone from the weights: the file and the time get smaller.

examples:
  tf-infer prune models/intents --texts train.jsonl --heads 0.5 --neurons 0.5 --output models/half
  tf-infer prune models/intents --texts train.jsonl --layers 4 --vocabulary used \\
      --test dev.jsonl --output models/small
  tf-infer train models/small --teacher models/intents --data train.jsonl   then recover
  tf-infer prune models/writer --texts stories.txt --vocabulary used --output models/writer_small
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR",
                        help="what `tf-infer build` or `tf-infer train` wrote; it is left as it is")
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE",
                        help="texts to judge by, such as the training rows: .jsonl, .csv or .txt, "
                             "or one of them and .gz")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="the model directory to write; must not exist")
    keep = parser.add_argument_group("what stays (default: all)")
    keep.add_argument("--layers", metavar="N|SHARE", help="of the network's layers")
    keep.add_argument("--heads", metavar="N|SHARE", help="of each layer's attention heads")
    keep.add_argument("--neurons", metavar="N|SHARE",
                      help="of each layer's feed-forward neurons")
    keep.add_argument("--vocabulary", metavar="all|used",
                      help="used: the ids that the texts use, and those without which a text "
                           "could not be encoded")
    keep.add_argument("--least-uses", metavar="N",
                      help="so often must the texts use an id (default: 1)")
    keep.add_argument("--judging-texts", metavar="N",
                      help="so many of the texts judge heads and neurons, a fourth of them the "
                           "layers (default: 256)")
    keep.add_argument("--settings", type=Path, metavar="FILE",
                      help="PruneSettings as JSON; the options above go before it")
    parser.add_argument("--test", type=Path, metavar="FILE",
                        help="rows with labels (documents for a decoder) to judge both models by")
    parser.add_argument("--rounds", type=int, default=5, metavar="N",
                        help="of timing both models in turn (default: 5; 0 leaves it out)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def settings_of(arguments: argparse.Namespace) -> PruneSettings:
    """Read --settings and lay the options over it.

    Raises:
        ConfigError: a value is no number, or breaks a rule of PruneSettings.
    """
    from tf_infer.optimize.prune import PruneSettings

    base = (configs.load(PruneSettings, arguments.settings) if arguments.settings
            else PruneSettings())
    given = {name: getattr(arguments, option) for name, option in (
        ("layers", "layers"), ("heads", "heads"), ("neurons", "neurons"),
        ("vocabulary", "vocabulary"), ("least_uses", "least_uses"), ("texts", "judging_texts"))}
    changes = {name: word if name == "vocabulary" else value_of(word)
               for name, word in given.items() if word is not None}
    read: PruneSettings = configs.from_json(
        PruneSettings, {**configs.to_json(base), **changes}, where="prune")
    return read


def run(arguments: argparse.Namespace) -> int:
    """Prune, write, compare, print."""
    check(not arguments.output.exists(), "--output", "a directory that does not exist",
          str(arguments.output), "Remove it, or name another.")
    check(arguments.rounds >= 0, "--rounds", ">= 0", arguments.rounds)
    from tf_infer.networks.build import WEIGHTS_FILE
    from tf_infer.optimize import prune
    from tf_infer.optimize.timing import timed
    from tf_infer.tasks import build
    from tf_infer.train import data
    from tf_infer.train.loop import bar

    settings = settings_of(arguments)
    task = build.load(arguments.model_dir)
    texts = texts_of(task, data.read(arguments.texts), arguments.texts)
    test = data.read(arguments.test) if arguments.test else None
    seen = texts_of(task, test, arguments.test) if test else texts
    judge = functools.partial(_judged, test=test, quiet=arguments.quiet)
    # Whatever fails, fails before anything is written; rows that cannot be judged at once.
    before = _measured(task, seen) | judge(task)
    ticker = functools.partial(bar, progress=False if arguments.quiet else None)
    kept = prune.choose(task, settings, texts, ticker=ticker)
    tasks = (task, prune.take(task, kept))
    found = [before, _measured(tasks[1], seen) | judge(tasks[1])]
    if arguments.rounds:
        for times, told in zip(timed(tasks, texts, arguments.rounds), found):
            told |= times
    build.save(tasks[1], arguments.output)
    for folder, told in zip((arguments.model_dir, arguments.output), found):
        told["megabytes"] = (folder / WEIGHTS_FILE).stat().st_size / 1e6
    result = {"model": str(arguments.model_dir), "output": str(arguments.output),
              "settings": configs.to_json(settings), "kept": told_of(kept),
              "before": found[0], "after": found[1]}
    print(json_text(result) if arguments.json else describe(result))
    return 0


def texts_of(task: Task, examples: Sequence[Example], path: Path) -> list[Text]:
    """Return the texts of examples: pairs of them as pairs, of plain text each line or piece.

    Raises:
        DataError: there is none, or pairs stand where the task reads none; names rows by place.
    """
    from tf_infer.train import data

    check_pairs(examples, task.config)
    plain = path.name.endswith((".txt", ".txt.gz"))
    cut = data.pieces if isinstance(task.config, CausalLMConfig) else str.splitlines
    found: list[Text] = []
    for example in examples:
        if example.text_pair is not None:
            found.append((data.to_bytes(example.text), data.to_bytes(example.text_pair)))
        else:
            parts = cut(example.text) if plain else [example.text]
            found += [data.to_bytes(part) for part in parts if part.strip()]
    if not found:
        raise DataError(f"{path}: expected at least one text, got none.")
    return found


def told_of(kept: Kept) -> dict[str, Any]:
    """Return what stays, as JSON: numbers of layers and heads, how many neurons and ids."""
    return {"layers": list(kept.layers), "heads": [list(heads) for heads in kept.heads],
            "neurons": [len(neurons) for neurons in kept.neurons],
            "ids": None if kept.ids is None else len(kept.ids)}


def _measured(task: Task, texts: Sequence[Text]) -> dict[str, Any]:
    from tf_infer.optimize.prune import count_ids

    uses = count_ids(task, texts)
    unknown = task.codec.unknown_id
    return {"parameters": sum(weight.shape.num_elements() for weight in task.network.weights),
            "vocabulary": task.codec.vocab_size, "ids_a_text": float(uses.sum()) / len(texts),
            "unknown_share": float(uses[unknown]) / max(int(uses.sum()), 1)
            if unknown is not None else 0.0}


def _judged(task: Task, test: Sequence[Example] | None, *, quiet: bool) -> dict[str, Any]:
    """Return how good a model is on test rows; nothing without any."""
    from tf_infer.train.loop import evaluate

    if not test:
        return {}
    judged = evaluate(task, test, progress=False if quiet else None)
    return {name: judged[name] for name in ("accuracy", "micro_f1", "perplexity", "loss")
            if name in judged}


# ---------------------------------------------------------------------------- text

ROWS = (("parameters", "parameters", "{:,}"), ("megabytes", "weights, MB", "{:.2f}"),
        ("vocabulary", "vocabulary", "{:,}"), ("ids_a_text", "ids a text", "{:.2f}"),
        ("unknown_share", "unknown ids, share", "{:.5f}"), ("accuracy", "accuracy", "{:.4f}"),
        ("micro_f1", "micro F1", "{:.4f}"), ("perplexity", "perplexity", "{:.3f}"),
        ("loss", "loss, nats", "{:.4f}"), ("ms_batch_1", "ms a call, batch 1", "{:.2f}"),
        ("ms_batch_32", "ms a call, batch 32", "{:.2f}"))


def describe(result: dict[str, Any]) -> str:
    """Return the comparison as a table."""
    before, after = result["before"], result["after"]
    lines = [f"{'':24}{'before':>14}{'after':>14}{'ratio':>9}"]
    for name, shown, form in ROWS:
        if name in before:
            ratio = f"{after[name] / before[name]:9.3f}" if before[name] else " " * 9
            lines.append(f"{shown:24}{form.format(before[name]):>14}"
                         f"{form.format(after[name]):>14}{ratio}")
    kept = result["kept"]
    if kept["layers"]:
        lines.append("kept: layers " + ", ".join(map(str, kept["layers"])))
    lines.append(f"{result['output']}: written\nnext: tf-infer train {result['output']} --teacher "
                 f"{result['model']} --data FILE")
    return "\n".join(lines)
