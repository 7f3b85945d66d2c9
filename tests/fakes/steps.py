"""Scripted step functions: models that are a table, so that every answer can be worked out."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_infer.decoding.contracts import Start


class TreeModel:
    """The logits after each history are a row of a table; each batch row may have its own table.

    The cache is the node [N] int32 that a row stands at, its number of reads, and its table. Rows
    that are not live get NaN logits, which nobody may look at.

    Attributes:
        trees: [B, nodes, V] float32.
    """

    def __init__(self, trees: np.ndarray | tf.Tensor) -> None:
        self.trees = tf.convert_to_tensor(trees, tf.float32)

    def start(self) -> Start:
        """Return what prefill gives: every row at its root."""
        rows = tf.shape(self.trees)[0]
        node = tf.zeros([rows], tf.int32)
        return Start(self.trees[:, 0], {"node": node, "reads": node, "row": tf.range(rows)})

    def step(self, tokens: tf.Tensor, live: tf.Tensor, cache: dict[str, tf.Tensor]
             ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Go down one edge of the tree in every live row."""
        vocab = tf.shape(self.trees)[2]
        node = tf.where(live, cache["node"] * vocab + tokens + 1, cache["node"])
        logits = tf.gather_nd(self.trees, tf.stack([cache["row"], node], axis=1))
        return (tf.where(live[:, None], logits, float("nan")),
                {"node": node, "reads": cache["reads"] + tf.cast(live, tf.int32),
                 "row": cache["row"]})


def random_trees(rows: int, vocab: int, depth: int, seed: int) -> np.ndarray:
    """[rows, nodes, vocab] normal logits for all histories of up to `depth` tokens."""
    nodes = sum(vocab**level for level in range(depth + 1))
    return np.random.default_rng(seed).normal(size=(rows, nodes, vocab)).astype(np.float32) * 2


class WideTreeModel(TreeModel):
    """A TreeModel that reads several tokens at once and can forget the last ones."""

    def extend(self, ids: tf.Tensor, counts: tf.Tensor, cache: dict[str, tf.Tensor]
               ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Go down `counts` edges; logits behind them are NaN."""
        found = []
        for place in range(ids.shape[1]):
            logits, cache = self.step(ids[:, place], place < counts, cache)
            found.append(logits)
        return tf.stack(found, axis=1), cache

    def drop(self, cache: dict[str, tf.Tensor], positions: tf.Tensor) -> dict[str, tf.Tensor]:
        """Go up as many edges."""
        vocab, node = tf.shape(self.trees)[2], cache["node"]
        for place in range(8):
            node = tf.where(place < positions, (node - 1) // vocab, node)
        return {**cache, "node": node, "reads": cache["reads"] - positions}
