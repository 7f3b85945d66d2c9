"""TokenAutomaton: which tokens may come next, as plain arrays.

Tokens that do the same in every state share a class, so that the table of next states is small; a
row of it, looked up by the class of each token, is the mask of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FORBIDDEN = -1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenAutomaton:
    """Texts, token by token. Every state leads on to an accepting one, so no row is ever stuck.

    Attributes:
        class_of: [V] int32, class of each token.
        next: [S, C] int32, state behind a token of a class; FORBIDDEN where it may not come. The
            start is state 0. End ids are a class of their own: allowed in accepting states, and
            lead to the last state, which allows nothing.
        accepting: [S] bool, what has been produced is a whole text; the last state too.
        first: state in which a row begins whose first token takes its first form
            (`TokenBytes.first`); 0 where there is no difference, FORBIDDEN where no such text can
            be spelled.
    """

    class_of: np.ndarray
    next: np.ndarray
    accepting: np.ndarray
    first: int = 0

    @property
    def ended(self) -> int:
        """The state behind an end id."""
        return len(self.next) - 1

    @property
    def nbytes(self) -> int:
        """Return how much memory the arrays take."""
        return int(self.class_of.nbytes + self.next.nbytes + self.accepting.nbytes)

    def start(self, *, at_start: bool) -> int:
        """Return the state before the first token; `at_start` as of `TokenBytes.at_start`."""
        return self.first if at_start else 0

    def allowed(self, state: int) -> np.ndarray:
        """Return which tokens may come: [V] bool."""
        mask: np.ndarray = (self.next[state] >= 0)[self.class_of]
        return mask

    def advance(self, state: int, token: int) -> int:
        """Return the state behind a token; FORBIDDEN where it may not come."""
        if not 0 <= token < len(self.class_of):
            return FORBIDDEN
        return int(self.next[state, self.class_of[token]])

    def accepts(self, tokens: list[int], *, at_start: bool = False) -> bool:
        """Return whether tokens, without an end id, are a whole text."""
        state = self.start(at_start=at_start)
        for token in tokens:
            state = self.advance(state, token)
            if state == FORBIDDEN:
                return False
        return bool(self.accepting[state]) and state != self.ended


def packed(mask: np.ndarray) -> np.ndarray:
    """Return [V] bool as [ceil(V / 32)] int32: bit i % 32 of word i // 32 says token i may come."""
    octets = np.packbits(mask, bitorder="little")
    return np.pad(octets, (0, -len(octets) % 4)).view("<i4").astype(np.int32, copy=False)


def unpacked(words: np.ndarray, size: int) -> np.ndarray:
    """Return what `packed` was given: [size] bool."""
    octets = np.ascontiguousarray(words, "<i4").view(np.uint8)
    return np.unpackbits(octets, count=size, bitorder="little").astype(bool)
