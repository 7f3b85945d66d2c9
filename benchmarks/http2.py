"""One HTTP/2 connection for gRPC calls, straight on asyncio's transport, as load.py does HTTP/1.1.

grpcio's client takes about 0.2 ms of processor time a call, which a server on the same cores would
pay for; this takes a quarter of it. It sends what grpcio sends, header fields by their places in
the table from the second call on, and reads of the answers whether a message came and which status
ended it. Calls that begin while answers are read are written together, once those are read; what
is read at once is as much as has come. For requests that fit into a stream's first window.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
TABLE_SIZE, PUSH, STREAM_WINDOW = 1, 2, 4  # settings
MOST = 2**31 - 1  # of a window
FIRST_WINDOW, MOST_AT_ONCE = 65_535, 16_384  # until the other side allows more
STATUS = b"grpc-status"
NO_STATUS = -1


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Return a frame."""
    return struct.pack(">IBI", len(content) << 8 | kind, flags, stream) + content


def field(start: int, *texts: str) -> bytes:
    """Return a header field that joins the table: its first byte, then name or value, or both."""
    return bytes([start]) + b"".join(bytes([len(text)]) + text.encode() for text in texts)


class Http2(asyncio.Protocol):
    """Calls of one method.

    Args:
        path: of the method.
        authority: of the server.
        timeout_s: of each call.
        answered: told of a call that has ended: what was given to `send`, and gRPC's status, or
            `NO_STATUS` where the connection or the stream broke.
    """

    def __init__(self, path: str, authority: str, timeout_s: float,
                 answered: Callable[[Any, int], None]) -> None:
        self._answered = answered
        self._first = (b"\x83\x86" + field(0x44, path) + field(0x41, authority)
                       + field(0x40, "te", "trailers") + field(0x5f, "application/grpc")
                       + field(0x40, "grpc-timeout", f"{round(1000 * timeout_s)}m"))
        self._later = b"\x83\x86\xc2\xc1\xc0\xbf\xbe"  # the five above: the last is number 62
        self._stream, self._window = -1, FIRST_WINDOW
        self._open: dict[int, Any] = {}
        self._full: set[int] = set()  # streams that have had a message
        self._waiting: deque[tuple[Any, bytes]] = deque()
        self._buffer = bytearray()
        self._together: list[bytes] | None = None  # what is written once all is read
        self._taken = 0
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        settings = b"".join(struct.pack(">HI", *pair) for pair in (
            (TABLE_SIZE, 0), (PUSH, 0), (STREAM_WINDOW, MOST)))
        transport.write(PREFACE + frame(SETTINGS, 0, 0, settings)
                        + frame(WINDOW, 0, 0, struct.pack(">I", MOST - FIRST_WINDOW)))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        left = [*self._open.values(), *(call for call, _ in self._waiting)]
        self._open.clear()
        self._waiting.clear()
        for call in left:
            self._answered(call, NO_STATUS)

    def send(self, call: Any, message: bytes) -> None:
        """Begin a call; `answered` gets `call` when it has ended."""
        if len(message) + 5 > FIRST_WINDOW:
            raise ValueError(f"message: expected less than {FIRST_WINDOW} bytes, got "
                             f"{len(message)}.")
        if len(message) + 5 > self._window:  # the server has not taken what was sent
            self._waiting.append((call, message))
            return
        self._window -= len(message) + 5
        self._stream += 2
        self._open[self._stream] = call
        headers = self._first if self._stream == 1 else self._later
        content = b"\0" + struct.pack(">I", len(message)) + message
        frames = [frame(HEADERS, END_HEADERS, self._stream, headers)]
        for start in range(0, len(content), MOST_AT_ONCE):
            last = start + MOST_AT_ONCE >= len(content)
            frames.append(frame(DATA, END_STREAM * last, self._stream,
                                content[start:start + MOST_AT_ONCE]))
        self._write(*frames)

    def _write(self, *frames: bytes) -> None:
        if self._together is not None:
            self._together += frames
        else:
            self.transport.write(b"".join(frames))

    def data_received(self, data: bytes) -> None:
        buffer, self._together = self._buffer, []
        buffer += data
        start, end = 0, len(buffer)
        while end - start >= 9:
            word, flags, stream = struct.unpack_from(">IBI", buffer, start)
            after = start + 9 + (word >> 8)
            if after > end:
                break
            self._came(word & 0xFF, flags, stream, bytes(buffer[start + 9:after]))
            start = after
        del buffer[:start]
        together, self._together = self._together, None
        if together and self.transport is not None:
            self.transport.write(b"".join(together))

    def _came(self, kind: int, flags: int, stream: int, content: bytes) -> None:
        if kind == DATA:
            self._full.add(stream)
            self._taken += len(content)
            if self._taken > MOST // 2:
                self._write(frame(WINDOW, 0, 0, struct.pack(">I", self._taken)))
                self._taken = 0
        elif kind == HEADERS:
            if flags & END_STREAM:
                self._end(stream, status_in(content))
        elif kind == WINDOW:
            if not stream:
                self._window += int.from_bytes(content, "big")
                waiting, self._waiting = self._waiting, deque()
                for call, message in waiting:
                    self.send(call, message)
        elif kind in (SETTINGS, PING):
            if not flags & ACK:
                answer = content if kind == PING else b""
                self._write(frame(kind, ACK, 0, answer))
        elif kind == RESET:
            self._end(stream, NO_STATUS)
        elif kind == GOAWAY:
            self.transport.close()
        elif kind == CONTINUATION:
            raise ValueError("a header block in one frame was expected")

    def _end(self, stream: int, status: int) -> None:
        full = stream in self._full
        self._full.discard(stream)
        call = self._open.pop(stream, None)
        if call is not None:
            self._answered(call, NO_STATUS if status == 0 and not full else status)


def status_in(block: bytes) -> int:
    """Return gRPC's status in a block of header fields that are written out, as gRPC writes them.

    It does so where, as here, the table of the one who reads has no room.
    """
    place = block.find(STATUS)
    if place < 0:
        return NO_STATUS
    place += len(STATUS)
    size = block[place]
    return int(block[place + 1:place + 1 + size])
