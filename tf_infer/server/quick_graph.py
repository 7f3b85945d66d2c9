"""Quick runs and TensorFlow: which graphs may have them, and the session's callables that do them.

A callable takes half as long as the session's run call, but no time limit: docs/runtime.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef
from tensorflow.core.protobuf.config_pb2 import CallableOptions
from tensorflow.python.client import pywrap_tf_session

from tf_infer.server.quick_runs import BY_SHAPE, CALLS, by_shape
from tf_infer.wire import serving_pb2

MOST_CALLS = 64
CALLERS_THREAD = -1  # in place of the number of a pool

Call = Callable[..., Sequence[Any]]  # arrays, in the order of the inputs -> values of the outputs


def is_by_shape(graph: tf.Graph, outputs: Iterable[Any]) -> bool:
    """Return whether what these tensors take depends on the shapes of the inputs alone."""
    waiting = {graph.get_tensor_by_name(info.name).op for info in outputs}
    needed = set(waiting)
    while waiting:
        operation = waiting.pop()
        if operation.type not in BY_SHAPE:
            return False
        more = {one.op for one in operation.inputs} | set(operation.control_inputs)
        waiting |= more - needed
        needed |= more
    # A constant's definition copies what it holds.
    return by_shape((operation.node_def for operation in needed if operation.type in CALLS),
                    lambda name: _body(graph._get_function(name)))


def _body(function: Any) -> Sequence[Any]:
    """Return the nodes of a function; asked by TensorFlow's Python, it would go into all graphs."""
    data = pywrap_tf_session.TF_NewBuffer()
    try:
        with function._c_func.get() as held:
            pywrap_tf_session.TF_FunctionToFunctionDef(held, data)
        found: Sequence[Any] = FunctionDef.FromString(
            pywrap_tf_session.TF_GetBuffer(data)).node_def
        return found
    finally:
        pywrap_tf_session.TF_DeleteBuffer(data)


class QuickCalls:
    """The callables of one session, by signature, names of inputs in their order, and outputs."""

    def __init__(self, session: tf.compat.v1.Session) -> None:
        self._session = session
        self._calls: dict[Hashable, Call | None] = {}
        self._making = threading.Lock()

    def of(self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str],
           ) -> Call | None:
        """Return the callable of a run; None where none has been made."""
        return self._calls.get((signature, tuple(inputs), tuple(outputs)))

    def make(self, signature: str, definition: serving_pb2.SignatureDef,
             inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
        """Make the callable of a run that has been done by `run`, and call it once.

        TensorFlow optimises its graph first, which may take long: one thread at a time does so, the
        others go on without, and so do all where there are MOST_CALLS.
        """
        if not self._making.acquire(blocking=False):
            return
        try:
            key = signature, tuple(inputs), tuple(outputs)
            if key not in self._calls and len(self._calls) < MOST_CALLS:
                self._calls[key] = self._made(definition, inputs, outputs)
        finally:
            self._making.release()

    def _made(self, definition: serving_pb2.SignatureDef, inputs: Mapping[str, np.ndarray],
              outputs: Sequence[str]) -> Call | None:
        options = CallableOptions(feed=[definition.inputs[name].name for name in inputs],
                                  fetch=[definition.outputs[name].name for name in outputs])
        options.run_options.inter_op_thread_pool = CALLERS_THREAD
        try:
            call: Call = self._session._make_callable_from_options(options)
            call(*inputs.values())
            return call
        except tf.errors.OpError:
            return None  # it stays with the run call

    def close(self) -> None:
        """Free them; before the session is closed."""
        self._calls.clear()
