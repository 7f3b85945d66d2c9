"""HTTP in a thread of its own: sockets, connections, bodies, the end; not what is answered.

    server = HttpServer(handler, host="", port=8501)
    server.start()
    server.stop(drain_s=10.0).result()

aiohttp: as fast as uvicorn with httptools (docs/runtime.md), and it alone keeps the target as it
was sent and bounds the size of headers. An idle connection costs 6 KB, and nothing waits for it;
one that never sends a request is closed after `IDLE_S`. It runs on uvloop where that is installed.
Connections are accepted here, on either loop: where no descriptor is left, libuv would throw away
all that wait, and here they wait. Small requests take a shorter way: http_short.py.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from aiohttp import web

from tf_infer.server.http_short import ShortConnection, Whole
from tf_infer.server.logs import event
from tf_infer.server.logs import log as server_log
from tf_infer.server.mailbox import Mailbox

MAX_BODY_BYTES = 2**31 - 1  # as of a gRPC message (LI01, LI02)
IDLE_S = 75.0  # a connection without a request; longer than load balancers keep theirs
BODY_SILENCE_S = 60.0  # within a body
READING_SILENCE_S = 60.0  # of a caller who takes nothing of a streamed answer
BEGINNING_S = 0.01  # until a request that came with the caller's end is being answered
HALF_CLOSED_S = 0.2  # how long an answer may still take once its caller has ended sending
LINGER_S = 2.0  # how long an unread body is still taken, so that the answer arrives
CLOSING_S, CUTTING_S = 1.0, 0.1  # at the end, for answers that are being sent, and for others
SENT_S = 0.005  # between two looks whether the last answers have gone out
BACKLOG = 4096
ACCEPT_AGAIN_S = 1.0  # once neither descriptors nor memory were left for a connection
_NONE_LEFT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
EVERYWHERE = ("", "0.0.0.0", "::", "[::]")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_HEADERS: Mapping[str, str] = {}

# aiohttp's own log quotes what the caller sent
_silent = logging.getLogger("tf_infer.server.aiohttp")
_silent.disabled = True


class Reply(NamedTuple):
    """What goes back to the caller."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = _NO_HEADERS


class Streamed(NamedTuple):
    """What goes back to the caller bit by bit, with status 200.

    `chunks` is closed when the caller has gone; it may take its time, and an error of it cuts the
    connection off.
    """

    chunks: AsyncGenerator[bytes, None]
    content_type: str
    headers: Mapping[str, str] = _NO_HEADERS


class BodyFault(Exception):
    """A body that cannot be had: cut off, too slow, or too large; the connection is closed."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        super().__init__(text)


Handler = Callable[[web.BaseRequest], Awaitable["Reply | Streamed"]]
Short = Callable[[str], "Callable[[Whole], None] | None"]  # see http_short.House


def none_short(target: str) -> None:
    """Answer no request in the short way."""


class _Connection(ShortConnection):
    __slots__ = ()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Hear that the caller sends no more: he has gone, or waits for his last answer.

        Nobody can tell the two apart, so the answer gets a moment, and then the run is given up.
        """
        asyncio.get_running_loop().call_later(BEGINNING_S, self._close_soon)
        return True

    def _close_soon(self) -> None:
        if self.request is None:
            self.force_close()
        else:
            self.close()  # after this answer
            asyncio.get_running_loop().call_later(HALF_CLOSED_S, self.force_close)


class _Connections(web.Server):
    def __init__(self, house: HttpServer) -> None:
        super().__init__(house.answer, handler_cancellation=True)
        self._house = house

    def __call__(self) -> web.RequestHandler:
        return _Connection(self._house, self, loop=self._loop, keepalive_timeout=IDLE_S,
                           access_log=None, logger=_silent, auto_decompress=False,
                           lingering_time=LINGER_S)


class HttpServer:
    """See the module.

    Args:
        handler: answers one request, on the loop; it is cancelled when the caller has gone.
        host: address to listen on; one of `EVERYWHERE` for all, IPv6 too where there is any (RS23).
        port: > 0.
        short: what may answer small requests; see `http_short.House`.

    Attributes:
        mailbox: of its loop; there is one as soon as requests are taken.
    """

    mailbox: Mailbox

    def __init__(self, handler: Handler, *, host: str, port: int, short: Short = none_short,
                 ) -> None:
        self._handler, self._host, self._port = handler, host, port
        self.short = short
        self._listening = threading.Event()
        self._ended: concurrent.futures.Future[bool] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="tf-infer-http", daemon=True)
        self._sockets: list[socket.socket] = []
        self._coming: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Future[float] | None = None
        self._inside = 0
        self._left: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Open the port.

        Raises:
            OSError: it cannot be opened.
        """
        self._sockets = listen(self._host, self._port)
        self._thread.start()
        self._listening.wait()

    def stop(self, drain_s: float) -> concurrent.futures.Future[bool]:
        """Take no more requests, wait for those inside, then close; the caller does not wait.

        Returns:
            whether all were answered within `drain_s`.
        """
        if self._loop is None or self._ending is None:
            self._ended.set_result(True)
        else:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(_settle, self._ending, drain_s)
        return self._ended

    # ------------------------------------------------------------------ on the loop

    def _run(self) -> None:
        try:
            self._ended.set_result(_runner()(self._serve()))
        except BaseException as error:
            self._ended.set_exception(error)
        finally:
            self._listening.set()

    async def _serve(self) -> bool:
        loop = self._loop = asyncio.get_running_loop()
        self.mailbox = Mailbox(loop)
        loop.set_exception_handler(_log_fault)
        self._ending = loop.create_future()
        connections = _Connections(self)
        for one in self._sockets:
            self._listen(one, connections)
        self._listening.set()
        drain_s = await self._ending
        for one in self._sockets:
            loop.remove_reader(one)
            one.close()
        if self._coming:  # what has been accepted becomes a connection: else it would hang
            await asyncio.wait(self._coming)
        for connection in connections.connections:
            if (isinstance(connection, _Connection) and connection.request is None
                    and not connection.counted):
                connection.force_close()
        drained = await self._drained(drain_s)
        closing_s = CLOSING_S if drained else CUTTING_S
        with suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(_sent(connections), closing_s)
        await connections.shutdown(closing_s)
        return drained

    def _listen(self, listening: socket.socket, connections: _Connections) -> None:
        assert self._loop is not None and self._ending is not None
        if not self._ending.done():
            self._loop.add_reader(listening, self._accept, listening, connections)

    def _accept(self, listening: socket.socket, connections: _Connections) -> None:
        """Take all connections that wait; without a descriptor for them, try again later."""
        loop = self._loop
        assert loop is not None
        for _ in range(BACKLOG):
            try:
                made, _ = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NONE_LEFT:
                    raise
                _log_fault(loop, {"exception": error})
                loop.remove_reader(listening)
                loop.call_later(ACCEPT_AGAIN_S, self._listen, listening, connections)
                return
            made.setblocking(False)
            coming = loop.create_task(_connected(loop, connections, made))
            self._coming.add(coming)
            coming.add_done_callback(self._coming.discard)

    async def _drained(self, drain_s: float) -> bool:
        if self._inside:
            self._left = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._left], timeout=drain_s)
        return not self._inside

    @property
    def closing(self) -> bool:
        """Whether no connection shall have another request."""
        return self._ending is not None and self._ending.done()

    def enter(self) -> None:
        """Count a request that is being answered."""
        self._inside += 1

    def leave(self) -> None:
        """Count one that is not any more."""
        self._inside -= 1
        if self._left is not None and not self._inside:
            _settle(self._left, None)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request that takes aiohttp's way."""
        connection = request.protocol
        assert isinstance(connection, _Connection)
        connection.begin(request)
        try:
            reply = await self._handler(request)
            if isinstance(reply, Streamed):
                return await self._send(request, reply)
        except BodyFault as fault:
            reply = Reply(fault.status, str(fault).encode(), "text/plain")
            connection.close()
        finally:
            self.leave()
            connection.request = None
        response = web.Response(status=reply.status, body=reply.body, headers=_headers(reply))
        if self.closing:
            response.force_close()
        return response

    async def _send(self, request: web.BaseRequest, reply: Streamed) -> web.StreamResponse:
        """Send what comes, as fast as the caller takes it."""
        response = web.StreamResponse(headers={**_headers(reply), "Cache-Control": "no-store"})
        if self.closing:
            response.force_close()
        transport = request.transport

        def cut_off() -> None:
            if transport is not None:
                transport.abort()

        async with aclosing(reply.chunks) as chunks:
            chunk = await anext(chunks, None)  # what has not begun would not hear of its end
            await response.prepare(request)
            while chunk is not None:
                timer = asyncio.get_running_loop().call_later(READING_SILENCE_S, cut_off)
                try:
                    await response.write(chunk)
                finally:
                    timer.cancel()
                chunk = await anext(chunks, None)
            await response.write_eof()
        return response


def _runner() -> Callable[[Coroutine[Any, Any, bool]], bool]:
    """Return what runs a coroutine on a loop of its own: uvloop's, or asyncio's without it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


async def _connected(loop: asyncio.AbstractEventLoop, connections: _Connections,
                     made: socket.socket) -> None:
    try:
        await loop.connect_accepted_socket(connections, made)
    except OSError:  # it has gone already
        made.close()


async def _sent(connections: _Connections) -> None:
    """Wait until all have gone: a connection that is closed sends first what was written."""
    while connections.connections:
        await asyncio.sleep(SENT_S)


def _headers(reply: Reply | Streamed) -> dict[str, str]:
    return _named(reply.content_type, reply.headers)


def _named(content_type: str, headers: Mapping[str, str]) -> dict[str, str]:
    return {"Content-Type": content_type, "Server": "tf-infer", **headers}


def fields(content_type: str, headers: Mapping[str, str]) -> bytes:
    """Return the header lines of a `Reply`, for `Whole.answer`."""
    return "".join(f"{name}: {value}\r\n"
                   for name, value in _named(content_type, headers).items()).encode()


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _log_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log a fault of the loop by its type: its text may hold what a caller sent."""
    event("http_fault", logging.WARNING, error=type(context.get("exception")).__name__)
    if "exception" not in context:
        server_log.debug("%s", context.get("message"))


async def read_body(request: web.BaseRequest, *, most: int | None = None) -> bytes:
    """Return the whole body, chunked or not (RS20).

    With `most`, of a body that has more bytes than that some more than `most` are returned; the
    others are read too, but not kept: who is cut off while sending would not see an answer.

    Raises:
        BodyFault: it is larger than `MAX_BODY_BYTES`, malformed, or does not come.
    """
    content = request.content
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(CONTINUE)
        request.writer.output_size = 0
    parts: list[bytes] = []
    size = 0
    try:
        while not content.at_eof():
            if content.is_eof():
                part = content.read_nowait()
            else:
                part = await asyncio.wait_for(content.readany(), BODY_SILENCE_S)
            if most is None or size <= most:
                parts.append(part)
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise BodyFault(413, f"A body may have {MAX_BODY_BYTES} bytes.")
    except (asyncio.TimeoutError, TimeoutError):
        raise BodyFault(408, f"Nothing of the body came for {BODY_SILENCE_S:g} s.") from None
    except web.RequestPayloadError:
        raise BodyFault(400, "The body is not as its headers say.") from None
    return parts[0] if len(parts) == 1 else b"".join(parts)


def listen(host: str, port: int) -> list[socket.socket]:
    """Return sockets that are bound, on all addresses or those of one host.

    Raises:
        OSError: not one can be bound.
    """
    if host in EVERYWHERE:
        with suppress(OSError):  # no IPv6 here
            return [_bound(socket.AF_INET6, ("::", port))]
        return [_bound(socket.AF_INET, ("0.0.0.0", port))]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    faults: list[OSError] = []
    for family, _, _, _, address in found:
        try:
            sockets.append(_bound(family, address))
        except OSError as error:
            faults.append(error)
    if not sockets:
        raise faults[0]
    return sockets


def _bound(family: int, address: Any) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            both = address[0] == "::"
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    made.setblocking(False)
    return made
