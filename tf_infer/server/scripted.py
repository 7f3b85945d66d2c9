"""Generators that write a script: for tests of protocols, and for what a protocol costs."""

from __future__ import annotations

import codecs
import math
import re
import threading
from collections.abc import Sequence

from tf_infer.errors import InvalidRequest, ServerUnavailable, ServingError
from tf_infer.server.generation import GenerationRequest, Listener, Piece, Token


class Writer:
    """Writes a script, one token after the other, on a thread of its own for each request.

    It checks the options that a decoder checks, and answers as one would: what is not whole
    characters waits for its rest, and `max_new_tokens` ends the answer.

    Args:
        script: the tokens' bytes.
        every_s: pause before each token.
        capacity: most new tokens of an answer.
        context: longest prompt in bytes, each being a token.
        fault: raised in place of the end.

    Attributes:
        requests: that were taken, in order.
        cancelled: counts those that were given up before their end.
        ended: counts those that came to their end.
        gate: where it is not None, each token waits until it is released once more.
    """

    def __init__(self, script: Sequence[bytes], *, every_s: float = 0.0, capacity: int = 1000,
                 context: int = 10_000, fault: ServingError | None = None) -> None:
        self.script, self.every_s = tuple(script), every_s
        self.capacity, self.context, self.fault = capacity, context, fault
        self.requests: list[GenerationRequest] = []
        self.cancelled, self.ended = 0, 0
        self.gate: threading.Semaphore | None = None
        self._lock = threading.Lock()
        self._running: set[_Script] = set()

    def prepare(self) -> None:
        """See `Generator.prepare`: there is nothing to do."""

    def submit(self, request: GenerationRequest, listener: Listener) -> _Script:
        """Take a request; see `generation.Generator.submit`."""
        options = {"max_new_tokens": self.capacity, "temperature": 0.0, "top_k": 0,
                   **request.options}
        limit, temperature, top_k = (options[name] for name in (
            "max_new_tokens", "temperature", "top_k"))
        if not isinstance(limit, int) or not 0 <= limit <= self.capacity:
            raise InvalidRequest(f"max_new_tokens: expected 0 to {self.capacity}, got {limit!r}.")
        if not isinstance(temperature, (int, float)) or not 0 <= temperature < math.inf:
            raise InvalidRequest(f"temperature: expected a number >= 0, got {temperature!r}.")
        if not isinstance(top_k, int) or top_k < 0:
            raise InvalidRequest(f"top_k: expected top_k >= 0, got {top_k!r}.")
        if len(request.prompt) > self.context:
            raise InvalidRequest(f"prompt: expected at most {self.context} tokens, "
                                 f"got {len(request.prompt)}. Shorten it.")
        if request.constraint is not None and request.constraint.kind == "regex":
            try:
                re.compile(request.constraint.value)
            except re.error as error:
                raise InvalidRequest(f"constraint: expected a regular expression, got a fault at "
                                     f"position {error.pos}.") from None
        running = _Script(self, request, listener, limit)
        with self._lock:
            self.requests.append(request)
            self._running.add(running)
        running.start()
        return running

    def count(self, running: _Script, *, cancelled: bool) -> None:
        """Hear that a request is over."""
        with self._lock:
            self._running.discard(running)
            self.cancelled += cancelled
            self.ended += not cancelled

    def close(self) -> None:
        """End what runs."""
        with self._lock:
            running = list(self._running)
        for one in running:
            one.fail(ServerUnavailable("The version is being unloaded."))


class _Script(threading.Thread):
    """One request of a Writer; its ticket, too."""

    def __init__(self, generator: Writer, request: GenerationRequest,
                 listener: Listener, limit: int) -> None:
        super().__init__(daemon=True, name="tf-infer-script")
        self._generator, self._request, self._listener = generator, request, listener
        self._limit = limit
        self._over = threading.Event()
        self._error: ServingError | None = None

    def cancel(self) -> None:
        """See `generation.Ticket.cancel`."""
        self._over.set()

    def fail(self, error: ServingError) -> None:
        """End with an error."""
        self._error = error
        self._over.set()

    def run(self) -> None:
        """Write the script."""
        generator, request = self._generator, self._request
        text = codecs.getincrementaldecoder("utf-8")("replace")
        count, script = 0, generator.script[:self._limit]
        ended = "length" if self._limit < len(generator.script) else "stop"
        prompt_tokens = len(request.prompt)
        if request.echo:
            self._listener(Piece(text=request.prompt, prompt_tokens=prompt_tokens))
        for place, piece in enumerate(script):
            if self._stopped():
                break
            count, last = place + 1, place + 1 == len(script)
            end = ended if last and generator.fault is None else None
            self._listener(Piece(
                text=text.decode(piece, last).encode(), tokens=(self._token(place, piece),),
                finish_reason=end, new_tokens=count, score=-0.5 * count,
                prompt_tokens=prompt_tokens))
        if self._error is not None:
            self._listener(self._error)
        elif not script and not self._over.is_set():
            self._listener(Piece(text=b"", finish_reason="length", prompt_tokens=prompt_tokens))
        elif generator.fault is not None and not self._over.is_set():
            self._listener(generator.fault)
        generator.count(self, cancelled=count < len(script))

    def _stopped(self) -> bool:
        gate = self._generator.gate
        while gate is not None and not gate.acquire(timeout=0.01):
            if self._over.is_set():
                return True
        return self._over.wait(self._generator.every_s) if self._generator.every_s else (
            self._over.is_set())

    def _token(self, place: int, piece: bytes) -> Token:
        asked = self._request.top_logprobs
        if asked is None:
            return Token(id=place, piece=piece)
        others = tuple((1000 + rank, f"t{rank}".encode(), -0.5 - rank) for rank in range(asked))
        return Token(id=place, piece=piece, logprob=-0.5, top=others)
