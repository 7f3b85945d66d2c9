"""The best token of rows that ask for nothing else, chosen by NumPy as `choose` would.

A run of `choose` costs 2 to 4 ms of processor time whatever it is asked, the step of a small model
not much more. Greedy rows without penalties and the like need an arg-max and its log-probability.
Which ids end a text is learned from `choose` itself, id by id. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tf_infer.manifest import TensorSpec

# What a greedy choice does not depend on.
INDIFFERENT = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "draw",
                         "logprobs"})
# Values that change nothing, of options that have one; a row that asks for another is not quick.
NEUTRAL: Mapping[str, Any] = {
    "min_new_tokens": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "stop_ids": b"", "banned": b"", "logit_bias": b"",
    "forced_prefix": b"", "constraint": b"", "choices": b""}


class Best(NamedTuple):
    """The best token of a row and its log-probability under the model, in nats."""

    token: int
    logprob: float


def is_quick(options: Mapping[str, Any], specs: Sequence[TensorSpec], logprobs: int) -> bool:
    """Whether a row's choice is the best token, and nothing else is to be told.

    Args:
        options: of the row; what is left out has the default of its spec.
        specs: the options of `choose`.
        logprobs: alternatives to tell.
    """
    given = {spec.name: options.get(spec.name, spec.default) for spec in specs}
    return (logprobs == 0 and float(given.get("temperature", 1.0)) == 0.0
            and all(name in INDIFFERENT or (name in NEUTRAL and _plain(value) == NEUTRAL[name])
                    for name, value in given.items()))


def _plain(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def best_token(logits: np.ndarray, allowed: np.ndarray) -> Best | None:
    """Return the best of a row's tokens, of equals the one with the lowest id.

    Args:
        logits: [V] float32.
        allowed: bits of those that may be chosen, as `choose` takes them; empty for all.

    Returns:
        None where this is not for us to decide: a number that is not finite, nothing allowed.
    """
    most = logits.max()
    if not np.isfinite(most):  # NaN, too, is the largest of all
        return None
    total = float(np.exp(logits - most).sum())
    if len(allowed):
        bits = np.unpackbits(allowed.view(np.uint8), count=len(logits), bitorder="little")
        held = np.where(bits, logits, -np.inf)
        token = int(held.argmax())
        if not np.isfinite(held[token]):
            return None
    else:
        token = int(logits.argmax())
    return Best(token, float(logits[token] - most) - float(np.log(total)))
