"""Golden samples: choose texts that reach every corner, make requests of them, write and read.

Choosing and making need no TensorFlow: token counts come from whatever the caller encodes with.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
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
STEPS = 2  # tokens produced from a state: one that was given, and one that was made
CONTINUATION_BYTES = 6
COSTLY = ("explain",)  # signatures of which a row costs as much as dozens of others
SCORED_PREFIX = b"one two "

# The values that the rows of one request take in turn, by option; other options keep their default.
# Cycles of different lengths, so that the combinations differ from row to row.
OPTION_CYCLES: Mapping[str, tuple[Any, ...]] = {
    "temperature": (None, 0.7), "top_k": (None, 3, 0), "top_p": (None, None, None, 0.9),
    "max_new_tokens": (None, 3, 1, None, 0), "min_p": (None, None, 0.05),
    "repetition_penalty": (None, 1.3, None, None, None), "logprobs": (None, 1),
    "stop": (None, None, None, " "), "banned": (None, None, None, None, "a\x1fthe")}


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
    sizes = row_sizes(grid, max_rows)
    order = _one_of_each_class_first(classes or [""] * len(texts))
    chosen = _one_for_each_cell(counts, grid, sizes, order)
    used = set(itertools.chain.from_iterable(chosen))
    if classes is not None:
        seen = {classes[i] for i in used}
        missing = [i for i in order[:len(set(classes))] if classes[i] not in seen]
        chosen += [list(part) for part in chunks(missing, sizes)]
    long = b"long " * LONG_REPEATS
    edges = [*EDGE_TEXTS, long]
    return (*(tuple(part) for part in chunks(edges, sizes)),
            *(tuple(texts[i] for i in batch) for batch in chosen))


def row_sizes(grid: ShapeGrid, max_rows: int | None) -> list[int]:
    """Return the row buckets up to `max_rows`; the smallest one where there is none, None for all.
    """
    sizes = [size for size in grid.rows if max_rows is None or size <= max_rows]
    return sizes or [grid.rows[0]]


def cells(texts: Sequence[bytes], counts: Sequence[int], grid: ShapeGrid, *,
          max_rows: int | None = None) -> tuple[Batch, ...]:
    """Make one batch for each cell of the grid; arguments as of `choose`.

    Its first row is as long as the cell is wide, the others are that long or shorter.
    """
    chosen = _one_for_each_cell(counts, grid, row_sizes(grid, max_rows), range(len(texts)))
    return tuple(tuple(texts[i] for i in batch) for batch in chosen)


def _one_for_each_cell(counts: Sequence[int], grid: ShapeGrid, sizes: Sequence[int],
                       order: Sequence[int]) -> list[list[int]]:
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
    return chosen


def _one_of_each_class_first(classes: Sequence[str]) -> list[int]:
    first = sorted({name: i for i, name in reversed(list(enumerate(classes)))}.values())
    return first + sorted(set(range(len(classes))) - set(first))


def chunks(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Cut items into chunks of exactly a row bucket each, the last filled by starting again."""
    found = []
    for start in range(0, len(items), sizes[-1]):
        part = list(items[start:start + sizes[-1]])
        size = sizes[bisect.bisect_left(sizes, len(part))]
        found.append(list(itertools.islice(itertools.cycle(part), size)))
    return found


def make_requests(signatures: Sequence[SignatureSpec], batches: Sequence[Batch], *,
                  encode: Predictor, example: Callable[[Mapping[str, bytes]], bytes],
                  ) -> tuple[Sample, ...]:
    """Make requests of batches of texts: all of them for serving_default, some for the others.

    Args:
        signatures: what to ask; "encode" is one of them when any takes ids.
        batches: of texts; the others get those of the second smallest number of rows, and one
            that is costly, or takes a decoder's state, which is large, two of the smallest.
        encode: runs the signature "encode", for inputs of ids.
        example: features -> a serialized tf.Example, for the signature "classify".

    Returns:
        Samples without outputs (`parity.fill` adds them).

    Raises:
        ConfigError: an input that cannot be made from texts; names signature and input.
    """
    sizes = sorted({len(batch) for batch in batches})
    few = [batch for batch in batches if len(batch) == sizes[min(1, len(sizes) - 1)]]
    smallest = [batch for batch in batches if len(batch) == sizes[0]][-2:]
    encoder = next((spec for spec in signatures if spec.name == "encode"), None)
    samples = []
    for spec in signatures:
        brief = has_state(spec) or spec.name in COSTLY
        chosen = batches if spec.name == "serving_default" else smallest if brief else few
        for batch in chosen:
            encoded: Mapping[str, np.ndarray] = {}
            if encoder is not None and any(one.name == "ids" for one in spec.inputs):
                encoded = encode("encode", _texts(encoder, batch))
            samples.append(Sample(spec.name, make_inputs(spec, batch, encoded, example)))
    return tuple(samples)


def has_state(spec: SignatureSpec) -> bool:
    """Return whether a signature takes a decoder's state: an input of three axes or more."""
    return any(len(one.shape) >= 3 for one in spec.inputs)


def make_inputs(spec: SignatureSpec, batch: Batch, encoded: Mapping[str, np.ndarray],
                example: Callable[[Mapping[str, bytes]], bytes]) -> dict[str, np.ndarray]:
    """Return the inputs of one request: the texts, what "encode" makes of them, and options.

    A decoder's state begins as zeros; `count`, the tokens to produce from it, is at most 2, at most
    the width of the output `tokens`, and leaves the room that the state has.
    """
    known = dict(encoded)
    if encoded:
        length = np.asarray(np.count_nonzero(encoded["mask"], axis=1), dtype=np.int32)
        positions = max((one.shape[-2] or 0 for one in spec.inputs if len(one.shape) >= 3),
                        default=0)
        most = min([STEPS, *(one.shape[1] for one in spec.outputs
                             if one.name == "tokens" and len(one.shape) == 2 and one.shape[1])])
        count = np.clip(positions - length, 0, most).astype(np.int32)
        known |= {"length": length, "id_count": length, "count": count,
                  "history": encoded["ids"], "history_length": length,
                  "allowed": np.zeros([len(batch), 0], np.int32)}
    features = [{"text": a, "text_pair": b} for a, b in zip(batch, _next_row(batch))]
    texts = _texts(spec, batch)
    made: dict[str, np.ndarray] = {}
    for one in spec.inputs:
        if spec.name == "classify":
            made[one.name] = _strings([example(row) for row in features])
        elif one.dtype == "string" and one.default is None:
            made[one.name] = texts[one.name]
        elif one.name in known:
            made[one.name] = known[one.name].astype(one.dtype)
        elif one.default is not None:
            made[one.name] = _option(one, len(batch))
        elif None not in one.shape[1:]:
            made[one.name] = np.zeros(
                [len(batch), *(size or 0 for size in one.shape[1:])], one.dtype)
        else:
            raise ConfigError(f"signature {spec.name!r}, input {one.name!r}: expected a text, ids, "
                              "an option with a default, or a state of known shape. Hand in "
                              "samples of your own for it.")
    return made


def _texts(spec: SignatureSpec, batch: Batch) -> dict[str, np.ndarray]:
    """Return the string inputs of a request.

    The second text of a pair is that of the next row. A continuation is a few characters of it,
    behind a prompt that is never empty: a first token has nothing before it that predicts it.
    """
    made = {}
    scored = any(one.name == "continuation" for one in spec.inputs)
    for one in spec.inputs:
        if one.dtype == "string":
            texts = list(_next_row(batch) if one.name in ("text_pair", "continuation") else batch)
            if one.name == "continuation":
                texts = [b" " + text[:CONTINUATION_BYTES] for text in texts]
            elif scored:
                texts = [SCORED_PREFIX + text for text in texts]
            made[one.name] = _strings(texts)
    return made


def _next_row(batch: Batch) -> Batch:
    return (*batch[1:], *batch[:1])


def _option(spec: TensorSpec, rows: int) -> np.ndarray:
    if spec.name == "seed":
        return np.arange(spec.default, spec.default + rows, dtype=spec.dtype)
    cycle = OPTION_CYCLES.get(spec.name, (None,))
    values = [spec.default if value is None else value
              for value in itertools.islice(itertools.cycle(cycle), rows)]
    if spec.dtype == "string":
        return _strings([value.encode() for value in values])
    if spec.name == "max_new_tokens":  # the default is within the capacity, which is not known here
        values = [min(value, spec.default) for value in values]
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
