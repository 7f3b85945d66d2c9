"""One traced run -> how long its stages took. Needs no TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tf_infer.server.contracts import StageTimes
from tf_infer.stages import STAGES, stage_of

# The operations of a function that is called tell of themselves, unless XLA has compiled it.
_CALL = re.compile(r"(?:^|/)(?:Stateful)?PartitionedCall(?:_\d+)?$")


class Step(NamedTuple):
    """One operation that ran: its full name in the graph, and when, on any clock of nanoseconds."""

    operation: str
    start_ns: int
    end_ns: int


def stage_times(steps: Iterable[Step]) -> StageTimes:
    """Return for how long an operation of each stage was running.

    Operations of one stage that run side by side count once. A graph whose names tell no stage
    (somebody else's model) is all model, from its first operation to its last.

    Cost: O(n log n) for n steps.
    """
    by_stage: dict[str | None, list[tuple[int, int]]] = {}
    ordered = sorted(steps, key=lambda step: (step.start_ns, -step.end_ns))
    for place, step in enumerate(ordered):
        if _CALL.search(step.operation) and _holds_another(ordered, place):
            continue
        by_stage.setdefault(stage_of(step.operation), []).append((step.start_ns, step.end_ns))
    if by_stage.keys() == {None}:
        spans = by_stage[None]
        whole = (min(start for start, _ in spans), max(end for _, end in spans))
        by_stage = {"model": [whole]}
    tokenize, model, decode = (covered_ns(by_stage.get(stage, ())) / 1e9 for stage in STAGES)
    return StageTimes(tokenize_s=tokenize, model_s=model, decode_s=decode)


def _holds_another(ordered: Sequence[Step], place: int) -> bool:
    """Whether one of the steps that begin behind a step ends within it."""
    end_ns = ordered[place].end_ns
    for step in ordered[place + 1:]:
        if step.start_ns > end_ns:
            return False
        if step.end_ns <= end_ns:
            return True
    return False


def covered_ns(spans: Iterable[tuple[int, int]]) -> int:
    """Return the length of the union of (start, end) spans."""
    total = reached = 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total
