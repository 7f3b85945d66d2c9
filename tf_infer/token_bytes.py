"""What each id of a vocabulary adds to a text, in bytes. Needs no TensorFlow.

Every codec decodes by joining what its ids stand for; only the first id of a text that shows at all
may lose its space (SentencePiece, WordPiece). So two tables say all, and a server that holds them
needs no graph to tell the text of a token. Decoders carry them in `assets.extra/tokens.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tf_infer.errors import ExportError

TOKENS_FILE = "tokens.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBytes:
    """The bytes of every id.

    The bytes of ids joined are their text, but that a codec other than the bytes codec puts U+FFFD
    for bytes that are no UTF-8. A token may end inside a character.

    Attributes:
        tokens: [V], what an id adds behind others; b"" of ids that `decode` drops.
        first: [V], what it adds where only vanishing ids, or none, stand before it; the same tuple
            where the codec makes no difference.
        vanishing: ids after which the next one is still the first.
    """

    tokens: tuple[bytes, ...]
    first: tuple[bytes, ...]
    vanishing: frozenset[int]

    def at_start(self, ids: Iterable[int]) -> bool:
        """Return whether the id behind `ids` (a prompt, say) adds what `first` says."""
        return all(self._vanishes(number) for number in ids)

    def of(self, number: int, *, at_start: bool = False) -> bytes:
        """Return what an id adds; b"" of one that is out of range."""
        if not 0 <= number < len(self.tokens):
            return b""
        return (self.first if at_start else self.tokens)[number]

    def join(self, ids: Iterable[int], *, at_start: bool = True) -> bytes:
        """Return the bytes of a text, or of one that goes on from another."""
        found = []
        for number in ids:
            found.append(self.of(number, at_start=at_start))
            at_start = at_start and self._vanishes(number)
        return b"".join(found)

    def _vanishes(self, number: int) -> bool:
        return number in self.vanishing or not 0 <= number < len(self.tokens)

    def write(self, path: Path) -> None:
        """Write `tokens.json`: each byte as the character of that number."""
        same = self.first == self.tokens
        data = {"tokens": _to_text(self.tokens), "first": None if same else _to_text(self.first),
                "vanishing": sorted(self.vanishing)}
        Path(path).write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")


def read(path: Path) -> TokenBytes:
    """Read `tokens.json`.

    Raises:
        ExportError: it is missing, or is not what `TokenBytes.write` writes.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        tokens = _to_bytes(data["tokens"])
        first = tokens if data["first"] is None else _to_bytes(data["first"])
        if len(first) != len(tokens):
            raise ValueError("two lengths")
        return TokenBytes(tokens=tokens, first=first,
                          vanishing=frozenset(int(number) for number in data["vanishing"]))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}. Export the model again."
                          ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{path}: expected the bytes of every token, got something else. "
                          "Export the model again.") from error


def _to_text(tokens: Iterable[bytes]) -> list[str]:
    return [token.decode("latin-1") for token in tokens]


def _to_bytes(texts: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(text.encode("latin-1") for text in texts)
