"""Where the time of one call went, as it travels in gRPC metadata.

    request   tf-infer-timings: stages        or `queue`, which costs nothing
    answer    tf-infer-timing: queue=120;tokenize=310;model=2140;decode=25;total=2950

Microseconds. A server that does not know the key, such as TensorFlow Serving's, sends nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

REQUEST_KEY = "tf-infer-timings"
ANSWER_KEY = "tf-infer-timing"

Detail = Literal["queue", "stages"]
_DETAILS: dict[str, Detail] = {"queue": "queue", "stages": "stages", "1": "stages"}
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where a server spent the time of one call, in seconds.

    What was run for several calls at once counts in full for each of them.

    Attributes:
        queue_s: waiting for the run to begin.
        tokenize_s: text to ids; None where the run was not split into its stages.
        model_s: the network; the whole run where it was not split.
        decode_s: choosing tokens or labels, ids to text; None where the run was not split.
        total_s: from the request's arrival until its answer was ready; what is left of it is
            reading and writing messages, and the runtime between the operations.
    """

    queue_s: float
    tokenize_s: float | None = None
    model_s: float
    decode_s: float | None = None
    total_s: float


_NAMES = {field.name.removesuffix("_s"): field.name for field in fields(Timings)}


def asked_for(metadata: Metadata) -> Detail | None:
    """Return how much detail a request's metadata asks for, None for no timings at all."""
    for key, value in metadata:
        if key == REQUEST_KEY and isinstance(value, str):
            return _DETAILS.get(value)
    return None


def to_text(timings: Timings) -> str:
    """Return what stands in the answer's metadata."""
    values = ((name, getattr(timings, field)) for name, field in _NAMES.items())
    return ";".join(f"{name}={round(value * 1e6)}" for name, value in values if value is not None)


def from_metadata(metadata: Metadata) -> Timings | None:
    """Return the timings in an answer's metadata; None where there are none that can be read."""
    text = next((value for key, value in metadata if key == ANSWER_KEY), None)
    if not isinstance(text, str):
        return None
    try:
        pairs = (part.split("=") for part in text.split(";"))
        return Timings(**{_NAMES[name]: int(value) / 1e6 for name, value in pairs
                          if name in _NAMES})
    except (TypeError, ValueError):
        return None
