"""A compiled function in a folder: TensorFlow writes its HLO, JAX's XLA runs it on any machine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM, GIVEN, WEIGHTS = "program.hlo", "given.json", "weights.npz"


def write(function: Callable[..., Any], arguments: Mapping[str, np.ndarray], folder: Path, *,
          weights: bool = True) -> None:
    """Write what TensorFlow gives XLA to compile, before any compiler has seen it.

    Args:
        function: of TensorFlow, arguments in their order -> one tensor.
        arguments: of one shape.
        folder: is made.
        weights: write those of the function too; without, `Program` draws others.
    """
    import tensorflow as tf

    folder.mkdir(parents=True)
    given = [tf.constant(array) for array in arguments.values()]
    compiled = tf.function(lambda *inputs: function(*inputs), jit_compile=True, autograph=False)
    (folder / PROGRAM).write_bytes(
        compiled.experimental_get_compiler_ir(*given)(stage="hlo_serialized"))
    traced = compiled.get_concrete_function(*given)
    by_handle = {id(variable.handle): variable for variable in traced.graph.variables}
    held = [(by_handle[id(tensor)] if tensor.dtype == tf.resource else tensor).numpy()
            for tensor in traced.captured_inputs]
    (folder / GIVEN).write_text(json.dumps(
        [(array.dtype.name, array.shape) for array in held]), encoding="utf-8")
    if weights:  # as bytes: NumPy's files know no bfloat16
        np.savez(folder / WEIGHTS, *(np.frombuffer(array.tobytes(), np.uint8) for array in held))


class Program:
    """A program of `write`, compiled by JAX's XLA.

    Args:
        folder: that was written.
        platform: "gpu" or "cpu".
    """

    def __init__(self, folder: Path, platform: str) -> None:
        import jax
        from jax.extend import backend, mlir

        client = backend.get_backend(platform)
        self._device = client.local_devices()[0]
        self._put = jax.device_put
        self._program = client.compile_and_load(
            mlir.hlo_to_stablehlo((folder / PROGRAM).read_bytes()), [self._device],
            backend.get_compile_options(num_replicas=1, num_partitions=1))
        self._weights = [jax.device_put(array, self._device) for array in _weights(folder)]

    def run(self, *arguments: np.ndarray) -> np.ndarray:
        """Return what the function makes of its arguments."""
        given = [self._put(array, self._device) for array in arguments]
        found = self._program.execute_sharded([*given, *self._weights])
        return np.asarray(found.disassemble_into_single_device_arrays()[0][0])


def _weights(folder: Path) -> list[np.ndarray]:
    import ml_dtypes

    def dtype(name: str) -> np.dtype[Any]:
        return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)

    shapes = json.loads((folder / GIVEN).read_text(encoding="utf-8"))
    if not (folder / WEIGHTS).exists():
        draw = np.random.default_rng(0)  # floats as BERT's before training
        return [(draw.standard_normal(math.prod(shape), np.float32) * np.float32(
            40 if dtype(name).kind == "i" else 0.02)).astype(dtype(name)).reshape(shape)
            for name, shape in shapes]
    with np.load(folder / WEIGHTS) as kept:
        return [np.frombuffer(kept[f"arr_{place}"].tobytes(), dtype(name)).reshape(shape)
                for place, (name, shape) in enumerate(shapes)]
