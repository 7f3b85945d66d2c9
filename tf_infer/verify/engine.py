"""An engine beside its network, under the same ids: samples, and a Predictor for each kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tf_infer.manifest import Sample, SignatureSpec, TensorSpec

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


def served_samples(ids: np.ndarray, engine: Engine, steps: SignatureSpec,
                   run: Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
                   ) -> tuple[Sample, ...]:
    """Return such rows with the answers of an exported version, the likeliest ids alone.

    Args:
        ids, engine: as of `samples`.
        steps: the version's signature `steps`, which tells likeliest ids.
        run: runs it.
    """
    rows = min(engine.slots, 4)
    found = []
    for number in range(1, rows + 1):
        # `steps` needs room for one token that it produces.
        width = max((engine.positions - 1) * number // rows, 2)
        row = np.resize(np.roll(ids, -7 * number), width).astype(np.int32)
        ends = _ends(width, engine.chunk)
        state = _blank(steps)
        told: list[tuple[np.ndarray, np.ndarray]] = []
        for start, end in itertools.pairwise((0, *ends, *range(ends[-1] + 1, width + 1))):
            answer = run(steps.name, {**state, "ids": row[None, start:end],
                                      "id_count": np.array([end - start], np.int32)})
            state |= {name: answer[name] for name in ("cache", "lengths")}
            told.append((answer["top_ids"][0, 0], answer["top_logprobs"][0, 0]))
        top_ids, top = (np.stack(one)[None] for one in zip(*told))           # [1, places, A]
        found.append(Sample(SIGNATURE, {"ids": row[None], "top_ids": top_ids}, {
            "log_probs": np.maximum(top, top.max(axis=-1, keepdims=True) - FLOOR)}))
    return tuple(found)


def _blank(steps: SignatureSpec) -> dict[str, np.ndarray]:
    """Return inputs of `steps` for one row that has read nothing: one token, all alternatives."""
    made = {one.name: _strings(one) if one.dtype == "string" else np.full(
        [1, *(size or 0 for size in one.shape[1:])], one.default or 0, one.dtype)
        for one in steps.inputs}
    most = next(one.shape[-1] for one in steps.outputs if one.name == "top_ids")
    one = np.ones(1, np.int32)
    # Of a token that ends a text nothing is told: none may.
    return made | {"count": one, "min_new_tokens": one, "logprobs": np.full(1, most, np.int32)}


def _strings(spec: TensorSpec) -> np.ndarray:
    made = np.empty(1, object)
    made[0] = (spec.default or "").encode()
    return made


class EnginePredictor:
    """The only signature, `under_given_tokens`: `ids` [1, T] -> `log_probs` after some of them.

    All but the last STEPS ids are read in chunks, those by steps, while other slots step along.
    Told is what comes after each chunk and after each step; with `top_ids` of these ids alone.
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
        told = leading(np.stack(found)[None])                                # [1, places, V]
        if "top_ids" in inputs:
            told = np.take_along_axis(told, np.asarray(inputs["top_ids"]), axis=-1)
        return {"log_probs": told}


class EncoderEngine(Protocol):
    """What is asked of a classifier's engine here (tf_infer/engines/contracts.py)."""

    def run(self, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray) -> np.ndarray:
        """Compute the logits of rows."""


class EncoderPredictor:
    """The only signature, `ids` of a classifier: `ids`, `mask`, perhaps `segments` -> `logits`."""

    def __init__(self, engine: EncoderEngine) -> None:
        self._engine = engine

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return the outputs of a signature by name."""
        assert signature == "ids"
        ids = np.asarray(inputs["ids"], np.int32)
        segments = np.asarray(inputs.get("segments", np.zeros_like(ids)), np.int32)
        return {"logits": self._engine.run(ids, np.asarray(inputs["mask"]) != 0, segments)}


def encoder_samples(samples: Sequence[Sample],
                    run: Callable[[str, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
                    ) -> tuple[Sample, ...]:
    """Return requests of `ids` for the texts of those of `serving_default`, with logits.

    Args:
        samples: requests of any signature; outputs recorded in them are not looked at.
        run: runs the signatures `encode` and `ids` of the version.
    """
    found = []
    for sample in samples:
        if sample.signature == "serving_default":
            told = run("encode", sample.inputs)
            inputs = {name: told[name] for name in ("ids", "mask", "segments") if name in told}
            found.append(Sample("ids", inputs, {"logits": run("ids", inputs)["logits"]}))
    return tuple(found)


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
