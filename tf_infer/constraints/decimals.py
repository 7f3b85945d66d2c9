"""The expression of the decimal numbers from one to another, in as many digits as doubles keep."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from tf_infer.constraints.integers import integer_range

DIGITS = 15  # significant ones of a decimal number that a double tells apart from all others
MAX_WHOLE = 10**DIGITS - 1


class Bound(NamedTuple):
    """One end of a range; `open` leaves `value` itself out."""

    value: Decimal
    open: bool = False


class _Fraction(NamedTuple):
    """Digits behind the point: the expression of those that are not empty, if any; and whether none
    at all is among them.
    """

    some: str | None
    none: bool


def decimal_range(low: Bound | None, high: Bound | None) -> str:
    """Return the expression of the numbers between two, without exponent or leading zeros.

    A number has at most DIGITS digits in front of the point. Behind it so many that no number is
    rounded onto a bound as a double, which is how JSON is read.

    Args:
        low, high: None where there is none, or none that so few digits reach.

    Raises:
        ValueError: there is no such number, or a bound has more than DIGITS significant digits.
    """
    low = None if low and low.value < -MAX_WHOLE else low
    high = None if high and high.value > MAX_WHOLE else high
    bounds = [one.value for one in (low, high) if one is not None]
    places = DIGITS - max((len(str(int(abs(value)))) for value in bounds), default=0)
    if any(abs(value) > MAX_WHOLE or len(_digits(value)) > places for value in bounds):
        raise ValueError(f"expected bounds of at most {DIGITS} digits")
    if low and high and (low.value > high.value or (
            low.value == high.value and (low.open or high.open))):
        raise ValueError("expected a range that holds a number")
    edge = Bound(Decimal(MAX_WHOLE + 1), open=True)
    zero = Bound(Decimal(0))
    low, high = low or Bound(-edge.value, open=True), high or edge
    options = []
    if low.value < 0:  # "-0" is zero
        nearest = Bound(-high.value, high.open) if high.value <= 0 else zero
        options += [f"-{one}" for one in _between(nearest, Bound(-low.value, low.open), places)]
    if high.value >= 0:
        options += _between(low if low.value >= 0 else zero, high, places)
    return "(?:" + "|".join(options) + ")"


def _between(low: Bound, high: Bound, places: int) -> list[str]:
    """Return the expressions of the numbers from low >= 0 to high."""
    first, last = int(low.value), int(high.value)
    if first == last:
        return _number(str(first), _fraction(_digits(low.value), _digits(high.value), low.open,
                                             high.open, places))
    found = _number(str(first), _fraction(_digits(low.value), None, low.open, False, places))
    if last > first + 1:
        found += _number(integer_range(first + 1, last - 1), _Fraction(_any(1, places), True))
    return found + _number(str(last), _fraction("", _digits(high.value), False, high.open, places))


def _number(whole: str, fraction: _Fraction) -> list[str]:
    if fraction.some is None:
        return [whole] if fraction.none else []
    behind = rf"\.{fraction.some}"
    return [f"{whole}(?:{behind})?" if fraction.none else whole + behind]


def _digits(value: Decimal) -> str:
    """Return the digits behind the point, without zeros at the end."""
    return f"{abs(value):f}".partition(".")[2].rstrip("0")


def _any(least: int, most: int) -> str | None:
    return f"[0-9]{{{least},{most}}}" if most >= least else None


def _fraction(low: str, high: str | None, low_open: bool, high_open: bool, places: int
              ) -> _Fraction:
    """Return the digits s with 0.low <= 0.s <= 0.high, at most `places`; None is no upper end."""
    none = not low and not low_open and (high is None or bool(high) or not high_open)
    if places < 1:
        return _Fraction(None, none)
    if not low and not low_open and high is None:
        return _Fraction(_any(1, places), none)
    if high == "" and (high_open or low):
        return _Fraction(None, none)
    if not low and high is None:  # above zero
        return _Fraction("(?:" + "|".join(
            "0" * zeros + "[1-9]" + (_any(0, places - zeros - 1) or "")
            for zeros in range(places)) + ")", none)
    first, last = int(low[:1] or 0), 9 if high is None else int(high[:1] or 0)
    options = []
    for digit in range(first, last + 1):
        rest = _fraction(low[1:] if digit == first else "",
                         None if high is None or digit < last else high[1:],
                         low_open and digit == first, high_open and digit == last, places - 1)
        if rest.some is not None:
            options.append(f"{digit}(?:{rest.some})" + "?" * rest.none)
        elif rest.none:
            options.append(str(digit))
    return _Fraction("(?:" + "|".join(options) + ")" if options else None, none)
