"""tf.Example: named features, as TensorFlow Serving's Classify and Regress take them.

Source: tensorflow/core/example/feature.proto; a feature is a list of bytes, of float32 or of int64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_infer.errors import ShapeError
from tf_infer.wire import serving_pb2 as pb
from tf_infer.wire import tensors


def to_example(features: Mapping[str, Any], *, where: str = "example") -> Any:
    """Return a tf.Example.

    Args:
        features: name -> value, list or array: text and bytes become bytes_list, floats float_list,
            integers and bools int64_list. An empty list becomes a feature without values.
        where: what it is called in messages.

    Raises:
        ShapeError: values that no feature can hold, or an integer beyond int64.
    """
    example = pb.Example()
    example.features.SetInParent()
    for name, value in features.items():
        _write_feature(example.features.feature[name], value, f"{where}.{name}")
    return example


def _write_feature(feature: Any, value: Any, where: str) -> None:
    if isinstance(value, (list, tuple)) and not value:
        return
    flat = tensors.as_array(value, where=where).reshape(-1)
    kind = flat.dtype.kind
    if kind in "OSU":
        feature.bytes_list.value.extend(tensors.to_proto(flat).string_val)
    elif kind == "f":
        feature.float_list.value.extend(flat.astype(np.float32).tolist())
    elif kind in "iub" and not (kind == "u" and flat.size and flat.max() > np.iinfo(np.int64).max):
        feature.int64_list.value.extend(flat.astype(np.int64).tolist())
    else:
        raise ShapeError(f"{where}: expected text, bytes, floats or integers within int64, "
                         f"got {flat.dtype}.")


def to_input(examples: Sequence[Mapping[str, Any]], *, context: Mapping[str, Any] | None = None
             ) -> Any:
    """Return the Input of Classify and Regress.

    Args:
        examples: features of each example, at least one.
        context: features that every example has beside its own.

    Raises:
        ShapeError: no example, or values that no feature can hold.
    """
    if not examples:
        raise ShapeError("examples: expected at least one, got none.")
    rows = [to_example(features, where=f"examples[{row}]") for row, features in enumerate(examples)]
    if context is None:
        return pb.Input(example_list=pb.ExampleList(examples=rows))
    return pb.Input(example_list_with_context=pb.ExampleListWithContext(
        examples=rows, context=to_example(context, where="context")))
