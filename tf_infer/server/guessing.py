"""What may follow a text, by what followed the like in it before, and whether guessing pays. Pure.

A guess is read together with the last token of a text, and kept where it is what was chosen anyway:
it can cost time but never change a token (decoding/speculative.py does the same in the graph). Here
a step is the time in which the model reads one token of one text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

# Runs of last tokens that are looked for, the longest first. What followed a single token is
# seldom what follows it now.
RUNS = (3, 2)
COST = 1.6       # steps that a round takes, until enough of them have been seen
SEEN = 3         # that is enough
LAST = 9         # of which the median counts: now and then something else has the machine
BEGIN = 1.0      # steps that a text may lose by guesses before any of them held
SHARE = 0.02     # of a step that it may lose more with each token
MOST = 2.0       # steps that it keeps of what guesses won: it may soon go on otherwise


class LookUp:
    """Where each run of the ids of one text ended last (prompt look-up, Saxena 2023)."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._seen = 0  # runs that end here or before are known

    def guess(self, ids: np.ndarray, length: int, most: int) -> list[int]:
        """Return what may follow, at most so many ids; none where no run stood there before.

        The latest place counts, the longest run first. Where the text ends behind that place, it is
        taken to go on with what was just guessed.

        Args:
            ids: [P] int32, the first `length` count. Between two calls a text only grows.
            length: >= 1.
            most: >= 0.
        """
        self._learn(ids, length)
        for size in RUNS:
            end = self._ends.get(tuple(ids[max(length - size, 0):length].tolist()))
            if end is not None:
                found: list[int] = []
                for place in range(end, end + most):
                    found.append(int(ids[place]) if place < length else found[place - length])
                return found
        return []

    def _learn(self, ids: np.ndarray, length: int) -> None:
        """Take the runs behind which there is an id."""
        least = RUNS[0] - 1
        begin = max(self._seen - least, 0)
        text = ids[begin:length - 1].tolist()
        for end in range(self._seen + 1, length):
            for size in RUNS:
                if size <= end:
                    self._ends[tuple(text[end - size - begin:end - begin])] = end
        self._seen = max(self._seen, length - 1)


class Account(NamedTuple):
    """What a text may still lose by guesses that are refused, in steps.

    However its guesses fare, a text of n tokens takes no more than n + BEGIN + n SHARE steps, as
    far as rounds cost what they are taken to cost.
    """

    left: float = BEGIN

    def allows(self, cost: float) -> bool:
        """Whether the next round may be lost."""
        return self.left >= cost - 1.0

    def after(self, tokens: int, cost: float = 1.0) -> Account:
        """Return what is left behind a round or a step that wrote so many tokens."""
        return Account(min(self.left + tokens * (1.0 + SHARE) - cost, MOST))


class Rounds:
    """How many steps a round takes on this machine, from the seconds of both: medians of the last.
    """

    def __init__(self) -> None:
        self._seconds: dict[bool, deque[float]] = {
            guessed: deque(maxlen=LAST) for guessed in (False, True)}

    def took(self, seconds: float, *, guessed: bool) -> None:
        """Take the time of a round, or of a step of one text."""
        self._seconds[guessed].append(seconds)

    def cost(self) -> float:
        """Return the steps of a round; never so many that no text could afford one.

        Else it would stay what it is, however wrong.
        """
        steps, rounds = self._seconds[False], self._seconds[True]
        if min(len(steps), len(rounds)) < SEEN or not median(steps):
            return COST
        return min(max(median(rounds) / median(steps), 1.0), 1.0 + MOST)


class Guessing:
    """The guesses for one text: what to guess next, and how well it went.

    Attributes:
        proposed: guesses that the model has read.
        accepted: of them, those that were what it chose.
    """

    def __init__(self) -> None:
        self._look_up, self._account = LookUp(), Account()
        self.proposed = self.accepted = 0

    def next(self, ids: np.ndarray, length: int, most: int, cost: float) -> list[int]:
        """Return guesses for the next round, none where it takes a step; see `LookUp.guess`.

        Args:
            cost: of a round, in steps.
        """
        if most < 1 or not self._account.allows(cost):
            return []
        return self._look_up.guess(ids, length, most)

    def stepped(self) -> None:
        """Take that a step wrote a token."""
        self._account = self._account.after(1)

    def told(self, guesses: Sequence[int], chosen: Sequence[int], cost: float) -> None:
        """Take what was chosen in a round, up to the first that had not been guessed."""
        self.proposed += len(guesses)
        self.accepted += sum(guess == token for guess, token in zip(guesses, chosen))
        self._account = self._account.after(len(chosen), cost)
