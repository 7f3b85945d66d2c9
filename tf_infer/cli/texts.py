"""What commands that ask about a file of texts share: its lines, calls, labels, how far it is."""

from __future__ import annotations

import argparse
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
    from tf_infer.train.data import Example
    from tf_infer.wire.messages import ModelRef


def made_calls(arguments: argparse.Namespace, path: str, *, option: str) -> list[Call[Any]]:
    """Return one call for every `--rows` texts of a file.

    They are made beforehand: the load's own work must not be measured.

    Args:
        arguments: those of `connection`, and `model`, `signature`, `rows`.
        path: UTF-8, a text a line.
        option: what named it, for messages.

    Raises:
        ConfigError: the file cannot be read or is empty, or the signature takes something else.
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
    """Return the lines of a UTF-8 file.

    Raises:
        ConfigError: it cannot be read, is no UTF-8, or has no line.
    """
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
        DataError: see there.
    """
    from tf_infer.train import data

    found = data.read(path)
    if not path.name.endswith((".txt", ".txt.gz")):
        return found
    return [data.Example(line, place=f"{path.name}:{number}") for one in found
            for number, line in enumerate(one.text.split("\n"), start=1) if line.strip()]


def truth(examples: Sequence[Example]) -> list[frozenset[str]] | None:
    """Return the labels of every text, or None where none has any.

    Raises:
        DataError: some have labels, others have none.
    """
    bare = [example.place for example in examples if not example.labels]
    if len(bare) == len(examples):
        return None
    if bare:
        raise DataError(f"{bare[0]}: expected a label, as other rows have one. Label all rows, or "
                        "none.")
    return [frozenset(example.labels) for example in examples]


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
