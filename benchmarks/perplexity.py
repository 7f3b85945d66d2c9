"""Perplexity of a decoder by the precision of its plan, on one text, and how near the answers stay.

    python -m benchmarks.perplexity CHECKPOINT TEXT.txt --rows 80

The text is cut into rows of `--tokens` ids; every form reads the same ids. Prints JSON: perplexity,
its change in percent, worst and 99.9th percentile of the difference of log-probabilities, share of
places where the best token is the reference's, and the reference's largest lead where it is not.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.networks.fast import FastDecoder
from tf_infer.tasks import build

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=80)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16", "int8"])
    arguments = parser.parse_args()
    task = build.from_checkpoint(arguments.checkpoint)
    ids = rows_of(task, arguments.text.read_text(encoding="utf-8"), arguments.tokens,
                  arguments.rows)
    reference = np.concatenate(list(log_probs(task.network, ids)))           # [B, T - 1, V]
    found = {"tokens": int(ids[:, 1:].size), "reference": perplexity(reference, ids)}
    for precision in arguments.precision:
        found[precision] = compared(FastDecoder(task.network, precision), reference, ids)
        print(json.dumps({precision: found[precision]}), flush=True)
    print(json.dumps(found, indent=2))


def rows_of(task: Any, text: str, tokens: int, most: int) -> np.ndarray:
    """Return [B, tokens] int32, each row led by the start id where the codec has one."""
    every = task.codec.encode(tf.constant([text])).ids.to_list()[0]
    lead = [] if task.codec.start_id is None else [task.codec.start_id]
    size = tokens - len(lead)
    starts = range(0, len(every) - size, size)
    return np.array([lead + every[i:i + size] for i in starts][:most], np.int32)


def log_probs(network: Any, ids: np.ndarray) -> Iterator[np.ndarray]:
    """Yield [BATCH, T - 1, V] of what follows each id but the last."""
    traced = tf.function(
        lambda some: tf.nn.log_softmax(network(some, tf.ones_like(some, tf.bool))[:, :-1]),
        autograph=False, input_signature=[tf.TensorSpec([None, ids.shape[1]], tf.int32)])
    for start in range(0, len(ids), BATCH):
        yield traced(tf.constant(ids[start:start + BATCH])).numpy()


def perplexity(every: np.ndarray, ids: np.ndarray) -> float:
    given = np.take_along_axis(every, ids[:, 1:, None], axis=-1)
    return float(np.exp(-given.mean(dtype=np.float64)))


def compared(network: Any, reference: np.ndarray, ids: np.ndarray) -> dict[str, float]:
    got = np.concatenate(list(log_probs(network, ids)))
    apart = np.abs(got - reference).max(axis=-1)
    best = np.sort(reference, axis=-1)
    lead = best[..., -1] - best[..., -2]
    flipped = got.argmax(axis=-1) != reference.argmax(axis=-1)
    mine, theirs = perplexity(got, ids), perplexity(reference, ids)
    return {"perplexity": round(mine, 4), "change_percent": round(100 * (mine / theirs - 1), 3),
            "worst_nats": round(float(apart.max()), 3),
            "p999_nats": round(float(np.quantile(apart, 0.999)), 3),
            "agree": round(1.0 - float(flipped.mean()), 5),
            "largest_lead_lost": round(float(lead[flipped].max(initial=0.0)), 3)}


if __name__ == "__main__":
    main()
