"""Greedy continuation without a cache: the whole row is read again for every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tests.oracles.decoding import log_softmax


def greedy(network: Any, prompt: list[int], *, limit: int, end_ids: tuple[int, ...]
           ) -> tuple[list[int], float, bool]:
    """Return new ids, their score with the end id's, and whether an end id came."""
    ids, score = list(prompt), 0.0
    for _ in range(limit):
        row = tf.constant([ids], tf.int32)
        logits = np.asarray(network(row, tf.ones_like(row, tf.bool), training=False))[0, -1]
        token = int(np.argmax(logits))
        score += float(log_softmax(logits)[token])
        if token in end_ids:
            return ids[len(prompt):], score, True
        ids.append(token)
    return ids[len(prompt):], score, False


def score(network: Any, ids: list[int], begin: int) -> float:
    """Return the log-probability of ids[begin:], each given all before it."""
    row = tf.constant([ids], tf.int32)
    logits = np.asarray(network(row, tf.ones_like(row, tf.bool), training=False))[0]
    return float(sum(log_softmax(logits[t - 1])[ids[t]] for t in range(begin, len(ids))))
