"""The two ways to run a decoder for the slot engine: through a StepEngine, or through a SavedModel.

A form holds a cache for each slot. `read` puts ids of a prompt into a slot, all but the last one;
`produce` reads the last id of every row that is given and goes on from it. So the first token of a
prompt is produced like every other. Needs no TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from tf_infer.engines.contracts import Part, StepEngine
from tf_infer.errors import NotOffered
from tf_infer.manifest import ModelManifest, SignatureSpec, TensorSpec
from tf_infer.server import quick_choice
from tf_infer.server.contracts import Arrays, Servable
from tf_infer.server.guessing import Guessing, Rounds
from tf_infer.server.pace import Pace

CHOOSE, STEPS = "choose", "steps"
POSITIONS = -2  # axis of `cache` of `steps`
NO_MASK = np.zeros(0, np.int32)


class Choice(NamedTuple):
    """One token that a row has produced.

    Attributes:
        token: its id.
        logprob: nats, of the model itself; NaN where the version does not tell.
        is_end: it ends the row, and is no part of the text.
        top: (id, logprob) of the likeliest tokens, best first, as many as were asked for.
    """

    token: int
    logprob: float = float("nan")
    is_end: bool = False
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Row:
    """What a form needs to know of a row.

    Attributes:
        slot: where its cache is.
        ids: [P] int32, prompt and what was produced; the first `length` count.
        prompt_length: of these, the prompt's.
        options: name -> scalar, inputs of `steps` and `choose`.
        logprobs: alternatives to tell of each token.
        most: tokens it may still produce, >= 1.
        allowed: bits of the tokens that may come next, as `choose` takes them; empty for all.
        state: of the named automaton.
        looked, quick: whether it is known how it chooses, and how, if NumPy can.
        step_by_step: what is allowed next depends on each token: no more than one at a time.
        guessing: what may follow, and how guesses went.
    """

    slot: int
    ids: np.ndarray
    prompt_length: int
    length: int
    options: Mapping[str, Any]
    logprobs: int = 0
    most: int = 1
    allowed: np.ndarray = field(default_factory=lambda: NO_MASK)
    state: int = 0
    looked: bool = False
    quick: quick_choice.Drawing | None = None
    step_by_step: bool = False
    guessing: Guessing = field(default_factory=Guessing)

    def last(self) -> int:
        """Return the id that is read next."""
        return int(self.ids[self.length - 1])


class Form(Protocol):
    """See the module. One thread at a time may call it.

    Attributes:
        slots: rows at once.
        positions: ids of a prompt and what follows it, at most.
        chunk: most ids of a part in one `read`, and of all parts while nobody waits for tokens.
    """

    slots: int
    positions: int
    chunk: int

    def check(self, rows: Sequence[Row]) -> None:
        """Let the graph hold the options of rows against its rules; raise its error."""

    def read(self, parts: Sequence[Part]) -> None:
        """Read parts of prompts, at least one, of different slots, each of at most `chunk` ids."""

    def produce(self, rows: Sequence[Row], *, hurry: bool) -> list[list[Choice]]:
        """Produce one token or several of each row; nothing behind an end.

        Args:
            rows: at least one, of different slots. The last id of each is read first.
            hurry: somebody waits for their first token.
        """

    def save(self, slot: int, length: int) -> Any:
        """Return what a slot's first `length` positions hold; it has an attribute `nbytes`."""

    def restore(self, slot: int, saved: Any) -> None:
        """Make a slot begin with what was saved."""

    def leave(self, slot: int) -> None:
        """Take that what a slot holds is not needed any more."""

    def close(self) -> None:
        """Free what the form holds."""


def option_inputs(spec: SignatureSpec, known: frozenset[str]) -> tuple[TensorSpec, ...]:
    """Return the inputs of a signature that are options of a row.

    Raises:
        NotOffered: one is neither known nor has a default.
    """
    given = tuple(one for one in spec.inputs if one.name not in known)
    strange = [one.name for one in given if one.default is None]
    if strange:
        raise NotOffered(f"signature {spec.name}: expected inputs with defaults, got {strange} "
                         "without. Export the model again with this version of tf_infer.")
    return given


def stacked(rows: Sequence[Row], specs: Sequence[TensorSpec], names: frozenset[str],
            ) -> dict[str, np.ndarray]:
    """Return what describes rows to `choose` and `steps`, one value a row.

    Args:
        rows: at least one.
        specs: the options, with their defaults.
        names: which of the other inputs there are.
    """
    found = {spec.name: np.asarray([row.options.get(spec.name, spec.default) for row in rows],
                                   object if spec.dtype == "string" else spec.dtype)
             for spec in specs}
    if "logprobs" in found:
        found["logprobs"] = np.asarray([row.logprobs for row in rows], np.int32)
    numbers = {"prompt_length": [row.prompt_length for row in rows],
               "length": [row.length for row in rows],
               "history_length": [row.length for row in rows],
               "state": [row.state for row in rows],
               "produced": [max(0, row.length - row.prompt_length) for row in rows]}
    found.update({name: np.asarray(values, np.int32) for name, values in numbers.items()
                  if name in names})
    if "allowed" in names:
        found["allowed"] = masks(rows)
    if "history" in names:
        found["history"] = histories(rows)
    return found


def masks(rows: Sequence[Row]) -> np.ndarray:
    """Return the masks of rows, [B, W] int32; W is 0 where every row may say everything."""
    width = max(len(row.allowed) for row in rows)
    found = np.full((len(rows), width), -1, np.int32)
    for place, row in enumerate(rows):
        if len(row.allowed):
            found[place, :len(row.allowed)] = row.allowed
    return found


def histories(rows: Sequence[Row]) -> np.ndarray:
    """Return the ids of rows, [B, T] int32, zeros behind them."""
    found = np.zeros((len(rows), max(row.length for row in rows)), np.int32)
    for place, row in enumerate(rows):
        found[place, :row.length] = row.ids[:row.length]
    return found


def best(ids: np.ndarray, logprobs: np.ndarray, count: int) -> tuple[tuple[int, float], ...]:
    """Return the first `count` of the alternatives of a token, [N] each; -1 is none."""
    return tuple((int(number), float(value)) for number, value in zip(ids[:count], logprobs)
                 if number >= 0)


def positions_of(manifest: ModelManifest) -> int:
    """Return how many ids a prompt and what follows it may have, going by the cache of `steps`."""
    spec = next(one for one in manifest.signature(STEPS).inputs if one.name == "cache")
    return int(spec.shape[POSITIONS] or 0)


class EngineForm:
    """A StepEngine, and the signature `choose` of the version it belongs to.

    Args:
        engine: closed with this form.
        servable: runs `choose`.
        manifest: of the version.
        most_slots: of the engine's; 0 for all.
        guesses: for a round, at most; of a text that is alone, and as many as the engine reads.
        clock: seconds.

    Attributes:
        guesses: that it makes for a round, at most.

    A guess decides only whether the logits behind it are there already: each token is chosen from
    logits of the same bits by the same rule with the same draw.
    """

    KNOWN = frozenset({"logits", "ids", "prompt_length", "length", "allowed", "state"})

    def __init__(self, engine: StepEngine, servable: Servable, manifest: ModelManifest,
                 most_slots: int = 0, *, guesses: int = 0,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._servable = engine, servable
        self.guesses, self._clock = min(guesses, engine.guesses), clock
        self._rounds = Rounds()
        self.slots = min(most_slots or engine.slots, engine.slots)
        self.chunk = engine.chunk
        self.positions = min(engine.positions, positions_of(manifest))
        spec = manifest.signature(CHOOSE)
        self._options = option_inputs(spec, self.KNOWN)
        self._names = frozenset(one.name for one in spec.inputs) & self.KNOWN
        self._outputs = tuple(one.name for one in spec.outputs)
        self._ends: dict[int, bool] = {}  # whether an id ends a text, as far as it was met
        self._tokens = np.zeros(engine.slots, np.int32)
        self._lengths = np.zeros(engine.slots, np.int32)

    def check(self, rows: Sequence[Row]) -> None:
        """See `Form.check`."""
        self._choose(rows, np.zeros((len(rows), self._engine.vocab_size), np.float32))

    def read(self, parts: Sequence[Part]) -> None:
        """See `Form.read`."""
        self._engine.read_many(parts)

    def produce(self, rows: Sequence[Row], *, hurry: bool) -> list[list[Choice]]:
        """See `Form.produce`: one token of each row, or several of one that is alone."""
        del hurry
        if len(rows) == 1 and self.guesses:
            cost = self._rounds.cost()
            if guesses := self._guessed(rows[0], cost):
                return [self._extend(rows[0], guesses, cost)]
        for row in rows:
            self._tokens[row.slot], self._lengths[row.slot] = row.last(), row.length - 1
        active = [row.slot for row in rows]
        began_s = self._clock()
        logits = self._engine.step(self._tokens, self._lengths, active)      # [S, V]
        if self.guesses:
            for row in rows:
                row.guessing.stepped()
            if len(rows) == 1:
                self._rounds.took(self._clock() - began_s, guessed=False)
        return [[choice] for choice in self._decided(rows, logits, active)]

    def _decided(self, rows: Sequence[Row], logits: np.ndarray, places: Sequence[int],
                 ) -> list[Choice]:
        """Choose the next token of each row, from its place of logits [.., V]."""
        quick = {place: choice for place, row in zip(places, rows)
                 if (choice := self._quick(row, logits[place])) is not None}
        rest = [(place, row) for place, row in zip(places, rows) if place not in quick]
        if rest:
            chosen = self._choose([row for _, row in rest], logits[[place for place, _ in rest]])
            for number, (place, row) in enumerate(rest):
                quick[place] = self._learned(row, self._choice(row, chosen, number))
        return [quick[place] for place in places]

    # ------------------------------------------------------------------ guesses

    def _guessed(self, row: Row, cost: float) -> list[int]:
        """Return what to read with the last token of a row; nothing for a step."""
        if row.step_by_step:
            return []
        # The last token of a row is never read, so no more than that need be guessed.
        most = min(self.guesses, row.most - 1, self._engine.positions - row.length)
        return row.guessing.next(row.ids, row.length, most, cost)

    def _extend(self, row: Row, guesses: Sequence[int], cost: float) -> list[Choice]:
        """Read the last token of a row and guesses, and choose as long as they are chosen.

        `cost`: of the round, in steps.
        """
        ids = row.ids.copy()
        ids[row.length:row.length + len(guesses)] = guesses
        began_s = self._clock()
        logits = self._engine.extend(row.slot, ids[row.length - 1:row.length + len(guesses)],
                                     row.length - 1)                         # [guesses + 1, V]
        self._rounds.took(self._clock() - began_s, guessed=True)
        there, choices = replace(row, ids=ids), []
        for place in range(len(logits)):
            there.length = row.length + place
            choices += self._decided([there], logits, [place])
            last = choices[-1]
            if place == len(guesses) or last.is_end or last.token != guesses[place]:
                break
        row.state, row.looked, row.quick = there.state, there.looked, there.quick
        row.guessing.told(guesses, [choice.token for choice in choices], cost)
        return choices

    # ------------------------------------------------------------------ choosing

    def _quick(self, row: Row, logits: np.ndarray) -> Choice | None:
        """Choose without the graph, where that is the same; None where it is not known to be."""
        if not row.looked:
            row.looked, row.quick = True, quick_choice.drawing(row.options, self._options)
        if row.quick is None:
            return None
        found = quick_choice.choose(logits, row.quick, row.length - row.prompt_length, row.allowed,
                                    row.logprobs)
        if found is None or found.token not in self._ends:
            return None
        return Choice(found.token, found.logprob, self._ends[found.token], found.top)

    def _learned(self, row: Row, choice: Choice) -> Choice:
        """Take from a quick row's choice whether its token is an end."""
        if row.quick is not None:  # so it has no stop ids of its own
            self._ends[choice.token] = choice.is_end
        return choice

    def _choose(self, rows: Sequence[Row], logits: np.ndarray) -> Arrays:
        inputs = {"logits": logits, "ids": histories(rows),
                  **stacked(rows, self._options, self._names)}
        return self._servable.run(CHOOSE, inputs, outputs=self._outputs, timeout_s=None)

    def _choice(self, row: Row, chosen: Arrays, place: int) -> Choice:
        if "state" in chosen:
            row.state = int(chosen["state"][place])
        top = best(chosen["top_ids"][place], chosen["top_logprobs"][place], row.logprobs) \
            if row.logprobs else ()
        return Choice(int(chosen["token"][place]), float(chosen["logprob"][place]),
                      bool(chosen["is_end"][place]), top)

    def save(self, slot: int, length: int) -> Any:
        """See `Form.save`."""
        return self._engine.save(slot, length)

    def restore(self, slot: int, saved: Any) -> None:
        """See `Form.restore`."""
        self._engine.restore(slot, saved)

    def leave(self, slot: int) -> None:
        """See `Form.leave`: the next who comes overwrites it."""

    def close(self) -> None:
        """See `Form.close`."""
        self._engine.close()


OVERHEAD = 0.2  # share of a call of `steps` that goes into handing caches in and out
HURRIED = 0.4   # ... while somebody waits for their first token, or a call is long
CALL_S = 0.25   # of a call, so that a text is heard of often
FIRST = 2.0     # tokens' time that a call costs beside its tokens, until it has been seen
LONGEST = 64.0  # tokens of a call


def tokens_a_call(pace: Pace, *, lately: tuple[int, float], hurry: bool, most: int) -> int:
    """Return how many tokens the next call of `steps` produces.

    Args:
        pace: of calls seen so far: seconds over tokens.
        lately: tokens and seconds of the last call; (0, 0.0) while there was none.
        hurry: somebody waits for their first token.
        most: that any row may still produce, and the call can.

    As few as leave OVERHEAD of its time to the caches; fewer where that takes longer than CALL_S,
    but no fewer than leave HURRIED.
    """
    beside = pace.run_tokens(FIRST, most=LONGEST)  # what a call costs beside its tokens, in tokens
    least, wanted = (beside * (1.0 - share) / share for share in (HURRIED, OVERHEAD))
    tokens, seconds = lately
    if hurry:
        wanted = least
    elif seconds > 0.0:
        token_s = seconds / (tokens + beside)
        wanted = min(wanted, max(least, CALL_S / token_s - beside))
    return max(1, min(round(min(wanted, LONGEST)), most))
