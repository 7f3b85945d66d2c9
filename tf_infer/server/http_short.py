"""Requests that have come whole, answered without a task, a request and a response of aiohttp's.

aiohttp makes a task, two futures, a request, a writer and a response with its headers for each
request, whose processor time is more than that of reading and writing it. A small POST that is
there from its first to its last byte needs none of them: here it is given to who answers it, and
the answer is written to the socket. Everything else goes aiohttp's way: what comes slowly, waits
behind another request, ends its connection, is encoded, or has something in it that is wrong.

The task of a connection waits for requests by a future; while a short one is being answered, that
future is put aside, so that requests behind it stay in their queue, in their order. What this uses
of aiohttp's handler is private; where it is not as we know it, `KNOWN` is False and no request is
short. Measured: docs/runtime.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpRequestParser, HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader

SHORT_BYTES = 32 * 1024  # of a body; what is in aiohttp's hands as one piece, and read at once
REST_S = 0.01  # until the rest of a request is no more waited for in the short way
KNOWN = ({"_close", "_force_close", "_handler_waiter", "_keepalive_handle", "_keepalive_timeout",
          "_messages", "_next_keepalive_close_time", "_request_in_progress", "_waiter"}
         <= set(web.RequestHandler.__slots__)
         and {"_buffer_paused", "_loop", "_parser", "_paused", "_reading_paused", "_upgraded",
              "transport"}
         <= set(BaseProtocol.__slots__)
         and "_buffer" in StreamReader.__slots__
         and hasattr(web.RequestHandler, "_process_keepalive")
         and hasattr(HttpRequestParser, "message_consumed"))

_REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}


class Whole:
    """A request that has come whole.

    Attributes:
        target: as it was sent.
        headers: of the request.
        body: of the request.
        gone: called, at most once, when the caller has gone before he was answered.
    """

    __slots__ = ("_connection", "body", "gone", "headers", "target")

    def __init__(self, connection: ShortConnection, target: str, headers: Mapping[str, str],
                 body: bytes) -> None:
        self._connection, self.target, self.headers, self.body = connection, target, headers, body
        self.gone: Callable[[], None] | None = None

    def answer(self, status: int, fields: bytes, body: bytes) -> None:
        """Answer; on the loop, once. Nothing happens when the caller has gone.

        Args:
            status: of HTTP.
            fields: header lines, each with its end; without a date and a length.
            body: of the answer.
        """
        self._connection.answered(self, status, fields, body)


class House(Protocol):
    """What a connection belongs to."""

    @property
    def closing(self) -> bool:
        """Whether no connection shall have another request."""

    def short(self, target: str) -> Callable[[Whole], None] | None:
        """Return what begins to answer a short POST, and must not raise; None for aiohttp's way."""

    def enter(self) -> None:
        """Count a request that is being answered."""

    def leave(self) -> None:
        """Count one that is not any more."""


class _Found(NamedTuple):
    message: RawRequestMessage
    content: StreamReader
    begin: Callable[[Whole], None]


class ShortConnection(web.RequestHandler):
    """One connection.

    Args:
        house: see there.
        arguments, options: of aiohttp's class.

    Attributes:
        request: that is being answered, None between two.
        counted: whether a request is counted whose rest is waited for, or that nobody answers yet.
    """

    __slots__ = ("_aside", "_house", "_rest", "counted", "request")

    def __init__(self, house: House, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._house = house
        self._aside: asyncio.Future[None] | None = None
        self._rest: asyncio.TimerHandle | None = None  # while the rest of a request is to come
        self.request: web.BaseRequest | Whole | None = None
        self.counted = False

    def data_received(self, data: bytes) -> None:
        """Take what was sent; see the module."""
        waiter = self._waiter
        if waiter is not None and KNOWN and not (
                waiter.done() or self._paused or self._buffer_paused):
            self._waiter, self._aside = None, waiter
        elif self._rest is None:  # busy with another request, or an answer is not taken
            super().data_received(data)
            return
        try:
            super().data_received(data)
        finally:
            self._look()

    def _look(self) -> None:
        """Let a request be answered if it is a short one, and come whole if it may become one."""
        found = self._found()
        if found is not None and not found.content.is_eof():
            if self._rest is None:  # many send headers and body one after the other
                self._rest = self._loop.call_later(REST_S, self._go_on)
                self.counted = True
                self._house.enter()
            return
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if found is None or self._parser is None:
            self._go_on()
            return
        self._messages.popleft()
        self._parser.message_consumed()
        self._request_in_progress = True
        whole = Whole(
            self, found.message.path, found.message.headers,
            # Nobody has read of it; its own way would let the parser go over what comes next.
            b"".join(found.content._buffer))
        self.begin(whole)
        found.begin(whole)

    def begin(self, request: web.BaseRequest | Whole) -> None:
        """Let a request be the one that is being answered, and be counted."""
        self.request = request
        if not self.counted:
            self._house.enter()
        self.counted = False

    def _found(self) -> _Found | None:
        """Return the request that waits, if it is a short one or may become one."""
        if (len(self._messages) != 1 or self._reading_paused or self._upgraded or self._close
                or self._force_close):
            return None
        message, content = self._messages[0]
        if (not isinstance(message, RawRequestMessage) or message.method != "POST"
                or message.version != HttpVersion11 or message.should_close or message.upgrade
                or content.exception() is not None or content.total_bytes > SHORT_BYTES
                or (content.is_eof() and not content.total_bytes)
                or "Expect" in message.headers or "Content-Encoding" in message.headers):
            return None
        begin = self._house.short(message.path)
        return None if begin is None else _Found(message, content, begin)

    def answered(self, whole: Whole, status: int, fields: bytes, body: bytes) -> None:
        """Send the answer of the request that is being answered, unless the caller has gone."""
        if self.request is not whole:
            return
        self._end()
        transport = self.transport
        if transport is not None and not transport.is_closing():
            last = self._close or self._force_close or self._house.closing
            transport.write(b"HTTP/1.1 %d %s\r\n%sContent-Length: %d\r\nDate: %s\r\n%s\r\n%s" % (
                status, _REASONS.get(status, b""), fields, len(body), _date(),
                b"Connection: close\r\n" if last else b"", body))
            if last:
                self._wait_again()  # not for the requests behind this one: nobody is to answer them
                self.force_close()  # what was written goes out first
                return
        self._next_keepalive_close_time = close_s = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(close_s, self._process_keepalive)
        self._go_on()

    def _end(self) -> None:
        self.request = None
        self._request_in_progress = False
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        self._house.leave()

    def _go_on(self) -> None:
        """Let the connection's task wait for requests again, or have those that wait."""
        self._rest = None
        self._wait_again()
        if self._messages and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _wait_again(self) -> None:
        self._waiter, self._aside = self._aside, None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Hear that the connection has ended."""
        super().connection_lost(exc)
        if self._rest is not None:
            self._rest.cancel()
        if self.counted:
            self.counted = False
            self._house.leave()
        whole = self.request
        if isinstance(whole, Whole):
            self._end()
            gone, whole.gone = whole.gone, None
            if gone is not None:
                gone()


_dated: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """Return the header's date of this second."""
    global _dated
    now_s = int(time.time())
    if _dated[0] != now_s:
        _dated = now_s, formatdate(now_s, usegmt=True).encode()
    return _dated[1]
