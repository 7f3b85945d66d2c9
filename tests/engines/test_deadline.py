"""How long a caller of an engine waits: its lock is taken in time, or never."""

from __future__ import annotations

import threading
import time

import pytest

from tf_infer.engines.deadline import Deadline
from tf_infer.errors import DeadlineExceeded


def test_a_free_lock_is_taken_however_long_one_would_wait() -> None:
    for timeout_s in (None, 60.0, 1e12):
        lock, deadline = threading.Lock(), Deadline(timeout_s)
        deadline.acquire(lock)
        deadline.check()
        assert lock.locked()
        left_s = deadline.left_s()
        assert left_s is None if timeout_s is None else left_s is not None and left_s <= timeout_s


def test_a_lock_that_others_hold_is_given_up_in_time_and_not_held() -> None:
    lock = threading.Lock()
    with lock:
        began_s = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="expected its turn before the deadline"):
            Deadline(0.02).acquire(lock)
        assert 0.02 <= time.monotonic() - began_s < 5.0
    assert not lock.locked()


def test_after_its_time_even_a_free_lock_is_left_alone() -> None:
    lock = threading.Lock()
    for timeout_s in (0.0, -1.0):
        with pytest.raises(DeadlineExceeded):
            Deadline(timeout_s).acquire(lock)
        with pytest.raises(DeadlineExceeded):
            Deadline(timeout_s).check()
    assert not lock.locked()
