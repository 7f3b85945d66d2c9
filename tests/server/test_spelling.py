"""Texts of continuations: joined from bytes where that is the text, decoded where it is not."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tf_infer.server.spelling import Speller, Spelling
from tf_infer.token_bytes import TokenBytes

# as SentencePiece has them: the space before the first word of a text is not shown
WORDS = (b"", b" the", b"a", b"\xc3", b"\xa9", b"\xff", "é".encode(), b" ")
FIRST = (b"", b"the", b"a", b"\xc3", b"\xa9", b"\xff", "é".encode(), b"")
TABLE = TokenBytes(tokens=WORDS, first=FIRST, vanishing=frozenset({0}))


class Decoder:
    """Runs `decode`: joins, and shows U+FFFD for what is no character unless it is raw.

    With `drops` it shows nothing for a character that is not complete at the end.
    """

    signatures: Mapping[str, object] = {}
    manifest = None

    def __init__(self, *, raw: bool, drops: bool = False) -> None:
        self.raw, self.drops, self.rows = raw, drops, 0

    def run(self, signature: str, inputs: Mapping[str, np.ndarray], *, outputs: Sequence[str],
            timeout_s: float | None) -> dict[str, np.ndarray]:
        assert signature == "decode"
        self.rows += len(inputs["ids"])
        texts = [self._text(row[:count].tolist())
                 for row, count in zip(inputs["ids"], inputs["length"])]
        return {"text": np.asarray(texts, object)}

    def close(self) -> None:
        """Do nothing."""

    def continuation(self, prompt: list[int], new: list[int]) -> bytes:
        """Return what `generate` gives."""
        before, after, alone = (self._text(ids) for ids in (prompt, [*prompt, *new], new))
        return after[len(before):] if after.startswith(before) else alone

    def _text(self, ids: list[int]) -> bytes:
        text = TABLE.join(ids)
        if self.raw:
            return text
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return decoder.decode(text, not self.drops).encode()


IDS = st.lists(st.integers(0, len(WORDS) - 1), max_size=6)


@given(IDS, IDS, st.booleans(), st.booleans(), st.booleans())
@example([3], [1], False, True, True)
def test_a_text_is_what_generate_gives(
        prompt: list[int], new: list[int], raw: bool, drops: bool, table: bool) -> None:
    decoder = Decoder(raw=raw, drops=drops)
    speller = Speller(decoder, TABLE if table else None, raw=raw)  # type: ignore[arg-type]
    spelling = speller.start(np.asarray(prompt, np.int32))
    for count, number in enumerate(new, 1):
        spelling.add(number)
        if spelling.whole():
            assert spelling.text(count) == decoder.continuation(prompt, new[:count])
        assert speller.texts([(spelling, count)]) == [decoder.continuation(prompt, new[:count])]
    assert not table or not raw or spelling.plain, "bytes as they are need no decoding"


def spelled(prompt: list[int], new: list[int]) -> Spelling:
    spelling = Spelling(np.asarray(prompt, np.int32), TABLE)
    for number in new:
        spelling.add(number)
    return spelling


@pytest.mark.parametrize(("prompt", "new", "plain", "whole"), [
    ([2], [1, 6], True, True), ([2], [3], True, False), ([2], [3, 4], True, True),
    ([2], [3, 2], False, False), ([2], [5], False, False), ([2, 3], [4], False, False),
    ([], [], True, True)])
def test_what_is_no_character_is_left_to_the_codec(
        prompt: list[int], new: list[int], plain: bool, whole: bool) -> None:
    spelling = spelled(prompt, new)
    assert spelling.plain is plain and spelling.whole() is whole


def test_tokens_alone_are_decoded_once() -> None:
    decoder = Decoder(raw=False)
    speller = Speller(decoder, None)  # type: ignore[arg-type]
    assert speller.pieces([2, 6]) == {2: b"a", 6: "é".encode()}
    assert speller.pieces([6, 2, 2]) == {2: b"a", 6: "é".encode()}
    assert decoder.rows == 2
    assert Speller(decoder, TABLE).pieces([3]) == {3: b"\xc3"}  # type: ignore[arg-type]
