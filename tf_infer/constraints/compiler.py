"""Constraints of requests: compile each once, keep the automata, and follow a row through one."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from tf_infer.constraints.automaton import FORBIDDEN, TokenAutomaton, packed
from tf_infer.constraints.byte_automaton import Bounds, ByteAutomaton, from_choices, from_pattern
from tf_infer.constraints.compose import Vocabulary, compose
from tf_infer.constraints.patterns import translated
from tf_infer.constraints.schemas import expression
from tf_infer.errors import ConfigError
from tf_infer.token_bytes import TokenBytes

SEPARATOR = "\x1f"          # between the choices of one value
KINDS = ("regex", "json_schema", "choices")
MAX_CHOICES = 10_000
MAX_CHOICES_BYTES = 1 << 20
REFUSED_BYTES = 1 << 10     # what the cache counts for a constraint that was refused


def check(kind: str, value: str, *, where: str = "constraint") -> Callable[[Bounds], ByteAutomaton]:
    """Check a constraint as far as it can be without compiling it.

    Args:
        kind: one of KINDS.
        value: the expression, the schema as JSON text, or the choices joined by SEPARATOR.
        where: what it is called in messages.

    Returns:
        What compiles it to an automaton over bytes.

    Raises:
        ConfigError: it is no constraint, with the position or the path.
    """
    if kind == "choices":
        try:
            choices = [choice.encode() for choice in value.split(SEPARATOR)]
        except UnicodeEncodeError as error:
            raise ConfigError(f"{where}: expected texts, got halves of characters at position "
                              f"{error.start} of one. Leave them out.") from None
        size = sum(map(len, choices))
        if not all(choices) or len(choices) > MAX_CHOICES or size > MAX_CHOICES_BYTES:
            raise ConfigError(f"{where}: expected 1 to {MAX_CHOICES} choices, none of them empty, "
                              f"of at most {MAX_CHOICES_BYTES} bytes together, got {len(choices)} "
                              f"of {size} bytes.")
        return lambda bounds: from_choices(choices, bounds, where=where)
    if kind == "regex":
        pattern = translated(value, where=where)
    elif kind == "json_schema":
        pattern = expression(value, where=where)
    else:
        raise ConfigError(f"{where}: expected one of {', '.join(KINDS)}, got another kind.")
    return lambda bounds: from_pattern(pattern, bounds, where=where)


def compiled(kind: str, value: str, vocabulary: Vocabulary, bounds: Bounds | None = None, *,
             where: str = "constraint") -> TokenAutomaton:
    """Compile a constraint for a vocabulary.

    Raises:
        ConfigError: it is no constraint, or is too large, or the vocabulary cannot spell it.
        BackendMissing: outlines-core is not installed (choices do without).
    """
    bounds = bounds or Bounds()
    make = check(kind, value, where=where)
    return compose(make(bounds), vocabulary, bounds, where=where)


class Matcher:
    """One row on its way through an automaton.

    Attributes:
        finished: an end id came.
        complete: what has been produced is a whole text.
    """

    def __init__(self, automaton: TokenAutomaton, *, at_start: bool = False) -> None:
        """Begin; `at_start` as of `TokenBytes.at_start` for the prompt.

        Raises:
            ConfigError: no text of the constraint can stand at the start of a text.
        """
        self._automaton = automaton
        self._state = automaton.start(at_start=at_start)
        if self._state == FORBIDDEN:
            raise ConfigError("constraint: expected a prompt that shows some text, since nothing "
                              "of this constraint can be the first of a text, got none.")

    @property
    def finished(self) -> bool:
        return self._state == self._automaton.ended

    @property
    def complete(self) -> bool:
        return bool(self._automaton.accepting[self._state])

    def allowed(self) -> np.ndarray:
        """Return which tokens may come, as `automaton.packed`; none when finished."""
        return packed(self._automaton.allowed(self._state))

    def accept(self, token: int) -> None:
        """Take a token that is allowed.

        Raises:
            ValueError: it is not; the row stays where it is.
        """
        state = self._automaton.advance(self._state, token)
        if state == FORBIDDEN:
            raise ValueError(f"token: expected one that the constraint allows, got {token}.")
        self._state = state


class ConstraintCompiler:
    """Compiles constraints for one vocabulary and keeps the automata, the latest used longest.

    May be called from many threads; a constraint that several ask for is compiled once. One is
    compiled at a time, in the calling thread.
    """

    def __init__(self, tokens: TokenBytes, size: int, end_ids: tuple[int, ...], *,
                 bounds: Bounds | None = None, cache_bytes: int = 256 << 20) -> None:
        """Prepare nothing yet; the arguments are those of `Vocabulary`."""
        self._arguments = tokens, size, end_ids
        self._vocabulary: Vocabulary | None = None
        self._bounds, self._cache_bytes = bounds or Bounds(), cache_bytes
        self._kept: OrderedDict[str, TokenAutomaton | ConfigError] = OrderedDict()
        self._lock = threading.Lock()       # of the cache
        self._compiling = threading.Lock()  # held while one is compiled

    @property
    def nbytes(self) -> int:
        """Return how much memory the kept automata take."""
        with self._lock:
            return self._size()

    def automaton(self, kind: str, value: str) -> TokenAutomaton:
        """Return the automaton of a constraint; see `compiled`.

        Raises:
            ConfigError: also where it could not be begun in time, since others were compiled.
        """
        key = hashlib.sha256(f"{kind}\0{value}".encode("utf-8", "surrogatepass")).hexdigest()
        found = self._find(key)
        if found is None:
            if not self._compiling.acquire(timeout=self._bounds.seconds):
                raise self._bounds.refuse(kind, "others before it that take as long")
            try:
                found = self._find(key) or self._made(key, kind, value)
            finally:
                self._compiling.release()
        if isinstance(found, ConfigError):
            raise ConfigError(str(found))
        return found

    def matcher(self, kind: str, value: str, *, at_start: bool = False) -> Matcher:
        """Return a row at its beginning; see `automaton` and `Matcher`."""
        return Matcher(self.automaton(kind, value), at_start=at_start)

    def _made(self, key: str, kind: str, value: str) -> TokenAutomaton | ConfigError:
        made: TokenAutomaton | ConfigError
        try:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(*self._arguments)
            made = compiled(kind, value, self._vocabulary, self._bounds, where=kind)
        except ConfigError as error:
            made = error.with_traceback(None)
        with self._lock:
            self._kept[key] = made
            while self._size() > self._cache_bytes and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return made

    def _find(self, key: str) -> TokenAutomaton | ConfigError | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def _size(self) -> int:
        return sum(REFUSED_BYTES if isinstance(one, ConfigError) else one.nbytes
                   for one in self._kept.values())
