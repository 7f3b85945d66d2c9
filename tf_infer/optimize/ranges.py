"""Which numbers 8 bits should reach to: magnitudes counted, and limits by largest, share, entropy.

Pure NumPy. Also how much of a channel's size moves from activations into weights (SmoothQuant).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from tf_infer.config import check

Ranges = Literal["largest", "percentile", "entropy"]
BINS = 2048
PART = 1 << 15  # values that are counted at once: what they become stays in a core's cache
STEPS = 128  # magnitudes that an int8 tells apart, 0 to 127
TINY = 1e-12


class Magnitudes:
    """Counts of absolute values in BINS of the same size, from 0 to a top that doubles when needed.

    Attributes:
        counts: [BINS] int64.
        top: upper end of the last bin; 0 before the first value that is not 0.
        largest: of all values.
        peaks: [K] the largest of each channel.
    """

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.top, self.largest = 0.0, 0.0
        self.peaks = np.zeros(channels)

    def add(self, values: np.ndarray) -> None:
        """Count [M, K] finite values."""
        if values.size == 0:
            return
        sizes = np.abs(values)
        peaks = sizes.max(axis=0)
        self.peaks = np.maximum(self.peaks, peaks)
        self.largest = max(self.largest, float(peaks.max()))
        if self.top == 0.0:
            self.top = self.largest or 0.0
            if self.top == 0.0:
                self.counts[0] += sizes.size
                return
        while self.largest > self.top:
            halves = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([halves, np.zeros(BINS // 2, np.int64)])
            self.top *= 2.0
        self.counts += _counts(sizes, self.top)

    def limit(self, how: Ranges, percentile: float = 99.99) -> float:
        """Return what 127 should stand for, > 0.

        Args:
            how: "largest" cuts nothing off; "percentile" keeps a share of all values; "entropy"
                loses the least information (Kullback-Leibler divergence of the counts).
            percentile: kept by "percentile", in percent.
        """
        if self.largest == 0.0:
            return 1.0
        if how == "largest":
            return self.largest
        kept = (_share(self.counts, percentile) if how == "percentile"
                else _least_divergence(self.counts))
        return min(self.largest, self.top * kept / BINS)


def _counts(sizes: np.ndarray, top: float) -> np.ndarray:
    """Return [BINS] how many lie in each bin; the last holds its upper end, too.

    Each edge, and so each float32, is in its exact bin: a product of 24 and 11 bits is a float64,
    and no quotient that is less than a whole number is rounded to it.
    """
    counts, every, width = np.zeros(BINS + 1, np.int64), sizes.reshape(-1), top / BINS
    for start in range(0, every.size, PART):
        bins = np.divide(every[start:start + PART], width, dtype=np.float64).astype(np.intp)
        counts += np.bincount(bins, minlength=BINS + 1)
    counts[BINS - 1] += counts[BINS]
    return counts[:BINS]


def _share(counts: np.ndarray, percentile: float) -> int:
    """Return how many bins hold that share of all."""
    reached = np.cumsum(counts) >= counts.sum() * (percentile / 100.0)
    return int(np.argmax(reached)) + 1


def _least_divergence(counts: np.ndarray) -> int:
    """Return how many bins to keep so that STEPS of them tell the most about all.

    Source: Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    last = int(np.flatnonzero(counts)[-1]) + 1
    if last <= STEPS:
        return last
    candidates = range(STEPS, last + 1)
    return min(candidates, key=lambda kept: (divergence(counts, kept), -kept))


def divergence(counts: np.ndarray, kept: int) -> float:
    """Return how much the counts differ from themselves in STEPS, in nats.

    What lies behind the bins that are kept counts as in the last of them; a step's counts are
    spread evenly over its bins that are not empty.
    """
    inside = counts[:kept].astype(np.float64)
    wanted = inside.copy()
    wanted[-1] += counts[kept:].sum()
    step = np.arange(kept) * STEPS // kept
    full = inside > 0
    sums = np.bincount(step, inside, STEPS)
    bins = np.bincount(step, full, STEPS)
    spread = np.where(full, (sums / np.maximum(bins, 1))[step], 0.0)
    real = wanted > 0
    if (spread[real] == 0).any() or not full.any():
        return float("inf")
    share, told = wanted[real] / wanted.sum(), spread[real] / spread.sum()
    return float(np.sum(share * np.log(share / told)))


def smoothing(peaks: np.ndarray, kernel: np.ndarray, alpha: float) -> np.ndarray:
    """Return [K] what to divide each input by, and to multiply its weights by.

    Args:
        peaks: [K] largest magnitude of each input.
        kernel: [N, K] weights.
        alpha: 0 leaves the inputs as they are but for what makes all weights alike; 1 makes all
            inputs alike.

    Source: Xiao et al. 2023, arXiv:2211.10438.
    """
    check(0.0 <= alpha <= 1.0, "alpha", "a number from 0 to 1", alpha)
    weights = np.abs(kernel).max(axis=0)
    used = (peaks > TINY) & (weights > TINY)
    safe_peaks, safe_weights = np.where(used, peaks, 1.0), np.where(used, weights, 1.0)
    return np.where(used, safe_peaks ** alpha / safe_weights ** (1.0 - alpha), 1.0)
