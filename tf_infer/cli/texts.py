"""What commands that ask about a file of texts share: its lines, calls, labels, how far it is."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.cli import connection
from tf_infer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tf_infer.client.calls import Call
    from tf_infer.client.client import Client
    from tf_infer.client.results import Classification
    from tf_infer.config import TaskConfig
    from tf_infer.train.data import Example
    from tf_infer.wire.messages import ModelRef

ROWS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")  # endings of files whose rows have a field "text"


def made_calls(arguments: argparse.Namespace, path: str, *, option: str) -> list[Call[Any]]:
    """Return one call for every `--rows` texts of a file.

    They are made beforehand: the load's own work must not be measured.

    Args:
        arguments: those of `connection`, and `model`, `signature`, `rows`.
        path: of examples by the ending of its name (.jsonl, .csv), else UTF-8, a text a line.
        option: what named it, for messages.

    Raises:
        ConfigError: the file cannot be read or is empty, or the signature takes something else.
        DataError: rows of examples break a rule.
        ServingError: the server does not say what the model takes.
    """
    from tf_infer.client import calls

    ref = connection.reference(arguments)
    with connection.connect(arguments) as client:
        signatures = client.metadata(ref).signatures
    signature = signatures.get(arguments.signature)
    if signature is None:
        known = [name for name in signatures if not name.startswith("__")]
        raise ConfigError(f"--signature: expected one of {known}, got {arguments.signature!r}.")
    if [info.dtype for info in signature.inputs] != ["string"]:
        raise ConfigError(f"--signature: expected one whose only input is text, got "
                          f"{arguments.signature!r} ({', '.join(map(str, signature.inputs))}).")
    texts = read_texts(path, option=option)
    rows = [texts[start:start + arguments.rows] for start in range(0, len(texts), arguments.rows)]
    return [calls.predict(ref, {signature.inputs[0].name: one}, signature=arguments.signature)
            for one in rows]


def read_texts(path: str, *, option: str) -> list[str]:
    """Return the texts of a file of examples, or the lines of any other UTF-8 file.

    Raises:
        ConfigError: it cannot be read, is no UTF-8, or has no line.
        DataError: rows of examples break a rule.
    """
    if path.endswith(ROWS):
        return [example.text for example in examples(Path(path))]
    try:
        with open(path, encoding="utf-8") as file:
            texts = [line.rstrip("\r\n") for line in file]
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:  # without the cause: it carries the text
        raise ConfigError(f"{option}: {path}: expected UTF-8 text. Convert the file.") from None
    if not texts:
        raise ConfigError(f"{option}: {path}: expected at least one line, got none.")
    return texts


def examples(path: Path) -> list[Example]:
    """Read a file of examples (`train.data.read`); of .txt each line that is not empty is one.

    Raises:
        DataError: see there; or no line has a text.
    """
    from tf_infer.train import data

    found = data.read(path)
    if not path.name.endswith((".txt", ".txt.gz")):
        return found
    lines = [data.Example(line.rstrip("\n"), place=f"{path.name}:{number}") for one in found
             for number, line in enumerate(io.StringIO(one.text, newline=None), start=1)
             if line.strip()]
    if not lines:
        raise DataError(f"{path}: expected at least one text, got none.")
    return lines


def truth(examples: Sequence[Example], *, several: bool = False
          ) -> list[frozenset[str] | None] | None:
    """Return the labels of every text, None for one that is not labelled; None where none is.

    Args:
        examples: rows of a file.
        several: the model decides about each of several labels, so that in a file with labels a row
            without has none of them, as in training.
    """
    if not any(example.labels for example in examples):
        return None
    return [frozenset(example.labels) if example.labels or several else None
            for example in examples]


def check_pairs(examples: Sequence[Example], task: TaskConfig) -> None:
    """Raise DataError unless rows are pairs where the task reads pairs; names rows by place."""
    from tf_infer.config import ClassifierConfig
    from tf_infer.train import data

    pair, wanted = False, "no text_pair, as a decoder reads one text"
    if isinstance(task, ClassifierConfig):
        pair = task.pair
        wanted = f"{'text_pair' if pair else 'no text_pair'}, as the model says pair = {pair}"
    data.raise_faults([f"{example.place}: expected {wanted}" for example in examples
                       if pair != (example.text_pair is not None)])


def classify(client: Client, ref: ModelRef, batch: Sequence[Example]) -> list[Classification]:
    """Ask for the labels of examples, of pairs where any of them is one."""
    pairs = [example.text_pair for example in batch]
    return client.classify(ref, [example.text for example in batch], text_pairs=[
        pair or "" for pair in pairs] if any(pair is not None for pair in pairs) else None)


def progress(done: int, rows: int) -> None:
    """Tell how many texts are done, on a terminal; the line goes when all are."""
    if sys.stderr.isatty():
        end = "" if done < rows else "\r\033[K"
        print(f"\r{done} of {rows} texts", end=end, file=sys.stderr, flush=True)
