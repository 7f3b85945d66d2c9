"""Constraints that the slot engine keeps: compiled once for a version, followed row by row.

Needs no TensorFlow; patterns and schemas need the library that compiles them.
"""

from __future__ import annotations

import threading

import numpy as np

from tf_infer.config import CausalLMConfig
from tf_infer.constraints.automaton import TokenAutomaton
from tf_infer.constraints.compiler import ConstraintCompiler, Matcher
from tf_infer.errors import BackendMissing, ConfigError, InvalidRequest, NotOffered
from tf_infer.manifest import ModelManifest, SignatureSpec
from tf_infer.server.contracts import Servable
from tf_infer.server.forms import CHOOSE
from tf_infer.token_bytes import TokenBytes

PREFIX = "forced_prefix"
ROWS = 32  # of one run of `choose` that is asked for end ids

TOO_OLD = ("constraint: this version cannot keep it. Export the model again with this version of "
           "tf_infer.")


class Constraining:
    """The constraints of one version.

    Args:
        servable: runs `choose`.
        manifest: of the version.
        tokens: the bytes of every id; None where the version carries none.
    """

    def __init__(self, servable: Servable, manifest: ModelManifest, tokens: TokenBytes | None,
                 ) -> None:
        self._servable, self._manifest, self._tokens = servable, manifest, tokens
        self._lock = threading.Lock()
        self._compiler: ConstraintCompiler | None = None
        self._ends: tuple[int, ...] | None = None

    def automaton(self, kind: str, value: str) -> TokenAutomaton:
        """Return the automaton of a constraint; takes up to seconds when it is new.

        Raises:
            InvalidRequest: it is no constraint, or too large.
            NotOffered: the version, or what is installed, cannot keep it.
        """
        try:
            return self._made().automaton(kind, value)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from error
        except BackendMissing as error:
            raise NotOffered(str(error)) from error

    def matcher(self, automaton: TokenAutomaton, prompt: np.ndarray) -> Matcher:
        """Return a row at its beginning, behind a prompt's ids.

        Raises:
            InvalidRequest: nothing that the constraint lets through can stand there.
        """
        assert self._tokens is not None
        try:
            return Matcher(automaton, at_start=self._tokens.at_start(prompt.tolist()))
        except ConfigError as error:
            raise InvalidRequest(str(error)) from error

    def is_whole(self, name: str | bytes, state: int) -> bool:
        """Whether a text of a named constraint may end where it stands.

        `choose` is asked for the best token where end ids are the best by far.
        """
        spec = self._spec()
        with self._lock:
            ends = self._end_ids(spec, vocabulary_of(spec))
        logits = np.zeros((1, vocabulary_of(spec)), np.float32)
        logits[0, list(ends)] = 100.0
        inputs = {**greedy(spec, logits), "ids": np.zeros((1, 1), np.int32),
                  "length": np.ones(1, np.int32), "state": np.full(1, state, np.int32),
                  "constraint": np.asarray([name], object)}
        out = self._servable.run(CHOOSE, inputs, outputs=("is_end",), timeout_s=None)
        return bool(out["is_end"][0])

    def check_prefix(self, prefix: bytes, limit: int) -> None:
        """Refuse a forced prefix of more ids than a row may produce, as `generate` does.

        `choose` is asked for the token behind that many, with one id the best and with another: it
        takes the same both times where the prefix goes on.

        Raises:
            InvalidRequest: there are more.
        """
        spec = self._spec()
        size = vocabulary_of(spec)
        logits = np.zeros((2, size), np.float32)
        logits[[0, 1], [0, 1]] = 100.0
        # What was produced before is the last id: no penalty on it can reach the two best.
        inputs = {**greedy(spec, logits), "ids": np.full((2, limit), size - 1, np.int32),
                  "length": np.full(2, limit, np.int32),
                  PREFIX: np.asarray([prefix, prefix], object)}
        out = self._servable.run(CHOOSE, inputs, outputs=("token",), timeout_s=None)
        if out["token"][0] == out["token"][1]:
            raise InvalidRequest(f"{PREFIX}: expected at most max_new_tokens = {limit} ids. Give a "
                                 "shorter one, or a higher limit.")

    def _spec(self) -> SignatureSpec:
        spec = next((one for one in self._manifest.signatures if one.name == CHOOSE), None)
        if spec is None:
            raise NotOffered(TOO_OLD)
        return spec

    def _made(self) -> ConstraintCompiler:
        with self._lock:
            if self._compiler is None:
                spec = self._spec()
                size = vocabulary_of(spec)
                if self._tokens is None:
                    raise NotOffered(TOO_OLD)
                self._compiler = ConstraintCompiler(self._tokens, size, self._end_ids(spec, size))
            return self._compiler

    def _end_ids(self, spec: SignatureSpec, size: int) -> tuple[int, ...]:
        """Return the ids that end a text: the configuration's, else what `choose` says of itself.

        A codec's own end id shows nothing in a text, so that only such ids are asked about.
        """
        task = self._manifest.task
        assert isinstance(task, CausalLMConfig) and self._tokens is not None
        if task.end_ids:
            return task.end_ids
        if self._ends is not None:
            return self._ends
        found: list[int] = []
        silent = {number for number, text in enumerate(self._tokens.tokens) if not text}
        wanted = sorted(number for number in silent | self._tokens.vanishing if number < size)
        for start in range(0, len(wanted), ROWS):
            some = wanted[start:start + ROWS]
            logits = np.zeros((len(some), size), np.float32)
            logits[np.arange(len(some)), some] = 1.0
            out = self._servable.run(CHOOSE, greedy(spec, logits), outputs=("is_end",),
                                     timeout_s=None)
            found += [number for number, ends in zip(some, out["is_end"]) if ends]
        self._ends = tuple(found)
        return self._ends


def vocabulary_of(spec: SignatureSpec) -> int:
    """Return V, going by `choose`."""
    return int(next(one for one in spec.inputs if one.name == "logits").shape[1] or 0)


def greedy(spec: SignatureSpec, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Return inputs of `choose` that ask for the best token of each row and nothing else."""
    rows = len(logits)
    neutral = {"temperature": 0.0}
    found: dict[str, np.ndarray] = {}
    for one in spec.inputs:
        if one.name == "logits":
            found[one.name] = logits
        elif len(one.shape) > 1:
            found[one.name] = np.zeros((rows, 0), one.dtype)
        else:
            value = neutral.get(one.name, one.default)
            found[one.name] = np.full(rows, 0 if value is None else value,
                                      object if one.dtype == "string" else one.dtype)
    return found
