"""Servable: one loaded version of a model, as the server sees it. Needs no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np

from tf_infer.manifest import ModelManifest
from tf_infer.wire import serving_pb2

T = TypeVar("T")
Arrays = dict[str, np.ndarray]
Signatures = Mapping[str, serving_pb2.SignatureDef]


class Run(NamedTuple):
    """One run of a signature.

    Attributes:
        signature: its name.
        inputs: name -> array, every input of the signature; strings as object arrays of bytes.
        outputs: the wanted outputs' names.
    """

    signature: str
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan(Generic[T]):
    """What a request asks of a version: some runs, and what its answer is, given their outputs."""

    runs: tuple[Run, ...]
    finish: Callable[[Sequence[Arrays]], T]


class Servable(Protocol):
    """One version that can be run.

    Attributes:
        signatures: every signature of the meta graph, by name, as saved_model.pb has them (MD04).
        manifest: what we know of a version that we exported; None for any other SavedModel.
    """

    signatures: Signatures
    manifest: ModelManifest | None

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Run one signature.

        Args:
            signature: a key of `signatures`.
            inputs: name -> array, every input of the signature; strings as object arrays of bytes.
            outputs: the wanted outputs' names.
            timeout_s: > 0; the run is stopped after so long. None for no limit.

        Raises:
            ServingError: with the runtime's own code and text; DeadlineExceeded after `timeout_s`.
        """

    def close(self) -> None:
        """Free what the version holds; no run follows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimes:
    """For how long operations of each stage were running in one run, in seconds."""

    tokenize_s: float
    model_s: float
    decode_s: float

    def __add__(self, other: StageTimes) -> StageTimes:
        return StageTimes(tokenize_s=self.tokenize_s + other.tokenize_s,
                          model_s=self.model_s + other.model_s,
                          decode_s=self.decode_s + other.decode_s)


@runtime_checkable
class Traceable(Protocol):
    """A servable that can tell the stages of a run apart."""

    def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                   outputs: Sequence[str], timeout_s: float | None,
                   ) -> tuple[Arrays, StageTimes]:
        """Do what `Servable.run` does, slower, and return how long its stages took as well."""


class Quick(Protocol):
    """A servable that knows runs which take next to nothing."""

    def quick(self, run: Run, timeout_s: float | None) -> Callable[[], Arrays] | None:
        """Return what does a run that takes less than handing it to another thread, each time.

        Args:
            run: that is to be done.
            timeout_s: until its deadline; None for no deadline.

        Returns:
            None where it may take more. Else to be called once, as `Servable.run`.
        """


@runtime_checkable
class Exclusive(Protocol):
    """A servable that computes one run at a time: a second one would wait inside it.

    Attributes:
        exclusive: True.
    """

    exclusive: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadTimes:
    """How long one version took to become available, in seconds, and what was replayed."""

    load_s: float = 0.0
    warmup_records: int = 0
    warmup_s: float = 0.0
    golden_samples: int = 0
    golden_s: float = 0.0


# version directory -> servable that is warm and proven, and the times it took
LoadFn = Callable[[Path], tuple[Servable, LoadTimes]]
