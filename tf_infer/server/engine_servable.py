"""EngineServable: a classifier whose network an engine computes; all else stays its SavedModel's.

Texts become ids in the graph, ids become logits in the engine, and logits become scores and labels
by the graph's definition (class_answers.py). A request that breaks a rule is given to the graph,
whose words its caller gets. `encode` and `explain` are the graph's as ever. Needs no TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from google.protobuf.message import DecodeError

from tf_infer.config import ClassifierConfig
from tf_infer.engines.contracts import EncoderEngine
from tf_infer.engines.deadline import Deadline
from tf_infer.errors import DeadlineExceeded
from tf_infer.manifest import ModelManifest
from tf_infer.server.class_answers import ClassAnswers
from tf_infer.server.contracts import Arrays, Signatures, StageTimes
from tf_infer.server.scheduler import TIMED_OUT
from tf_infer.wire import serving_pb2

ENCODE = "encode"


class Graph(Protocol):
    """What is asked of a SavedModel here: a `Servable`, `Traceable`, that can run a part."""

    signatures: Signatures
    manifest: ModelManifest | None

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None, whole: bool = True) -> Arrays:
        """See `contracts.Servable.run`; without `whole` only the wanted outputs are computed."""

    def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                   outputs: Sequence[str], timeout_s: float | None, whole: bool = True,
                   ) -> tuple[Arrays, StageTimes]:
        """See `contracts.Traceable`."""

    def close(self) -> None:
        """Free what it holds."""


class EngineServable:
    """A version behind `contracts.Servable` and `contracts.Traceable`.

    Args:
        graph: its SavedModel.
        manifest: of a classifier.
        engine: its network.
    """

    exclusive = True  # an engine takes all CPUs for one call, and a larger batch is cheaper

    def __init__(self, graph: Graph, manifest: ModelManifest, engine: EncoderEngine) -> None:
        assert isinstance(manifest.task, ClassifierConfig)
        self.signatures: Signatures = graph.signatures
        self.manifest: ModelManifest | None = manifest
        self.engine = engine
        self._graph = graph
        self._answers = ClassAnswers(manifest.task)
        self._texts = ("text", "text_pair") if manifest.task.pair else ("text",)
        self._ids = tuple(spec.name for spec in manifest.signature("ids").inputs)
        self._widths = manifest.grid.tokens

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> Arrays:
        """Run one signature; see `contracts.Servable.run`."""
        deadline = Deadline(timeout_s)
        texts = self._texts_of(signature, inputs)
        if texts is not None:
            encoded = self._graph.run(ENCODE, texts, outputs=self._ids, timeout_s=timeout_s,
                                      whole=False)
        elif signature == "ids" and self._good(inputs):
            encoded = dict(inputs)
        else:
            return self._graph.run(signature, inputs, outputs=outputs, timeout_s=timeout_s)
        return self._answer(signature, self._logits(encoded, deadline), outputs)

    def run_traced(self, signature: str, inputs: Mapping[str, np.ndarray], *,
                   outputs: Sequence[str], timeout_s: float | None) -> tuple[Arrays, StageTimes]:
        """Run one signature and split its time; see `contracts.Traceable`."""
        deadline = Deadline(timeout_s)
        texts = self._texts_of(signature, inputs)
        if texts is not None:
            encoded, times = self._graph.run_traced(ENCODE, texts, outputs=self._ids,
                                                    timeout_s=timeout_s, whole=False)
        elif signature == "ids" and self._good(inputs):
            encoded, times = dict(inputs), StageTimes(tokenize_s=0.0, model_s=0.0, decode_s=0.0)
        else:
            return self._graph.run_traced(signature, inputs, outputs=outputs, timeout_s=timeout_s)
        began_s = time.perf_counter()
        logits = self._logits(encoded, deadline)
        done_s = time.perf_counter()
        arrays = self._answer(signature, logits, outputs)
        return arrays, times + StageTimes(tokenize_s=0.0, model_s=done_s - began_s,
                                          decode_s=time.perf_counter() - done_s)

    def close(self) -> None:
        """Free the SavedModel and the engine."""
        try:
            self.engine.close()
        finally:
            self._graph.close()

    def _texts_of(self, signature: str, inputs: Mapping[str, np.ndarray]
                  ) -> Mapping[str, np.ndarray] | None:
        """Return the texts of a request; None where there are none, or the graph has to say why."""
        if signature == "serving_default":
            return inputs
        if signature == "classify":
            return texts_in(inputs["inputs"], self._texts)
        return None

    def _good(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether `ids`, `mask` and `segments` keep the rules of the signature."""
        ids = inputs["ids"]
        segments = inputs.get("segments", np.zeros(0, np.int32))
        return (all(array.ndim == 2 and array.shape == ids.shape for array in inputs.values())
                and ids.shape[1] <= self._widths[-1]
                and bool(((ids >= 0) & (ids < self.engine.manifest.vocab_size)).all())
                and bool(((segments == 0) | (segments == 1)).all()))

    def _logits(self, encoded: Mapping[str, np.ndarray], deadline: Deadline) -> np.ndarray:
        """Let the engine compute, unless nobody waits for it any more."""
        ids, mask = encoded["ids"], encoded["mask"] != 0
        try:
            return self.engine.run(ids, mask, encoded.get("segments", np.zeros_like(ids)),
                                   timeout_s=deadline.left_s())
        except DeadlineExceeded as error:
            raise DeadlineExceeded(TIMED_OUT) from error

    def _answer(self, signature: str, logits: np.ndarray, outputs: Sequence[str]) -> Arrays:
        if signature == "ids":
            found = {"logits": logits}
        elif signature == "classify":
            found = self._answers.classify(logits)
        else:
            found = self._answers.serving_default(logits)
        return {name: found[name] for name in outputs}


def texts_in(records: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the one string of each named feature of tf.Examples.

    Args:
        records: [B] serialized tf.Examples.
        names: of the features.

    Returns:
        name -> [B] bytes; None where a record is none, has a field that no tf.Example has, which
        protobuf would pass over, or has not one string under a name.
    """
    found = {name: np.empty(len(records), object) for name in names}
    for row, record in enumerate(records):
        try:
            example = serving_pb2.Example.FromString(record)
        except (DecodeError, TypeError):
            return None
        size = example.ByteSize()
        example.DiscardUnknownFields()
        if example.ByteSize() != size:
            return None
        for name in names:
            values = example.features.feature[name].bytes_list.value
            if len(values) != 1:
                return None
            found[name][row] = values[0]
    return found
