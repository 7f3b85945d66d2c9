"""Sensitive layers: how far the logits move when one product alone is quantised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from tf_infer.networks.encoder_arrays import EncoderArrays
from tf_infer.networks.fast_encoder import (
    PRODUCTS,
    WORDS,
    Embedding,
    EncoderForm,
    FastClassifier,
    named,
    product_of,
)

MAX_BATCHES = 4


def sensitivity(arrays: EncoderArrays, form: EncoderForm,
                batches: Sequence[Mapping[str, tf.Tensor]]) -> dict[str, float]:
    """Return for every product, and the words, how far it alone moves the logits.

    Args:
        arrays: the weights.
        form: in which each is quantised in turn, all else being float32; ready for use (limits).
        batches: ids, mask, segments; the first MAX_BATCHES are read.

    Returns:
        name -> root of the mean square of the logits' differences.
    """
    network = FastClassifier(arrays, EncoderForm(widths=form.widths))
    batches = batches[:MAX_BATCHES]
    wanted = _logits(network, batches)

    def moved() -> float:
        return float(np.sqrt(np.mean(np.square(_logits(network, batches) - wanted))))

    found = {}
    if form.of(WORDS) != "float32":
        whole, network.embed = network.embed, Embedding(arrays, form)
        found[WORDS] = moved()
        network.embed = whole
    for layer in network.stack:
        dense = layer.dense(layer.number, arrays)
        for part in PRODUCTS:
            name = named(layer.number, part)
            # Alone: the product behind it is float32, and takes float32.
            alone = replace(form, limits={
                other: limit for other, limit in form.limits.items() if other == name})
            whole = layer.products[part]
            layer.products[part] = product_of(layer.number, part, dense[part], arrays, alone)
            found[name] = moved()
            layer.products[part] = whole
    return found


def worst(found: Mapping[str, float], count: int) -> tuple[str, ...]:
    """Return the `count` names that move the logits most, in the order of the network."""
    most = sorted(found, key=lambda name: -found[name])[:count]
    return tuple(name for name in found if name in most)


def _logits(network: FastClassifier, batches: Sequence[Mapping[str, tf.Tensor]]) -> np.ndarray:
    return np.concatenate([
        network(batch["ids"], batch["mask"], batch["segments"]).numpy() for batch in batches])
