"""The expression of the whole numbers from one to another, in decimal."""

from __future__ import annotations


def integer_range(low: int, high: int) -> str:
    """Return the expression of the numbers `low` to `high`, without leading zeros or "-0"."""
    options = []
    if low < 0:
        options += [f"-{part}" for part in _parts(max(1, -high), -low)]
    if high >= 0:
        options += _parts(max(0, low), high)
    return "(?:" + "|".join(options) + ")"


def _parts(low: int, high: int) -> list[str]:
    """Cut 0 <= low <= high into ranges of numbers of one length."""
    found = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        begin = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        found.append(_same_length(str(begin), str(min(high, 10**digits - 1))))
    return found


def _same_length(low: str, high: str) -> str:
    """Return the expression of the numbers between two of as many digits."""
    if low == high:
        return low
    size = len(low)
    if set(low) == {"0"} and set(high) == {"9"}:
        return f"[0-9]{{{size}}}"
    first, last = int(low[0]), int(high[0])
    if size == 1:
        return f"[{first}-{last}]"
    if first == last:
        return low[0] + _same_length(low[1:], high[1:])
    options = []
    if set(low[1:]) != {"0"}:
        options.append(low[0] + _same_length(low[1:], "9" * (size - 1)))
        first += 1
    if set(high[1:]) != {"9"}:
        options.append(high[0] + _same_length("0" * (size - 1), high[1:]))
        last -= 1
    if first <= last:
        options.append(f"[{first}-{last}][0-9]{{{size - 1}}}")
    return "(?:" + "|".join(options) + ")"
