"""Small vocabularies for tests of constraints; no TensorFlow."""

from __future__ import annotations

from tf_infer.constraints.compose import Vocabulary
from tf_infer.token_bytes import TokenBytes

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b"ab", b"abc", b"b1", b'":', b'{"', b'"}', b" a", b"  ", b"true", b"fal", b"\xc3\xa9",
         b"a\xc3", b"\xe4\xb8", b"2026", b"-", b"1", b'","', b", ", b'\\"', b"null"]


def vocabulary(tokens: list[bytes], *, first: list[bytes] | None = None,
               vanishing: frozenset[int] = frozenset(), size: int | None = None) -> Vocabulary:
    """Return a vocabulary of pad 0, end 1, and the tokens; `first` as of TokenBytes."""
    every = (b"", b"", *tokens)
    table = TokenBytes(tokens=every, first=every if first is None else (b"", b"", *first),
                       vanishing=vanishing)
    return Vocabulary(table, len(every) if size is None else size, (1,))


def full() -> Vocabulary:
    """Return every byte and some longer tokens."""
    return vocabulary(BYTES + WORDS)
