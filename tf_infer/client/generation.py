"""Options of a decoder as Python values -> one value for each row; and what its answer tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_infer.client.results import Alternative, Generation
from tf_infer.errors import ConfigError

SEPARATOR = "\x1f"  # joins the items of a list in one string
LISTS = ("stop", "stop_ids", "banned", "choices", "logit_bias")
TOLD = ("token_logprobs", "top_ids", "top_logprobs")  # outputs that only matter when asked for
GUESSING = ("rounds", "proposed", "accepted")  # outputs of `speculate`, how its guesses did


def strings(name: str, value: Any, rows: int) -> np.ndarray:
    """Return an option of text as [rows] objects.

    Args:
        name: of the option.
        value: of those of LISTS a list (of logit_bias a mapping), or a list of such, one for each
            row; one text is a list of one. Of others one text, or one for each row.
        rows: prompts.

    Raises:
        ConfigError: not such a value, an empty item, or one that holds U+001F; names the option,
            never the text.
    """
    if name not in LISTS:
        texts = [value] * rows if isinstance(value, (str, bytes)) else list(value)
        found = [_text(name, text) for text in texts]
    elif _is_one(name, value):
        found = [_joined(name, value)] * rows
    else:
        found = [_joined(name, one) for one in value]
    if len(found) != rows:
        raise ConfigError(f"{name}: expected one value, or one for each of {rows} prompts, "
                          f"got {len(found)}.")
    array = np.empty(rows, dtype=object)
    array[:] = found
    return array


def _is_one(name: str, value: Any) -> bool:
    """Return whether a value counts for all rows: no list of lists."""
    if isinstance(value, (str, bytes, Mapping)):
        return True
    if not isinstance(value, (Sequence, np.ndarray)):
        raise ConfigError(f"{name}: expected a list, got {type(value).__name__}.")
    if name == "logit_bias":
        return False
    return not any(one is None or isinstance(one, (list, tuple)) for one in value)


def _joined(name: str, value: Any) -> str | bytes:
    """Return the items of one row in one string; None is none."""
    if value is None:
        return ""
    if name == "logit_bias":
        if not isinstance(value, Mapping):
            raise ConfigError("logit_bias: expected {id: value}, or one for each prompt, "
                              f"got {type(value).__name__}.")
        return SEPARATOR.join(f"{_id(name, key)}:{_number(bias)!r}" for key, bias in value.items())
    items = [value] if isinstance(value, (str, bytes)) else list(value)
    if name == "stop_ids":
        return SEPARATOR.join(str(_id(name, item)) for item in items)
    texts = [_text(name, item) for item in items]
    if not all(texts):
        raise ConfigError(f"{name}: expected texts that are not empty, got an empty one.")
    if any(isinstance(text, bytes) for text in texts):
        return SEPARATOR.encode().join(
            text if isinstance(text, bytes) else text.encode() for text in texts)
    return SEPARATOR.join(str(text) for text in texts)


def _text(name: str, item: Any) -> str | bytes:
    if not isinstance(item, (str, bytes)):
        raise ConfigError(f"{name}: expected text, got {type(item).__name__}.")
    raw = item if isinstance(item, str) else item.decode("latin-1")
    if name in LISTS and SEPARATOR in raw:
        raise ConfigError(f"{name}: expected texts without U+001F, which joins them.")
    return item


def _id(name: str, item: Any) -> int:
    if isinstance(item, bool) or not isinstance(item, (int, np.integer)) or item < 0:
        raise ConfigError(f"{name}: expected ids, whole numbers >= 0, got {type(item).__name__}.")
    return int(item)


def _number(item: Any) -> float:
    if isinstance(item, bool) or not isinstance(item, (int, float, np.number)) or (
            not np.isfinite(item)):
        raise ConfigError("logit_bias: expected finite numbers as values, "
                          f"got {type(item).__name__}.")
    return float(item)


def generations(outputs: Mapping[str, np.ndarray]) -> list[Generation]:
    """Return the continuation of each row; outputs that the model does not give stay empty."""
    return [_generation(outputs, (row,)) for row in range(len(outputs["text"]))]


def hypotheses(outputs: Mapping[str, np.ndarray]) -> list[list[Generation]]:
    """Return the continuations of each row, best first; places that hold none are left out."""
    rows, beams = outputs["text"].shape
    every = [[_generation(outputs, (row, place)) for place in range(beams)] for row in range(rows)]
    return [[one for one in found if one.finish_reason != "none"] for found in every]


def _generation(outputs: Mapping[str, np.ndarray], place: tuple[int, ...]) -> Generation:
    length = int(outputs["length"][place]) if "length" in outputs else None
    logprobs = outputs.get("token_logprobs")
    top: tuple[tuple[Alternative, ...], ...] = ()
    if "top_ids" in outputs and (outputs["top_ids"][place] >= 0).any():
        ids, told = outputs["top_ids"][place], outputs["top_logprobs"][place]
        top = tuple(tuple(Alternative(int(number), float(logprob))
                          for number, logprob in zip(*pair) if number >= 0)
                    for pair in zip(ids[:length], told[:length]))
    reason = outputs["finish_reason"][place] if "finish_reason" in outputs else ""
    return Generation(
        _decoded(outputs["text"][place]),
        tuple(outputs["ids"][place][:length].tolist()) if "ids" in outputs else (),
        float(outputs["score"][place]) if "score" in outputs else float("nan"),
        _decoded(reason),
        () if logprobs is None else tuple(logprobs[place][:length].tolist()), top,
        *(int(outputs[name][place]) for name in GUESSING if name in outputs))


def _decoded(item: Any) -> str:
    return item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
