"""How much is asked in a round, in which order, and whose process stays. Pure."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence

from tf_infer.errors import ConfigError

ROUNDS = 10        # that a budget is made for
MOST_ROUNDS = 30   # more do not change a median
LEAST_CALLS = 3    # of a batch size in a round: a median of fewer is none
MOST_CALLS = 100
MEMORY_SHARE = 0.5  # of the free memory, that processes may hold while others are asked

Costs = Mapping[str, Mapping[int, float]]  # candidate's key -> batch size -> seconds of a call


def calls_for(costs: Costs, budget_s: float) -> dict[int, int]:
    """Return how many calls of each batch size every candidate gets in a round.

    All get the same number, about the same texts, so that a round is fair; so many that ROUNDS
    rounds fill the budget, each batch size a like part of it.
    """
    batches = sorted(next(iter(costs.values())))
    share_s = budget_s / ROUNDS / len(batches)
    return {batch: max(LEAST_CALLS, min(MOST_CALLS, int(
        share_s / max(1e-9, sum(one[batch] for one in costs.values()))))) for batch in batches}


def round_s(costs: Costs, calls: Mapping[int, int], opening: Mapping[str, float]) -> float:
    """Return how long a round takes.

    Args:
        costs: of those that take part.
        calls: of each batch size.
        opening: candidate's key -> seconds until it is open, of those that are opened anew.
    """
    return sum(calls[batch] * seconds for one in costs.values() for batch, seconds in one.items()
               ) + sum(opening.get(key, 0.0) for key in costs)


def check_budget(budget_s: float, least_s: float, candidates: int) -> None:
    """Raise ConfigError unless one round fits into the budget."""
    if least_s > budget_s:
        enough_s = math.ceil(least_s) if least_s > 1 else math.ceil(100 * least_s) / 100
        raise ConfigError(
            f"--budget: expected at least {enough_s:g} s, which one round of these {candidates} "
            f"plans takes, got {budget_s:g} s. Give more, or name fewer in --plans.")


def goes_on(done: int, spent_s: float, budget_s: float, next_s: float) -> bool:
    """Return whether another round begins; the first one always does."""
    return done == 0 or (done < MOST_ROUNDS and spent_s + next_s <= budget_s)


def order(keys: Sequence[str], number: int, seed: int) -> list[str]:
    """Return in which order candidates take their turn in a round: another one every time."""
    found = list(keys)
    random.Random(f"{seed}/{number}").shuffle(found)
    return found


def staying(resident: Mapping[str, int], free_bytes: int) -> frozenset[str]:
    """Return whose processes stay open between rounds: as many as fit, the smallest first.

    Args:
        resident: candidate's key -> bytes of its process.
        free_bytes: of the machine before any of them was there; 0 where it is not known, which
            lets all stay.
    """
    room = free_bytes * MEMORY_SHARE if free_bytes else float("inf")
    found = set()
    for key, size in sorted(resident.items(), key=lambda one: one[1]):
        room -= size
        if room < 0:
            break
        found.add(key)
    return frozenset(found)


def usual(values: Sequence[float]) -> float:
    """Return the median, 0 of nothing."""
    return statistics.median(values) if values else 0.0
