"""A classifier of BERT's family in NumPy, as its int8 engine means it: slow, one text at a time.

Weights have one scale for each output, symmetric; what a product reads has a scale and a zero point
for each token. Both are rounded after scales and shifts of norms went into the products behind
them. All else is float64.
"""

from __future__ import annotations

import math

import numpy as np

from tf_infer.networks.arrays import Dense, Norm
from tf_infer.networks.encoder_arrays import EncoderArrays


def logits(arrays: EncoderArrays, ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Return the logits [C] of a text [T] of a post-norm encoder, pooled from its first token."""
    assert arrays.first_norm is not None and not arrays.norm_first
    hidden = rounded_rows(arrays.words)[ids] + arrays.positions[:len(ids)]
    if arrays.segments is not None:
        hidden = hidden + arrays.segments[segments]
    norm, hidden = arrays.first_norm, normed(hidden, arrays.first_norm)
    for layer in arrays.layers:
        heads, size = arrays.heads(layer), arrays.head_size
        qkv = product(hidden, behind(norm, layer.qkv, queries=heads * size, root=size ** 0.5))
        query, keys, values = (part.reshape(len(ids), heads, size).transpose(1, 0, 2)
                               for part in np.split(qkv, 3, axis=1))
        scores = query @ keys.transpose(0, 2, 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        found = weights / weights.sum(axis=-1, keepdims=True) @ values
        attended = product(found.transpose(1, 0, 2).reshape(len(ids), -1), layer.out)
        hidden = normed(hidden * norm.scale + norm.shift + attended, layer.norm)
        inner = gelu(product(hidden, behind(layer.norm, layer.inner)))
        outer = product(inner, layer.outer)
        hidden = normed(hidden * layer.norm.scale + layer.norm.shift + outer, layer.inner_norm)
        norm = layer.inner_norm
    pooled = hidden[0] * norm.scale + norm.shift
    head = arrays.head
    if head.pooler is not None:
        pooled = np.tanh(head.pooler.kernel @ pooled + head.pooler.bias)
    return np.asarray(head.logits.kernel @ pooled + head.logits.bias)


def behind(norm: Norm, dense: Dense, *, queries: int = 0, root: float = 1.0) -> Dense:
    """Return what reads a vector before the scale and shift of its norm."""
    assert norm.shift is not None
    factors = np.where(np.arange(len(dense.kernel)) < queries, 1.0 / root, 1.0)
    kernel, bias = dense.kernel * norm.scale, dense.kernel @ norm.shift + dense.bias
    return Dense(kernel * factors[:, None], bias * factors)


def product(left: np.ndarray, dense: Dense) -> np.ndarray:
    """Multiply rounded rows with rounded weights."""
    return np.asarray(rounded_tokens(left) @ rounded_rows(dense.kernel).T + dense.bias)


def rounded_rows(kernel: np.ndarray) -> np.ndarray:
    """Round each row to 255 numbers around 0."""
    scale = np.abs(kernel).max(axis=1, keepdims=True) / 127.0
    return np.asarray(np.rint(kernel / scale) * scale)


def rounded_tokens(left: np.ndarray) -> np.ndarray:
    """Round each row to 256 numbers from its least to its greatest, 0 among them."""
    low = np.minimum(left.min(axis=1, keepdims=True), 0.0)
    high = np.maximum(left.max(axis=1, keepdims=True), 0.0)
    scale = (high - low) / 255.0
    zero = np.clip(np.rint(-128.0 - low / scale), -128, 127)
    return np.asarray((np.clip(np.rint(left / scale) + zero, -128, 127) - zero) * scale)


def normed(vectors: np.ndarray, norm: Norm) -> np.ndarray:
    """Take off the mean, divide by the deviation."""
    vectors = vectors - vectors.mean(axis=1, keepdims=True)
    return np.asarray(vectors / np.sqrt((vectors**2).mean(axis=1, keepdims=True) + norm.epsilon))


def gelu(numbers: np.ndarray) -> np.ndarray:
    """x * Phi(x)."""
    return np.asarray(0.5 * numbers * (1.0 + np.vectorize(math.erf)(numbers / math.sqrt(2.0))))
