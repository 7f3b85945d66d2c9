"""The text of a continuation while it grows: what `generate` would give for its ids.

That is the decoded prompt and continuation without the decoded prompt, or, where a character that
the prompt cuts in two makes these differ, the continuation decoded alone. Where the version carries
the bytes of its tokens and they are whole characters, they are joined here; all else is decoded by
the version's signature `decode`. Needs no TensorFlow.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import numpy as np

from tf_infer.server.contracts import Servable
from tf_infer.server.speech import settled
from tf_infer.token_bytes import TokenBytes

DECODE = "decode"
BORDER_IDS = 8  # last ids of a prompt that are looked at for a character that is cut there


class Spelling:
    """One continuation.

    Args:
        prompt: its ids, [n] int32.
        tokens: the bytes of every id; None where the version has none.
        raw: the codec gives bytes as they are, characters or not.

    Attributes:
        ids: of the continuation so far.
        plain: whether the bytes of its tokens are its text, but for a character that is not
            complete yet.
    """

    def __init__(self, prompt: np.ndarray, tokens: TokenBytes | None, *, raw: bool = False,
                 ) -> None:
        self.prompt, self._raw = prompt, raw
        self.before: bytes | None = None
        self.ids: list[int] = []
        self._joined = bytearray()
        self._ends: list[int] = []
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self.plain = tokens is not None
        if tokens is not None:
            border = tokens.join(prompt[-BORDER_IDS:].tolist(), at_start=False)
            self.plain = raw or settled(border) == len(border)
            self._at_start = tokens.at_start(prompt.tolist())

    def add(self, number: int) -> None:
        """Take the next id."""
        self.ids.append(number)
        if not self.plain:
            return
        assert self._tokens is not None
        piece = self._tokens.of(number, at_start=self._at_start)
        self._at_start = self._at_start and number in self._tokens.vanishing
        self._joined += piece
        self._ends.append(len(self._joined))
        if self._raw:
            return
        try:
            self._decoder.decode(piece)
        except UnicodeDecodeError:
            self.plain = False

    def text(self, count: int) -> bytes:
        """Return the bytes of the first `count` tokens, while it is plain."""
        return bytes(self._joined[:self._ends[count - 1]]) if count else b""

    def whole(self) -> bool:
        """Whether the text is plain even if nothing follows."""
        return self.plain and not self._decoder.getstate()[0]


class Speller:
    """Spells the continuations of one version.

    Args:
        servable: runs `decode`.
        tokens: the bytes of every id; None where the version has none.
        raw: its codec gives bytes as they are, characters or not.
    """

    def __init__(self, servable: Servable, tokens: TokenBytes | None, *, raw: bool = False) -> None:
        self._servable, self.tokens, self._raw = servable, tokens, raw
        self._pieces: dict[int, bytes] = {}

    def start(self, prompt: np.ndarray) -> Spelling:
        """Return the spelling of a prompt's continuation, which is empty."""
        return Spelling(prompt, self.tokens, raw=self._raw)

    def texts(self, wanted: Sequence[tuple[Spelling, int]]) -> list[bytes]:
        """Decode continuations.

        Args:
            wanted: spellings, and how many ids of each.

        Returns:
            their texts.
        """
        new = [spelling for spelling, _ in wanted if spelling.before is None]
        if new:
            for spelling, text in zip(new, self._decode([one.prompt for one in new])):
                spelling.before = text
        wholes = self._decode([np.concatenate([spelling.prompt, _array(spelling.ids[:count])])
                               for spelling, count in wanted])
        texts = [whole[len(spelling.before or b""):] if whole.startswith(spelling.before or b"")
                 else None for whole, (spelling, _) in zip(wholes, wanted)]
        alone = [place for place, text in enumerate(texts) if text is None]
        if alone:
            ids = [_array(wanted[place][0].ids[:wanted[place][1]]) for place in alone]
            for place, text in zip(alone, self._decode(ids)):
                texts[place] = text
        return [text or b"" for text in texts]

    def pieces(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Return the bytes of tokens, each alone; at most as many are kept as there are tokens."""
        if self.tokens is not None:
            return {number: self.tokens.of(number) for number in numbers}
        new = sorted({number for number in numbers if number not in self._pieces})
        if new:
            self._pieces.update(zip(new, self._decode([_array([number]) for number in new])))
        return {number: self._pieces[number] for number in numbers}

    def _decode(self, rows: Sequence[np.ndarray]) -> list[bytes]:
        lengths = np.asarray([len(row) for row in rows], np.int32)
        ids = np.zeros((len(rows), max(1, int(lengths.max()))), np.int32)
        for place, row in enumerate(rows):
            ids[place, :len(row)] = row
        out = self._servable.run(DECODE, {"ids": ids, "length": lengths}, outputs=("text",),
                                 timeout_s=None)
        return [bytes(text) for text in out["text"]]


def _array(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, np.int32)
