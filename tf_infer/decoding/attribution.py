"""Which tokens made a score: integrated gradients, and leaving one token out at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

# vectors [B, T, E] -> scores [B]; a row's score depends on that row alone
ScoreFn: TypeAlias = Callable[[tf.Tensor], tf.Tensor]

NODES = 24  # points of the path, enough for 1e-3 of a transformer's logit


class Attribution(NamedTuple):
    """What each token did to a row's score.

    Attributes:
        gradients: [B, T] float32, integrated gradients; they add up to `score - baseline`.
        left_out: [B, T] float32, the score minus the score without that token alone.
        score: [B] float32, of the row as it is.
        baseline: [B] float32, of the row with no token.
        error: [B] float32, how far the sum of `gradients` is from `score - baseline`.
    """

    gradients: tf.Tensor
    left_out: tf.Tensor
    score: tf.Tensor
    baseline: tf.Tensor
    error: tf.Tensor


def attribute(score: ScoreFn, vectors: tf.Tensor, counted: tf.Tensor, *, nodes: int = NODES
              ) -> Attribution:
    """Say which tokens made a score.

    Args:
        score: a smooth function of the vectors.
        vectors: [B, T, E] float32, what the tokens are looked up as.
        counted: [B, T] bool, the tokens that may be taken away: a baseline has zeros in their
            place, and keeps the others (special ids, padding).
        nodes: points on the path from the baseline to the row.

    The path's integral is taken by Gauss and Legendre's rule, exact for polynomials of degree
    2 nodes - 1. A step of either loop runs all rows once; nothing else is kept.
    Source: Sundararajan et al. 2017, arXiv:1703.01365.
    """
    kept = tf.where(counted[..., None], 0.0, vectors)                        # [B, T, E]
    away = vectors - kept
    whole, baseline = score(vectors), score(kept)                            # [B]
    gradients = tf.reduce_sum(away * _mean_gradient(score, kept, away, nodes), axis=-1)
    gradients = tf.where(counted, gradients, 0.0)                            # [B, T]
    error = tf.abs(tf.reduce_sum(gradients, axis=-1) - (whole - baseline))
    return Attribution(gradients, _left_out(score, vectors, counted, whole), whole, baseline, error)


def _mean_gradient(score: ScoreFn, kept: tf.Tensor, away: tf.Tensor, nodes: int) -> tf.Tensor:
    """Return the mean of the score's gradient on the way from `kept` to `kept + away`."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    shares = tf.constant((places + 1.0) / 2.0, tf.float32)                   # 0 .. 1
    parts = tf.constant(weights / 2.0, tf.float32)

    def once(node: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        here = kept + shares[node] * away
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(here)
            summed = tf.reduce_sum(score(here))  # rows do not meet: one gradient serves all
        return node + 1, total + parts[node] * tape.gradient(summed, here)

    _, total = tf.while_loop(lambda node, _: node < nodes, once, (0, tf.zeros_like(kept)))
    return total


def _left_out(score: ScoreFn, vectors: tf.Tensor, counted: tf.Tensor, whole: tf.Tensor
              ) -> tf.Tensor:
    width = tf.shape(vectors)[1]

    def once(place: tf.Tensor) -> tf.Tensor:
        gone = counted & (tf.range(width) == place)                          # [B, T]
        return whole - score(tf.where(gone[..., None], 0.0, vectors))

    drops = tf.map_fn(once, tf.range(width), fn_output_signature=tf.TensorSpec([None], tf.float32))
    return tf.where(counted, tf.transpose(drops), 0.0)
