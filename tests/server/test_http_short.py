"""Short requests are answered as aiohttp's way answers them; what is not short takes that way."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.restkit import Rest, read_all, serving
from tests.server.test_http_server import (
    GOOD,
    PREDICT,
    WAITS,
    answered,
    callers_stop,
    eventually,
    request,
)
from tf_infer.server import http_server, http_short
from tf_infer.server.config import Monitoring

_DATE = re.compile(rb"Date: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n")


class Shorts:
    """Counts the requests of a server that are short.

    Attributes:
        last: of them.
    """

    last: http_short.Whole

    def __init__(self, rest: Rest) -> None:
        self.count = 0
        http = rest.server._rest._http  # type: ignore[union-attr]
        self._short, http.short = http.short, self

    def __call__(self, target: str) -> Callable[[http_short.Whole], None] | None:
        begin = self._short(target)

        def counted(whole: http_short.Whole) -> None:
            assert begin is not None
            self.count += 1
            self.last = whole
            begin(whole)

        return None if begin is None else counted


def ready(rest: Rest, one: socket.socket) -> Shorts:
    """Return what counts the requests of a server, once a connection takes the short way.

    Its task may not be waiting yet when the first request comes, or the one behind a long one.
    """
    shorts = Shorts(rest)
    until_short(shorts, one)
    shorts.count = 0
    while rest.model.started.acquire(blocking=False):
        pass
    return shorts


def until_short(shorts: Shorts, one: socket.socket) -> None:
    for _ in range(1000):
        assert asked(one, request(GOOD)).endswith(b"[3.0]}")
        if shorts.count:
            return
    raise AssertionError("no request was short")


def asked(one: socket.socket, *pieces: bytes) -> bytes:
    """Send a request in pieces, and return its whole answer, all but the date."""
    for piece in pieces:
        one.sendall(piece)
    return answer_on(one)


def answer_on(one: socket.socket) -> bytes:
    found = b""
    while (whole := _whole(found)) is None:
        part = one.recv(65536)
        assert part, found
        found += part
    return whole


def _whole(found: bytes) -> bytes | None:
    head, _, body = found.partition(b"\r\n\r\n")
    length = re.search(rb"Content-Length: (\d+)", head)
    if length is None or len(body) < int(length[1]):
        return None
    assert len(body) == int(length[1]) and len(_DATE.findall(found)) == 1
    return _DATE.sub(b"", found)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[socket.socket, Shorts]]]:
    """Two connections: to a server with the short way, and to one without it."""
    with ExitStack() as stack:
        found = []
        for short in (True, False):
            rest = stack.enter_context(serving(
                tmp_path_factory.mktemp("models"), monitoring=Monitoring(enabled=True)))
            if not short:
                rest.server._rest._http.short = http_server.none_short  # type: ignore[union-attr]
            one = stack.enter_context(rest.socket())
            found.append((one, ready(rest, one) if short else Shorts(rest)))
        yield found


TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(
    ['"', "\\u0041", "\\", "\x00", "\\ud800", "é" * 20, "1e999", '"]}', "\ufeff"]))
BODIES = st.one_of(
    st.builds('{{"signature_name": "text", "instances": ["{}"]}}'.format, TEXTS).map(
        lambda text: text.encode("utf-8", "surrogatepass")),
    st.builds(lambda body, cut: body[:cut], st.sampled_from([GOOD, b'{"inputs": [1, 2e5]}']),
              st.integers(1, 40)),
    st.binary(min_size=1, max_size=30),
    st.sampled_from([
        b'{"signature_name": "fails", "instances": [1]}', b'{"inputs": {"x": [0.1, 1e9]}}',
        b'{"signature_name": "breaks", "instances": [1]}', b'{"signature_name": "no"}',
        b'{"signature_name": "half", "inputs": [1]}', b"[" * 5000, b'{"instances": [1e999]}',
        b'{"signature_name": "two", "instances": [{"a": "x", "b": 1}, {"a": {"b64": "eA"}}]}',
        b'{"signature_name": "classify", "examples": [{"x": 1}]}', b"x" * 40000]))
TARGETS = st.sampled_from([
    PREDICT, PREDICT, PREDICT, PREDICT, "/v1/models/n:predict", "/v1/models/m/versions/1:predict",
    "/v1/models/m/labels/no:predict", "/v1/models/m:classify", "/v1/models/m:regress",
    "/v1/models/m:Predict", "/v1/models/m:predict?x", "/v1/models/%6d:predict",
    "http://h/v1/models/m:predict", "/v1/models/m", "/v1/completions", "/nowhere",
    "/monitoring/prometheus/metrics?x", "/v1/models/m/versions/99999999999999999999:predict"])


@given(target=TARGETS, body=BODIES, behind=st.sampled_from([0, 0, 1, 5, 20, 100]))
@settings(deadline=None, max_examples=80)
def test_the_short_way_answers_what_aiohttps_answers(
        both: list[tuple[socket.socket, Shorts]], target: str, body: bytes, behind: int) -> None:
    (short, _), (long, _) = both
    sent = request(body, target=target)
    cut = len(sent) - behind
    assert asked(short, sent[:cut], sent[cut:]) == asked(long, sent)


def test_one_server_has_a_short_way_and_one_has_none(
        both: list[tuple[socket.socket, Shorts]]) -> None:
    (short, counted), (long, none) = both
    counted.count = 0
    until_short(counted, short)
    for _ in range(3):
        assert asked(long, request(GOOD)).endswith(b"[3.0]}")
    assert none.count == 0


@pytest.mark.parametrize("headers", [
    ["Content-Encoding: br"], ["Expect: 100-continue"], ["Connection: close"],
    ["Connection: Upgrade", "Upgrade: websocket"]],
    ids=["encoded", "continue", "close", "upgrade"])
def test_what_wants_more_than_an_answer_is_not_short(tmp_path: Path, headers: list[str]) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts = ready(rest, one)
        one.sendall(request(GOOD, *headers))
        found = one.recv(65536)
        while b"[3.0]" not in found:
            found += one.recv(65536)
        assert b"HTTP/1.1 200 OK" in found
        assert shorts.count == 0


def test_other_requests_are_not_short_and_a_body_in_chunks_is(tmp_path: Path) -> None:
    chunks = (f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
              f"5\r\n{{\"ins\r\nd\r\ntances\": [2]}}\r\n0\r\n\r\n").encode()
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts = ready(rest, one)
        for sent in (request(GOOD + b" " * http_short.SHORT_BYTES),
                     b"GET /v1/models/m HTTP/1.1\r\nHost: x\r\n\r\n", request(b"")):
            assert asked(one, sent)
        old = request(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        with rest.socket() as other:
            other.sendall(old)
            assert read_all(other).endswith(b"[3.0]}")
        assert shorts.count == 0
        until_short(shorts, one)
        assert asked(one, chunks).endswith(b"[3.0]}")
        assert shorts.count == 2


def test_a_body_behind_its_headers_is_waited_for_a_moment(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_short, "REST_S", 60.0)
    with serving(tmp_path) as rest, rest.socket() as one, rest.socket() as other:
        shorts, whole = ready(rest, one), request(GOOD)
        for count in (1, 2):
            for piece in (whole[:30], whole[30:-len(GOOD)], GOOD[:5]):
                one.sendall(piece)
                time.sleep(0.01)
            assert asked(one, GOOD[5:]).endswith(b"[3.0]}")
            assert shorts.count == count
        one.sendall(whole[:-5])
        assert answered(rest)
        assert asked(one, whole[-5:], numbered(4)[:-5]).endswith(b"[3.0]}")
        assert asked(one, numbered(4)[-5:]).endswith(b"[4.0]}")
        other.sendall(whole[:-5])  # and goes
    monkeypatch.setattr(http_short, "REST_S", 0.0)
    with serving(tmp_path / "again") as rest, rest.socket() as one:
        shorts = ready(rest, one)
        one.sendall(whole[:-3])
        assert eventually(lambda: shorts.last._connection.request is not None)
        assert asked(one, GOOD[-3:]).endswith(b"[3.0]}")
        assert shorts.count == 0


def test_where_aiohttp_is_not_as_we_know_it_no_request_is_short(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert http_short.KNOWN
    monkeypatch.setattr(http_short, "KNOWN", False)
    with serving(tmp_path) as rest:
        shorts = Shorts(rest)
        assert answered(rest)
        assert shorts.count == 0


def numbered(*numbers: int) -> bytes:
    return b"".join(request(b'{"instances": [%d]}' % number) for number in numbers)


def test_requests_behind_a_short_one_are_answered_behind_it(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts = ready(rest, one)
        one.sendall(request(WAITS))
        assert rest.model.started.acquire(timeout=30)
        one.sendall(numbered(10, 12))
        time.sleep(0.05)
        one.sendall(numbered(14) + request(GOOD, "Connection: close"))
        assert not rest.model.started.acquire(timeout=0.1)  # they wait
        rest.model.release.set()
        told = re.findall(rb'\{"predictions": \[(.*?)\]\}', read_all(one))
        assert told == [b"3.0", b"7.0", b"8.0", b"9.0", b"3.0"]
        assert shorts.count == 1


def test_an_answer_may_take_longer_than_a_connection_may_be_idle(tmp_path: Path) -> None:
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts = ready(rest, one)
        http: Any = rest.server._rest._http  # type: ignore[union-attr]

        def silent_for_long() -> None:
            """Let the connection be looked at when it could be closed."""
            connection._next_keepalive_close_time = 0.0
            connection._keepalive_handle.cancel()
            connection._process_keepalive()

        one.sendall(request(WAITS))
        assert rest.model.started.acquire(timeout=30)
        connection = shorts.last._connection  # what is asked below may be short, too
        http._loop.call_soon_threadsafe(silent_for_long)
        assert answered(rest)  # behind it
        rest.model.release.set()
        assert answer_on(one).endswith(b'{"predictions": [3.0]}')
        http._loop.call_soon_threadsafe(silent_for_long)
        assert read_all(one) == b""  # it is idle now


def held(rest: Rest, one: socket.socket) -> tuple[Any, http_short.Whole]:
    """Return the HTTP server and a request that was sent on a connection, which nobody answers."""
    told: list[http_short.Whole] = []
    ready(rest, one)
    http: Any = rest.server._rest._http  # type: ignore[union-attr]
    http.short = lambda target: told.append
    one.sendall(request(GOOD))
    assert eventually(lambda: told)
    whole, = told
    return http, whole


def test_while_a_caller_takes_no_answers_his_requests_wait_as_aiohttps_do(tmp_path: Path) -> None:
    told: list[http_short.Whole] = []
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts = ready(rest, one)
        http: Any = rest.server._rest._http  # type: ignore[union-attr]
        http.short = lambda target: told.append

        def later(act: Callable[..., None], *arguments: Any) -> None:
            http._loop.call_soon_threadsafe(act, *arguments)

        one.sendall(request(GOOD))
        assert eventually(lambda: len(told) == 1)
        connection = told[0]._connection
        later(connection.pause_writing)
        later(told[0].answer, 200, b"", b"1")
        assert answer_on(one).endswith(b"1")
        assert asked(one, request(GOOD)).endswith(b"[3.0]}")
        assert len(told) == 1
        later(connection.resume_writing)
        http.short = shorts
        until_short(shorts, one)


def test_a_caller_who_ends_sending_is_answered_and_let_go(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HALF_CLOSED_S", 60.0)
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts = ready(rest, one)
        one.sendall(request(WAITS))
        assert rest.model.started.acquire(timeout=30)
        one.shutdown(socket.SHUT_WR)
        time.sleep(3 * http_server.BEGINNING_S)
        rest.model.release.set()
        assert read_all(one).endswith(b'{"predictions": [3.0]}')
        assert shorts.count == 1


def test_who_is_gone_hears_nothing_and_his_request_holds_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as rest:
        with rest.socket() as one:
            http, whole = held(rest, one)
            gone: list[bool] = []
            whole.gone = lambda: gone.append(True)
        assert eventually(lambda: gone)
        assert (whole.gone, http._inside) == (None, 0)
        http._loop.call_soon_threadsafe(whole.answer, 200, b"", b"late")
        http.short = http_server.none_short
        assert answered(rest)


# ---------------------------------------------------------------------------- the end

LARGE = b"x" * 20_000_000  # more than the buffers of two sockets hold


def until_closed(rest: Rest) -> None:
    """Return when a server that is told to stop has closed the connections that it does not need.

    It closes its port just before, on the same turn of its loop.
    """
    def refused() -> bool:
        try:
            rest.socket().close()
        except OSError:
            return True
        return False

    assert eventually(refused)


def test_an_answer_that_is_being_sent_when_a_server_stops_goes_out_whole(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CLOSING_S", 60.0)
    with serving(tmp_path) as rest, rest.socket() as one:
        http, whole = held(rest, one)
        http._loop.call_soon_threadsafe(whole.answer, 200, b"", LARGE)
        first = one.recv(1000)
        stopped = callers_stop(rest, drain_s=20)
        until_closed(rest)
        assert not wait([stopped], timeout=0.3).done
        assert (first + read_all(one)).partition(b"\r\n\r\n")[2] == LARGE
        assert stopped.result(30) is True


def test_no_request_behind_the_last_answer_of_a_connection_is_run(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CLOSING_S", 60.0)
    with serving(tmp_path) as rest, rest.socket() as one:
        http, whole = held(rest, one)
        one.sendall(numbered(4, 6))
        assert eventually(lambda: len(whole._connection._messages) == 2)
        stopped = callers_stop(rest, drain_s=20)
        until_closed(rest)
        ran = len(rest.model.runs)
        http._loop.call_soon_threadsafe(whole.answer, 200, b"", LARGE)
        first = one.recv(1000)
        assert not wait([stopped], timeout=0.3).done
        assert b"Connection: close" in first
        assert (first + read_all(one)).partition(b"\r\n\r\n")[2] == LARGE
        assert stopped.result(30) is True
        assert len(rest.model.runs) == ran


@pytest.mark.parametrize("rest_s", [60.0, 0.0], ids=["waited for", "in aiohttp's way"])
def test_a_request_whose_body_is_waited_for_when_a_server_stops_is_answered(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest_s: float) -> None:
    monkeypatch.setattr(http_short, "REST_S", rest_s)
    with serving(tmp_path) as rest, rest.socket() as one:
        shorts, whole = ready(rest, one), request(GOOD)
        http: Any = rest.server._rest._http  # type: ignore[union-attr]
        with rest.socket() as other:
            until_short(shorts, other)
            other.sendall(whole[:-5])
            assert eventually(lambda: http._inside == 1)
        assert eventually(lambda: http._inside == 0)  # he has gone
        one.sendall(whole[:-5])
        assert eventually(lambda: http._inside == 1)
        stopped = callers_stop(rest, drain_s=20)
        until_closed(rest)
        found = asked(one, whole[-5:])
        assert found.endswith(b"[3.0]}") and b"Connection: close" in found
        assert stopped.result(30) is True
