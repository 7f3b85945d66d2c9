"""Ranges of the layers of a classifier's LiteRT engine, from what given texts come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.networks.arrays import Activation
from tf_infer.networks.encoder_arrays import HEAD_KNOWN, EncoderArrays
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier, bias_of, named
from tf_infer.optimize.calibrate import observed
from tf_infer.optimize.litert_static import LEAST, LayerRanges
from tf_infer.optimize.ranges import Magnitudes, Ranges

FLOOR = 1 / 256  # of the largest channel: no channel's range is smaller


def ranges_of(arrays: EncoderArrays, batches: Sequence[Mapping[str, Any]], how: Ranges,
              percentile: float) -> tuple[LayerRanges, ...]:
    """Return the ranges of every layer.

    Args:
        arrays: the weights.
        batches: `ids`, `mask`, `segments` [B, T] of texts.
        how, percentile: as of `Magnitudes.limit`; of channels the largest counts.

    Raises:
        DataError: a product takes what is no number; names it.
    """
    network = FastClassifier(arrays, EncoderForm(widths=(-(-len(arrays.positions) // 8) * 8,)))
    products = {named(layer.number, part): dense for layer in network.stack
                for part, dense in layer.dense(layer.number, arrays).items()}
    inner = {named(number, "inner"): Magnitudes(len(layer.inner.kernel))
             for number, layer in enumerate(arrays.layers)}
    peaks = {name: np.zeros(len(dense.kernel)) for name, dense in products.items()
             if name not in inner}

    def give(name: str, inputs: np.ndarray) -> None:
        made = inputs @ products[name].kernel.T
        made += bias_of(products[name])
        if name in inner:
            inner[name].add(made)
        else:
            largest = np.maximum(made.max(axis=0, initial=0.0), -made.min(axis=0, initial=0.0))
            peaks[name] = np.maximum(peaks[name], largest)

    taken = observed(network, batches, {}, give)
    return tuple(
        _layer(number, taken, peaks, inner[named(number, "inner")].limit(how, percentile), how,
               percentile, arrays.activation)
        for number in range(len(arrays.layers)))


def _layer(number: int, taken: Mapping[str, Magnitudes], peaks: Mapping[str, np.ndarray],
           most: float, how: Ranges, percentile: float, activation: Activation) -> LayerRanges:
    queries, keys, values = (_channels(part) for part in np.split(peaks[named(number, "qkv")], 3))
    inner = max(-most, LEAST[activation]), most
    # An average of values is no larger than the largest of them.
    attended = float((taken[named(number, "out")].peaks / values).max())
    return LayerRanges(
        read=taken[named(number, "qkv")].limit(how, percentile),
        scores=float(np.sqrt(queries * keys).max()), queries=np.sqrt(queries / keys),
        values=values, attended=max(attended, FLOOR),
        out=_channels(peaks[named(number, "out")]),
        inner_read=taken[named(number, "inner")].limit(how, percentile), inner=inner,
        active=_active(inner, activation), outer=_channels(peaks[named(number, "outer")]))


def _channels(peaks: np.ndarray) -> np.ndarray:
    """Return what each channel reaches to: not less than a little, of what was seen by none."""
    return np.maximum(peaks, FLOOR * max(float(peaks.max()), FLOOR)).astype(np.float32)


def _active(inner: tuple[float, float], activation: Activation) -> tuple[float, float]:
    """Return the least and the most that an activation makes of numbers in a range."""
    made = np.asarray(HEAD_KNOWN[activation](tf.constant(np.linspace(*inner, 4096), tf.float32)))
    return float(made.min()), float(made.max())
