"""Which runs take next to nothing each time, so that whoever has the request does them at once.

Pure. Handing such a run to another thread, and TensorFlow's handing it to one of its own, takes
longer than the run (docs/runtime.md). It does not stop at a deadline and holds up the thread that
reads requests; so it is one whose operations take as long each time for inputs of the same shapes,
whatever their values, and which has been seen to end in `QUICK_S`.

On few CPUs every run is late while others compute: its thread waits for a CPU, and then for the
interpreter lock. So one that has ended in `SLOW_S` is done there by the thread that waits for it,
and what counts is the processor time of that thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

QUICK_S = 150e-6
FAR_S = 0.01  # so far at least is a deadline that a quick run need not watch
SLOW_S = 10 * QUICK_S  # a run that takes so long was no quick one: its kind has to show it again
MAKING_S = 0.5  # so far at least is the deadline of a call that has a callable made
SEEN = 5  # runs of the same shapes before their time counts
RISE = 1.01  # of the least time at each run, so that a machine that got slower is noticed
MOST_KINDS = 256  # signatures, outputs and shapes that are remembered

CALLS = frozenset({"PartitionedCall", "StatefulPartitionedCall"})
BY_SHAPE = CALLS | {
    "Abs", "Add", "AddN", "AddV2", "ArgMax", "ArgMin", "BatchMatMul", "BatchMatMulV2",
    "BatchMatMulV3", "BiasAdd", "Cast", "Ceil", "ClipByValue", "ConcatV2", "Const", "Cos", "Div",
    "Elu", "Equal", "Erf", "Exp", "ExpandDims", "Floor", "FusedBatchNormV3", "Greater",
    "GreaterEqual", "Identity", "IdentityN", "LeakyRelu", "Less", "LessEqual", "Log", "Log1p",
    "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul", "Max", "Maximum", "Mean",
    "Min", "Minimum", "Mul", "Neg", "NoOp", "NotEqual", "Pack", "Placeholder",
    "PlaceholderWithDefault", "Prod", "ReadVariableOp", "RealDiv", "Relu", "Relu6", "Reshape",
    "Round", "Rsqrt", "Select", "SelectV2", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Softmax",
    "Softplus", "Softsign", "Sqrt", "Square", "SquaredDifference", "Squeeze", "StopGradient", "Sub",
    "Sum", "Tanh", "Transpose", "Unpack", "VarHandleOp", "Variable", "VariableV2", "_FusedMatMul"}


def by_shape(nodes: Iterable[Any], function: Callable[[str], Iterable[Any]]) -> bool:
    """Whether what a graph takes depends on the shapes of its inputs alone.

    Args:
        nodes: NodeDefs of the graph, of what a signature needs.
        function: name -> NodeDefs of a function that one of them calls.
    """
    waiting, called = list(nodes), set[str]()
    while waiting:
        node = waiting.pop()
        if node.op not in BY_SHAPE:
            return False
        if node.op in CALLS and node.attr["f"].func.name not in called:
            called.add(node.attr["f"].func.name)
            waiting.extend(function(node.attr["f"].func.name))
    return True


class QuickRuns:
    """The least time that runs of one kind took lately: signature, outputs, shapes, dtypes."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[int, float]] = {}

    def quick(self, kind: Hashable, timeout_s: float | None) -> bool:
        """Whether a run of a kind ends before anybody could want to stop it.

        Args:
            kind: see `kind_of`.
            timeout_s: until the deadline; None for no deadline.
        """
        return self._ended_in(QUICK_S, kind, timeout_s)

    def short(self, kind: Hashable, timeout_s: float | None) -> bool:
        """Whether the thread that waits for a run of a kind may do it: it hardly has to stop.

        Args:
            kind, timeout_s: see `quick`.
        """
        return self._ended_in(SLOW_S, kind, timeout_s)

    def _ended_in(self, limit_s: float, kind: Hashable, timeout_s: float | None) -> bool:
        count, least_s = self._seen.get(kind, (0, 0.0))
        return count >= SEEN and least_s <= limit_s and (timeout_s is None or timeout_s > FAR_S)

    def ran(self, kind: Hashable, took_s: float) -> None:
        """Learn what a run took; the first one counts for nothing, since it prepares the graph.

        Args:
            kind: see `kind_of`.
            took_s: of a `short` one the processor time of the thread that did it.
        """
        count, least_s = self._seen.get(kind, (0, float("inf")))
        if count >= SEEN and least_s <= QUICK_S and took_s > SLOW_S:
            # It had to wait, say for TensorFlow's pool, and whoever reads requests with it.
            count, least_s = 0, float("inf")
        if not count and len(self._seen) >= MOST_KINDS:
            self._seen.clear()
        self._seen[kind] = (count + 1, min(RISE * least_s, took_s) if count else least_s)


def kind_of(signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> Hashable:
    """Return what runs have in common that take as long; None with strings, which have no size."""
    if any(array.dtype.hasobject for array in inputs.values()):
        return None
    return signature, tuple(outputs), tuple(
        (name, array.dtype, array.shape) for name, array in inputs.items())
