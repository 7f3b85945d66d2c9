"""What may be said of a text that grows: no half character, nothing of a stop string, all of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tf_infer.server.speech import Speech, settled


def said(text: bytes, cuts: list[int], stops: list[bytes]) -> tuple[list[bytes], Speech]:
    """Let a text grow to each of the cuts, then to its end."""
    speech = Speech(stops)
    pieces = [speech.hear(text[:cut]) for cut in sorted(cuts)]
    return [*pieces, speech.hear(text, final=True)], speech


@pytest.mark.parametrize(("text", "whole"), [
    (b"", 0), (b"ab", 2), ("aé".encode()[:2], 1), ("aé".encode(), 3), ("中".encode()[:2], 0),
    ("😀".encode()[:3], 0), ("😀".encode()[:1], 0), (b"a\x80", 2), (b"\x80\x80\x80\x80", 4),
    (b"\xff", 1), ("a�".encode(), 1), ("�".encode() * 5, 6), ("a�b".encode(), 5),
    ("é�".encode()[:2] + "�".encode(), 2)])
def test_what_is_settled(text: bytes, whole: int) -> None:
    assert settled(text) == whole


def test_a_stop_string_over_the_borders_of_pieces_is_not_said() -> None:
    pieces, speech = said(b"one <stop> two", [2, 5, 7, 9, 10, 12], [b"<stop>"])
    assert b"".join(pieces) == b"one " and speech.stopped
    assert not any(b"<" in piece for piece in pieces)


def test_what_only_looked_like_a_stop_string_is_said_in_the_end() -> None:
    speech = Speech([b"<stop>"])
    assert speech.hear(b"a <st") == b"a "
    assert speech.hear(b"a <stu") == b"<stu"
    assert speech.hear(b"a <stu <") == b" "
    assert speech.hear(b"a <stu <", final=True) == b"<"
    assert not speech.stopped


def test_the_stop_string_that_is_whole_first_wins_and_a_later_call_says_nothing() -> None:
    pieces, speech = said(b"a END b STOP", [3], [b"STOP", b"END"])
    assert b"".join(pieces) == b"a " and speech.stopped
    assert speech.hear(b"a END b STOP and more", final=True) == b""


def test_a_stop_string_at_the_very_beginning_leaves_nothing() -> None:
    assert said(b"xy", [1], [b"x"])[0] == [b"", b""]


def whole_first(text: str, stops: list[str]) -> int | None:
    """Read letter by letter until a stop string is whole; return where the longest such begins."""
    for end in range(1, len(text) + 1):
        whole = [end - len(stop) for stop in stops if text.endswith(stop, 0, end)]
        if whole:
            return min(whole)
    return None


@given(st.text(alphabet="abé中😀", max_size=12),
       st.lists(st.integers(0, 48), max_size=6),
       st.lists(st.text(alphabet="abé中", min_size=1, max_size=3), max_size=3))
@example("aab", [2], ["ab"])
@example("abé", [], ["abé", "b"])
@example("abé", [2], ["abé", "b"])
@example("bab", [1], ["ab", "b"])
@example("aab", [], ["ab", "b"])
def test_pieces_joined_are_the_text_before_the_stop_string_that_is_whole_first(
        text: str, cuts: list[int], stops: list[str]) -> None:
    data = text.encode()
    pieces, speech = said(data, cuts, [stop.encode() for stop in stops])
    cut = whole_first(text, stops)
    assert b"".join(pieces).decode() == text[:cut]
    assert speech.stopped is (cut is not None)
    for piece in pieces:
        piece.decode()  # whole characters


@given(st.binary(max_size=12), st.lists(st.integers(0, 12), max_size=6))
def test_any_bytes_come_through_as_they_are(data: bytes, cuts: list[int]) -> None:
    assert b"".join(said(data, cuts, [])[0]) == data


@given(st.lists(st.sampled_from(["a", "é", "中", "😀", "\udc80", "\udce4\udcb8"]), max_size=8))
def test_a_codec_that_repairs_what_is_cut_is_never_taken_back(parts: list[str]) -> None:
    data = "".join(parts).encode("utf-8", "surrogateescape")
    shown = [data[:size].decode("utf-8", "replace").encode() for size in range(len(data) + 1)]
    speech = Speech()
    pieces = [speech.hear(text) for text in shown]
    assert b"".join([*pieces, speech.hear(shown[-1], final=True)]) == shown[-1]
    for shorter, longer in pairwise(shown):
        assert longer.startswith(shorter[:settled(shorter)])
