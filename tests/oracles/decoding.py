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


def ranked(path: Path, length_penalty: float) -> float:
    """Return what a path ranks by: its score over a power of its length, the end token counted."""
    return path.score / max(1, len(path.ids) + path.finished) ** length_penalty


def best_paths(tree: np.ndarray, *, limit: int, end_ids: tuple[int, ...], count: int,
               length_penalty: float) -> list[Path]:
    """Return the `count` best of all sequences."""
    paths = all_paths(tree, limit=limit, end_ids=end_ids)
    return sorted(paths, key=lambda path: -ranked(path, length_penalty))[:count]


def beam(tree: np.ndarray, *, limit: int, end_ids: tuple[int, ...], beams: int, groups: int = 1,
         length_penalty: float = 0.0, diversity: float = 0.0) -> list[Path]:
    """Beam search level by level, without stopping early, every hypothesis in a list.

    Ended hypotheses are set aside; of the others the best of each group go on.
    """
    vocab, log_probs, width = tree.shape[1], log_softmax(tree), beams // groups
    if limit == 0:
        return [Path((), 0.0, False)]
    live: list[list[Path]] = [[Path((), 0.0, False)] for _ in range(groups)]
    done: list[list[Path]] = [[] for _ in range(groups)]
    for level in range(limit):
        taken = np.zeros(vocab)
        for group in range(groups):
            grown = []
            for path in live[group]:
                last = log_probs[node(path.ids, vocab)]
                done[group] += [Path(path.ids, path.score + last[end], True) for end in end_ids]
                grown += [Path((*path.ids, token), path.score + last[token], False)
                          for token in range(vocab) if token not in end_ids]
            live[group] = sorted(
                grown, key=lambda p: -(p.score - diversity * taken[p.ids[-1]]))[:width]
            for path in live[group]:
                taken[path.ids[-1]] += 1
            if level == limit - 1:
                done[group] += live[group]
    kept = [path for paths in done
            for path in sorted(paths, key=lambda p: -ranked(p, length_penalty))[:width]]
    return sorted(kept, key=lambda p: -ranked(p, length_penalty))
