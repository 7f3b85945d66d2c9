"""A function that a graph holds once, however many places call it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

# Not copied; and like a function of tf.data left out where a session's optimiser goes over all
# functions of a graph, again for each signature: it is optimised when it is built, if at all.
OWN = {"_noinline": True, "_tf_data_function": True}


class Shared:
    """A function of tensors that is traced once, and kept as a function in every graph.

    TensorFlow copies an ordinary `tf.function` into each place that calls it, there to be optimised
    and built again, also where no row of any batch ever comes by. One that is marked `_noinline` is
    built when it is first run. A call costs some 50 us, so the steps of a loop are `copied`: traced
    once and held once, and nothing else.

    Args (of the constructor):
        stage: the name scope of its operations (`stages.SCOPES`).
        function: remembers nothing; op by op, where no graph is traced, it is called itself.
        specs: of its arguments.
        optimised: whether TensorFlow's graph optimiser goes over it. That takes half of the time
            to build it, and makes little faster but the products of a network.
        copied: whether TensorFlow may copy it into what calls it, which then has to be optimised.
    """

    def __init__(self, stage: str, function: Callable[..., Any], specs: Sequence[Any], *,
                 optimised: bool = False, copied: bool = False) -> None:
        self._function, self._optimised = function, optimised or copied

        def staged(*arguments: Any) -> Any:
            with tf.name_scope(stage):
                return function(*arguments)

        self._traced = tf.function(
            staged, input_signature=tuple(specs), autograph=False,
            experimental_attributes=None if copied else OWN)

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns."""
        if tf.executing_eagerly():
            return self._function(*arguments)
        with contextlib.nullcontext() if self._optimised else _not_optimised():
            return self._traced(*arguments)


@contextlib.contextmanager
def _not_optimised() -> Iterator[None]:
    """Let what is called meanwhile be built as it is; a call keeps the options of its moment."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **before})
