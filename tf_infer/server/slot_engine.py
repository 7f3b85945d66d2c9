"""SlotEngine: one thread that answers many prompts of one version at once, token by token.

The decisions are `slots.py`; how tokens are made is a `Form`; what may be said of a text is
`speech.py`. The thread starts at the first request. A request's answer does not depend on who else
is there: its options, its seed and the number of each token decide alone. Needs no TensorFlow.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tf_infer.config import BytesConfig, CausalLMConfig
from tf_infer.constraints.automaton import TokenAutomaton
from tf_infer.constraints.compiler import Matcher
from tf_infer.engines.contracts import Part
from tf_infer.errors import (
    Code,
    DeadlineExceeded,
    Overloaded,
    ServerUnavailable,
    ServingError,
    exception_for,
    plain,
)
from tf_infer.manifest import ModelManifest
from tf_infer.server.asked import LEAST, NAMED, STOP_IDS, Asked, read, stop_ids_of
from tf_infer.server.constraining import PREFIX, Constraining
from tf_infer.server.contracts import Servable
from tf_infer.server.forms import Choice, Form, Row
from tf_infer.server.generation import GenerationRequest, Listener, Piece, Token
from tf_infer.server.prefixes import Prefixes
from tf_infer.server.scheduler import as_serving_error
from tf_infer.server.slots import Board, Read, SlotLimits
from tf_infer.server.speech import Speech
from tf_infer.server.spelling import Speller, Spelling
from tf_infer.token_bytes import TokenBytes

STOPPING = "The server is stopping."
LATE = "The deadline has passed."
LEAST_S = 0.001  # for a prompt's ids; who comes late is told by the thread that tells all
INCOMPLETE = "incomplete"  # finish reason: the limit came before the constraint had what it asks
ENCODE = "encode"
CHECKED_ROWS = 32  # whose options are checked in one run
CLOSE_S = 60.0     # for the thread's last step when the engine is closed


class Watch:
    """What hears of the engine's work, for metrics; this one keeps it to itself."""

    def first_token(self, seconds: float) -> None:
        """A request's first token came so long after the request."""

    def tokens(self, count: int, seconds: float) -> None:
        """A request's next `count` tokens came so long after those before."""

    def guessed(self, proposed: int, accepted: int) -> None:
        """Of a request that ended so many tokens were guessed, and so many of them rightly."""

    def ended(self, reason: str, prompt: int, cached: int, new: int) -> None:
        """A request ended: its finish reason, the code of its error, or "cancelled"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLimits:
    """How much an engine holds.

    Attributes:
        slots: rows at once, until the form is made and says so.
        queue: requests that may wait for a slot.
        chunk: prompt ids read between two tokens of those that run.
        prefix_bytes: of saved beginnings of prompts; 0 saves none.
    """

    slots: int = 8
    queue: int = 256
    chunk: int = 128
    prefix_bytes: int = 256 * 2**20


@dataclass(eq=False, slots=True)
class _Call:
    """One request on its way. But for `given_up`, only the engine's thread touches it."""

    request: GenerationRequest
    asked: Asked
    listener: Listener
    speech: Speech
    came_s: float
    ids: np.ndarray        # of the prompt, [n] int32
    given_up: bool = False
    stop_ids: frozenset[int] = frozenset()  # those that the form does not know of
    automaton: TokenAutomaton | None = None
    matcher: Matcher | None = None
    row: Row | None = None
    spelling: Spelling | None = None
    looked: bool = False   # for its beginning among those that are saved
    cached: int = 0
    score: float = 0.0
    told_s: float = 0.0    # when it last got tokens
    begun: bool = False    # something has been said

    @property
    def prompt_tokens(self) -> int:
        return 0 if self.row is None else self.row.prompt_length

    @property
    def new_tokens(self) -> int:
        return 0 if self.row is None else self.row.length - self.row.prompt_length

    def take_stop_ids(self) -> None:
        """Look for a constrained row's stop ids here: who ends it tells whether it was an end id.

        Until it may end they are the form's to forbid, which then goes token by token.
        """
        row = self.row
        assert row is not None
        early = bool(self.stop_ids) and self.new_tokens < int(row.options.get(LEAST, 0))
        row.step_by_step = early or self.automaton is not None
        if not early:
            row.options = {name: value for name, value in row.options.items() if name != STOP_IDS}

    def late(self, now_s: float) -> bool:
        deadline_s = self.request.deadline_s
        return deadline_s is not None and now_s >= deadline_s


class _Ticket:
    def __init__(self, engine: SlotEngine, call: _Call) -> None:
        self._engine, self._call = engine, call

    def cancel(self) -> None:
        """See `Ticket.cancel`: a piece that is being told meanwhile may still come."""
        self._engine.give_up(self._call)


class SlotEngine:
    """See the module, and `generation.Generator`.

    Args:
        servable: of the version; runs `encode`, `decode` and what the form needs.
        manifest: of the version.
        make_form: makes the form, on the engine's thread at the first request, or at `prepare`.
        limits: how much there is of everything.
        tokens: the bytes of every id; None where the version carries none.
        watch: told of what happens.
        name: of the thread.
    """

    def __init__(self, servable: Servable, manifest: ModelManifest, make_form: Callable[[], Form],
                 limits: EngineLimits, *, tokens: TokenBytes | None = None,
                 watch: Watch | None = None, name: str = "tf-infer-decode") -> None:
        assert isinstance(manifest.task, CausalLMConfig)
        self._servable, self._make_form, self._watch = servable, make_form, watch or Watch()
        self._capacity = manifest.task.capacity
        self._specs = tuple(spec for spec in manifest.signature("generate").inputs
                            if spec.name != "prompt")
        self._speller = Speller(servable, tokens,
                                raw=isinstance(manifest.task.codec, BytesConfig))
        self._constraints = Constraining(servable, manifest, tokens)
        self._board: Board[_Call] = Board(SlotLimits(
            slots=limits.slots, queue=limits.queue, chunk=limits.chunk, read=limits.chunk))
        self._prefix_bytes = limits.prefix_bytes
        self._prefixes: Prefixes[Any] = Prefixes(0, self._board.limits.part)
        self._changed = threading.Condition()  # guards the board, `given_up` and the two below
        self._closing = False
        self._preparing = False
        self._thread: threading.Thread | None = None
        self._name = name
        self._form: Form | None = None

    # ------------------------------------------------------------------ from any thread

    def prepare(self) -> None:
        """Return when the form is there, or cannot be made; see `generation.Generator.prepare`."""
        with self._changed:
            if self._closing or self._form is not None:
                return
            self._preparing = True
            self._wake()
            self._changed.wait_for(lambda: self._closing or not self._preparing)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def submit(self, request: GenerationRequest, listener: Listener) -> _Ticket:
        """Take a request; see `generation.Generator.submit`.

        The prompt is encoded, and a constraint compiled, on the caller's thread: a long one holds
        up nobody who runs.
        """
        came_s = time.monotonic()
        asked = read(request, self._specs, self._capacity)
        with self._changed:
            self._refuse(full=self._board.full())
        # Of a prompt of megabytes no more waits than the ids that are read.
        kept = request if request.echo else replace(request, prompt=b"")
        call = _Call(kept, asked, listener, Speech(asked.stops), came_s,
                     self._encode(request.prompt, request.deadline_s))
        if asked.matched is not None:
            call.automaton = self._constraints.automaton(*asked.matched)
        if prefix := asked.options.get(PREFIX):
            self._constraints.check_prefix(prefix, asked.max_new_tokens)
        with self._changed:
            self._refuse(full=False)
            self._refuse(full=not self._board.enqueue(call))
            self._wake()
        return _Ticket(self, call)

    def _refuse(self, *, full: bool) -> None:
        """Raise what a request is refused with."""
        if self._closing:
            raise ServerUnavailable(STOPPING)
        if full:
            raise Overloaded(f"The queue is full: {len(self._board.waiting())} requests wait for "
                             "a slot. Try again later.", code=Code.RESOURCE_EXHAUSTED)

    def _encode(self, prompt: bytes, deadline_s: float | None) -> np.ndarray:
        """Return the ids of a prompt, [n] int32, as `generate` reads it."""
        left_s = None if deadline_s is None else max(LEAST_S, deadline_s - time.monotonic())
        try:
            out = self._servable.run(ENCODE, {"text": np.asarray([prompt], object)},
                                     outputs=("ids", "mask"), timeout_s=left_s)
        except Exception as error:
            raise as_serving_error(error, "a prompt") from error
        ids: np.ndarray = out["ids"][0, :int(out["mask"][0].sum())].astype(np.int32)
        return ids

    def give_up(self, call: _Call) -> None:
        """Let a call's slot be free at the next step, and its listener quiet."""
        with self._changed:
            call.given_up = True
            self._changed.notify_all()

    def close(self) -> None:
        """End what runs with UNAVAILABLE, and free the form; see `generation.Generator.close`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_S)

    def counts(self) -> tuple[int, int]:
        """Return how many requests have a slot, and how many wait for one."""
        with self._changed:
            return len(self._board.seated()), len(self._board.waiting())

    @property
    def running(self) -> int:
        """How many requests have a slot."""
        return self.counts()[0]

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return self.counts()[1]

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return self._board.limits.slots

    @property
    def prefix_bytes(self) -> int:
        """How many bytes of beginnings are saved."""
        return self._prefixes.nbytes

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while self._wait():
            try:
                self._turn()
            except Exception as error:  # a fault of ours: nobody may wait for ever
                self._fail(self._there(), as_serving_error(error, "a turn of the slot engine"))
            with self._changed:
                if self._preparing:
                    self._preparing = False
                    self._changed.notify_all()
        self._fail(self._there(), ServerUnavailable(STOPPING))
        self._prefixes.clear()
        if self._form is not None:
            self._form.close()

    def _wait(self) -> bool:
        """Wait until there is something to do; return False when the engine closes."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closing or self._preparing or len(self._board) > 0)
            return not self._closing

    def _there(self) -> list[_Call]:
        with self._changed:
            return [*self._board.seated(), *self._board.waiting()]

    def _turn(self) -> None:
        self._sweep()
        form = self._form or self._formed()
        if form is None:
            return
        self._measure(form)
        self._seat()
        self._read(form)
        with self._changed:
            calls = self._board.producing()
            hurry = len(calls) < len(self._board.seated()) or not all(call.begun for call in calls)
        if calls:
            self._produce(form, calls, hurry)

    def _formed(self) -> Form | None:
        """Make the form; who has come meanwhile hears of it when that fails."""
        try:
            form = self._make_form()
        except Exception as error:
            failure = as_serving_error(error, "the making of a form")
            with self._changed:
                there = self._board.waiting()
            self._fail(there, failure)
            return None
        with self._changed:
            self._board.resize(form.slots, form.chunk)
        # What is shared ends where parts of prompts do: a prompt is read in the same parts with it.
        self._prefixes = Prefixes(self._prefix_bytes, self._board.limits.part)
        self._form = form
        return form

    def _sweep(self) -> None:
        """Let go who was given up, or is late."""
        now_s, there = time.monotonic(), self._there()
        gone = [call for call in there if call.given_up]
        for call in gone:
            self._leave(call, "cancelled")
        self._fail([call for call in there if call.late(now_s) and call not in gone],
                   DeadlineExceeded(LATE))

    # ------------------------------------------------------------------ prompts

    def _measure(self, form: Form) -> None:
        """Make the rows of those who have come, and check their options."""
        with self._changed:
            new = [call for call in self._board.waiting() if call.row is None]
        for start in range(0, len(new), CHECKED_ROWS):
            for call in self._checked(form, new[start:start + CHECKED_ROWS]):
                try:
                    self._admit(form, call)
                except Exception as error:
                    self._fail([call], as_serving_error(error, "a prompt"))

    def _checked(self, form: Form, calls: Sequence[_Call]) -> Sequence[_Call]:
        """Give calls their rows, all at once or, where that fails, each alone; return the good."""
        try:
            for call in calls:
                call.row = self._row(form, call)
            form.check([call.row for call in calls if call.row is not None])
        except Exception as error:
            if len(calls) > 1:
                return [call for one in calls for call in self._checked(form, [one])]
            told = as_serving_error(error, "a prompt")
            self._fail(calls, exception_for(told.code, plain(told.details)))
            return ()
        return calls

    def _row(self, form: Form, call: _Call) -> Row:
        ids = call.ids
        room = np.zeros(max(len(ids), form.positions), np.int32)
        room[:len(ids)] = ids
        row = Row(-1, room, len(ids), len(ids), call.asked.options,
                  logprobs=call.asked.logprobs or 0, step_by_step=call.automaton is not None)
        if call.automaton is not None:
            call.matcher = self._constraints.matcher(call.automaton, ids)
            row.allowed = call.matcher.allowed()
        return row

    def _admit(self, form: Form, call: _Call) -> None:
        """Let a call wait for its slot, or end it here if it is to produce nothing."""
        row = call.row
        assert row is not None
        call.spelling = self._speller.start(call.ids)
        if call.matcher is not None or call.asked.options.get(NAMED):
            call.stop_ids = stop_ids_of(row.options)
            call.take_stop_ids()
        row.most = min(call.asked.max_new_tokens, form.positions - row.prompt_length)
        if row.most < 1:
            nothing = _Taken(call, call.spelling, [], "length")
            self._tell(call, b"", (), self._reason(nothing))
            return
        with self._changed:
            self._board.measured(call, row.prompt_length - 1)

    def _seat(self) -> None:
        with self._changed:
            joined = self._board.join()
        for call, slot in joined:
            assert call.row is not None
            call.row.slot = slot

    def _read(self, form: Form) -> None:
        """Read a turn's worth of prompts, several at once."""
        spent = 0
        while True:
            with self._changed:
                readings = self._unlike(self._board.next_reads(spent))
            if not readings:
                return
            try:
                # Who finds a beginning has less to read: then it is asked for anew.
                if not any(self._restored(form, reading) for reading in readings):
                    spent += self._read_some(form, readings)
            except Exception as error:
                self._fail([reading.key for reading in readings],
                           as_serving_error(error, "the reading of a prompt"))

    def _unlike(self, readings: Sequence[Read[_Call]]) -> Sequence[Read[_Call]]:
        """Return those in front of the first that begins like one before: it waits for that one."""
        beginnings: set[bytes] = set()
        for place, reading in enumerate(readings):
            row = reading.key.row
            assert row is not None
            beginning = self._prefixes.beginning(row.ids[:row.prompt_length - 1])
            if beginning is not None and beginning in beginnings:
                return readings[:place]
            if beginning is not None:
                beginnings.add(beginning)
        return readings

    def _restored(self, form: Form, reading: Read[_Call]) -> bool:
        """Take what is saved of a prompt's beginning into its slot, before anything is read."""
        call = reading.key
        if call.looked or call.row is None:
            return False
        call.looked = True
        found = self._prefixes.find(call.row.ids[:call.row.prompt_length - 1])
        if found is None:
            return False
        form.restore(reading.slot, found.saved)
        call.cached = found.length
        with self._changed:
            self._board.did_read(call, found.length)
        return True

    def _read_some(self, form: Form, readings: Sequence[Read[_Call]]) -> int:
        """Read parts of prompts; save the beginnings of those read whole. Return how many ids."""
        parts = []
        for call, slot, start, stop in readings:
            assert call.row is not None
            parts.append(Part(slot, call.row.ids[start:stop], start))
        form.read(parts)
        with self._changed:
            for reading in readings:
                self._board.did_read(reading.key, reading.stop)
        for call, slot, _, stop in readings:
            assert call.row is not None
            ids = call.row.ids[:call.row.prompt_length - 1]
            if stop == len(ids) and (length := self._prefixes.to_save(ids)):
                self._prefixes.add(ids[:length], form.save(slot, length))
        return sum(len(part.ids) for part in parts)

    # ------------------------------------------------------------------ tokens

    def _produce(self, form: Form, calls: Sequence[_Call], hurry: bool) -> None:
        rows = [call.row for call in calls if call.row is not None]
        try:
            produced = form.produce(rows, hurry=hurry)
            taken = [_take(call, choices) for call, choices in zip(calls, produced)]
            texts = self._texts(taken)
            pieces = self._pieces(taken)
        except Exception as error:
            self._fail(calls, as_serving_error(error, "a step"))
            return
        now_s = time.monotonic()
        for one, text in zip(taken, texts):
            try:
                said = one.say(text)
                reason = None if one.reason is None else self._reason(one)
            except Exception as error:
                self._fail([one.call], as_serving_error(error, "a token"))
                continue
            self._time(one.call, now_s, len(one.kept))
            self._tell(one.call, said, [_token(one.call, choice, pieces) for choice in one.kept],
                       reason)

    def _reason(self, one: _Taken) -> str:
        """Return why a row ends: INCOMPLETE where its constraint asks for more, as `generate`.

        What ended a text by a stop string or a stop id may have cut it.
        """
        call, reason = one.call, one.reason
        assert reason is not None and call.row is not None
        named = call.asked.options.get(NAMED)
        if call.matcher is None and not named:
            return reason
        if reason == "length":
            whole = call.matcher.complete if call.matcher is not None else (
                self._constraints.is_whole(named or b"", call.row.state))
        else:
            whole = one.end is not None and one.end.token not in call.stop_ids
        return reason if whole else INCOMPLETE

    def _texts(self, taken: Sequence[_Taken]) -> list[dict[int, bytes]]:
        """Decode what is not to be had by joining bytes, all in one run: count -> text."""
        wanted = [(place, count) for place, one in enumerate(taken) for count in one.to_decode()]
        texts: list[dict[int, bytes]] = [{} for _ in taken]
        if wanted:
            decoded = self._speller.texts([(taken[place].spelling, count)
                                           for place, count in wanted])
            for (place, count), text in zip(wanted, decoded):
                texts[place][count] = text
        return texts

    def _pieces(self, taken: Sequence[_Taken]) -> dict[int, bytes]:
        """Return the bytes of every token that is told of."""
        numbers = {number for one in taken for choice in one.kept
                   for number in (choice.token, *(other for other, _ in choice.top))}
        return self._speller.pieces(sorted(numbers))

    def _time(self, call: _Call, now_s: float, count: int) -> None:
        if not call.told_s:
            self._watch.first_token(now_s - call.came_s)
        elif count:
            self._watch.tokens(count, now_s - call.told_s)
        call.told_s = now_s

    # ------------------------------------------------------------------ telling, leaving

    def _tell(self, call: _Call, text: bytes, tokens: Sequence[Token], reason: str | None) -> None:
        """Tell a listener what came, and let its call go behind the last piece."""
        if call.request.echo and not call.begun:
            text = call.request.prompt + text
        call.begun = True
        piece = Piece(text=text, tokens=tuple(tokens), finish_reason=reason,
                      prompt_tokens=call.prompt_tokens, cached_tokens=call.cached,
                      new_tokens=call.new_tokens, score=call.score)
        if reason is not None:
            self._leave(call, reason)
        self._hear(call, piece)

    def _hear(self, call: _Call, news: Piece | ServingError) -> None:
        if call.given_up:
            return
        try:
            call.listener(news)
        except Exception as error:
            as_serving_error(error, "a listener")
            with self._changed:
                call.given_up = True

    def _fail(self, calls: Sequence[_Call], error: ServingError) -> None:
        """End calls with an error."""
        for call in calls:
            self._leave(call, error.code.name)
            self._hear(call, error)

    def _leave(self, call: _Call, reason: str) -> None:
        with self._changed:
            slot = self._board.leave(call)
        if slot is not None and self._form is not None:
            self._form.leave(slot)
        if call.row is not None and call.row.guessing.proposed:
            self._watch.guessed(call.row.guessing.proposed, call.row.guessing.accepted)
        self._watch.ended(reason, call.prompt_tokens, call.cached, call.new_tokens)


class _Taken:
    """What one call got in one step, before it is known how much of that a stop string leaves.

    Attributes:
        call, spelling: whose it is.
        kept: the choices that are part of the answer, an end id not.
        reason: why it ends, None if it goes on.
        end: the end id, where that is why.
    """

    def __init__(self, call: _Call, spelling: Spelling, kept: list[Choice], reason: str | None,
                 end: Choice | None = None) -> None:
        self.call, self.spelling, self.kept, self.reason = call, spelling, kept, reason
        self.end = end

    def to_decode(self) -> list[int]:
        """Return of how many of its ids the text must be decoded."""
        count = len(self.spelling.ids)
        if self.spelling.plain:
            return [] if self.reason is None or self.spelling.whole() else [count]
        if self.call.asked.stops:
            return list(range(count - len(self.kept) + 1, count + 1)) or [count]
        return [count]

    def say(self, decoded: Mapping[int, bytes]) -> bytes:
        """Write down what was produced, and return what is said now.

        Args:
            decoded: what `to_decode` asked for.
        """
        spelling, speech, row = self.spelling, self.call.speech, self.call.row
        assert row is not None
        before = len(spelling.ids) - len(self.kept)
        said = []
        for count in range(before + 1, len(spelling.ids) + 1):
            text = decoded.get(count) if not spelling.plain else spelling.text(count)
            if text is None:
                continue
            said.append(speech.hear(text))
            if speech.stopped:
                del self.kept[count - before:]
                self.reason, self.end = "stop", None
                break
        if self.reason is not None and not speech.stopped:
            count = len(spelling.ids)
            said.append(speech.hear(decoded[count] if count in decoded else spelling.text(count),
                                    final=True))
            if speech.stopped:
                self.reason, self.end = "stop", None
        for choice in self.kept:
            row.ids[row.length] = choice.token
            row.length += 1
        if self.call.matcher is not None:
            for choice in self.kept:
                self.call.matcher.accept(choice.token)
            row.allowed = self.call.matcher.allowed()
        if self.call.stop_ids:
            self.call.take_stop_ids()
        row.most -= len(self.kept)
        self.call.score += sum(choice.logprob for choice in self.kept)
        self.call.score += 0.0 if self.end is None else self.end.logprob
        return b"".join(said)


def _take(call: _Call, choices: Sequence[Choice]) -> _Taken:
    """Take choices up to an end or the limit."""
    row, spelling = call.row, call.spelling
    assert row is not None and spelling is not None
    kept: list[Choice] = []
    for choice in choices:
        if choice.is_end or choice.token in call.stop_ids:
            return _Taken(call, spelling, kept, "stop", choice)
        kept.append(choice)
        spelling.add(choice.token)
        if len(kept) == row.most:
            return _Taken(call, spelling, kept, "length")
    return _Taken(call, spelling, kept, None)


def _token(call: _Call, choice: Choice, pieces: Mapping[int, bytes]) -> Token:
    if call.asked.logprobs is None:
        return Token(id=choice.token, piece=pieces[choice.token])
    return Token(id=choice.token, piece=pieces[choice.token], logprob=choice.logprob,
                 top=tuple((other, pieces[other], value) for other, value in choice.top))
