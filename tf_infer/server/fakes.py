"""A server without a model: servables for tests and for trying a client. Needs no TensorFlow."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tf_infer.errors import ServerUnavailable, ServingError
from tf_infer.manifest import ModelManifest
from tf_infer.server.contracts import Arrays, LoadTimes
from tf_infer.server.generation import GenerationRequest, Listener, Piece, Token
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


class FakeGenerator:
    """Says the words of the prompt again, one a token, then stops; a `generation.Generator`.

    `max_new_tokens` ends it with "length". Every request has a thread of its own.

    Args:
        pause_s: between two pieces.
        error: what every request ends with behind `error_after` pieces; None for none.

    Attributes:
        requests: what was asked so far.
        cancelled: how many were given up.
        prepared: whether it was told to prepare.
    """

    def __init__(self, *, pause_s: float = 0.0, error: ServingError | None = None,
                 error_after: int = 0) -> None:
        self._pause_s, self._error, self._error_after = pause_s, error, error_after
        self.requests: list[GenerationRequest] = []
        self.cancelled = 0
        self.prepared = False
        self._closed = threading.Event()

    def prepare(self) -> None:
        """Remember it."""
        self.prepared = True

    def submit(self, request: GenerationRequest, listener: Listener) -> FakeTicket:
        """Start to answer."""
        self.requests.append(request)
        ticket = FakeTicket(self)
        threading.Thread(target=self._answer, args=(request, listener, ticket.given_up),
                         daemon=True).start()
        return ticket

    def _answer(self, request: GenerationRequest, listener: Listener, given_up: threading.Event,
                ) -> None:
        words = request.prompt.split()
        most = int(request.options.get("max_new_tokens", len(words)))
        for place, word in enumerate(words[:most]):
            time.sleep(self._pause_s)
            if given_up.is_set():
                return
            if self._closed.is_set():
                listener(ServerUnavailable("The server is stopping."))
                return
            if self._error is not None and place == self._error_after:
                listener(self._error)
                return
            before = request.prompt if request.echo and not place else b""
            top = tuple((place + other, word, -1.0 - other)
                        for other in range(request.top_logprobs or 0))
            asked = request.top_logprobs is not None
            token = Token(id=place, piece=b" " + word, logprob=-1.0 if asked else float("nan"),
                          top=top)
            listener(Piece(text=before + b" " + word, tokens=(token,), prompt_tokens=len(words),
                           new_tokens=place + 1, score=-1.0 * (place + 1)))
        new = min(most, len(words))
        listener(Piece(text=b"", finish_reason="stop" if most >= len(words) else "length",
                       prompt_tokens=len(words), new_tokens=new, score=-1.0 * new))

    def close(self) -> None:
        """End what runs with UNAVAILABLE."""
        self._closed.set()


class FakeTicket:
    """A request of a FakeGenerator."""

    def __init__(self, generator: FakeGenerator) -> None:
        self._generator = generator
        self.given_up = threading.Event()

    def cancel(self) -> None:
        """Let no further piece come."""
        if not self.given_up.is_set():
            self.given_up.set()
            self._generator.cancelled += 1
