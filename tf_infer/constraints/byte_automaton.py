"""ByteAutomaton: patterns and choices as deterministic automata over bytes.

A pattern is compiled by the library outlines-core over a vocabulary of the 256 bytes, which takes
milliseconds where its own index over a vocabulary of words takes seconds and gigabytes. The library
cannot be interrupted and has no bound, so it runs in a process of its own, which is ended when its
time or memory is up.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_infer.errors import BackendMissing, ConfigError

# A character that no pattern of ours holds stands before and behind each. Behind: the library drops
# edges into the midst of a character behind a state that accepts, so no state accepts but those
# behind the mark; where it may follow, a text is whole. Before: the library also makes an automaton
# that looks for the pattern anywhere, and where a pattern may begin at every byte ("[0-9]{0,15}")
# that one takes a hundred times as long.
MARK = "\U0010ffff"
COMPILER = str(Path(__file__).resolve().with_name("pattern_compiler.py"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """How large an automaton may become, and how long it may take.

    Attributes:
        states: most states of the automaton over bytes.
        bytes: most memory of the automaton over tokens.
        seconds: most time of a compilation.
        compiler_bytes: most memory of the compiler's process.
    """

    states: int = 50_000
    bytes: int = 128 << 20
    seconds: float = 20.0
    compiler_bytes: int = 2 << 30

    def refuse(self, where: str, what: str) -> ConfigError:
        """Return the error of a constraint that is too large."""
        return ConfigError(f"{where}: expected an automaton within {self.states} states, "
                           f"{self.bytes >> 20} MiB and {self.seconds:g} s, got {what}. Bound the "
                           "repetitions, or make the constraint smaller.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ByteAutomaton:
    """Texts, byte by byte; state 0 is the start.

    Attributes:
        next: [D + 1, 256] int32, state behind a byte; D is the dead one.
        accepting: [D + 1] bool.
    """

    next: np.ndarray
    accepting: np.ndarray

    @property
    def dead(self) -> int:
        """The state from which no text is reached."""
        return len(self.next) - 1


def from_choices(choices: Sequence[bytes], bounds: Bounds | None = None, *,
                 where: str = "choices") -> ByteAutomaton:
    """Return the automaton of a set of texts: the tree of their beginnings.

    Raises:
        ConfigError: it is too large (`bounds`).
    """
    bounds = bounds or Bounds()
    edges: list[tuple[int, int, int]] = []
    children: list[dict[int, int]] = [{}]
    accepting = [False]
    for choice in choices:
        state = 0
        for byte in choice:
            found = children[state].get(byte)
            if found is None:
                found = len(children)
                children[state][byte] = found
                edges.append((state, byte, found))
                children.append({})
                accepting.append(False)
                if found >= bounds.states:
                    raise bounds.refuse(where, "one with more states")
            state = found
        accepting[state] = True
    return _made(len(children), np.array(edges, np.int64).reshape(-1, 3), accepting)


def from_pattern(pattern: str, bounds: Bounds, *, where: str) -> ByteAutomaton:
    """Compile a pattern in the syntax that `patterns.translated` writes.

    Raises:
        BackendMissing: outlines-core is not installed.
        ConfigError: the automaton is too large (`bounds`), or there is none.
    """
    mark = rf"\x{{{ord(MARK):x}}}"
    marked = f"{mark}(?:{pattern}){mark}"
    command = [sys.executable, COMPILER, str(bounds.states), str(bounds.compiler_bytes),
               str(int(bounds.seconds) + 1)]
    try:
        done = subprocess.run(command, input=marked.encode(), capture_output=True, check=False,
                              timeout=bounds.seconds)
    except subprocess.TimeoutExpired:
        raise bounds.refuse(where, "one that takes longer") from None
    status, _, rest = done.stdout.partition(b"\n")
    if status == b"missing":
        raise BackendMissing("constraints need the package outlines-core. Install it with "
                             "pip install 'tf-infer[constraints]'.")
    if status == b"large":
        raise bounds.refuse(where, "one with more states")
    nothing = ConfigError(f"{where}: expected a pattern that some text matches, got one that none "
                          "does. Correct it.")
    if status == b"nothing":
        raise nothing
    if status != b"ok":
        raise bounds.refuse(where, "a compiler that ran out of memory or gave up")
    numbers = np.frombuffer(rest, "<u4").astype(np.int64)
    count, finals = int(numbers[0]), int(numbers[1])
    marked_end = np.zeros(count + 1, bool)
    marked_end[numbers[2:2 + finals]] = True
    made = _made(count, numbers[2 + finals:].reshape(-1, 3), marked_end[:-1])
    behind_mark = np.arange(count)                                           # [D]
    for byte in MARK.encode():
        behind_mark = made.next[behind_mark, byte]
    if behind_mark[0] == count:
        raise nothing
    accepting = np.append(marked_end[behind_mark], False)
    # The state behind the first mark is the start; it and 0, which nothing leads to, change places.
    order = np.arange(count + 1)
    order[[0, behind_mark[0]]] = behind_mark[0], 0
    return ByteAutomaton(next=order[made.next[order]].astype(np.int32), accepting=accepting[order])


def _made(count: int, edges: np.ndarray, accepting: Sequence[bool] | np.ndarray) -> ByteAutomaton:
    table = np.full((count + 1, 256), count, np.int32)
    table[edges[:, 0], edges[:, 1]] = edges[:, 2]
    return ByteAutomaton(next=table, accepting=np.append(np.asarray(accepting, bool), False))
