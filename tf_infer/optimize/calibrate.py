"""Calibration: a classifier runs on given texts, and what its products take sets their 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.config import ClassifierConfig
from tf_infer.errors import DataError
from tf_infer.networks.encoder_arrays import EncoderArrays
from tf_infer.networks.fast_encoder import EncoderForm, FastClassifier, layer_names
from tf_infer.optimize.plan import OptimizationPlan
from tf_infer.optimize.ranges import Magnitudes, smoothing
from tf_infer.optimize.texts import BATCH_ROWS, in_batches
from tf_infer.tasks.base import Task

SMOOTHED = ("qkv", "out", "inner")  # what `outer` takes may have been rounded to 8 bits already


def calibrated(task: Task, arrays: EncoderArrays, form: EncoderForm, plan: OptimizationPlan,
               texts: Sequence[bytes]) -> EncoderForm:
    """Return a form with the limits and divisors that a plan asks for, from given texts.

    Args:
        task: a classifier as it is.
        arrays: its weights.
        form: without them.
        plan: says whether inputs have set ranges, and how far they are smoothed.
        texts: the first `MAX_TEXTS` that fit into the network are read.

    Raises:
        DataError: no text, none that fits into the network, or a product takes what is no number;
            names it, and the text.
    """
    batches = list(batches_of(task, texts))
    whole = FastClassifier(arrays, EncoderForm(widths=form.widths))
    names = [name for name in layer_names(arrays)[1:] if form.of(name) == "int8"]
    if plan.smoothing is not None:
        kernels = {f"layers[{layer.number}].{part}": dense.kernel for layer in whole.stack
                   for part, dense in layer.dense(layer.number, arrays).items()}
        seen = observed(whole, batches, {})
        form = replace(form, divisors={
            name: smoothing(seen[name].peaks, kernels[name], plan.smoothing)
            for name in names if name.endswith(SMOOTHED)})
    if plan.activations == "static":
        seen = observed(whole, batches, form.divisors)
        form = replace(form, limits={
            name: seen[name].limit(plan.ranges, plan.percentile) for name in names})
    return form


def batches_of(task: Task, texts: Sequence[bytes]) -> Iterator[dict[str, tf.Tensor]]:
    """Return ids, mask, segments of the texts that fit, BATCH_ROWS at a time.

    Raises:
        DataError: there is none, or none fits.
    """
    if not texts:
        raise DataError("calibration: expected at least one text, got none. Give a file of texts "
                        "like those that will be asked (--calibrate FILE).")
    config = task.config
    assert isinstance(config, ClassifierConfig)
    counts = task.codec.encode(tf.constant(list(texts))).ids.row_lengths().numpy()
    packing = config.packing
    special = packing.start + packing.end + (packing.pair_separators if config.pair else 0)
    counts = counts * (2 if config.pair else 1) + special
    fitting = [text for text, count in zip(texts, counts) if count <= packing.max_tokens]
    if not fitting:
        raise DataError(f"calibration: expected texts of at most {packing.max_tokens} tokens, got "
                        f"{len(texts)} of {counts.min()} to {counts.max()}. Give shorter ones.")
    yield from in_batches(task, fitting)


def observed(network: FastClassifier, batches: Sequence[Mapping[str, tf.Tensor]],
             divisors: Mapping[str, np.ndarray],
             see_also: Callable[[str, np.ndarray], None] = lambda name, values: None,
             ) -> dict[str, Magnitudes]:
    """Count what every product takes, divided by its divisor.

    Args:
        network: runs all batches.
        batches: `ids`, `mask`, `segments` [B, T].
        divisors: [K], by product.
        see_also: is told the name of each product and what it takes, [M, K].

    Raises:
        DataError: it is no number.
    """
    found: dict[str, Magnitudes] = {}
    first_text = 0

    def see(name: str, inputs: tf.Tensor) -> None:
        values: Any = inputs.numpy()
        if not np.isfinite(values).all():
            raise DataError(f"calibration: expected numbers in what {name} takes, got NaN or "
                            f"infinity in texts {first_text} to {first_text + BATCH_ROWS - 1} of "
                            "those that are read. Do the weights overflow?")
        see_also(name, values)
        counts = found.setdefault(name, Magnitudes(values.shape[1]))
        counts.add(values / divisors[name] if name in divisors else values)

    network.watch(see)
    try:
        for batch in batches:
            network(batch["ids"], batch["mask"], batch["segments"])
            first_text += BATCH_ROWS
    finally:
        network.watch(None)
    return found
