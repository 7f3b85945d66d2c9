"""How many CPUs a process may use, read from folders like /sys/fs/cgroup; who of it goes first."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tf_infer.server import cpus

V2 = "0::/"
DEEP_V2 = "0::/kubepods/burstable/pod7/abc"
V1 = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/system.slice"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(("groups", "files", "expected"), [
    pytest.param(V2, {}, 16, id="no quota anywhere"),
    pytest.param("", {"cpu.max": "200000 100000"}, 16, id="the process names no group"),
    pytest.param(V2, {"cpu.max": "200000 100000\n"}, 2, id="v2, in the container's root"),
    pytest.param(V2, {"cpu.max": "max 100000\n"}, 16, id="v2 without a limit"),
    pytest.param(V2, {"cpu.max": "150000 100000"}, 2, id="a part of one counts as one"),
    pytest.param(V2, {"cpu.max": "10000 100000"}, 1, id="less than one is one"),
    pytest.param(V2, {"cpu.max": "6400000 100000"}, 16, id="more than there are"),
    pytest.param(DEEP_V2, {"kubepods/burstable/pod7/abc/cpu.max": "max 100000",
                           "kubepods/burstable/pod7/cpu.max": "300000 100000",
                           "kubepods/cpu.max": "1200000 100000"}, 3, id="a group above limits"),
    pytest.param(DEEP_V2, {"cpu.max": "400000 100000"}, 4, id="a path of the host's"),
    pytest.param(V2, {"unified/cpu.max": "500000 100000"}, 5, id="v2 beside v1"),
    pytest.param(V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000",
                      "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 3, id="v1"),
    pytest.param(V1, {"cpu/cpu.cfs_quota_us": "700000\n",
                      "cpu/cpu.cfs_period_us": "100000\n"}, 7, id="v1, in the container's root"),
    pytest.param(V1, {"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1",
                      "cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000"}, 16,
                 id="v1 without a limit"),
    pytest.param(V1, {"memory/docker/abc/cpu.max": "100000 100000"}, 16, id="another controller"),
    pytest.param(V2, {"cpu.max": "nonsense"}, 16, id="no numbers"),
    pytest.param(V2, {"cpu.max": "100000 0"}, 16, id="no period"),
])
def test_the_smallest_of_affinity_and_quotas(
        tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    root, own = write(tmp_path / "cgroup", files), tmp_path / "own"
    own.write_text(groups, encoding="utf-8")
    assert cpus.usable(root=root, own=own, cpus=16) == expected
    assert cpus.limit(root=root, own=own, cpus=16) == (expected if expected < 16 else 0)


def test_a_system_without_cgroups_has_the_affinity(tmp_path: Path) -> None:
    assert cpus.usable(root=tmp_path / "no", own=tmp_path / "nor this") == cpus.affinity() >= 1
    assert cpus.limit(root=tmp_path / "no", own=tmp_path / "nor this") == 0


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how long is slept, in a process where whatever is done takes 0.1 s of a processor."""
    slept: list[float] = []
    clock = itertools.count()
    monkeypatch.setattr(cpus, "time", SimpleNamespace(
        thread_time=lambda: 0.1 * next(clock), sleep=slept.append))
    return slept


def behind(asked: Callable[[], int], *acts: Callable[[], object]) -> list[object]:
    """Return what the acts gave, done behind others one by one."""
    doer = cpus.Behind(asked)
    try:
        return [doer(act) for act in acts]
    finally:
        doer.close()


def test_what_is_done_behind_others_is_done_in_one_other_thread_and_gives_what_it_gives() -> None:
    def fails() -> None:
        raise KeyError("here")

    before = threading.active_count()
    threads = behind(lambda: 0, threading.get_ident, threading.get_ident)
    assert threads[0] == threads[1] != threading.get_ident()
    with pytest.raises(KeyError, match="here"):
        behind(lambda: 0, fails)
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_other_thread_gives_way_to_this_one_whatever_the_priority_of_this_one() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    usual = niceness()
    assert behind(lambda: 0, niceness) == [min(19, usual + 10)]
    assert niceness() == usual


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_where_no_priority_may_be_set_a_thread_keeps_its_own_and_goes_on(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_arguments: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "setpriority", forbidden)
    cpus.give_way()
    assert behind(lambda: 0, lambda: "done") == ["done"]


def test_while_others_ask_each_piece_of_work_is_followed_by_a_rest_in_its_measure(
        rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "MOST_REST_S", 10.0)
    behind(itertools.count().__next__, *[list] * 3)
    assert rests == [pytest.approx(0.1 * cpus.REST)] * 3
    monkeypatch.setattr(cpus, "MOST_REST_S", 0.25)
    behind(itertools.count().__next__, list)
    assert rests[3:] == [0.25]


def test_where_nobody_asks_there_is_no_rest(rests: list[float]) -> None:
    behind(lambda: 7, *[list] * 3)
    assert rests == []
    calls = iter([0, 0, 1, 1])  # one call, while the second of three is done
    behind(calls.__next__, *[list] * 3)
    assert len(rests) == 1


def test_while_a_version_is_loaded_gently_python_threads_change_places_often() -> None:
    usual, turns = sys.getswitchinterval(), cpus.ShortTurns(0.001)
    with turns:
        with turns:
            assert sys.getswitchinterval() == pytest.approx(0.001)
        assert sys.getswitchinterval() == pytest.approx(0.001)
    assert sys.getswitchinterval() == usual


def test_turns_are_as_usual_while_all_who_want_them_short_wait() -> None:
    usual, turns = sys.getswitchinterval(), cpus.ShortTurns(0.001)

    def wait() -> list[float]:
        found = []
        with turns.left():
            found.append(sys.getswitchinterval())
            with turns.left():
                found.append(sys.getswitchinterval())
            found.append(sys.getswitchinterval())
        return [*found, sys.getswitchinterval()]

    assert wait() == [usual] * 4
    with turns, turns:
        assert wait() == [usual] * 3 + [pytest.approx(0.001)]
        with ThreadPoolExecutor(1) as other:  # who is not inside leaves nothing
            assert other.submit(wait).result() == [pytest.approx(0.001)] * 4
            other.submit(turns.__enter__).result()
            assert wait() == [pytest.approx(0.001)] * 4
            assert other.submit(wait).result() == [pytest.approx(0.001)] * 4
            other.submit(turns.__exit__).result()
        assert wait() == [usual] * 3 + [pytest.approx(0.001)]
    assert sys.getswitchinterval() == usual


def test_who_waits_for_what_is_done_behind_others_wants_no_short_turns(
        rests: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    usual, resting = sys.getswitchinterval(), list[float]()
    monkeypatch.setattr(cpus.time, "sleep", lambda _: resting.append(sys.getswitchinterval()))
    with cpus.SHORT_TURNS:
        assert behind(itertools.count().__next__, sys.getswitchinterval) == [usual]
        assert sys.getswitchinterval() < usual
    assert resting == [usual]
