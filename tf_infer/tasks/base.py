"""Task: a text-to-answer object: codec, network, and the signatures that a server offers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, Self, TypeVar

import keras
import tensorflow as tf

from tf_infer.config import TaskConfig
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.stages import CORE
from tf_infer.tasks.grid import in_chunks, in_slices
from tf_infer.text.contracts import TextCodec

Compiled = Literal["none", "xla"]
P = ParamSpec("P")
T = TypeVar("T")


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


def in_stage(scope: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Name what a function adds to a graph after a stage (`stages.SCOPES`), for traces of runs."""
    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def scoped(*arguments: P.args, **keywords: P.kwargs) -> T:
            with tf.name_scope(scope):
                return function(*arguments, **keywords)
        return scoped
    return decorated


class Task:
    """Text in, answer out: `preprocess` (strings allowed), `core` (dense), `postprocess` (strings).

    A signature runs the three in a row. Only `core` may be compiled by XLA, because strings cannot
    be; it then sees nothing but shapes of the grid. The operations of each stand below a name scope
    of `stages`.

    Attributes:
        config: all that is needed to build it again, without its weights.
        codec: the tokenizer, a tf.Module with tracked assets.
        network: the Keras layer that holds every weight.
        compiled: whether `core` is compiled by XLA.
        tokenizer_dir: where the codec's files lie, for saving; None where it has none.
    """

    def __init__(self, config: TaskConfig, codec: TextCodec, network: keras.layers.Layer, *,
                 compiled: Compiled = "none", tokenizer_dir: Path | None = None) -> None:
        self.config = config
        self.codec = codec
        self.network = network
        self.compiled = compiled
        self.tokenizer_dir = tokenizer_dir
        self._compiled_core = self._compile() if compiled == "xla" else None

    def core_specs(self) -> dict[str, tf.TensorSpec]:
        """Return what `core` takes, by name in the order of its arguments; rows are free."""
        raise NotImplementedError

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
        """Run `core` the way this task is compiled.

        More rows than the grid's largest size run in chunks of that, so that memory is bounded.
        Under XLA rows are also padded to a size of the grid, so that every shape is compiled once
        and no shape is met by surprise.
        """
        with tf.name_scope(CORE):
            if self._compiled_core is None:
                return in_slices(self.core, dense, self.core_specs(), self.config.grid.rows[-1])
            ordered = {name: dense[name] for name in self.core_specs()}
            return in_chunks(self._compiled_core, ordered, self.config.grid)

    def _compile(self) -> Callable[..., dict[str, tf.Tensor]]:
        # One trace with free rows serves every size; XLA compiles it once for each that it meets.
        names = tuple(self.core_specs())

        def core(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.core(**dict(zip(names, tensors)))

        function: Callable[..., dict[str, tf.Tensor]] = tf.function(
            core, input_signature=tuple(self.core_specs().values()), jit_compile=True,
            autograph=False)
        return function

    def signatures(self) -> Mapping[str, Signature]:
        """Return all functions a server offers, by name; "serving_default" is one of them."""
        raise NotImplementedError

    def recompiled(self, compiled: Compiled) -> Self:
        """Return a task of the same codec and weights whose core is compiled another way."""
        return self.replaced(compiled=compiled)

    def replaced(self, **parts: Any) -> Self:
        """Return a task like this one, but for these arguments of its constructor."""
        return type(self)(**{**self._parts(), **parts})

    def tracked(self) -> tuple[Any, ...]:
        """Return what holds the weights, tables and files of its graph."""
        return (self.network, self.codec)

    def _parts(self) -> dict[str, Any]:
        return {"config": self.config, "codec": self.codec, "network": self.network,
                "compiled": self.compiled, "tokenizer_dir": self.tokenizer_dir}


_DTYPES: dict[str, tf.DType] = {"string": tf.string}


def tensor_spec(spec: TensorSpec) -> tf.TensorSpec:
    """Return TensorFlow's form of a manifest's tensor specification."""
    return tf.TensorSpec(spec.shape, _DTYPES.get(spec.dtype) or tf.as_dtype(spec.dtype), spec.name)


def by_name(*found: tuple[SignatureSpec, Callable[..., dict[str, tf.Tensor]]]
            ) -> dict[str, Signature]:
    """Return signatures by their name.

    No function here needs autograph (every loop and branch on a tensor is TensorFlow's own), and
    without it a decoder is traced in two thirds of the time.
    """
    return {spec.name: Signature(spec, tf.autograph.experimental.do_not_convert(function))
            for spec, function in found}


def rows(name: str, dtype: str, *axes: int | None, note: str = "", default: Any = None
         ) -> TensorSpec:
    """Return the specification of a tensor whose first axis is the rows."""
    return TensorSpec(name=name, dtype=dtype, shape=(None, *axes), note=note, default=default)
