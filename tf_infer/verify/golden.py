"""Golden samples: choose texts that reach every corner, make requests of them, write and read.

Choosing and making need no TensorFlow: token counts come from whatever the caller encodes with.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_infer.config import ShapeGrid, check
from tf_infer.errors import ConfigError
from tf_infer.manifest import (
    EXTRA_FOLDER,
    GOLDEN_FILE,
    Sample,
    SignatureSpec,
    TensorSpec,
    read_samples,
)
from tf_infer.verify.predictors import Predictor

Batch = tuple[bytes, ...]

# What breaks tokenizers: nothing at all, white space only, a NUL, several scripts and an emoji of
# four code points, a combining mark alone, every kind of ill-formed UTF-8.
EDGE_TEXTS: Batch = (
    b"", b" \t\n", b"before\x00after", "Grüße, naïve İstanbul 中文，日本語 한국어 👩‍🚀".encode(),
    "\u0301".encode(), b"\xff\xfe \xc3 \xed\xa0\x80 \xf4\x90\x80\x80 end")
LONG_REPEATS = 2_000  # of the word of the longest text: longer than any row, so it is cut

# The values that the rows of one request take in turn, by option; other options keep their default.
# Cycles of different lengths, so that the combinations differ from row to row.
OPTION_CYCLES: Mapping[str, tuple[Any, ...]] = {
    "temperature": (None, 0.7), "top_k": (None, 3, 0), "top_p": (None, None, None, 0.9),
    "max_new_tokens": (None, 3, 1, None, 0)}


def choose(texts: Sequence[bytes], counts: Sequence[int], grid: ShapeGrid, *,
           classes: Sequence[str] | None = None, max_rows: int | None = None) -> tuple[Batch, ...]:
    """Choose batches that cover the grid and the classes, and the edge texts.

    Args:
        texts: what to choose from, at least one.
        counts: packed tokens of each text, special ids included.
        grid: rows x tokens; a length bucket that no text falls into is left out.
        classes: the class of each text, when known; each is in at least one batch.
        max_rows: leave out larger row buckets; None takes all.

    Returns:
        Batches of as many rows as a row bucket says; first those of the edge texts, then one for
        each cell of the grid, then what classes are missing.
    """
    check(bool(texts), "choose.texts", "at least one text", list(texts))
    check(len(counts) == len(texts), "choose.counts", f"{len(texts)} numbers", len(counts))
    sizes = [size for size in grid.rows if max_rows is None or size <= max_rows] or [grid.rows[0]]
    order = _one_of_each_class_first(classes or [""] * len(texts))
    bucket_of = [bisect.bisect_left(grid.tokens, min(n, grid.tokens[-1])) for n in counts]
    members = [[i for i in order if bucket_of[i] == b] for b in range(len(grid.tokens))]
    chosen: list[list[int]] = []
    turn = itertools.count()
    for bucket, rows in itertools.product(range(len(grid.tokens)), sizes):
        if members[bucket]:
            shorter = [i for i in order if bucket_of[i] <= bucket]
            first = members[bucket][next(turn) % len(members[bucket])]
            start = sum(map(len, chosen)) % len(shorter)
            rest = itertools.islice(itertools.cycle(shorter), start, start + rows - 1)
            chosen.append([first, *rest])
    used = set(itertools.chain.from_iterable(chosen))
    if classes is not None:
        seen = {classes[i] for i in used}
        missing = [i for i in order[:len(set(classes))] if classes[i] not in seen]
        chosen += [list(part) for part in _chunks(missing, sizes)]
    long = b"long " * LONG_REPEATS
    edges = [*EDGE_TEXTS, long]
    return (*(tuple(part) for part in _chunks(edges, sizes)),
            *(tuple(texts[i] for i in batch) for batch in chosen))


def _one_of_each_class_first(classes: Sequence[str]) -> list[int]:
    first = sorted({name: i for i, name in reversed(list(enumerate(classes)))}.values())
    return first + sorted(set(range(len(classes))) - set(first))


def _chunks(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Cut items into chunks of exactly a row bucket each, the last filled by starting again."""
    chunks = []
    for start in range(0, len(items), sizes[-1]):
        part = list(items[start:start + sizes[-1]])
        size = sizes[bisect.bisect_left(sizes, len(part))]
        chunks.append(list(itertools.islice(itertools.cycle(part), size)))
    return chunks


def make_requests(signatures: Iterable[SignatureSpec], batches: Sequence[Batch], *,
                  encode: Predictor, example: Callable[[Mapping[str, bytes]], bytes],
                  ) -> tuple[Sample, ...]:
    """Make requests of batches of texts: all of them for serving_default, some for the others.

    Args:
        signatures: what to ask.
        batches: of texts; the others get the edge texts and the second smallest number of rows.
        encode: runs the signature "encode", for inputs of ids.
        example: features -> a serialized tf.Example, for the signature "classify".

    Returns:
        Samples without outputs (`parity.fill` adds them).

    Raises:
        ConfigError: an input that cannot be made from texts; names signature and input.
    """
    samples = []
    sizes = sorted({len(batch) for batch in batches})
    few = [batch for batch in batches if len(batch) == sizes[min(1, len(sizes) - 1)]]
    for spec in signatures:
        for batch in batches if spec.name == "serving_default" else few:
            samples.append(Sample(spec.name, make_inputs(spec, batch, encode, example)))
    return tuple(samples)


def make_inputs(spec: SignatureSpec, batch: Batch, encode: Predictor,
                example: Callable[[Mapping[str, bytes]], bytes]) -> dict[str, np.ndarray]:
    """Return the inputs of one request: the texts, what `encode` makes of them, and options."""
    names = {one.name for one in spec.inputs}
    encoded: Mapping[str, np.ndarray] = {}
    if names & {"ids", "mask", "length"}:
        encoded = encode("encode", {"text": _strings(batch)})
        length = np.asarray(np.count_nonzero(encoded["mask"], axis=1), dtype=np.int32)
        encoded = {**encoded, "length": length}
    other = (*batch[1:], batch[0])  # the second text of a row is the first one of the next
    made: dict[str, np.ndarray] = {}
    for one in spec.inputs:
        if one.name == "inputs" and spec.name == "classify":
            made[one.name] = _strings(
                [example({"text": a, "text_pair": b}) for a, b in zip(batch, other)])
        elif one.dtype == "string":
            made[one.name] = _strings(other if one.name in ("text_pair", "continuation") else batch)
        elif one.name in encoded:
            made[one.name] = encoded[one.name].astype(one.dtype)
        elif one.default is not None:
            made[one.name] = _option(one, len(batch))
        else:
            raise ConfigError(f"signature {spec.name!r}, input {one.name!r}: expected a text, ids, "
                              "or an option with a default. Hand in samples of your own for it.")
    return made


def _option(spec: TensorSpec, rows: int) -> np.ndarray:
    if spec.name == "seed":
        values = [spec.default + row for row in range(rows)]
    else:
        cycle = itertools.cycle(OPTION_CYCLES.get(spec.name, (None,)))
        values = [spec.default if value is None else min(value, spec.default)
                  if spec.name == "max_new_tokens" else value
                  for value in itertools.islice(cycle, rows)]
    return np.array(values, dtype=spec.dtype)


def _strings(items: Sequence[bytes]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def read_golden(version_dir: Path) -> tuple[Sample, ...]:
    """Read the golden samples of a version directory.

    Raises:
        ConfigError: missing or broken; names the file, and the line.
    """
    return read_samples(Path(version_dir) / EXTRA_FOLDER / GOLDEN_FILE)
