"""Task: a text-to-answer object: codec, network, and the signatures that a server offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

import keras
import tensorflow as tf

from tf_infer.config import TaskConfig
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.text.contracts import TextCodec

Compiled = Literal["none", "xla"]


class Signature(NamedTuple):
    """A function a server offers, and what it takes and gives.

    Attributes:
        spec: names, dtypes, shapes, units, defaults.
        function: takes the inputs as keywords, returns a dict of the outputs; a plain Python
            function that runs eagerly and inside tf.function.
    """

    spec: SignatureSpec
    function: Callable[..., dict[str, tf.Tensor]]

    def input_specs(self) -> dict[str, tf.TensorSpec]:
        """Return the inputs as `tf.TensorSpec`s, by name."""
        return {spec.name: tensor_spec(spec) for spec in self.spec.inputs}


class Task:
    """Text in, answer out: `preprocess` (strings allowed), `core` (dense), `postprocess` (strings).

    A signature runs the three in a row. Only `core` may be compiled by XLA, because strings cannot
    be; it then sees nothing but shapes of the grid.

    Attributes:
        config: all that is needed to build it again, without its weights.
        codec: the tokenizer, a tf.Module with tracked assets.
        network: the Keras layer that holds every weight.
        compiled: whether `core` is compiled by XLA.
    """

    def __init__(self, config: TaskConfig, codec: TextCodec, network: keras.layers.Layer, *,
                 compiled: Compiled = "none") -> None:
        self.config = config
        self.codec = codec
        self.network = network
        self.compiled = compiled
        self._compiled_core = (
            tf.function(self.core, jit_compile=True, reduce_retracing=False)
            if compiled == "xla" else self.core)

    def preprocess(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn a signature's inputs, strings among them, into what `core` takes."""
        raise NotImplementedError

    def core(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """Do the dense part; no strings, no shape that is not on the grid."""
        raise NotImplementedError

    def postprocess(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turn what `core` gave into a signature's outputs, strings among them."""
        raise NotImplementedError

    def run_core(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """Run `core` the way this task is compiled."""
        outputs: dict[str, tf.Tensor] = self._compiled_core(**dense)
        return outputs

    def signatures(self) -> Mapping[str, Signature]:
        """Return all functions a server offers, by name; "serving_default" is one of them."""
        raise NotImplementedError

    def recompiled(self, compiled: Compiled) -> Self:
        """Return a task of the same codec and weights whose core is compiled another way."""
        return type(self)(self.config, self.codec, self.network, compiled=compiled)


_DTYPES: dict[str, tf.DType] = {"string": tf.string}


def tensor_spec(spec: TensorSpec) -> tf.TensorSpec:
    """Return TensorFlow's form of a manifest's tensor specification."""
    return tf.TensorSpec(spec.shape, _DTYPES.get(spec.dtype) or tf.as_dtype(spec.dtype), spec.name)


def rows(name: str, dtype: str, *axes: int | None, note: str = "", default: Any = None
         ) -> TensorSpec:
    """Return the specification of a tensor whose first axis is the rows."""
    return TensorSpec(name=name, dtype=dtype, shape=(None, *axes), note=note, default=default)
