"""What the SavedModel on disk says it takes and gives, held against what the task promises."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_infer.errors import ExportError
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.tasks.base import tensor_spec
from tf_infer.wire.messages import SERVING_DEFAULT

GRAPH_FILE = "saved_model.pb"
FINGERPRINT_FILE = "fingerprint.pb"


def check_specs(specs: Iterable[SignatureSpec]) -> None:
    """Raise ExportError unless there is a serving_default, and rows come first everywhere."""
    specs = list(specs)
    names = [spec.name for spec in specs]
    faults = []
    if SERVING_DEFAULT not in names:
        faults.append(f"signatures: expected {SERVING_DEFAULT!r} among them, got {names}")
    for spec in specs:
        for one in (*spec.inputs, *spec.outputs):
            if not one.shape or one.shape[0] is not None:
                faults.append(f"signature {spec.name!r}, {one.name!r}: expected a shape that "
                              f"begins with None, the rows, got {one.shape}")
    if faults:
        raise ExportError("; ".join(faults) + ". A server joins rows only along a first free axis.")


@contextlib.contextmanager
def rewritten(folder: Path) -> Iterator[saved_model_pb2.SavedModel]:
    """Lend the SavedModel of a folder to be changed, and write what became of it."""
    model = _read(folder)
    yield model
    (folder / GRAPH_FILE).write_bytes(model.SerializeToString(deterministic=True))
    # It holds a checksum of the graph file as it was; loaders do without it.
    (folder / FINGERPRINT_FILE).unlink(missing_ok=True)


def describe_signatures(model: saved_model_pb2.SavedModel, specs: Iterable[SignatureSpec]) -> None:
    """Add what TensorFlow 2 leaves out of the SavedModel: method names, defaults of options.

    TensorFlow 2 writes "tensorflow/serving/predict" for all. A server that is told to check the
    method name answers Classify only for "tensorflow/serving/classify". An option with a default
    may be left out of a Predict request (PR25): the server then feeds the default, a vector of one,
    which `write_saved_model` repeats for all rows.
    """
    definitions = model.meta_graphs[0].signature_def
    for spec in specs:
        definitions[spec.name].method_name = spec.method_name
        for one in options_of(spec):
            definitions[spec.name].defaults[one.name].CopyFrom(
                tf.make_tensor_proto([one.default], tensor_spec(one).dtype))


def options_of(spec: SignatureSpec) -> list[TensorSpec]:
    """Return the inputs that have a default and one value for each row."""
    return [one for one in spec.inputs if one.default is not None and one.shape == (None,)]


def check_signature_defs(folder: Path, specs: Iterable[SignatureSpec]) -> None:
    """Raise ExportError unless the SavedModel has the signatures of the specifications.

    Names of signatures, inputs, outputs and defaults, dtypes and method names must be equal; shapes
    may be less known in the graph than in the specification, never different.
    """
    definitions = _read(folder).meta_graphs[0].signature_def
    faults = []
    for spec in specs:
        if spec.name not in definitions:
            faults.append(f"signature {spec.name!r} is missing")
            continue
        definition = definitions[spec.name]
        if definition.method_name != spec.method_name:
            faults.append(f"signature {spec.name!r}: method {definition.method_name!r} instead of "
                          f"{spec.method_name!r}")
        defaults = {one.name for one in options_of(spec)}
        if set(definition.defaults) != defaults:
            faults.append(f"signature {spec.name!r}: defaults of {sorted(definition.defaults)} "
                          f"instead of {sorted(defaults)}")
        faults += _unlike(f"signature {spec.name!r}, input", spec.inputs, definition.inputs)
        faults += _unlike(f"signature {spec.name!r}, output", spec.outputs, definition.outputs)
    if faults:
        raise ExportError(f"{folder}: expected the signatures of the task, got: "
                          f"{'; '.join(faults)}. Make the task's functions and specs agree.")


def _unlike(where: str, wanted: Iterable[TensorSpec], found: Mapping[str, Any]) -> list[str]:
    specs = {spec.name: tensor_spec(spec) for spec in wanted}
    faults = [f"{where} {name!r} is missing" for name in specs if name not in found]
    faults += [f"{where} {name!r} is not in the task" for name in found if name not in specs]
    for name in specs.keys() & found.keys():
        dtype, shape = tf.as_dtype(found[name].dtype), tf.TensorShape(found[name].tensor_shape)
        if dtype != specs[name].dtype or not shape.is_compatible_with(specs[name].shape):
            faults.append(f"{where} {name!r}: {dtype.name} {shape} instead of "
                          f"{specs[name].dtype.name} {specs[name].shape}")
    return faults


def _read(folder: Path) -> saved_model_pb2.SavedModel:
    return saved_model_pb2.SavedModel.FromString((Path(folder) / GRAPH_FILE).read_bytes())
