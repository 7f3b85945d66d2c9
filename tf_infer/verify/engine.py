"""An engine of a decoder beside its network, under the same tokens: samples, and a Predictor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tf_infer.manifest import Sample

SIGNATURE = "under_given_tokens"
STEPS = 8  # ids of a row that are read one by one, at its end
FLOOR = 5.0  # nats below the likeliest id; what is less likely still counts as this


class Engine(Protocol):
    """What is asked of an engine here (tf_infer/engines/contracts.py)."""

    slots: int
    positions: int
    chunk: int

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """Read part of a prompt into a slot."""

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """Read one more token of each active slot."""


def samples(ids: np.ndarray, engine: Engine, logits: Callable[[np.ndarray], np.ndarray]
            ) -> tuple[Sample, ...]:
    """Return rows of many lengths, up to a full slot, with the network's answers (`leading`).

    Args:
        ids: [n] int32, what to fill rows with; repeated as often as needed.
        engine: says how long rows may be.
        logits: the network: [1, T] int32 -> [1, T, V].
    """
    rows = min(engine.slots, 4)
    found = []
    for number in range(1, rows + 1):
        width = max(engine.positions * number // rows, 2)
        row = np.resize(np.roll(ids, -7 * number), width).astype(np.int32)[None]
        wanted = leading(logits(row)[:, _seen(width, engine.chunk)])
        found.append(Sample(SIGNATURE, {"ids": row}, {"log_probs": wanted}))
    return tuple(found)


class EnginePredictor:
    """The only signature, `under_given_tokens`: `ids` [1, T] -> `log_probs` after some of them.

    All but the last STEPS ids are read in chunks, those by steps, while other slots step along.
    Told is what comes after each chunk and after each step.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._slot = -1

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs of a signature by name."""
        assert signature == SIGNATURE
        engine, row = self._engine, np.asarray(inputs["ids"])[0]
        self._slot = (self._slot + 1) % engine.slots
        found, done = [], 0
        for end in _ends(len(row), engine.chunk):
            found.append(engine.read(self._slot, row[done:end], done).copy())
            done = end
        lengths = np.zeros(engine.slots, np.int32)
        active = sorted({0, self._slot})
        for place in range(done, len(row)):
            lengths[self._slot] = place
            tokens = np.full(engine.slots, row[place], np.int32)
            found.append(engine.step(tokens, lengths, active)[self._slot].copy())
        return {"log_probs": leading(np.stack(found)[None])}


def spread(found: Sequence[Sample]) -> float:
    """Return how far likely and unlikely ids are apart, nats, in the mean over all places.

    A tolerance is a share of it: half a nat is little after much training and all before it.
    """
    return float(np.mean([np.ptp(sample.outputs["log_probs"], axis=-1).mean() for sample in found]))


def leading(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities, nats, over the last axis, none lower than FLOOR below the best."""
    found = log_probs(logits)
    return np.maximum(found, found.max(axis=-1, keepdims=True) - FLOOR)


def log_probs(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities, nats, over the last axis."""
    moved = logits.astype(np.float64)
    moved -= moved.max(axis=-1, keepdims=True)
    moved -= np.log(np.exp(moved).sum(axis=-1, keepdims=True))
    return moved.astype(np.float32)


def _ends(width: int, chunk: int) -> list[int]:
    """Return where each chunk of a row of `width` ends."""
    read = max(width - STEPS, 1)
    return [*range(chunk, read, chunk), read]


def _seen(width: int, chunk: int) -> list[int]:
    """Return the places whose log-probabilities are told."""
    ends = _ends(width, chunk)
    return [end - 1 for end in ends] + list(range(ends[-1], width))
