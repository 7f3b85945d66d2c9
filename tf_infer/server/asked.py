"""What a generation request asks for: its options, as the version's signature has them. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_infer.errors import InvalidRequest, NotOffered
from tf_infer.manifest import TensorSpec
from tf_infer.server.generation import GenerationRequest

SEPARATOR = b"\x1f"  # between the items of an option that is a list
LIMIT, LEAST, STOP, LOGPROBS = "max_new_tokens", "min_new_tokens", "stop", "logprobs"
STOP_BYTES = 2**14  # of all stop strings together
STOPS = 64          # each is looked for at every token, on a thread that all rows share
NAMED, CHOICES, STOP_IDS = "constraint", "choices", "stop_ids"


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One request, read.

    Attributes:
        max_new_tokens: 0 .. capacity.
        stops: strings that end the text.
        logprobs: alternatives to tell of each token; None where nobody wants to know.
        options: inputs of `steps` and `choose`, name -> scalar; what is left out has a default.
        matched: kind and value of a constraint that the host keeps; None for none.
    """

    max_new_tokens: int
    stops: tuple[bytes, ...]
    logprobs: int | None
    options: Mapping[str, Any]
    matched: tuple[str, str] | None = None


def read(request: GenerationRequest, specs: Sequence[TensorSpec], capacity: int) -> Asked:
    """Read a request.

    Args:
        request: as it came.
        specs: the options of the version's signature `generate`.
        capacity: most new tokens.

    Raises:
        InvalidRequest: an option that is none, or of the wrong kind; a limit out of range.
        NotOffered: the version has no such option or constraint.
    """
    known = {spec.name: spec for spec in specs}
    given: dict[str, Any] = dict(request.options)
    constraint = request.constraint
    if constraint is not None and constraint.kind == "name":
        given[NAMED] = constraint.value
    # `steps` and `choose` know no choices: the host keeps them, as patterns and schemas.
    choices = given.pop(CHOICES, "")
    matched = [(CHOICES, _text(CHOICES, choices))] if choices else []
    if constraint is not None and constraint.kind != "name":
        matched.append((constraint.kind, constraint.value))
    if len(matched) + bool(given.get(NAMED)) > 1:
        raise InvalidRequest("constraint: expected one, got several. Leave the others out.")
    strange = sum(name not in known and name != STOP for name in given)
    if strange:
        raise NotOffered(f"options: expected some of {', '.join(sorted({*known, STOP}))}, got "
                         f"{strange} that this version does not have. Leave them out, or export "
                         "the model again.")
    options = {name: value_of(known[name], value) for name, value in given.items() if name in known}
    limit = int(options.pop(LIMIT, known[LIMIT].default if LIMIT in known else capacity))
    if not 0 <= limit <= capacity:
        raise InvalidRequest(f"{LIMIT}: expected 0 <= {LIMIT} <= {capacity}, got {limit}.")
    if int(options.get(LEAST, 0)) > limit:
        raise InvalidRequest(f"{LEAST}: expected at most {LIMIT} = {limit}, got "
                             f"{int(options[LEAST])}.")
    default = known[STOP].default if STOP in known else ""
    options.pop(STOP, None)  # strings are looked for by the host, whatever the form
    logprobs = request.top_logprobs if request.top_logprobs is not None else options.get(LOGPROBS)
    if logprobs is not None and LOGPROBS not in known:
        raise NotOffered("top_logprobs: this version does not tell them. Export the model again.")
    if logprobs is not None and int(logprobs) < 0:
        raise InvalidRequest(f"top_logprobs: expected a number >= 0, got {int(logprobs)}.")
    return Asked(max_new_tokens=limit, stops=stops_of(given.get(STOP, default)),
                 logprobs=None if logprobs is None else int(logprobs), options=options,
                 matched=matched[0] if matched else None)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, (str, bytes)):
        raise InvalidRequest(f"{name}: expected a text, got a {type(value).__name__}.")
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


def stops_of(value: Any) -> tuple[bytes, ...]:
    """Return the stop strings of an option's text; an empty text is none.

    Raises:
        InvalidRequest: one of them is empty, or the value is no text.
    """
    if not isinstance(value, (str, bytes)):
        raise InvalidRequest(f"{STOP}: expected a text, got a {type(value).__name__}.")
    text = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    if len(text) > STOP_BYTES:
        raise InvalidRequest(f"{STOP}: expected at most {STOP_BYTES} bytes, got {len(text)}.")
    stops = tuple(text.split(SEPARATOR)) if text else ()
    if len(stops) > STOPS:
        raise InvalidRequest(f"{STOP}: expected at most {STOPS} texts, got {len(stops)}.")
    for place, stop in enumerate(stops):
        if not stop:
            raise InvalidRequest(f"{STOP}: expected texts of at least one character, got an empty "
                                 f"one as item {place}. Leave it out.")
    return stops


def stop_ids_of(options: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids that end a row beside the model's own, once the graph has checked them."""
    text = options.get(STOP_IDS, b"")
    return frozenset(int(number) for number in text.split(SEPARATOR) if number)


def value_of(spec: TensorSpec, value: Any) -> Any:
    """Return an option's value as a scalar of its dtype.

    Raises:
        InvalidRequest: of another kind, or out of the dtype's range.
    """
    if spec.dtype == "string":
        if isinstance(value, (str, bytes)):
            return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        raise _wrong(spec, value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
        raise _wrong(spec, value)
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return dtype.type(value)
    limits = np.iinfo(dtype)
    if not np.isfinite(value) or int(value) != value or not limits.min <= value <= limits.max:
        raise _wrong(spec, value)
    return dtype.type(value)


def _wrong(spec: TensorSpec, value: Any) -> InvalidRequest:
    shown = f"{value!r}" if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    return InvalidRequest(f"{spec.name}: expected a value of type {spec.dtype}, got {shown}.")
