"""Files -> examples: JSONL, CSV and plain text, each also as .gz; every fault by file and line."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_infer.config import ClassifierConfig
from tf_infer.errors import DataError

KEYS = ("text", "text_pair", "label", "labels")
SHOWN_FAULTS = 3
# Pieces of a plain text to learn a vocabulary from: learners leave out lines that are very long.
PIECE_CHARS = 2_000


class Example(NamedTuple):
    """One row of a file.

    Attributes:
        text: what is read.
        text_pair: the second text of a pair.
        labels: names of classes; one for a single-label classifier, none for a decoder.
        place: "file:line", for messages.
    """

    text: str
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    place: str = ""


class _Fault(Exception):
    """One row that breaks a rule; collected, and raised together."""


def read(path: Path) -> list[Example]:
    """Read a file of examples by the ending of its name.

    `.jsonl`: one object a line with "text", and "text_pair", "label" (a name) or "labels" (a list
    of names); other keys are left alone. `.csv`: the same names in its first line, "labels" joined
    by "|". `.txt`: one document. Each may be compressed (`.gz`). UTF-8, with or without a mark.

    Raises:
        DataError: the file is missing, empty, cut, not UTF-8 or of another ending; or rows break a
            rule (the first three are named by file and line, never by their text).
    """
    path = Path(path)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    readers: dict[str, Callable[[str, str], list[Example]]] = {
        ".jsonl": _read_jsonl, ".csv": _read_csv, ".txt": _read_text}
    if kind not in readers:
        raise DataError(f"{path}: expected a name that ends in {', '.join(readers)} (or one of "
                        f"them and .gz), got {path.name!r}.")
    examples = readers[kind](_content(path), path.name)
    if not examples:
        raise DataError(f"{path}: expected at least one example, got an empty file.")
    return examples


def _content(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is no whole gzip file"
        raise DataError(f"{path}: cannot be read: {reason}.") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name}:{line}: expected UTF-8, got the byte "
                        f"0x{data[error.start]:02x}. Save the file as UTF-8.") from error


# ---------------------------------------------------------------------------- JSONL, CSV, text


def _read_jsonl(content: str, name: str) -> list[Example]:
    def rows() -> Iterator[tuple[str, Callable[[], dict[str, object]]]]:
        # Not splitlines(): JSON strings may hold U+2028 and its like.
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield f"{name}:{number}", lambda line=line: _json_object(line)  # type: ignore[misc]

    return _collect(rows(), lambda fields, place: _example(fields, place, fields.get("labels")))


def _json_object(line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = (f"an error at column {error.colno}" if isinstance(error, json.JSONDecodeError)
                else "a number too long or a nesting too deep to be read")
        raise _Fault(f"expected a JSON object, got {what}") from error
    if not isinstance(fields, dict):
        raise _Fault(f"expected a JSON object, got a {type(fields).__name__}")
    return fields


def _read_csv(content: str, name: str) -> list[Example]:
    limit = csv.field_size_limit(len(content) + 1)  # the default refuses texts over 131,072
    try:
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        header = next(reader, None)
        if header is None:
            return []
        if "text" not in header:
            raise DataError(f"{name}:1: {_missing('text', header, 'cells')}. The first line of a "
                            "CSV file names its columns.")

        def rows() -> Iterator[tuple[str, Callable[[], dict[str, object]]]]:
            for cells in reader:
                if cells:
                    yield (f"{name}:{reader.line_num}",
                           lambda cells=cells: _csv_object(header, cells))  # type: ignore[misc]

        return _collect(rows(), lambda fields, place: _example(
            fields, place, None if "labels" not in fields else
            [part for part in str(fields["labels"]).split("|") if part]))
    except csv.Error as error:
        raise DataError(f"{name}:{reader.line_num}: expected CSV, got: {error}. Close every quote, "
                        "and write a quote inside a cell twice.") from error
    finally:
        csv.field_size_limit(limit)


def _csv_object(header: list[str], cells: list[str]) -> dict[str, object]:
    if len(cells) != len(header):
        raise _Fault(f"expected {len(header)} cells as in the header, got {len(cells)}; put a text "
                     "that holds a comma between quotes")
    # An empty cell of an optional column says that the row has none.
    return {key: cell for key, cell in zip(header, cells) if cell or key in ("text", "labels")}


def _read_text(content: str, name: str) -> list[Example]:
    return [Example(content, place=f"{name}:1")] if content else []


def _collect(rows: Iterator[tuple[str, Callable[[], dict[str, object]]]],
             make: Callable[[dict[str, object], str], Example]) -> list[Example]:
    """Make an example of every row, or raise one error for all that are faulty."""
    examples, faults = [], []
    for place, fields in rows:
        try:
            examples.append(make(fields(), place))
        except _Fault as fault:
            faults.append(f"{place}: {fault}")
    raise_faults(faults)
    return examples


def raise_faults(faults: Sequence[str]) -> None:
    """Raise one DataError for all faults, naming the first three; do nothing without any."""
    if faults:
        more = len(faults) - SHOWN_FAULTS
        tail = f"; and {more} more rows" if more > 0 else ""
        raise DataError("; ".join(faults[:SHOWN_FAULTS]) + tail + ".")


def _example(fields: dict[str, object], place: str, labels: object) -> Example:
    if "text" not in fields:
        raise _Fault(_missing("text", list(fields), "keys"))
    for key in ("text", "text_pair", "label"):
        if key in fields and not isinstance(fields[key], str):
            raise _Fault(f"{key}: expected a string, got a {type(fields[key]).__name__}")
    if labels is not None and not (
            isinstance(labels, list) and all(isinstance(item, str) for item in labels)):
        raise _Fault(f"labels: expected a list of strings, got a {type(labels).__name__}")
    if "label" in fields and labels is not None:
        raise _Fault("expected either label or labels, got both")
    pair = fields.get("text_pair")
    names = (str(fields["label"]),) if "label" in fields else tuple(labels or ())
    return Example(str(fields["text"]), None if pair is None else str(pair), names, place)


def _missing(key: str, got: Sequence[str], kind: str) -> str:
    """Say what is missing; of what stands there instead, which may be a text, only known names."""
    known = [name for name in KEYS if name in got]
    near = difflib.get_close_matches(key, [name for name in got if name not in KEYS], n=1)
    names = f", of which known are {', '.join(known)}" if known else ""
    hint = f"; did you mean {near[0]!r} to be it?" if near else ""
    return f"expected the key {key!r}, got {len(got)} {kind}{names}{hint}"


# ---------------------------------------------------------------------------- labels


def class_targets(examples: Sequence[Example], config: ClassifierConfig) -> np.ndarray:
    """Turn the labels of examples into numbers.

    Returns:
        [N] int32, index of the class; with `config.multi_label` [N, C] float32 of 0 and 1.

    Raises:
        DataError: an unknown label (names the nearest class), a row without a label or with
            several where one is asked for, a pair where none is asked for or none where one is.
    """
    index = {name: number for number, name in enumerate(config.classes)}
    faults: list[str] = []
    for row, example in enumerate(examples):
        fault = _label_fault(example, config, index)
        if fault:
            faults.append(f"{example.place or f'row {row}'}: {fault}")
    raise_faults(faults)
    if config.multi_label:
        targets = np.zeros((len(examples), len(config.classes)), np.float32)  # [N, C]
        for row, example in enumerate(examples):
            targets[row, [index[name] for name in example.labels]] = 1.0
        return targets
    return np.array([index[example.labels[0]] for example in examples], np.int32)


def _label_fault(example: Example, config: ClassifierConfig, index: dict[str, int]) -> str:
    if config.pair != (example.text_pair is not None):
        wanted = "text_pair" if config.pair else "no text_pair"
        return f"expected {wanted}, as the model says pair = {config.pair}"
    if not config.multi_label and len(example.labels) != 1:
        return f"label: expected one class, got {len(example.labels)}"
    for name in example.labels:
        if name not in index:
            near = difflib.get_close_matches(name, config.classes, n=1, cutoff=0.0)
            return (f"label: expected one of the model's {len(index)} classes, got a name of "
                    f"{len(name)} characters; the nearest class is {near[0]!r}")
    return ""


def check_several_classes(targets: np.ndarray, config: ClassifierConfig) -> None:
    """Raise DataError when all rows carry the same label: nothing could be learned from them."""
    if not config.multi_label and len(np.unique(targets)) < 2:
        raise DataError(f"label: expected at least two classes among the training rows, got only "
                        f"{config.classes[int(targets[0])]!r} in all {len(targets)} of them.")


def pieces(text: str) -> list[str]:
    """Cut a text at ends of lines into pieces of about 2,000 characters; joined they are it."""
    parts: list[str] = []
    size = PIECE_CHARS
    for line in text.splitlines(keepends=True):
        if size >= PIECE_CHARS:
            parts.append("")
            size = 0
        parts[-1] += line
        size += len(line)
    return parts


def to_bytes(text: str) -> bytes:
    """UTF-8; a lone surrogate (JSON can hold one) becomes bytes that a codec reads as U+FFFD."""
    return text.encode("utf-8", "surrogatepass")


def class_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the sorted names of all labels."""
    return tuple(sorted({name for example in examples for name in example.labels}))
