"""Expressions of ranges of decimal numbers, against Python's own arithmetic."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tf_infer.constraints.decimals import Bound, decimal_range

DECIMALS = st.decimals(min_value=-2000, max_value=2000, places=3)
EDGES = st.sampled_from(["0", "1", "-1", "0.5", "9.99", "10", "-0.25", "100", "0.001"])
VALUES = st.one_of(DECIMALS, EDGES.map(Decimal))


def within(value: float, low: Bound | None, high: Bound | None) -> bool:
    """Compare as a JSON validator does: in doubles."""
    above = low is None or (value > float(low.value) if low.open else value >= float(low.value))
    return above and (high is None or (
        value < float(high.value) if high.open else value <= float(high.value)))


@given(low=st.one_of(st.none(), st.builds(Bound, VALUES, st.booleans())),
       high=st.one_of(st.none(), st.builds(Bound, VALUES, st.booleans())), probe=VALUES,
       nudge=st.sampled_from(["0", "0.001", "-0.001", "0.00000001", "-0.00000001"]))
@example(Bound(Decimal(5)), Bound(Decimal(5), open=True), Decimal(5), "0")
@example(Bound(Decimal(0), open=True), Bound(Decimal(1), open=True), Decimal(0), "0.00000001")
@example(Bound(Decimal("-0.5")), Bound(Decimal(0), open=True), Decimal(0), "-0.00000001")
def test_a_range_holds_its_numbers_and_no_other(low: Bound | None, high: Bound | None,
                                                probe: Decimal, nudge: str) -> None:
    near = [one.value for one in (low, high) if one is not None]
    probes = [value + Decimal(nudge) for value in (probe, *near)]
    try:
        expression = decimal_range(low, high)
    except ValueError:
        assert low is not None and high is not None
        assert low.value > high.value or (low.value == high.value and (low.open or high.open))
        return
    for value in probes:
        text = f"{value:f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        text = "0" if text in ("-0", "") else text
        assert bool(re.fullmatch(expression, text)) == within(float(text), low, high), text


@pytest.mark.parametrize(("low", "high", "good", "bad"), [
    (Bound(Decimal(0)), Bound(Decimal(1)), ["0", "0.0", "1", "1.0", "0.123456789"],
     ["1.01", "-0.1", "01", ".5", "1.", "1e-1", "00.5"]),
    (Bound(Decimal(5), open=True), None, ["5.0000001", "6", "123456789012345", "17.25"],
     ["5", "5.0", "4.9", "1234567890123456"]),
    (None, Bound(Decimal("99.5")), ["99.5", "99.50", "-99999", "99.49999", "0"],
     ["99.51", "100", "99.6"]),
])
def test_written_forms(low: Bound | None, high: Bound | None, good: list[str],
                       bad: list[str]) -> None:
    expression = decimal_range(low, high)
    assert all(re.fullmatch(expression, text) for text in good)
    assert not any(re.fullmatch(expression, text) for text in bad)


@given(st.integers(1, 10**14), st.booleans())
def test_no_number_is_rounded_onto_an_open_bound(bound: int, above: bool) -> None:
    expression = decimal_range(Bound(Decimal(bound), open=True) if above else None,
                               None if above else Bound(Decimal(bound), open=True))
    places = 15 - len(str(bound))
    if places < 1:
        return
    text = f"{bound}.{'0' * (places - 1)}1" if above else f"{bound - 1}.{'9' * places}"
    assert re.fullmatch(expression, text) and float(text) != bound
    longer = f"{bound}.{'0' * places}1" if above else f"{bound - 1}.{'9' * (places + 1)}"
    assert not re.fullmatch(expression, longer)


@pytest.mark.parametrize(("low", "high"), [
    (Bound(Decimal(1)), Bound(Decimal(0))), (Bound(Decimal(1), open=True), Bound(Decimal(1))),
    (Bound(Decimal(10**15)), None),
    (Bound(Decimal("0.1234567890123456")), None)])
def test_what_holds_no_number_or_too_many_digits_is_refused(low: Bound, high: Bound | None) -> None:
    with pytest.raises(ValueError, match="expected"):
        decimal_range(low, high)
