"""A server without a model: servables for tests and for trying a client. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tf_infer.manifest import ModelManifest
from tf_infer.server.contracts import Arrays, LoadTimes
from tf_infer.wire import serving_pb2


def signature(inputs: Mapping[str, tuple[int, Sequence[int] | None]],
              outputs: Mapping[str, tuple[int, Sequence[int] | None]],
              method_name: str = "tensorflow/serving/predict") -> serving_pb2.SignatureDef:
    """Return a SignatureDef.

    Args:
        inputs, outputs: name -> (DataType number, shape with -1 for a free axis, or None for an
            unknown rank).
    """
    made = serving_pb2.SignatureDef(method_name=method_name)
    for specs, infos in ((inputs, made.inputs), (outputs, made.outputs)):
        for name, (dtype, shape) in specs.items():
            info = infos[name]
            info.name = f"{name}:0"
            info.dtype = dtype  # type: ignore[assignment]
            if shape is None:
                info.tensor_shape.unknown_rank = True
            for size in shape or ():
                info.tensor_shape.dim.add(size=size)
    return made


class EchoServable:
    """Gives inputs back as the outputs of the same name; by default one string vector `text`."""

    def __init__(self, signatures: Mapping[str, serving_pb2.SignatureDef] | None = None) -> None:
        text = {"text": (serving_pb2.DT_STRING, (-1,))}
        self.signatures = signatures or {"serving_default": signature(text, text)}
        self.manifest: ModelManifest | None = None
        self.closed = False

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Return the inputs that are asked for."""
        return {name: inputs[name] for name in outputs}

    def close(self) -> None:
        """Remember the end."""
        self.closed = True


class ScriptedServable(EchoServable):
    """Gives scripted answers in order, the last one for ever; an exception is raised.

    Attributes:
        calls: (signature, inputs, outputs, timeout_s) of every run so far.
    """

    def __init__(self, answers: Sequence[Arrays | Exception],
                 signatures: Mapping[str, serving_pb2.SignatureDef] | None = None) -> None:
        super().__init__(signatures)
        self._answers = list(answers)
        self.calls: list[tuple[str, Mapping[str, np.ndarray], tuple[str, ...], float | None]] = []

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Return, or raise, the next scripted answer."""
        answer = self._answers[min(len(self.calls), len(self._answers) - 1)]
        self.calls.append((signature, inputs, tuple(outputs), timeout_s))
        if isinstance(answer, Exception):
            raise answer
        return {name: answer[name] for name in outputs}


def load_echo(path: Path) -> tuple[EchoServable, LoadTimes]:
    """A LoadFn whose every version directory is an EchoServable."""
    return EchoServable(), LoadTimes()
