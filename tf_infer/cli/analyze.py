"""`tf-infer analyze`: where a classifier errs, as a page to look at, JSON, and a few lines."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli import connection, texts
from tf_infer.cli.json_text import json_text
from tf_infer.errors import BackendMissing, ConfigError, DataError, ServingError

if TYPE_CHECKING:
    import numpy as np

    from tf_infer.client.client import Client
    from tf_infer.train.data import Example
    from tf_infer.verify.error_analysis import ErrorAnalysis, Item, NearDuplicate
    from tf_infer.wire.messages import ModelRef

EPILOG = """examples:
  tf-infer analyze --model intents --texts test.jsonl
  tf-infer analyze --model intents --texts test.jsonl --train train.jsonl --output errors.html
  tf-infer analyze --model intents --texts test.jsonl --json errors.json

files: as of `tf-infer train`, with a label in every row. The page needs nothing beside it and holds
confusions, classes, slices by length, script and label, the surest wrong answers, labels to look
at again and, with --train, test rows that training has almost seen. The page and the JSON file
hold texts of the data; what is printed does not.
"""

UNKNOWN = "\U0010fffd"  # a private character that no vocabulary has
SHOWN = 8


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--model", required=True, metavar="NAME", help="classifier to ask")
    parser.add_argument("--texts", required=True, type=Path, metavar="FILE", help="labelled texts")
    parser.add_argument("--train", type=Path, metavar="FILE",
                        help="what it was trained on, to find near-duplicates")
    parser.add_argument("--output", type=Path, default=Path("errors.html"), metavar="FILE",
                        help="the page (default errors.html)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything as JSON, too")
    parser.add_argument("--rows", type=int, default=32, metavar="N",
                        help="texts in one call (default 32)")
    parser.add_argument("--worst", type=int, default=50, metavar="N",
                        help="rows of each list (default 50)")
    connection.configure(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask, count, write the page; return 0."""
    from tf_infer.train import data
    from tf_infer.verify.error_analysis import analyse

    try:
        from tf_infer.verify.duplicates import near_duplicates
        from tf_infer.verify.error_report import html
    except ImportError as error:
        raise BackendMissing("analyze needs matplotlib, jinja2 and scikit-learn: "
                             "pip install 'tf_infer[report]'") from error
    for name in ("rows", "worst"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"--{name}: expected at least 1, got {getattr(arguments, name)}.")
    for path in filter(None, (arguments.output, arguments.json)):
        if not path.absolute().parent.is_dir():
            raise ConfigError(f"{path}: expected a file in a folder that exists.")
    examples = data.read(arguments.texts)
    bare = [example.place for example in examples if not example.labels]
    if bare:
        raise DataError(f"{bare[0]}: expected a label in every row. Label the texts, or compare "
                        "two models without labels: tf-infer compare.")
    duplicates: list[NearDuplicate] | None = None
    if arguments.train:
        duplicates = near_duplicates(_rows(examples), _rows(data.read(arguments.train)))
    items, classes = _items(arguments, examples)
    found = analyse(items, classes, worst=arguments.worst, duplicates=duplicates)
    ref = connection.reference(arguments)
    arguments.output.write_text(html(found, title=str(ref), source=(
        f"{ref} at {arguments.address} on {arguments.texts.name}")), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json_text(dataclasses.asdict(found), indent=1),
                                  encoding="utf-8")
    print("\n".join(_lines(found)))
    print(f"written: {arguments.output} (it holds texts of the data)")
    return 0


def _rows(examples: Sequence[Example]) -> list[tuple[str, str, frozenset[str]]]:
    return [(example.place, _shown(example), frozenset(example.labels)) for example in examples]


def _shown(example: Example) -> str:
    """Return a text; of a pair both, each from a line of its own on."""
    return "\n".join(filter(None, (example.text, example.text_pair)))


def _items(arguments: argparse.Namespace, examples: Sequence[Example]
           ) -> tuple[list[Item], tuple[str, ...]]:
    """Ask the model about every row; return the items and the names of the classes."""
    from tf_infer.verify.error_analysis import Item

    ref = connection.reference(arguments)
    if any(example.text_pair is not None for example in examples):  # then the model reads pairs
        examples = [example._replace(text_pair=example.text_pair or "") for example in examples]
    found: list[Item] = []
    classes: tuple[str, ...] = ()
    with connection.connect(arguments) as client:
        unknown = _unknown_id(client, ref, examples[0])
        for start in range(0, len(examples), arguments.rows):
            batch = examples[start:start + arguments.rows]
            told = texts.classify(client, ref, batch)
            counts = _counts(client, ref, batch, unknown)
            for example, one, (tokens, missing) in zip(batch, told, counts):
                classes = classes or tuple(label.name for label in one.scores)
                found.append(Item(
                    place=example.place, text=_shown(example), truth=frozenset(example.labels),
                    answer=frozenset(one.labels), score=one.score, tokens=tokens, unknown=missing,
                    probabilities=tuple(label.score for label in one.scores)))
            texts.progress(min(start + arguments.rows, len(examples)), len(examples))
    return found, classes


def _unknown_id(client: Client, ref: ModelRef, one: Example) -> int | None:
    """Return the id of what the vocabulary does not have; None where nothing is unknown to it.

    The id that a character no vocabulary has becomes, if it becomes a single one. `one` says
    whether the model reads pairs.
    """
    asked = one._replace(text=UNKNOWN, text_pair=None if one.text_pair is None else "")
    try:
        found = client.predict(ref, _inputs([asked]), signature="encode")
    except ServingError:
        return None  # not a model of ours
    inside = (found["ends"][0] > found["starts"][0]) & (found["mask"][0] > 0)
    ids: np.ndarray = found["ids"][0][inside]
    return int(ids[0]) if len(ids) == 1 else None


def _counts(client: Client, ref: ModelRef, batch: Sequence[Example], unknown: int | None
            ) -> list[tuple[int, int]]:
    """Return how many ids each text has, of a pair both, and how many are the unknown one."""
    if unknown is None:
        return [(0, 0)] * len(batch)
    found = client.predict(ref, _inputs(batch), signature="encode")
    real = (found["mask"] > 0) & (found["ends"] > found["starts"])           # [B, T]
    return list(zip(real.sum(axis=1).tolist(),
                    (real & (found["ids"] == unknown)).sum(axis=1).tolist()))


def _inputs(batch: Sequence[Example]) -> dict[str, list[str]]:
    """Return what `encode` takes: texts, and of pairs both."""
    inputs = {"text": [example.text for example in batch]}
    if any(example.text_pair is not None for example in batch):
        inputs["text_pair"] = [example.text_pair or "" for example in batch]
    return inputs


def _lines(found: ErrorAnalysis) -> Iterator[str]:
    yield (f"{100 * found.accuracy:.2f} % of {found.rows} rows are right "
           f"({100 * found.low:.1f} to {100 * found.high:.1f} %), calibration error "
           f"{found.calibration_error:.3f}")
    for truth, answer, count in found.confusions[:SHOWN]:
        yield f"  {count:5d}  {truth} taken for {answer}"
    for one in [one for one in found.slices if one.weak][:SHOWN]:
        yield (f"  weak   {one.kind} {one.name}: {100 * one.accuracy:.1f} % of {one.rows} rows")
    if found.label_errors:
        yield f"  {len(found.label_errors)} labels to look at again"
    if found.duplicates:
        yield f"  {len(found.duplicates)} rows are almost in the training data"
