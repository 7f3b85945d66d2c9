"""Streams: what waits for a slow reader, and who lets go of what at which end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tf_infer.errors import Code, InvalidRequest, Overloaded, ServerFailure, ServingError
from tf_infer.server.generation import GenerationRequest, Listener, Piece, Token
from tf_infer.server.streams import Sender, Stream, Waiting, join, weigh


def piece(text: bytes, **fields: Any) -> Piece:
    return Piece(text=text, tokens=(Token(id=len(text), piece=text),), **fields)


LAST = piece(b"c", finish_reason="stop", new_tokens=3, score=-3.0)


class Desk:
    """A generator that is lent, and a reader; both do what the test says.

    Attributes:
        told: what was written, and the errors.
        ended: codes.
        cancelled, given_back: how often.
    """

    def __init__(self, submit: Callable[[Listener], None] = lambda listener: None) -> None:
        self.name, self.version, self.chat = "m", 3, None
        self.generator: Any = self
        self.told: list[Piece | ServingError] = []
        self.ended: list[Code] = []
        self.cancelled = self.given_back = 0
        self._submit = submit
        self.stream = Stream(self, self._write, self.told.append,
                             lambda stream, code: self.ended.append(code))
        self.broken = False

    def _write(self, one: Piece) -> None:
        if self.broken:
            raise ValueError("broken")
        self.told.append(one)

    def submit(self, request: GenerationRequest, listener: Listener) -> Desk:
        self._submit(listener)
        return self

    def close(self) -> None:
        pass

    def cancel(self) -> None:
        self.cancelled += 1

    def give_back(self) -> None:
        self.given_back += 1

    def begin(self) -> Desk:
        self.stream.submit(GenerationRequest(prompt=b"x"))
        return self


def texts(told: list[Piece | ServingError]) -> list[bytes]:
    return [one.text for one in told if isinstance(one, Piece)]


def test_joined_pieces_are_all_texts_and_tokens_and_the_last_counts() -> None:
    joined = join([piece(b"a", new_tokens=1), piece(b"bb", new_tokens=2), LAST])
    assert (joined.text, [token.id for token in joined.tokens]) == (b"abbc", [1, 2, 1])
    assert (joined.finish_reason, joined.new_tokens, joined.score) == ("stop", 3, -3.0)
    assert join([LAST]) is LAST


def test_what_waits_goes_out_as_one_and_the_error_behind_it() -> None:
    waiting = Waiting()
    error = ServerFailure("x")
    assert waiting.take() is None
    assert waiting.put(piece(b"a")) and waiting.put(piece(b"b")) and waiting.put(error)
    assert waiting.put(piece(b"late"))
    one, two = waiting.take(), waiting.take()
    assert isinstance(one, Piece) and one.text == b"ab" and two is error
    assert waiting.take() is None


def test_nothing_comes_behind_the_last_piece() -> None:
    waiting = Waiting()
    waiting.put(LAST)
    waiting.put(ServerFailure("late"))
    assert waiting.take() is LAST and waiting.take() is None


def test_too_much_is_refused_and_only_the_reason_is_left() -> None:
    one = piece(b"x" * 100)
    waiting = Waiting(most_bytes=2 * weigh(one))
    assert waiting.put(one) and waiting.put(one) and not waiting.put(one)
    assert waiting.put(one)
    error = waiting.take()
    assert isinstance(error, Overloaded) and waiting.take() is None


def test_one_piece_may_be_larger_than_the_bound() -> None:
    waiting = Waiting(most_bytes=10)
    assert waiting.put(piece(b"x" * 100)) and waiting.take() is not None


def test_a_piece_is_written_at_once_and_others_wait_for_it() -> None:
    desk = Desk().begin()
    for text in (b"a", b"b", b"c"):
        desk.stream.hear(piece(text))
    assert texts(desk.told) == [b"a"]
    desk.stream.written()
    assert texts(desk.told) == [b"a", b"bc"]
    desk.stream.written()
    desk.stream.hear(LAST)
    assert texts(desk.told) == [b"a", b"bc", b"c"]
    assert (desk.ended, desk.given_back, desk.cancelled) == ([Code.OK], 1, 0)


def test_the_version_goes_back_at_the_end_of_generation_not_of_reading() -> None:
    desk = Desk().begin()
    desk.stream.hear(piece(b"a"))
    desk.stream.hear(LAST)
    assert (desk.given_back, desk.ended) == (1, [])
    desk.stream.written()
    assert desk.ended == [Code.OK]


def test_who_leaves_gives_all_back_and_hears_no_more() -> None:
    desk = Desk().begin()
    desk.stream.cancel()
    desk.stream.hear(piece(b"a"))
    desk.stream.cancel()
    assert (desk.told, desk.ended, desk.given_back) == ([], [Code.CANCELLED], 1)
    assert desk.cancelled >= 1


def test_who_leaves_before_the_ticket_is_there_is_cancelled_with_it() -> None:
    desk = Desk(lambda listener: desk.stream.cancel())
    desk.begin()
    assert (desk.cancelled, desk.given_back, desk.ended) == (1, 1, [Code.CANCELLED])


def test_a_refused_request_is_an_error_and_gives_the_version_back() -> None:
    def refuse(listener: Listener) -> None:
        raise InvalidRequest("no")

    desk = Desk(refuse).begin()
    assert [str(one) for one in desk.told] == ["INVALID_ARGUMENT: no"]
    assert (desk.ended, desk.given_back) == ([Code.INVALID_ARGUMENT], 1)


def test_a_fault_of_ours_in_submit_is_told_without_its_text() -> None:
    def fault(listener: Listener) -> None:
        raise KeyError("secret")

    desk = Desk(fault).begin()
    assert "secret" not in str(desk.told[0]) and desk.given_back == 1


def test_a_piece_that_cannot_be_written_ends_the_stream_and_the_run() -> None:
    desk = Desk().begin()
    desk.broken = True
    desk.stream.hear(piece(b"a"))
    desk.stream.hear(piece(b"b"))
    assert len(desk.told) == 1 and isinstance(desk.told[0], ServingError)
    assert len(desk.ended) == 1 and desk.cancelled == 1 and desk.given_back == 1


def test_a_reader_too_slow_is_told_so_when_he_reads_and_the_run_ends_at_once() -> None:
    desk = Desk().begin()
    desk.stream.hear(piece(b"a"))
    for _ in range(6):
        desk.stream.hear(piece(b"x" * 2**20))
    assert desk.cancelled >= 1 and desk.given_back == 1 and len(desk.told) == 1
    desk.stream.written()
    assert isinstance(desk.told[-1], Overloaded) and desk.ended == [Code.RESOURCE_EXHAUSTED]


def test_a_sender_does_all_in_order_whatever_fails_and_ends_behind_it() -> None:
    done: list[int] = []
    sender = Sender()

    def broken() -> None:
        raise ValueError("secret")

    for number in range(100):
        sender.put(lambda number=number: done.append(number))  # type: ignore[misc]
        sender.put(broken)
    sender.close()
    end_s = time.monotonic() + 30
    while threads() and time.monotonic() < end_s:
        time.sleep(0.01)
    assert done == list(range(100)) and not threads()


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "tf-infer-streams"]


def test_what_the_generator_says_is_written_where_it_is_handed() -> None:
    handed: list[Callable[[], None]] = []
    desk = Desk()
    desk.stream = Stream(desk, desk._write, desk.told.append, hand=handed.append)
    desk.begin()
    for text in (b"a", b"b"):
        desk.stream.hear(piece(text))
    assert desk.told == [] and len(handed) == 1
    handed.pop()()
    assert texts(desk.told) == [b"a"]
    desk.stream.written()  # on a thread that may write
    assert texts(desk.told) == [b"a", b"b"]
