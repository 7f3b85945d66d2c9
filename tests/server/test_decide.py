"""Which version is loaded and unloaded: decisions over names and states."""

from __future__ import annotations

import pytest

from tf_infer.server.config import VersionPolicy
from tf_infer.server.decide import Actions, Seen, State, aspired, plan, start_outcome, versions_in

UP, BUSY, DOWN = Seen(State.AVAILABLE), Seen(State.LOADING), Seen(State.END)
FAILED = Seen(State.END, tried=True)
LEAVING = Seen(State.UNLOADING)
AGAIN = Seen(State.LOADING, failing=True)


def test_VR01_VR02_only_decimal_names_are_versions() -> None:
    names = ["1", "00000123", "abc", "1a", "tmp-2", ".3", "-4", "5.", "٣", "", "0"]
    assert versions_in(names) == {1: "1", 123: "00000123", 0: "0"}


def test_VR04_of_two_names_for_one_number_the_lexically_last_counts() -> None:
    assert versions_in(["7", "007", "07"]) == {7: "7"}


def test_VR21_numbers_beyond_int64_are_no_versions() -> None:
    assert versions_in([str(2**63 - 1), str(2**63)]) == {2**63 - 1: str(2**63 - 1)}


@pytest.mark.parametrize(("policy", "expected"), [
    (VersionPolicy(), (9,)),                                            # CF06
    (VersionPolicy(count=2), (4, 9)),                                   # CF07
    (VersionPolicy(count=0), (9,)),                                     # CF07
    (VersionPolicy(count=5), (1, 4, 9)),                                # CF07
    (VersionPolicy(kind="all"), (1, 4, 9)),                             # CF08
    (VersionPolicy(kind="specific", versions=(4, 7)), (4,)),            # CF09
    (VersionPolicy(kind="specific"), ()),                               # CF10
])
def test_CF06_to_CF10_policies(policy: VersionPolicy, expected: tuple[int, ...]) -> None:
    assert aspired(policy, {9, 1, 4}) == expected
    assert aspired(policy, set()) == ()


@pytest.mark.parametrize(("case", "wanted", "seen", "expected"), [
    ("first", {1}, {}, Actions(load=(1,))),
    ("VR14 highest is loaded first", {1, 3, 2}, {}, Actions(load=(3, 2, 1))),
    ("VR06 the old one stays while the new one loads", {2}, {1: UP, 2: BUSY}, Actions()),
    ("VR06 and goes when it is there", {2}, {1: UP, 2: UP}, Actions(unload=(1,))),
    ("VR11 a failed new one leaves the old one", {2}, {1: UP, 2: FAILED}, Actions()),
    ("VR12 no new try while it stays", {2}, {2: FAILED}, Actions()),
    ("VR12 removing it forgives", {1}, {1: UP, 2: FAILED}, Actions(forgive=(2,))),
    ("VR12 then it is tried again", {2}, {1: UP, 2: DOWN}, Actions(load=(2,))),
    ("VR08 the highest was removed", {1}, {2: UP}, Actions(load=(1,))),
    ("VR09 all removed", set(), {2: UP, 1: DOWN}, Actions(unload=(2,))),
    ("VR14 lowest is unloaded first", {9}, {3: UP, 1: UP, 9: UP}, Actions(unload=(1, 3))),
    ("while it is being unloaded nothing happens", {1}, {1: LEAVING}, Actions()),
    ("a version that comes back is loaded again", {1}, {1: DOWN}, Actions(load=(1,))),
])
def test_plan(case: str, wanted: set[int], seen: dict[int, Seen], expected: Actions) -> None:
    assert plan(wanted, seen) == expected, case


@pytest.mark.parametrize(("wanted", "seen", "expected"), [
    (set(), {}, None),
    ({1}, {}, None),
    ({1}, {1: BUSY}, None),
    ({1, 2}, {1: FAILED, 2: BUSY}, None),
    ({1}, {1: FAILED}, False),
    ({1, 2}, {1: FAILED, 2: UP}, True),
    ({2}, {1: DOWN, 2: FAILED}, False),  # the model was served, taken away, and is back
    ({2}, {1: LEAVING, 2: BUSY}, None),
    ({2}, {1: FAILED}, None),
    ({1, 2}, {1: UP, 2: BUSY}, None),
    ({1, 2}, {1: UP}, None),
    ({1, 2}, {1: UP, 2: AGAIN}, True),
    ({1, 2}, {1: UP, 2: UP, 3: BUSY}, True),
    ({1, 2}, {1: BUSY, 2: AGAIN}, None),
])
def test_FL27_FL30_what_the_start_waits_for(
        wanted: set[int], seen: dict[int, Seen], expected: bool | None) -> None:
    assert start_outcome(wanted, seen) is expected
