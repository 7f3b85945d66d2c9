"""OpenAI's API on the REST port: completions, chat completions, the list of models.

A worker reads a request and hands it to the generators, which may take long; from then on no thread
is held: pieces come to the loop as they are told, one at a time for each answer, and go out as fast
as the caller takes them (streams.py). What the fields mean is wire/openai.py's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import Any

from tf_infer.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    InvalidRequest,
    NotOffered,
    ServingError,
)
from tf_infer.server.generation import Constraint, GenerationRequest, Generators, Lent, Piece
from tf_infer.server.generation_log import Record, finish
from tf_infer.server.http_server import Reply, Streamed
from tf_infer.server.mailbox import Mailbox
from tf_infer.server.metrics import REST, Metrics
from tf_infer.server.scheduler import TIMED_OUT, as_serving_error
from tf_infer.server.streams import Event, Stream
from tf_infer.wire import openai, openai_answers

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
MAX_BODY_BYTES = 8 * 2**20
SEEDS = 2**63


class _Exchange:
    """The streams of one request, seen from the loop.

    Args:
        mail: brings the events.
    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._loop = asyncio.get_running_loop()
        self._mailbox = mailbox
        # an answer's number and what came of it, or a wait's number and None: it took too long
        self._events: asyncio.Queue[tuple[int, Event | None]] = asyncio.Queue()
        self._waits = 0
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        self._over = False

    def open(self, lent: Lent) -> Stream:
        """Return the next stream, its events coming to `next`; on any thread.

        Raises:
            Cancelled: nobody waits any more; the generator is given back.
        """
        index = len(self._streams)

        def tell(event: Event) -> None:
            self._mailbox.put(self._events.put_nowait, (index, event))

        stream = Stream(lent, tell, tell)
        with self._lock:
            over = self._over
            self._streams.append(stream)
        if over:
            stream.cancel()
            raise Cancelled("The caller has gone.")
        return stream

    async def next(self, timeout_s: float | None) -> tuple[int, Piece]:
        """Return the next piece and which answer it belongs to; the one before is then written.

        Raises:
            ServingError: what an answer ended with; DEADLINE_EXCEEDED when nothing comes in time.
        """
        # not asyncio.wait_for: before Python 3.12 a cancellation may get lost in it
        self._waits += 1
        timer = None if timeout_s is None else self._loop.call_later(
            timeout_s, self._events.put_nowait, (self._waits, None))
        try:
            index, event = await self._events.get()
            while event is None and index != self._waits:  # of a wait that has ended
                index, event = await self._events.get()
        finally:
            if timer is not None:
                timer.cancel()
        if event is None:
            raise DeadlineExceeded(TIMED_OUT)
        if isinstance(event, ServingError):
            raise event
        return index, event

    def written(self, index: int) -> None:
        """Let the next piece of an answer come."""
        self._streams[index].written()

    def record(self, record: Record) -> None:
        """Tell a record what the streams know."""
        for stream in self._streams:
            record.heard(stream)

    def end(self) -> None:
        """Give up what still runs."""
        with self._lock:
            self._over = True
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()


class OpenAIService:
    """The answers to OpenAI's routes.

    Args:
        generators: what answers.
        metrics: hears of every request.
        workers: read requests, and hand them over.
        timeout_s: of a request; of a stream, the longest silence; None for none (FL15).
        headers: of every answer.
        draw_seed: gives the seed of a request that has none.
    """

    def __init__(self, generators: Generators, metrics: Metrics,
                 workers: concurrent.futures.Executor, *, timeout_s: float | None = None,
                 headers: dict[str, str] | None = None,
                 draw_seed: Callable[[], int] = lambda: secrets.randbelow(SEEDS)) -> None:
        self._generators, self._metrics, self._workers = generators, metrics, workers
        self._timeout_s, self._headers = timeout_s, headers or {}
        self._draw_seed = draw_seed
        self._created = int(time.time())

    def models(self) -> Reply | None:
        """Answer GET /v1/models; None where no model generates, as if there were no such route."""
        names = self._generators.names()
        return Reply(200, openai_answers.models(names, self._created), JSON,
                     self._headers) if names else None

    async def answer(self, kind: openai.Kind, content: bytes, request_id: str | None,
                     mailbox: Mailbox) -> Reply | Streamed:
        """Answer a request.

        Args:
            kind: which of the two.
            content: its body, inflated.
            request_id: as the caller gave it.
            mailbox: of the loop.
        """
        record = Record(kind, REST, time.monotonic(), len(content), request_id=request_id)
        exchange = _Exchange(mailbox)
        try:
            wanted, head = await asyncio.get_running_loop().run_in_executor(
                self._workers, self._begin, kind, content, exchange, record)
            if wanted.stream:
                first = await exchange.next(self._timeout_s)
                return Streamed(self._events(exchange, wanted, head, record, first), EVENTS,
                                self._headers)
            body = await self._whole(exchange, wanted, head, record)
        except BaseException as error:
            self._end(exchange, record, error)
            if not isinstance(error, Exception):
                raise
            return self.refusal(as_serving_error(error, "a request of OpenAI's API"))
        self._end(exchange, record, None)
        return Reply(200, body, JSON, self._headers)

    def refusal(self, error: ServingError) -> Reply:
        """Return an error as an answer."""
        return Reply(openai_answers.error_status(error), openai_answers.error_body(error), JSON,
                     self._headers)

    def _end(self, exchange: _Exchange, record: Record, error: BaseException | None) -> None:
        code = Code.OK
        if error is not None:
            code = (as_serving_error(error, "a request of OpenAI's API").code
                    if isinstance(error, Exception) else Code.CANCELLED)
        exchange.record(record)
        exchange.end()
        finish(self._metrics, record, code)

    # ------------------------------------------------------------------ on a worker

    def _begin(self, kind: openai.Kind, content: bytes, exchange: _Exchange, record: Record
               ) -> tuple[openai.Wanted, openai_answers.Head]:
        """Read a request, and hand it over once for each answer."""
        if len(content) > MAX_BODY_BYTES:
            raise InvalidRequest(f"body: expected at most {MAX_BODY_BYTES} bytes, got more.")
        wanted = openai.read(kind, content)
        record.model = wanted.name
        lent = self._generators.of(wanted.name, wanted.version, wanted.label)
        stream = exchange.open(lent)
        version, chat = lent.version, lent.chat
        prompts = wanted.prompts
        if kind == "chat":
            prompts = (_chat_prompt(chat, wanted),)
        streams = [stream, *(exchange.open(self._generators.of(wanted.name, version, None))
                             for _ in range(len(prompts) * wanted.n - 1))]
        wanted = replace(wanted, options={"seed": self._draw_seed(), **wanted.options})
        for place, stream in enumerate(streams):
            stream.submit(self._request(wanted, prompts[place // wanted.n], place % wanted.n,
                                        record.started_s))
        return wanted, openai_answers.Head(
            kind=kind, id=secrets.token_hex(12), created=int(time.time()), model=wanted.model,
            version=version, logprobs=wanted.logprobs is not None, stream=wanted.stream)

    def _request(self, wanted: openai.Wanted, prompt: bytes, draw: int, started_s: float
                 ) -> GenerationRequest:
        options = {**wanted.options, "draw": draw} if draw else wanted.options
        constraint = wanted.constraint and Constraint(
            kind=wanted.constraint[0], value=wanted.constraint[1])
        limited = self._timeout_s is not None and not wanted.stream
        return GenerationRequest(
            prompt=prompt, options=options, constraint=constraint, top_logprobs=wanted.logprobs,
            echo=wanted.echo, deadline_s=started_s + (self._timeout_s or 0) if limited else None)

    # ------------------------------------------------------------------ on the loop

    async def _whole(self, exchange: _Exchange, wanted: openai.Wanted, head: openai_answers.Head,
                     record: Record) -> bytes:
        count = _answers(wanted)
        pieces: list[list[Piece]] = [[] for _ in range(count)]
        left = count
        while left:
            silence_s = None if self._timeout_s is None else max(
                0.0, record.started_s + self._timeout_s - time.monotonic())
            index, piece = await exchange.next(silence_s)
            exchange.written(index)
            pieces[index].append(piece)
            left -= piece.finish_reason is not None
        return head.whole([openai_answers.Answer(index) for index in range(count)], pieces,
                          count // wanted.n)

    async def _events(self, exchange: _Exchange, wanted: openai.Wanted, head: openai_answers.Head,
                      record: Record, first: tuple[int, Piece]) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream; closing it gives the request up."""
        answers = [openai_answers.Answer(index) for index in range(_answers(wanted))]
        left, following = len(answers), first
        error: BaseException | None = Cancelled("The caller has gone.")
        try:
            while True:
                index, piece = following
                left -= piece.finish_reason is not None
                yield head.chunk(answers[index], piece, usage=wanted.include_usage)
                exchange.written(index)
                if not left:
                    break
                following = await exchange.next(self._timeout_s)
            if wanted.include_usage:
                yield head.last(answers, len(answers) // wanted.n)
            yield openai_answers.DONE
            error = None
        except ServingError as told:
            error = told
            yield openai_answers.error_event(told)
        finally:
            self._end(exchange, record, error)


def _answers(wanted: openai.Wanted) -> int:
    return (len(wanted.prompts) or 1) * wanted.n


def _chat_prompt(format: Any, wanted: openai.Wanted) -> bytes:
    if format is None:
        raise NotOffered("model: expected one with a chat template, got one that was exported "
                         "without. Put chat_template.jinja into its tokenizer folder and export "
                         "it again, or ask /v1/completions.")
    try:
        from tf_infer.server.chat import prompt_of
    except ImportError as error:
        raise NotOffered("chat templates need jinja2 on the server: pip install "
                         "'tf_infer[server]'") from error
    return prompt_of(format, wanted.messages).encode("utf-8", "replace")
