"""Plain attention in NumPy, one query at a time."""

from __future__ import annotations

import numpy as np


def attend(query: np.ndarray, keys: np.ndarray, values: np.ndarray, allowed: np.ndarray
           ) -> np.ndarray:
    """query [N, H, S, d], keys and values [N, G, C, d], allowed [N, S, C] -> [N, H, S, d].

    Only the allowed positions are ever read. 0 where a query may look nowhere.
    """
    rows, heads, steps, size = query.shape
    shared = heads // keys.shape[1]
    result = np.zeros_like(query, dtype=np.float64)
    for n in range(rows):
        for h in range(heads):
            for s in range(steps):
                places = np.flatnonzero(allowed[n, s])
                if not len(places):
                    continue
                scores = keys[n, h // shared, places] @ query[n, h, s] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                result[n, h, s] = weights / weights.sum() @ values[n, h // shared, places]
    return result


def write(buffer: np.ndarray, new: np.ndarray, lengths: np.ndarray, counts: np.ndarray
          ) -> np.ndarray:
    """Copy new[n, :, :counts[n]] to buffer[n, :, lengths[n]:], dropping what has no room."""
    result = buffer.copy()
    for n, (length, count) in enumerate(zip(lengths, counts)):
        for s in range(count):
            if length + s < buffer.shape[2]:
                result[n, :, length + s] = new[n, :, s]
    return result
