"""Exact answers for decoding by enumeration: every sequence of a model small enough to list."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class Path(NamedTuple):
    """One finished sequence: its ids without the end token, its score, and why it ended."""

    ids: tuple[int, ...]
    score: float
    finished: bool


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[..., V] -> [..., V] float64, nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def node(history: tuple[int, ...], vocab: int) -> int:
    """Return the number of the tree node that `history` leads to; the root is 0."""
    place = 0
    for token in history:
        place = place * vocab + token + 1
    return place


def all_paths(tree: np.ndarray, *, limit: int, end_ids: tuple[int, ...]) -> list[Path]:
    """List every sequence that decoding could give, with the model's log-probability of each.

    Args:
        tree: [nodes, V] logits after each history.
        limit: tokens allowed.
    """
    vocab, log_probs = tree.shape[1], log_softmax(tree)
    paths = []
    for length in range(limit + 1):
        for ids in itertools.product([t for t in range(vocab) if t not in end_ids], repeat=length):
            score = sum(log_probs[node(ids[:i], vocab), ids[i]] for i in range(length))
            if length == limit:
                paths.append(Path(ids, score, False))
            else:
                last = log_probs[node(ids, vocab)]
                paths += [Path(ids, score + last[end], True) for end in end_ids]
    return paths


def greedy(tree: np.ndarray, *, limit: int, end_ids: tuple[int, ...]) -> Path:
    """Return the one path of `all_paths` on which every token is the first best of its node."""
    vocab = tree.shape[1]

    def is_greedy(path: Path) -> bool:
        best = [int(np.argmax(tree[node(path.ids[:i], vocab)])) for i in range(len(path.ids))]
        if tuple(best) != path.ids:
            return False
        return not path.finished or int(np.argmax(tree[node(path.ids, vocab)])) in end_ids

    found = [path for path in all_paths(tree, limit=limit, end_ids=end_ids) if is_greedy(path)]
    if len({(path.ids, path.finished) for path in found}) != 1:
        raise AssertionError(f"expected one greedy path, got {found}")
    best_end = {path.score: path for path in found}
    return best_end[max(best_end)]
