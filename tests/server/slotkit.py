"""What tests of the slot engine share: an engine over fakes, a listener, what is to be heard."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tf_infer.errors import ServingError
from tf_infer.server import fake_decoder
from tf_infer.server.fake_decoder import (
    CAPACITY,
    OPTIONS,
    TOKENS,
    WORDS,
    FakeDecoder,
    FakeStepEngine,
)
from tf_infer.server.forms import EngineForm, Form
from tf_infer.server.generation import GenerationRequest, Piece, Ticket, Token
from tf_infer.server.saved_form import SavedForm
from tf_infer.server.slot_engine import EngineLimits, SlotEngine, Watch

DEFAULTS = {spec.name: spec.default for spec in OPTIONS}
WAIT_S = 120.0


class Answer(NamedTuple):
    """What a request is to be told in the end."""

    text: bytes
    ids: tuple[int, ...]
    reason: str
    score: float
    prompt_tokens: int


class Heard:
    """A listener, and what it was told."""

    def __init__(self, on_piece: Callable[[Piece], None] | None = None) -> None:
        self.pieces: list[Piece] = []
        self.error: ServingError | None = None
        self.ticket: Ticket | None = None
        self._on_piece = on_piece
        self._end, self._first = threading.Event(), threading.Event()
        self.faults: list[str] = []

    def __call__(self, news: Piece | ServingError) -> None:
        if self._end.is_set():
            self.faults.append("told something behind the end")
        if isinstance(news, ServingError):
            self.error = news
            self._end.set()
            return
        self.pieces.append(news)
        self._first.set()
        if self._on_piece is not None:
            self._on_piece(news)
        if news.finish_reason is not None:
            self._end.set()

    def started(self) -> Heard:
        assert self._first.wait(WAIT_S), "nothing came"
        return self

    def over(self) -> bool:
        return self._end.is_set()

    def wait(self) -> Heard:
        assert self._end.wait(WAIT_S), "the answer did not end"
        assert not self.faults
        return self

    def tokens(self) -> list[Token]:
        return [token for piece in self.pieces for token in piece.tokens]

    def answer(self) -> Answer:
        self.wait()
        assert self.error is None, self.error
        last = self.pieces[-1]
        ids = tuple(token.id for token in self.tokens())
        assert last.new_tokens == len(ids) and last.finish_reason is not None
        return Answer(b"".join(piece.text for piece in self.pieces), ids, last.finish_reason,
                      last.score, last.prompt_tokens)

    def failure(self) -> ServingError:
        self.wait()
        assert self.error is not None
        return self.error


def alone(prompt: bytes, **given: Any) -> Answer:
    """Return what a prompt gets that is alone in the world."""
    options = {**DEFAULTS, **given}
    ids = fake_decoder.encoded(prompt)
    stops = [stop for stop in str(options["stop"]).encode().split(b"\x1f") if stop]
    new: list[int] = []
    score, reason, state = 0.0, "length", 0
    for number in ids:
        state = fake_decoder.read_on(state, number)
    while len(new) < min(int(options["max_new_tokens"]), fake_decoder.POSITIONS - len(ids)):
        one = fake_decoder.choose(fake_decoder.logits_of(state), options, len(new))
        score += one.logprob
        if one.is_end:
            reason = "stop"
            break
        new.append(one.token)
        state = fake_decoder.read_on(state, one.token)
        text = _text(new)
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        if found:
            return Answer(text[:min(found)[1]], tuple(new), "stop", score, len(ids))
    return Answer(_text(new), tuple(new), reason, score, len(ids))


def _text(ids: list[int]) -> bytes:
    return b"".join(WORDS[number] for number in ids).decode("utf-8", "replace").encode()


def same(found: Answer, wanted: Answer) -> None:
    assert found[:3] == wanted[:3] and found.prompt_tokens == wanted.prompt_tokens
    np.testing.assert_allclose(found.score, wanted.score, atol=1e-3)  # float32 sums of up to 48


class Stand:
    """A slot engine over fakes.

    Args:
        form: "engine" or "saved".
        table: whether the version carries the bytes of its tokens.
        making: is called when the form is made.
        stepper: the engine of form "engine"; None for a fake one.
        guesses: for a round of form "engine".
    """

    def __init__(self, form: str = "engine", *, slots: int = 4, table: bool = True,
                 chunk: int = 8, queue: int = 100, prefix_bytes: int = 0, pause_s: float = 0.0,
                 before: Callable[[str], None] | None = None, watch: Watch | None = None,
                 making: Callable[[], None] | None = None,
                 stepper: FakeStepEngine | None = None, guesses: int = 0) -> None:
        pause = (lambda signature: time.sleep(pause_s)) if pause_s else None
        self.decoder = FakeDecoder(before or pause)
        self.stepper = stepper or FakeStepEngine(slots, pause_s=pause_s, before=before)
        manifest = self.decoder.manifest
        assert manifest is not None

        def make() -> Form:
            if making is not None:
                making()
            if form == "engine":
                return EngineForm(self.stepper, self.decoder, manifest, guesses=guesses,
                                  clock=lambda: 0.0)
            return SavedForm(self.decoder, manifest, slots)

        self.engine = SlotEngine(
            self.decoder, manifest, make,
            EngineLimits(slots=slots, queue=queue, chunk=chunk, prefix_bytes=prefix_bytes),
            tokens=TOKENS if table else None, watch=watch)

    def ask(self, prompt: bytes, heard: Heard | None = None, *, deadline_s: float | None = None,
            top_logprobs: int | None = None, echo: bool = False, **options: Any) -> Heard:
        heard = heard or Heard()
        heard.ticket = self.engine.submit(
            GenerationRequest(prompt=prompt, options=options, deadline_s=deadline_s,
                              top_logprobs=top_logprobs, echo=echo), heard)
        return heard


@contextmanager
def stand(form: str = "engine", **settings: Any) -> Iterator[Stand]:
    made = Stand(form, **settings)
    try:
        yield made
    finally:
        made.engine.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "did not come to hold"
        time.sleep(0.002)


__all__ = ["CAPACITY", "Answer", "Heard", "Stand", "alone", "same", "stand", "until"]
