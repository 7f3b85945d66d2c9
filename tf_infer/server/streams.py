"""Streams: pieces on their way from a generator's thread to a caller who may read slowly.

Both protocols that stream stand on this: gRPC (generation_service.py) and server-sent events
(openai_service.py). The generator never waits: while a piece is being written, what comes waits and
then goes out as one piece. What waits is bounded; a caller who stays behind it is given up.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Union

from tf_infer.config import ChatFormat
from tf_infer.errors import Code, Overloaded, ServingError
from tf_infer.server.generation import GenerationRequest, Lent, Piece, Ticket
from tf_infer.server.scheduler import as_serving_error

MAX_WAITING_BYTES = 4 * 2**20
TOKEN_BYTES = 200  # about what a token costs beside its bytes

Event = Union[Piece, ServingError]


def weigh(piece: Piece) -> int:
    """Return about how many bytes a piece holds."""
    return len(piece.text) + sum(TOKEN_BYTES * (1 + len(token.top)) for token in piece.tokens)


def join(pieces: Sequence[Piece]) -> Piece:
    """Return pieces, at least one, as one."""
    if len(pieces) == 1:
        return pieces[0]
    return replace(pieces[-1], text=b"".join(piece.text for piece in pieces),
                   tokens=tuple(token for piece in pieces for token in piece.tokens))


class Waiting:
    """What waits for one reader, without threads: the decisions.

    Args:
        most_bytes: more than that is a caller who reads too slowly.
    """

    def __init__(self, most_bytes: int = MAX_WAITING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._pieces: list[Piece] = []
        self._bytes = 0
        self._error: ServingError | None = None
        self._over = False

    def put(self, event: Event) -> bool:
        """Take what came; return False when that was too much, and the rest is not wanted.

        The reader then gets the error alone; what comes behind the last piece or an error is
        dropped.
        """
        if self._over:
            return True
        if isinstance(event, ServingError):
            self._error, self._over = event, True
            return True
        self._pieces.append(event)
        self._bytes += weigh(event)
        self._over = event.finish_reason is not None
        if self._bytes <= self._most_bytes or len(self._pieces) == 1:
            return True
        self._pieces, self._bytes, self._over = [], 0, True
        self._error = Overloaded(f"The caller reads too slowly: {self._most_bytes} bytes wait.")
        return False

    def take(self) -> Event | None:
        """Return what is to be written next: all pieces as one, behind them the error."""
        if self._pieces:
            pieces, self._pieces, self._bytes = self._pieces, [], 0
            return join(pieces)
        error, self._error = self._error, None
        return error


@dataclass(frozen=True, slots=True)
class Answering:
    """Who answers a stream: name and version of the model, and its chat format."""

    name: str
    version: int
    chat: ChatFormat | None


class Sender:
    """A thread that does what it is given, in order; it begins with the first task."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._begun = threading.Lock()  # taken once, by whoever starts the thread

    def put(self, task: Callable[[], None]) -> None:
        """Have a task done."""
        self._tasks.put(task)
        if self._begun.acquire(blocking=False):
            threading.Thread(target=self._work, name="tf-infer-streams", daemon=True).start()

    def close(self) -> None:
        """End the thread behind what it has been given."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # the others' tasks go on
                as_serving_error(error, "a stream")


class Stream:
    """One request on its way.

    Args:
        lent: the generator; given back when the request has ended, however.
        write: writes a piece without blocking, and has `written` called when the next may come; a
            piece with a finish reason is the last.
        fail: ends the answer with an error, without blocking; called at most once, and not behind
            the last piece.
        ended: called once, when nothing more is written, with the code.
        hand: has a task done, at once or on another thread; what the generator says is written in
            such a task.
    """

    def __init__(self, lent: Lent, write: Callable[[Piece], None],
                 fail: Callable[[ServingError], None],
                 ended: Callable[[Stream, Code], None] = lambda stream, code: None,
                 hand: Callable[[Callable[[], None]], None] = lambda task: task()) -> None:
        self.answering = Answering(lent.name, lent.version, lent.chat)
        self.started_s = time.monotonic()
        self.first_s: float | None = None
        self.new_tokens = 0
        self._lent: Lent | None = lent
        self._write, self._fail, self._ended, self._hand = write, fail, ended, hand
        self._waiting = Waiting()
        self._lock = threading.Lock()
        self._busy = False
        self._open = True
        self._ticket: Ticket | None = None
        self._unwanted = False

    def submit(self, request: GenerationRequest) -> None:
        """Hand the request to the generator; what cannot be is the stream's end.

        May take long: a prompt is encoded, a schema compiled.
        """
        lent = self._lent
        if lent is None:  # given up meanwhile
            return
        try:
            ticket = lent.generator.submit(request, self.hear)
        except Exception as error:
            self.hear(as_serving_error(error, "generation"))
            return
        with self._lock:
            self._ticket = ticket
            unwanted = self._unwanted
        if unwanted:
            ticket.cancel()

    def hear(self, event: Event) -> None:
        """Take what the generator says: its listener."""
        now_s = time.monotonic()
        with self._lock:
            if not self._open:
                return
            if isinstance(event, Piece):
                self.first_s = self.first_s or now_s
                self.new_tokens = event.new_tokens
            kept = self._waiting.put(event)
            following = self._next()
        if isinstance(event, ServingError) or event.finish_reason is not None:
            self._let_go()
        if not kept:
            self._give_up()
        if following is not None:
            self._hand(lambda: self._tell(following))

    def written(self) -> None:
        """Hear that the last piece has gone out and the next may come."""
        with self._lock:
            self._busy = False
            following = self._next()
        self._tell(following)

    def cancel(self) -> None:
        """Give the request up, for its caller has gone: nothing is written any more."""
        self._close(Code.CANCELLED)
        self._give_up()

    def _next(self) -> Event | None:
        """Return what is to be written now; holding the lock."""
        if self._busy or not self._open:
            return None
        event = self._waiting.take()
        self._busy = event is not None
        return event

    def _tell(self, event: Event | None) -> None:
        """Write, outside the lock."""
        if event is None:
            return
        try:
            if isinstance(event, Piece):
                self._write(event)
                if event.finish_reason is not None:
                    self._close(Code.OK)
                return
        except Exception as error:  # the caller must hear of it, and the slot must come back
            event = as_serving_error(error, "the answer of a stream")
        if self._close(event.code):
            self._fail(event)
        self._give_up()

    def _close(self, code: Code) -> bool:
        with self._lock:
            closed, self._open = self._open, False
            self._waiting = Waiting()
        if closed:
            self._ended(self, code)
        return closed

    def _give_up(self) -> None:
        with self._lock:
            self._unwanted = True
            ticket = self._ticket
        if ticket is not None:
            ticket.cancel()
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            lent, self._lent = self._lent, None
        if lent is not None:
            lent.give_back()
