"""PrefixTree: the beginnings of all tokens as arrays, to find the tokens of a text in a graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tf_infer.constraints.compose import Level

NONE = -1


class PrefixTree(NamedTuple):
    """The beginnings of all tokens: a node for each.

    Attributes:
        begin, end: [n] int32, the children of node i are the nodes begin[i] .. end[i] - 1.
        bytes: [n] uint8, the last byte of each node; ascending among the children of one.
        token: [n] int32, the token that ends there, the highest id of several; NONE for none.
        root, first_root: the empty beginnings of tokens behind others, and of the first of a text.
        longest: bytes of the longest token.
        complete: every byte is a token, so that any text can be spelled.
    """

    begin: np.ndarray
    end: np.ndarray
    bytes: np.ndarray
    token: np.ndarray
    root: int
    first_root: int
    longest: int
    complete: bool


def prefix_tree(levels: list[Level], first_levels: list[Level] | None) -> PrefixTree:
    """Put the trees of a `compose.Vocabulary` together as one of two roots."""
    trees = [levels] if first_levels is None else [levels, first_levels]
    count = len(trees) + sum(len(level.bytes) for tree in trees for level in tree)
    begin, end = np.zeros(count, np.int32), np.zeros(count, np.int32)
    bytes_ = np.zeros(count, np.uint8)
    token = np.full(count, NONE, np.int32)
    place = len(trees)
    for root, tree in enumerate(trees):
        above = np.array([root])             # the nodes of the level before
        for level in tree:
            nodes = place + np.arange(len(level.bytes))
            bytes_[nodes] = level.bytes
            token[nodes[level.at]] = level.ends
            # Children stand in the order of their parents.
            parents = np.arange(len(above))
            begin[above] = place + np.searchsorted(level.parents, parents)
            end[above] = place + np.searchsorted(level.parents, parents, side="right")
            above, place = nodes, place + len(nodes)
    return PrefixTree(
        begin=begin, end=end, bytes=bytes_, token=token, root=0, first_root=len(trees) - 1,
        longest=max(map(len, trees)), complete=all(map(_complete, trees)))


def _complete(tree: list[Level]) -> bool:
    return bool(tree) and len(np.unique(tree[0].bytes[tree[0].at])) == 256
