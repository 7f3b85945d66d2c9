"""How many CPUs this process may use: its affinity, and the quota of its container.

`os.cpu_count` is the machine's. A container that may use two CPUs of 64 would get 64 threads that
fight for two, and be stopped by the kernel for most of each period. Linux tells a quota per cgroup:
version 2 in `cpu.max`, version 1 in `cpu.cfs_quota_us` and `cpu.cfs_period_us`; a process obeys
that of its own group and of every group above it.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
LEAST_PRIORITY = 19  # the highest niceness
REST = 5.0  # of the processor time of what was done behind others
MOST_REST_S = 1.0  # at once, however long that took


def affinity() -> int:
    """Return how many CPUs the process may run on, whatever its quota."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable(*, root: Path = CGROUPS, own: Path = OWN_GROUPS, cpus: int | None = None) -> int:
    """Return how many CPUs the process may use, >= 1: a part of one counts as one.

    Args:
        root: where cgroups are mounted.
        own: the file that names the process's groups.
        cpus: those it may run on; None asks.
    """
    cpus = affinity() if cpus is None else cpus
    return min([cpus, *(math.ceil(quota) for quota in quotas(root, own))])


def limit(*, root: Path = CGROUPS, own: Path = OWN_GROUPS, cpus: int | None = None) -> int:
    """Return `usable` where a quota makes it less than the affinity says, else 0.

    Libraries that choose their threads by affinity, as TensorFlow does, need no other number.
    """
    cpus = affinity() if cpus is None else cpus
    found = usable(root=root, own=own, cpus=cpus)
    return found if found < cpus else 0


def give_way(nicer: int = 10) -> None:
    """Let the process's other threads go before this one from now on; there is no way back.

    A thread that it starts afterwards begins like it. Does nothing where threads have no priority
    of their own, or a sandbox forbids to set it.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, min(
                LEAST_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread) + nicer))


class Behind:
    """Does what it is given in a thread of its own that gives way; for what holds no lock.

    Whoever holds Python's lock must not: others wait for it, the longer the less it gets to run.
    So that thread runs next to nothing in Python, not even an executor's few lines. Behind each
    piece of work comes a rest, if somebody has asked since the last one: what waits is answered,
    and of many callers few meet the work.

    Args:
        asked: how many calls there have been so far.
    """

    def __init__(self, asked: Callable[[], int] = lambda: 0) -> None:
        self._calls, self._known = asked, asked()
        self._asked: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tf-infer-behind", daemon=True)
        self._thread.start()

    def __call__(self, act: Callable[[], T]) -> T:
        """Return what `act` returns, or raise what it raises; not after `close`."""
        job = _Job(act)
        with SHORT_TURNS.left():
            self._asked.put(job)
            job.done.acquire()
        self.rest(job.took_s)
        return job.result()

    def rest(self, took_s: float) -> None:
        """Leave the processors to others for a while, after so much processor time of work."""
        known, self._known = self._known, self._calls()
        if known != self._known:
            with SHORT_TURNS.left():
                time.sleep(min(MOST_REST_S, REST * took_s))

    def _work(self) -> None:
        give_way()
        while (job := self._asked.get()) is not None:
            job()
            del job  # and with it what it holds, until the next one comes

    def close(self) -> None:
        """End the thread."""
        self._asked.put(None)
        self._thread.join()


class _Job(Generic[T]):
    """What a thread is asked to do; `done` can be had when it is, and `took_s` of its time."""

    __slots__ = ("_act", "_error", "_found", "done", "took_s")

    def __init__(self, act: Callable[[], T]) -> None:
        self.done = threading.Lock()
        self.done.acquire()
        self._act = act
        self._error: BaseException | None = None

    def __call__(self) -> None:
        began_s = time.thread_time()
        try:
            self._found = self._act()
        except BaseException as error:
            self._error = error
        self.took_s = time.thread_time() - began_s
        self.done.release()

    def result(self) -> T:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._found
        finally:
            del error  # whose traceback has this frame


class ShortTurns:
    """While any thread is inside, Python's threads change places often.

    A thread that asks for the interpreter lock waits for one turn of the thread that holds it, 5 ms
    by default, and an answer asks several times. The length of a turn is the whole process's.
    """

    def __init__(self, seconds: float = 0.0005) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._inside = 0
        self._usual = 0.0
        self._own = threading.local()

    def __enter__(self) -> None:
        self._own.depth = self._depth() + 1
        self._add(1)

    def __exit__(self, *error: object) -> None:
        self._own.depth = self._depth() - 1
        self._add(-1)

    @contextmanager
    def left(self) -> Iterator[None]:
        """Let this thread be outside for a while, if it is inside.

        For whoever waits: where turns are short, a thread of low priority that asks for the lock is
        given it at once, and all wait until it has a CPU.
        """
        depth, self._own.depth = self._depth(), 0
        self._add(-depth)
        try:
            yield
        finally:
            self._add(depth)
            self._own.depth = depth

    def _depth(self) -> int:
        """Return how often this thread has come in."""
        return getattr(self._own, "depth", 0)

    def _add(self, number: int) -> None:
        with self._lock:
            before, self._inside = self._inside, self._inside + number
            if self._inside and not before:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(self._seconds)
            elif before and not self._inside:
                sys.setswitchinterval(self._usual)


SHORT_TURNS = ShortTurns()  # of all loads


def quotas(root: Path, own: Path) -> Iterator[float]:
    """Yield every quota in CPUs that holds for the process."""
    for folder in _folders(root, _lines(own)):
        quota = _version_2(folder) or _version_1(folder)
        if quota:
            yield quota


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []


def _folders(root: Path, groups: Iterable[str]) -> Iterator[Path]:
    """Yield the folder of each of the process's groups, and of each group above it.

    A container sees its own group as the root of the mount, whatever path `groups` names; the
    folders that do not exist are read as having no quota.
    """
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounts = [controllers, "cpu"] if "cpu" in controllers.split(",") else (
            ["", "unified"] if not controllers else [])
        group = PurePosixPath(path.lstrip("/"))
        for mount in dict.fromkeys(mounts):
            for name in (group, *group.parents):
                yield root / mount / name


def _version_2(folder: Path) -> float:
    words = " ".join(_lines(folder / "cpu.max")).split()
    return _share(*words) if len(words) == 2 else 0.0


def _version_1(folder: Path) -> float:
    quota, period = (" ".join(_lines(folder / f"cpu.cfs_{name}_us"))
                     for name in ("quota", "period"))
    return _share(quota, period)


def _share(quota: str, period: str) -> float:
    """Return quota / period; 0.0 for "max", -1 and what is no number: no limit."""
    try:
        return max(0.0, int(quota) / int(period))
    except (ValueError, ZeroDivisionError):
        return 0.0
