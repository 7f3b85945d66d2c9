"""A classifier written out for one row at a time in float64, from its arrays. No TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

FUNCTIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(
        math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0), "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "linear": lambda x: x}


def logits(arrays: Any, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return [B, C] of EncoderArrays; each row is cut to its real positions, at least one."""
    return np.stack([_row(arrays, ids[row, :count], segments[row, :count])
                     for row, count in enumerate(mask.sum(axis=1))])


def _row(arrays: Any, ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    hidden = arrays.words[ids].astype(np.float64) + arrays.positions[:len(ids)]
    if arrays.segments is not None:
        hidden = hidden + arrays.segments[segments]
    hidden = _norm(hidden, arrays.first_norm)
    for layer in arrays.layers:
        read = _norm(hidden, layer.norm) if arrays.norm_first else hidden
        hidden = hidden + _dense(_attend(_dense(read, layer.qkv), arrays.heads(layer)), layer.out)
        if not arrays.norm_first:
            hidden = _norm(hidden, layer.norm)
        read = _norm(hidden, layer.inner_norm) if arrays.norm_first else hidden
        inner = FUNCTIONS[arrays.activation](_dense(read, layer.inner))
        hidden = hidden + _dense(inner, layer.outer)
        if not arrays.norm_first:
            hidden = _norm(hidden, layer.inner_norm)
    return _head(_norm(hidden, arrays.last_norm), arrays.head)


def _head(hidden: np.ndarray, head: Any) -> np.ndarray:
    pooled = {"first": lambda: hidden[0], "mean": lambda: hidden.mean(axis=0),
              "max": lambda: hidden.max(axis=0),
              "pooler": lambda: np.tanh(_dense(hidden[0], head.pooler))}[head.pooling]()
    if head.normalize:
        pooled = pooled / np.linalg.norm(pooled)
    for dense in head.dense:
        pooled = FUNCTIONS[head.activation](_dense(pooled, dense))
    return _dense(pooled, head.logits)


def _attend(projected: np.ndarray, heads: int) -> np.ndarray:
    found = []
    for query, keys, values in zip(*(np.split(part, heads, axis=-1) for part in np.split(
            projected, 3, axis=-1))):
        scores = query @ keys.T / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found.append(weights / weights.sum(axis=-1, keepdims=True) @ values)
    return np.concatenate(found, axis=-1)


def _dense(x: np.ndarray, dense: Any) -> np.ndarray:
    made = x @ dense.kernel.T.astype(np.float64)
    return made if dense.bias is None else made + dense.bias


def _norm(x: np.ndarray, norm: Any) -> np.ndarray:
    if norm is None:
        return x
    moved = x - x.mean(axis=-1, keepdims=True)
    scaled = moved / np.sqrt((moved**2).mean(axis=-1, keepdims=True) + norm.epsilon)
    return scaled * norm.scale + norm.shift
