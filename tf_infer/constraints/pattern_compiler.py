"""The process in which outlines-core compiles a pattern: pattern in, automaton over bytes out.

Reads the pattern from standard input; arguments: most states, most bytes of memory, most seconds of
processor time. Writes a word and a line break, and behind "ok" numbers of 32 bits: how many states,
how many accept, these, then triples (state, byte, next state). State 0 is the start.
"""

from __future__ import annotations

import contextlib
import sys
from array import array

END = 256  # the library wants an end token; its edges are left out


def main(arguments: list[str]) -> int:
    """Compile; return the exit status."""
    states, memory, seconds = (int(argument) for argument in arguments)
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        return _say(b"missing")
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows, where the time limit of the parent must do
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    bytes_ = Vocabulary(END, {bytes([byte]): [byte] for byte in range(256)})
    try:
        index = Index(sys.stdin.buffer.read().decode(), bytes_)
    except ValueError as error:
        return _say(b"nothing" if "no transitions from state" in str(error) else b"refused")
    table = index.get_transitions()
    start, finals = index.get_initial_state(), index.get_final_states()
    if len(set(table) | finals | {start}) > states:
        return _say(b"large")
    number = {start: 0}
    triples = array("I")
    for state, edges in table.items():
        source = number.setdefault(state, len(number))
        for byte, target in edges.items():
            if byte != END:
                triples.extend((source, byte, number.setdefault(target, len(number))))
    ends = array("I", [number.setdefault(state, len(number)) for state in finals])
    head = array("I", [len(number), len(ends)])
    return _say(b"ok", head + ends + triples)


def _say(word: bytes, numbers: array[int] | None = None) -> int:
    sys.stdout.buffer.write(word + b"\n" + (b"" if numbers is None else numbers.tobytes()))
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
