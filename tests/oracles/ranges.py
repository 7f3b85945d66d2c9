"""Limits of 8 bits by brute force over sorted values and bins, one at a time. No TensorFlow."""

from __future__ import annotations

import math

import numpy as np


def percentile_limit(values: np.ndarray, percent: float) -> float:
    """Return the smallest magnitude that at least this share of all does not exceed."""
    sizes = sorted(abs(float(value)) for value in values.reshape(-1))
    return sizes[max(0, math.ceil(len(sizes) * percent / 100.0) - 1)]


def histogram(batches: list[np.ndarray], bins: int) -> np.ndarray:
    """Return counts from 0 to a top that begins as the largest magnitude of the first batch.

    Two bins become one where a batch is above the top.
    """
    top, counts = float(np.abs(batches[0]).max()), np.zeros(bins, np.int64)
    for batch in batches:
        sizes = np.abs(batch.astype(np.float64))
        while sizes.max() > top:
            counts = np.append(counts[0::2] + counts[1::2], np.zeros(bins // 2, np.int64))
            top *= 2.0
        counts = counts + np.histogram(sizes, bins, (0.0, top))[0]
    return counts


def divergence(counts: list[int], kept: int, steps: int) -> float:
    """Return the divergence of counts from what `steps` of the first `kept` tell, in nats."""
    wanted = [float(count) for count in counts[:kept]]
    wanted[-1] += sum(counts[kept:])
    told = [0.0] * kept
    for step in range(steps):
        bins = [place for place in range(kept) if place * steps // kept == step]
        full = [place for place in bins if counts[place] > 0]
        for place in full:
            told[place] = sum(counts[other] for other in bins) / len(full)
    total, sum_told, result = sum(wanted), sum(told), 0.0
    for p, q in zip(wanted, told):
        if p > 0:
            if q == 0:
                return math.inf
            result += p / total * math.log(p / total / (q / sum_told))
    return result
