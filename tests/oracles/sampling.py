"""Exact answers for sampling in NumPy float64: the distribution that temperature and filters leave,
the token that one uniform number picks from it, and the bits of Threefry in Python's integers."""

from __future__ import annotations

import numpy as np

SHORTLIST = 256


def distribution(logits: np.ndarray, *, temperature: float, top_k: int, top_p: float,
                 min_p: float = 0.0, typical_p: float = 1.0) -> np.ndarray:
    """[V] logits -> [V] float64 probabilities of the next token; temperature 0 is one-hot."""
    order = np.argsort(-logits, kind="stable")
    if temperature == 0.0:
        return np.eye(len(logits))[order[0]]
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())[order]
    if 0 < top_k < len(weights):
        weights[top_k:] = 0.0
    weights /= weights.sum()
    if top_p < 1.0:
        better = np.concatenate([[0.0], np.cumsum(weights)[:-1]])
        weights[1:][better[1:] >= top_p] = 0.0
        weights /= weights.sum()
    weights[weights < min_p * weights.max()] = 0.0
    weights /= weights.sum()
    if typical_p < 1.0:
        weights = typical(weights, typical_p)
    probabilities = np.zeros_like(weights)
    probabilities[order] = weights
    return probabilities


def typical(probabilities: np.ndarray, mass: float) -> np.ndarray:
    """Keep the tokens whose information is nearest to the entropy, one by one until they have
    `mass` (Meister et al. 2023, algorithm of section 3), ties with the last one too."""
    real = np.flatnonzero(probabilities)
    information = -np.log(probabilities[real])
    distance = np.abs(information - (probabilities[real] * information).sum())
    total, last = 0.0, 0.0
    for place in np.argsort(distance, kind="stable"):
        last = distance[place]
        total += probabilities[real[place]]
        if total >= mass:
            break
    kept = np.zeros_like(probabilities)
    kept[real[distance <= last]] = probabilities[real[distance <= last]]
    return kept / kept.sum()


def picked(logits: np.ndarray, uniform: float, *, temperature: float, top_k: int, top_p: float,
           min_p: float = 0.0, typical_p: float = 1.0) -> tuple[int, float]:
    """Return the token at `uniform` of the running sum, and how near the number lies to an edge.

    The sum runs by id when no filter is on, otherwise from the most probable token down.
    """
    probabilities = distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p,
                                 min_p=min_p, typical_p=typical_p)
    unfiltered = top_p >= 1.0 and not 0 < top_k < len(logits) and typical_p >= 1.0
    order = np.arange(len(logits)) if unfiltered else np.argsort(-logits, kind="stable")
    sums = np.cumsum(probabilities[order])
    place = int(np.argmax((sums > uniform) & (probabilities[order] > 0)))
    return int(order[place]), float(np.min(np.abs(sums - uniform)))


def threefry_2x32(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32-20 as the paper states it, on Python integers."""
    word = 0xFFFFFFFF
    schedule = [key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA]
    rotations = [13, 15, 26, 6, 17, 29, 16, 24]
    x, y = (counter[0] + key[0]) & word, (counter[1] + key[1]) & word
    for turn in range(20):
        distance = rotations[turn % 8]
        x = (x + y) & word
        y = (((y << distance) | (y >> (32 - distance))) & word) ^ x
        if turn % 4 == 3:
            group = turn // 4 + 1
            x = (x + schedule[group % 3]) & word
            y = (y + schedule[(group + 1) % 3] + group) & word
    return x, y


def uniform(seed: int, draw: int, stream: int = 0) -> float:
    """Return the number that a seed of 64 bits (any sign) gives for one draw."""
    bits, _ = threefry_2x32((seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF), (draw, stream))
    return (bits >> 8) * 2.0**-24
