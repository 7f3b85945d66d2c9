"""What may be said of a text that still grows: whole characters, nothing of a stop string. Pure.

The pieces that `Speech.hear` returns, joined, are the text that it was given last, cut before the
stop string that was whole first. Bytes that are no UTF-8 pass as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

REPLACEMENT = "�".encode()
UNSETTLED = 3  # bytes that one character may still lack the rest of, each shown as U+FFFD meanwhile


def settled(text: bytes) -> int:
    """Return how many bytes of a text stay as they are, however it goes on.

    A character whose first bytes alone are there is not settled, nor are the last U+FFFD: a codec
    shows them for such bytes.
    """
    end = len(text)
    for _ in range(UNSETTLED):
        if not text.endswith(REPLACEMENT, 0, end):
            break
        end -= len(REPLACEMENT)
    for back in range(1, min(UNSETTLED, end) + 1):
        byte = text[end - back]
        if byte & 0xC0 != 0x80:  # the first of a character, of `size` bytes
            size = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else (
                4 if byte & 0xF8 == 0xF0 else 1)
            return end - back if size > back else end
    return end


def first_stop(text: bytes, stops: Sequence[bytes], start: int, end: int) -> int | None:
    """Return where the stop string begins that is whole first in text[start:end]; None for none.

    Of several that end together it is the longest, as in the graph (decoding/stops.py).
    """
    found = [(place + len(stop), place) for stop in stops
             if (place := text.find(stop, start, end)) >= 0]
    return min(found)[1] if found else None


def withheld(text: bytes, stops: Sequence[bytes], start: int, end: int) -> int:
    """Return how many bytes at the end of text[start:end] may become part of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for size in range(min(longest, end - start), 0, -1):
        tail = text[end - size:end]
        if any(stop.startswith(tail) for stop in stops):
            return size
    return 0


class Speech:
    """One text on its way.

    Args:
        stops: strings that end it, none of them empty.

    Attributes:
        stopped: whether one has.
    """

    def __init__(self, stops: Sequence[bytes] = ()) -> None:
        self._stops = tuple(stops)
        self._said = 0
        self.stopped = False

    def hear(self, text: bytes, *, final: bool = False) -> bytes:
        """Return what is to be said now.

        Args:
            text: all of it so far; what was settled before is settled.
            final: it does not go on.
        """
        if self.stopped:
            return b""
        end = len(text) if final else max(self._said, settled(text))
        stop = first_stop(text, self._stops, self._said, end)
        if stop is not None:
            self.stopped, end = True, stop
        elif not final:
            end -= withheld(text, self._stops, self._said, end)
        said, self._said = text[self._said:end], max(self._said, end)
        return said
