"""Connections as they come: slow, silent, broken, half-closed, gone, very many; and the end."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from aiohttp import web

from tests.server.restkit import Rest, read_all, serving
from tests.server.serverkit import free_port
from tf_infer.server import http_server, http_short
from tf_infer.server.config import Monitoring

PREDICT = "/v1/models/m:predict"
GOOD = b'{"instances": [2]}'
WAITS = b'{"signature_name": "waits", "instances": [2]}'


def request(body: bytes, *headers: str, target: str = PREDICT) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def answered(rest: Rest) -> bool:
    """Return whether a healthy call is answered at once, over a connection of its own."""
    other = rest.other()
    started = time.monotonic()
    try:
        return (other.predict({"instances": [2]}).json() == {"predictions": [3.0]}
                and time.monotonic() - started < 15)
    finally:
        other.connection.close()


def eventually(condition: Any, timeout_s: float = 30.0) -> bool:
    end = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_li06_a_run_that_takes_long_holds_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, ThreadPoolExecutor(20) as callers:
        others = [rest.other() for _ in range(20)]
        waiting = [callers.submit(other.predict, json.loads(WAITS)) for other in others]
        for _ in waiting:
            assert rest.model.started.acquire(timeout=30)
        assert answered(rest)
        rest.model.release.set()
        assert {answer.result(30).status for answer in waiting} == {200}
        for other in others:
            other.connection.close()


def test_callers_that_send_slowly_hold_nobody_up(tmp_path: Path) -> None:
    whole = request(GOOD)
    with serving(tmp_path) as rest:
        slow = [rest.socket() for _ in range(5)]
        for cut in range(0, len(whole), 20):
            for one in slow:
                one.sendall(whole[cut:cut + 20])
            assert answered(rest)
        for one in slow:
            assert one.recv(65536).startswith(b"HTTP/1.1 200")
            one.close()


def test_callers_that_read_slowly_hold_nobody_up(tmp_path: Path) -> None:
    text = "x" * 3_000_000
    body = json.dumps({"signature_name": "text", "instances": [text]}).encode()
    with serving(tmp_path) as rest:
        slow = [rest.socket() for _ in range(5)]
        for one in slow:
            one.sendall(request(body, "Connection: close"))
        assert answered(rest)
        for one in slow:
            assert json.loads(read_all(one).partition(b"\r\n\r\n")[2]) == {"predictions": [text]}
            one.close()


@pytest.mark.parametrize("sent", [
    request(GOOD)[:-5],
    f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[1, 2".encode(),
], ids=["length", "chunks"])
def test_a_body_that_does_not_come_ends_its_connection(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(http_server, "BODY_SILENCE_S", 0.1)
    monkeypatch.setattr(http_server, "LINGER_S", 0.1)
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(sent)
        assert read_all(one).startswith(b"HTTP/1.1 408")
        assert answered(rest)


def test_a_connection_without_a_request_is_closed_in_the_end(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "IDLE_S", 0.3)
    with serving(tmp_path) as rest, rest.socket() as silent, rest.socket() as torn, \
            rest.socket() as used:
        torn.sendall(request(GOOD)[:30])
        used.sendall(request(GOOD))
        assert used.recv(65536).startswith(b"HTTP/1.1 200")
        for one in (silent, torn, used):
            assert read_all(one) == b""


def test_a_body_may_not_be_larger_than_a_grpc_message(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http_server.MAX_BODY_BYTES == 2**31 - 1
    most = 2 * http_short.SHORT_BYTES
    monkeypatch.setattr(http_server, "MAX_BODY_BYTES", most)
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(request(b" " * (most + 1)))
        assert read_all(one).startswith(b"HTTP/1.1 413")
        assert answered(rest)


def test_the_caller_may_ask_whether_to_send_his_body(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        whole = request(GOOD, "Expect: 100-continue", "Connection: close")
        one.sendall(whole[:-len(GOOD)])
        assert one.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        one.sendall(GOOD)
        assert read_all(one).endswith(b'{"predictions": [3.0]}')


@pytest.mark.parametrize("sent", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50, b"\r\n" * 100 + b"x\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 500 + b"\r\n\r\n", b"POST  HTTP/1.1\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000,
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" % PREDICT.encode(),
    b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    % PREDICT.encode(), request(b"[" * 1_000_000, "Connection: close"),
    request(b'{"instances": [1e999999999]}', "Connection: close"),
    request(b"\x1f\x8b\x08\x00" + b"\xff" * 1000, "Content-Encoding: gzip", "Connection: close"),
], ids=lambda sent: repr(sent[:24]))
def test_what_is_no_request_is_refused_and_hurts_nobody(tmp_path: Path, sent: bytes) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(sent)
        one.settimeout(10)
        try:
            found = one.recv(65536)
        except ConnectionResetError:
            found = b""
        assert not found or found.split()[1] == b"400"
        assert answered(rest)


def test_what_callers_sent_is_never_logged(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with serving(tmp_path) as rest:
        for sent in (b"GET /secret\xff HTTP/1.1\r\n\r\n", b"secret\r\n\r\n",
                     b"GET / HTTP/1.1\r\nHost: secret\r\nsecret\r\n\r\n"):
            with rest.socket() as one:
                one.sendall(sent)
                one.recv(65536)
        rest.get("/v1/secret")
        rest.predict({"instances": ["secret"]}, model="secret")
        rest.predict({"signature_name": "breaks", "instances": [1]})
    assert "method=" in caplog.text
    assert "secret" not in caplog.text


def test_requests_may_follow_each_other_without_waiting(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(request(GOOD) * 20 + request(GOOD, "Connection: close"))
        assert read_all(one).count(b'{"predictions": [3.0]}') == 21


def test_a_caller_that_ends_sending_still_gets_a_quick_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(request(GOOD))
        one.shutdown(socket.SHUT_WR)
        assert read_all(one).endswith(b'{"predictions": [3.0]}')


def test_an_idle_caller_that_ends_sending_is_let_go_at_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HALF_CLOSED_S", 60.0)
    with serving(tmp_path) as rest, rest.socket() as fresh, rest.socket() as used:
        used.sendall(request(GOOD))
        assert used.recv(65536).startswith(b"HTTP/1.1 200")
        for one in (fresh, used):
            one.shutdown(socket.SHUT_WR)
            assert read_all(one) == b""


def test_a_caller_that_ends_sending_within_a_body_is_let_go(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(request(GOOD)[:-5])
        one.shutdown(socket.SHUT_WR)
        assert read_all(one) == b""
        assert answered(rest)


def test_of_a_body_beyond_a_bound_no_more_is_kept() -> None:
    left = [b"x" * 100] * 1_000

    class Long:
        """A request of 100,000 bytes, in pieces."""

        headers: ClassVar[dict[str, str]] = {}

        @property
        def content(self) -> Any:
            return self

        def at_eof(self) -> bool:
            return not left

        def is_eof(self) -> bool:
            return True

        def read_nowait(self) -> bytes:
            return left.pop()

    found = asyncio.run(http_server.read_body(cast(Any, Long()), most=250))
    assert 250 < len(found) <= 350
    assert not left


def test_a_body_that_breaks_off_on_its_way_is_refused() -> None:
    class Content:
        def at_eof(self) -> bool:
            return False

        def is_eof(self) -> bool:
            return False

        async def readany(self) -> bytes:
            raise web.RequestPayloadError("secret")

    class Broken:
        headers: ClassVar[dict[str, str]] = {}
        content = Content()

    with pytest.raises(http_server.BodyFault, match="The body is not as its headers say") as caught:
        asyncio.run(http_server.read_body(cast(Any, Broken())))
    assert caught.value.status == 400


def test_a_caller_that_has_gone_frees_his_place(tmp_path: Path) -> None:
    with serving(tmp_path, threads=1, monitoring=Monitoring(enabled=True)) as rest:
        with rest.socket() as first, rest.socket() as second:
            first.sendall(request(WAITS))
            assert rest.model.started.acquire(timeout=30)
            second.sendall(request(b'{"signature_name": "text", "instances": ["x"]}'))
            assert eventually(lambda: rest.server.pipeline.in_flight() == 2)
        # the second waited for the one thread: it must never run
        assert eventually(lambda: rest.server.pipeline.in_flight() == 1)
        rest.model.release.set()
        assert eventually(lambda: rest.server.pipeline.in_flight() == 0)
        assert rest.model.runs == ["waits"]
        page = rest.get("/monitoring/prometheus/metrics").body.decode()
        assert ':request_count{model_name="m",status="CANCELLED"} 2\n' in page


def test_a_thousand_idle_connections_hold_nobody_up(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    idle: list[socket.socket] = []
    try:
        with serving(tmp_path) as rest:
            for number in range(1000):
                idle.append(rest.socket())
                if number % 2:
                    idle[-1].sendall(request(GOOD)[:40])
            assert answered(rest)
            for one in idle:
                one.close()
            assert answered(rest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_descriptor_left_callers_wait_until_there_is_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(http_server, "ACCEPT_AGAIN_S", 0.02)
    tries: list[float] = []
    open_port = http_server.listen

    class Scarce(socket.socket):
        """A socket that has no descriptor for a connection the first three times."""

        def accept(self) -> tuple[socket.socket, Any]:
            tries.append(time.monotonic())
            if len(tries) <= 3:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    monkeypatch.setattr(http_server, "listen", lambda host, port: [
        Scarce(fileno=one.detach()) for one in open_port(host, port)])
    with serving(tmp_path) as rest:
        assert answered(rest)
    assert len(tries) > 3
    assert min(after - before for before, after in pairwise(tries[:4])) > 0.01
    assert caplog.text.count("http_fault error=OSError") == 3


def test_many_callers_get_their_own_answers(tmp_path: Path) -> None:
    def calls(rest: Rest, caller: int) -> list[Any]:
        other = rest.other()
        found = [other.predict({"instances": [caller * 100 + place]}).json()["predictions"][0]
                 for place in range(30)]
        other.connection.close()
        return found

    with serving(tmp_path) as rest, ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(lambda caller: calls(rest, caller), range(16)))
    assert answers == [[(caller * 100 + place) / 2 + 2 for place in range(30)]
                       for caller in range(16)]


# ---------------------------------------------------------------------------- the loop


def loop_of(rest: Rest) -> str:
    return type(rest.server._rest._http._loop).__module__  # type: ignore[union-attr]


def test_the_loop_is_uvloops_where_that_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("uvloop", reason="it is tested without uvloop, too")
    with serving(tmp_path) as rest:
        assert loop_of(rest) == "uvloop"
        assert answered(rest)


def test_without_uvloop_the_loop_is_asyncios(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)  # an import of it fails
    with serving(tmp_path) as rest:
        assert loop_of(rest) == "asyncio.unix_events"
        assert answered(rest)


# ---------------------------------------------------------------------------- the end


def test_stopping_waits_for_requests_inside_and_takes_no_others(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as idle, ThreadPoolExecutor(1) as callers:
        idle.sendall(request(GOOD))
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        assert rest.model.started.acquire(timeout=30)
        waiting = callers.submit(rest.predict, json.loads(WAITS))
        assert rest.model.started.acquire(timeout=30)
        stopped = callers_stop(rest, drain_s=20)
        assert read_all(idle) == b""  # a connection without a request is closed at once
        with pytest.raises(OSError):
            rest.socket()
        rest.model.release.set()
        answer = waiting.result(30)
        assert (answer.status, answer.json()) == (200, {"predictions": [3.0]})
        assert answer.headers["Connection"] == "close"
        assert stopped.result(30) is True


def test_callers_that_come_while_the_server_stops_are_not_left_waiting(tmp_path: Path) -> None:
    def come(rest: Rest) -> None:
        with suppress(OSError):
            while True:
                with rest.socket() as one:
                    one.sendall(request(GOOD))
                    one.recv(65536)

    with serving(tmp_path) as rest:
        callers = [threading.Thread(target=come, args=(rest,)) for _ in range(8)]
        for caller in callers:
            caller.start()
        assert rest.model.started.acquire(timeout=30)
        rest.server.stop(5.0)
        for caller in callers:
            caller.join(5)
        assert not any(caller.is_alive() for caller in callers)


def test_stopping_does_not_wait_for_bodies_without_end(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(request(GOOD)[:-5])
        assert eventually(lambda: rest.server._rest._http._inside == 1)  # type: ignore[union-attr]
        assert rest.server.stop(0.1) is False
        assert read_all(one) == b""


def test_stopping_gives_up_what_does_not_end_in_time(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        one.sendall(request(b'{"signature_name": "deaf", "instances": [2]}'))
        assert rest.model.started.acquire(timeout=30)
        started = time.monotonic()
        stopped = callers_stop(rest, drain_s=0.2)
        with suppress(ConnectionResetError):
            assert read_all(one) == b""
        assert time.monotonic() - started < 8
        rest.model.release.set()
        assert stopped.result(20) is False


def callers_stop(rest: Rest, *, drain_s: float) -> Any:
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(rest.server.stop, drain_s)
    finally:
        pool.shutdown(wait=False)


def test_li09_the_port_is_free_after_the_end_and_no_thread_is_left(tmp_path: Path) -> None:
    port = free_port()
    for _ in range(2):
        with serving(tmp_path, rest_port=port) as rest:
            assert answered(rest)
        assert eventually(lambda: not [thread for thread in threading.enumerate()
                                       if thread.name.startswith(("tf-infer-http",
                                                                  "tf-infer-rest"))])


def test_a_server_that_never_started_can_be_stopped() -> None:
    async def handler(request: Any) -> http_server.Reply:
        raise AssertionError

    server = http_server.HttpServer(handler, host="localhost", port=free_port())
    assert server.stop(1.0).result(1) is True


def test_a_connection_that_comes_with_the_end_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(request: Any) -> http_server.Reply:
        raise AssertionError

    open_port = http_server.listen

    class Last(socket.socket):
        """A socket whose first connection comes when the server is told to stop."""

        def accept(self) -> tuple[socket.socket, Any]:
            made = super().accept()
            http_server._settle(cast(Any, server._ending), 1.0)
            return made

    monkeypatch.setattr(http_server, "listen", lambda host, port: [
        Last(fileno=one.detach()) for one in open_port(host, port)])
    server = http_server.HttpServer(handler, host="localhost", port=(port := free_port()))
    server.start()
    with socket.create_connection(("localhost", port), timeout=20) as caller:
        assert read_all(caller) == b""
    assert server.stop(1.0).result(5) is True


def test_a_name_that_is_none_cannot_be_listened_on() -> None:
    with pytest.raises(OSError):
        http_server.listen("no-such-host.invalid", free_port())


def test_a_caller_who_reads_nothing_of_a_stream_is_cut_off(monkeypatch: pytest.MonkeyPatch
                                                            ) -> None:
    monkeypatch.setattr(http_server, "READING_SILENCE_S", 0.2)
    closed = threading.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"x" * 65536
        finally:
            closed.set()

    async def handler(request: Any) -> http_server.Streamed:
        return http_server.Streamed(chunks(), "text/plain")

    server = http_server.HttpServer(handler, host="localhost", port=(port := free_port()))
    server.start()
    with socket.create_connection(("localhost", port), timeout=20) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert closed.wait(10)
    assert server.stop(1.0).result(5) is True


def test_a_stream_whose_caller_has_gone_before_its_first_word_hears_of_it(
        monkeypatch: pytest.MonkeyPatch) -> None:
    async def prepare(self: web.StreamResponse, request: Any) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "prepare", prepare)
    closed = threading.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield b"x"
        finally:
            closed.set()

    async def handler(request: Any) -> http_server.Streamed:
        return http_server.Streamed(chunks(), "text/plain")

    server = http_server.HttpServer(handler, host="localhost", port=(port := free_port()))
    server.start()
    with socket.create_connection(("localhost", port), timeout=20) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert closed.wait(5)
    assert server.stop(1.0).result(5) is True
