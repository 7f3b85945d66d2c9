"""What the contestants of benchmarks/classify.py share: texts in, logits out, and the seconds.

Settings are {"model": folder, "checkpoint": folder, "form": ...}; a request is {"batches":
[[text, ...], ...]}, the answer {"seconds": [...], "logits": [[[...], ...], ...]}, one of each for
every batch, and "cpu_s", processor time of all of them. What is timed is texts -> class ids.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pipe
from pipe import THREADS as THREADS

MAX_TOKENS = 128
Classify = Callable[[Sequence[str]], np.ndarray]


class Batch(NamedTuple):
    """Rows padded to the longest of them: ids and mask, [B, T] int64."""

    ids: np.ndarray
    mask: np.ndarray


def run(load: Callable[[dict[str, Any]], Classify]) -> None:
    """Load a function from texts to logits [B, C], then answer until standard input ends."""

    def opened(settings: dict[str, Any]) -> pipe.Answer:
        classify = load(settings)

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            seconds, found = [], []
            cpu_s = time.process_time()
            for texts in request["batches"]:
                started = time.perf_counter()
                logits = np.asarray(classify(texts))
                classes = logits.argmax(axis=1).tolist()
                seconds.append(time.perf_counter() - started)
                assert len(classes) == len(texts), (len(classes), len(texts))
                found.append(logits.astype(float).round(6).tolist())
            return {"seconds": seconds, "cpu_s": time.process_time() - cpu_s, "logits": found}

        return answer

    pipe.run(opened)


def tokenizer(folder: str) -> Callable[[Sequence[str]], list[list[int]]]:
    """Return a function from texts to ids by the tokenizers library, cut to MAX_TOKENS."""
    import tokenizers

    found = tokenizers.Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    found.enable_truncation(MAX_TOKENS)
    found.no_padding()
    return lambda texts: [one.ids for one in found.encode_batch_fast(list(texts))]


def padded(rows: Sequence[Sequence[int]]) -> Batch:
    """Return the rows as arrays; padding ids are 0, as [PAD] is."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None, :] < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    return Batch(ids, mask.astype(np.int64))


def by_length(run: Callable[[list[Batch]], list[np.ndarray]], rows: Sequence[Sequence[int]],
              size: int) -> np.ndarray:
    """Run rows sorted by length, `size` in a batch, each batch padded to its longest row.

    Args:
        run: batches, the longest rows first -> logits of each.
        rows: ids of each text.
        size: most rows of a batch.

    Returns:
        [B, C], in the order of `rows`.
    """
    if len(rows) <= size:
        return run([padded(rows)])[0]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    logits = np.concatenate(run([padded([rows[row] for row in order[start:start + size]])
                                 for start in range(0, len(rows), size)]))
    found = np.empty_like(logits)
    found[order] = logits
    return found


def one_by_one(run: Callable[[Batch], np.ndarray]) -> Callable[[list[Batch]], list[np.ndarray]]:
    """Return what runs batches one after the other."""
    return lambda batches: [run(batch) for batch in batches]
