"""Predictor, and its forms: one way to run a signature, whatever stands behind it.

    EagerPredictor        the task's functions, op by op: the reference
    GraphPredictor        the same, each traced once; of a task compiled by XLA: the path "xla"
    SavedModelPredictor   a version directory, as `tf.saved_model.load` reads it
    SessionPredictor      the same directory in a version-1 session, as TensorFlow Serving runs it
    GrpcPredictor         a server

TensorFlow is imported only when one that needs it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tf_infer.errors import ExportError, ShapeError

Outputs = Mapping[str, np.ndarray]


class Predictor(Protocol):
    """Runs a signature by name: arrays in, arrays out, rows first.

    Strings are object arrays of bytes on both sides. One that holds something open (a session, a
    connection) also has `close()`.
    """

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""


class CallableSignature(Protocol):
    """What the first two predictors need of a task's signature (`tasks.base.Signature` is one)."""

    @property
    def function(self) -> Callable[..., Mapping[str, Any]]:
        """The function itself: takes tensors as keywords, gives tensors by name."""

    def input_specs(self) -> Mapping[str, Any]:
        """Return the inputs as `tf.TensorSpec`s, by name."""


class EagerPredictor:
    """The functions of a task, run op by op: no tracing, nothing fused, the reference."""

    def __init__(self, signatures: Mapping[str, CallableSignature]) -> None:
        self._signatures = signatures
        self._specs = {name: dict(one.input_specs()) for name, one in signatures.items()}

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""
        tensors = _tensors(signature, inputs, self._specs)
        return _arrays(self._signatures[signature].function(**tensors))


class GraphPredictor:
    """The functions of a task, each traced once with its input specification."""

    def __init__(self, signatures: Mapping[str, CallableSignature]) -> None:
        self._signatures = signatures
        self._specs = {name: dict(one.input_specs()) for name, one in signatures.items()}
        self._traced: dict[str, Callable[..., Any]] = {}

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""
        tensors = _tensors(signature, inputs, self._specs)
        if signature not in self._traced:
            self._traced[signature] = self._trace(signature)
        return _arrays(self._traced[signature](*(tensors[n] for n in self._specs[signature])))

    def _trace(self, signature: str) -> Callable[..., Any]:
        import tensorflow as tf

        specs, function = self._specs[signature], self._signatures[signature].function

        def call(*tensors: tf.Tensor) -> Mapping[str, tf.Tensor]:
            return function(**dict(zip(specs, tensors)))

        traced: Callable[..., Any] = tf.function(
            call, input_signature=list(specs.values()), autograph=False).get_concrete_function()
        return traced


class SavedModelPredictor:
    """A SavedModel, ours or anybody's, loaded by `tf.saved_model.load`.

    Raises:
        ExportError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers the ops of the tokenizers

        try:
            self._model = tf.saved_model.load(str(folder))
        except Exception as error:
            raise _not_loadable(folder, error) from error
        self._specs = {name: dict(function.structured_input_signature[1])
                       for name, function in self._model.signatures.items()}

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""
        tensors = _tensors(signature, inputs, self._specs)
        return _arrays(self._model.signatures[signature](**tensors))


class SessionPredictor:
    """A SavedModel in a version-1 session, which is the loader inside TensorFlow Serving.

    A SavedModel may load with `tf.saved_model.load` and still fail here.

    Raises:
        ExportError: the folder cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401  registers the ops of the tokenizers

        self._session = tf.compat.v1.Session(graph=tf.Graph())
        try:
            with self._session.graph.as_default():
                meta_graph = _load_into(self._session, folder)
        except Exception as error:
            self._session.close()
            raise _not_loadable(folder, error) from error
        self._signatures = {name: signature for name, signature in meta_graph.signature_def.items()
                            if not name.startswith("__")}
        self._specs = {name: {key: _spec_of(info) for key, info in signature.inputs.items()}
                       for name, signature in self._signatures.items()}

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""
        _check_inputs(signature, inputs, self._specs)
        definition = self._signatures[signature]
        feed = {definition.inputs[name].name: array for name, array in inputs.items()}
        fetch = {name: info.name for name, info in definition.outputs.items()}
        outputs: Outputs = self._session.run(fetch, feed)
        return outputs

    def close(self) -> None:
        """Free the session."""
        self._session.close()


class GrpcPredictor:
    """A model on a server of TensorFlow Serving's API.

    Args:
        address: host:port, or unix:/path.
        model: its name on the server.
        version: this one; None asks for the highest.
        timeout_s: of one call.
    """

    def __init__(self, address: str, model: str, *, version: int | None = None,
                 timeout_s: float = 120.0) -> None:
        from tf_infer import ModelRef
        from tf_infer.client import Client

        self._client = Client(address, timeout_s=timeout_s)
        self._model = ModelRef(model, version=version)

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        """Return the outputs of `signature` by name."""
        return self._client.predict(self._model, inputs, signature=signature).outputs

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _load_into(session: Any, folder: Path) -> Any:
    import tensorflow as tf

    logger = tf.get_logger()  # the loader advises against itself; TensorFlow Serving uses it
    level = logger.level
    logger.setLevel("ERROR")
    try:
        return tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
    finally:
        logger.setLevel(level)


def _not_loadable(folder: Path, error: Exception) -> ExportError:
    first_line = str(error).strip().split("\n", 1)[0]
    return ExportError(f"{folder}: expected a SavedModel that loads, got "
                       f"{type(error).__name__}: {first_line}. Export the model again.")


def _spec_of(info: Any) -> Any:
    import tensorflow as tf

    return tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))


def _tensors(signature: str, inputs: Mapping[str, np.ndarray],
             specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    import tensorflow as tf

    _check_inputs(signature, inputs, specs)
    return {name: tf.constant(inputs[name], spec.dtype, inputs[name].shape)
            for name, spec in specs[signature].items()}


def _check_inputs(signature: str, inputs: Mapping[str, np.ndarray],
                  specs: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ShapeError unless the inputs fit; a string of the wrong rank would end the process."""
    if signature not in specs:
        raise ShapeError(f"signature {signature!r}: expected one of {sorted(specs)}.")
    wanted = specs[signature]
    if set(inputs) != set(wanted):
        raise ShapeError(f"signature {signature!r}: expected the inputs {sorted(wanted)}, "
                         f"got {sorted(inputs)}.")
    for name, spec in wanted.items():
        array = inputs[name]
        found = "string" if array.dtype.kind in "OSU" else array.dtype.name
        if found != spec.dtype.name or not spec.shape.is_compatible_with(array.shape):
            raise ShapeError(
                f"signature {signature!r}, input {name!r}: expected {spec.dtype.name} "
                f"{spec.shape}, got {found} {array.shape}.")


def _arrays(outputs: Mapping[str, Any]) -> Outputs:
    return {name: np.asarray(tensor.numpy()) for name, tensor in outputs.items()}
