"""What tests of `wire` share: bytes that have come to harm on their way."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


def damaged(data: st.DataObject, whole: bytes, others: Sequence[int]) -> bytes:
    """Return bytes with one to three places set, cut out, or put in, or the end left out.

    Args:
        data: decides.
        whole: what was sent.
        others: bytes that are put in.
    """
    found = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(found) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "insert", "end"]))
        byte = data.draw(st.sampled_from(others))
        if how == "set":
            found[place] = byte
        elif how == "insert":
            found.insert(place, byte)
        else:
            del found[place:place + 1 if how == "cut" else None]
        if not found:
            break
    return bytes(found)
