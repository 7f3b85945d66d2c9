"""What 127 should stand for in the inputs of each product of a classifier, from given rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnxruntime

from tf_infer.networks.encoder_arrays import EncoderArrays
from tf_infer.optimize.onnx_encoder import LOGITS, model_of
from tf_infer.optimize.ranges import Magnitudes, Ranges


def limits_of(arrays: EncoderArrays, batches: Iterable[Mapping[str, np.ndarray]], how: Ranges,
              percentile: float) -> dict[str, float]:
    """Return a limit for each product that an int8 file has, by name.

    Args:
        arrays: the classifier; it is run in float32.
        batches: `ids`, `mask`, `segments` [B, T]; padding is not counted.
        how, percentile: as of `Magnitudes.limit`.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model_of(arrays, "float32", watched=True), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs() if one.name != LOGITS]
    inputs = [one.name for one in session.get_inputs()]
    counted: dict[str, Magnitudes] = {}
    for batch in batches:
        found = session.run(names, {name: batch[name] for name in inputs})
        for name, values in zip(names, found):
            counted.setdefault(name, Magnitudes(values.shape[-1])).add(
                values[batch["mask"][:, :values.shape[1]]])
    return {name: magnitudes.limit(how, percentile) for name, magnitudes in counted.items()}
