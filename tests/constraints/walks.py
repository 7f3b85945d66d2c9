"""Random texts of an automaton: what an untrained model would write."""

from __future__ import annotations

import numpy as np

from tf_infer.constraints.automaton import TokenAutomaton


def distances(automaton: TokenAutomaton) -> np.ndarray:
    """Return how many tokens each state is from the end: [S]."""
    far = np.full(len(automaton.next), 10**6)
    far[automaton.ended] = 0
    while True:
        behind = np.where(automaton.next >= 0, far[automaton.next], 10**6).min(axis=1) + 1
        nearer = np.minimum(far, behind)
        if (nearer == far).all():
            return far
        far = nearer


def walk(automaton: TokenAutomaton, random: np.random.Generator, far: np.ndarray, *,
         free_tokens: int) -> list[int]:
    """Draw tokens up to the end id; after `free_tokens` of them take a shortest way there."""
    state, found = 0, []
    while True:
        options = np.flatnonzero(automaton.allowed(state))
        if len(found) >= free_tokens:
            following = automaton.next[state, automaton.class_of[options]]
            options = options[far[following] == far[following].min()]
        token = int(random.choice(options))
        state = automaton.advance(state, token)
        if state == automaton.ended:
            return found
        found.append(token)
