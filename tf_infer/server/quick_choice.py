"""The next token of rows without penalties and the like, chosen by NumPy as `choose` would.

A run of `choose` is 1,100 operations: 2 to 4 ms of processor time whatever it is asked, and the
step of a small model takes not much more. So the rows that most callers send are decided here: the
best token, or one drawn with temperature, top-k, top-p and min-p, under a mask. What is decided is
the same as in the graph (decoding/sampling.py, random.py), which a test holds against this; which
ids end a text is learned from `choose` itself, id by id. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_infer.manifest import TensorSpec

DRAWING = frozenset({"temperature", "top_k", "top_p", "min_p", "seed", "draw", "logprobs"})
# Values that change nothing, of options that have one; a row that asks for another is not quick.
NEUTRAL: Mapping[str, Any] = {
    "typical_p": 1.0, "min_new_tokens": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "stop_ids": b"", "banned": b"", "logit_bias": b"",
    "forced_prefix": b"", "constraint": b"", "choices": b""}
BANNED = np.float32(-1e30)  # logit of a token under a mask, as in the graph
SHORTLIST = 256             # best tokens in which nearly every nucleus ends
WORD = 0xFFFFFFFF
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


class Drawing(NamedTuple):
    """How a row chooses: the options of `DRAWING` that decide."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    draw: int


class Chosen(NamedTuple):
    """A token, its log-probability under the model in nats, and the likeliest others, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def drawing(options: Mapping[str, Any], specs: Sequence[TensorSpec]) -> Drawing | None:
    """Return how a row chooses; None where it asks for more than is done here.

    Args:
        options: of the row; what is left out has the default of its spec.
        specs: the options of `choose`.
    """
    given = {spec.name: options.get(spec.name, spec.default) for spec in specs}
    if not all(name in DRAWING or (name in NEUTRAL and _plain(value) == NEUTRAL[name])
               for name, value in given.items()):
        return None
    return Drawing(float(given.get("temperature", 0.0)), int(given.get("top_k", 0)),
                   float(given.get("top_p", 1.0)), float(given.get("min_p", 0.0)),
                   int(given.get("seed", 0)), int(given.get("draw", 0)))


def _plain(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def choose(logits: np.ndarray, how: Drawing, produced: int, allowed: np.ndarray, told: int = 0,
           ) -> Chosen | None:
    """Choose a row's next token.

    Args:
        logits: [V] float32.
        how: it is chosen.
        produced: tokens that the row has: the number of its draw.
        allowed: bits of those that may be chosen, as `choose` takes them; empty for all.
        told: how many alternatives to tell.

    Returns:
        None where this is not for us to decide: a number that is not finite, nothing allowed.
    """
    if not np.isfinite(logits).all():
        return None
    held = logits
    if len(allowed):
        bits = np.unpackbits(allowed.view(np.uint8), count=len(logits), bitorder="little")
        if not bits.any():
            return None
        held = np.where(bits, logits, BANNED)
    token = int(held.argmax()) if how.temperature <= 0.0 else _drawn(held, how, produced)
    most = logits.max()
    total = float(most) + float(np.log(np.exp(logits - most).sum()))
    top = tuple((int(number), float(logits[number]) - total)
                for number in leading(logits, told)) if told else ()
    return Chosen(token, float(logits[token]) - total, top)


def _drawn(logits: np.ndarray, how: Drawing, produced: int) -> int:
    uniform = uniform_of(how.seed, produced, how.draw)
    weights = np.exp((logits - logits.max()) / np.float32(how.temperature))  # [V], the largest is 1
    size = len(weights)
    top_k = min(how.top_k or size, size)
    if top_k >= size and how.top_p >= 1.0:
        return pick(np.where(weights >= np.float32(how.min_p), weights, 0.0), uniform)
    for width in (min(SHORTLIST, size), size):
        ids = leading(weights, width)
        kept, decided = _kept(weights, ids, top_k, float(np.float32(how.top_p)))
        if decided:
            break
    values = weights[ids]
    kept &= values >= np.float32(how.min_p) * values[0]
    return int(ids[pick(np.where(kept, values, 0.0), uniform)])


def _kept(weights: np.ndarray, ids: np.ndarray, top_k: int, top_p: float,
          ) -> tuple[np.ndarray, bool]:
    """Say which of the best tokens top-k and top-p leave, and whether both end among them."""
    places, size = np.arange(len(ids)), len(weights)
    within = places < top_k
    values = np.where(within, weights[ids], 0.0).astype(np.float64)
    sums = np.cumsum(values)
    total = float(weights.sum(dtype=np.float64)) if top_k > len(ids) else float(sums[-1])
    before = np.concatenate([[0.0], sums[:-1]])
    kept = within & ((top_p >= 1.0) | (before < top_p * total) | (places == 0))
    decided = len(ids) == size or top_k <= len(ids) or (
        top_k >= size and bool(sums[-1] >= top_p * total))
    return kept, decided


def leading(values: np.ndarray, count: int) -> np.ndarray:
    """Return where the `count` largest of [V] values are, best first, of equals the lower place."""
    places = np.arange(len(values))
    if count < len(values):
        places = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return places[np.argsort(-values[places], kind="stable")[:count]]


def pick(weights: np.ndarray, uniform: float) -> int:
    """Return the first place at which the running sum exceeds uniform x total; none of weight 0."""
    sums = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(sums, uniform * sums[-1], side="right"))
    return place if place < len(weights) else int(np.flatnonzero(weights)[-1])


def uniform_of(seed: int, draw: int, stream: int) -> float:
    """Return a row's uniform number: Threefry-2x32 with 20 rounds, as decoding/random.py has it."""
    low, high = seed & WORD, (seed >> 32) & WORD
    keys = (low, high, low ^ high ^ PARITY)
    left, right = (draw + low) & WORD, (stream + high) & WORD
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            left = (left + right) & WORD
            right = left ^ ((right << distance | right >> (32 - distance)) & WORD)
        left = (left + keys[(group + 1) % 3]) & WORD
        right = (right + keys[(group + 2) % 3] + group + 1) & WORD
    return (left >> 8) * 2.0**-24
