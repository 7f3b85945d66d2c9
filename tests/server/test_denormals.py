"""Denormal numbers in a thread that computes for TensorFlow. Needs no TensorFlow."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tf_infer.server import denormals
from tf_infer.server.denormals import flushed

TINY, ONE = float("1e-310"), float("1")

known = pytest.mark.skipif(not denormals.KNOWN, reason="another C library or processor")


def is_zero() -> bool:
    """Whether this thread takes denormal numbers for zero, in Python and in NumPy."""
    python, array = TINY * ONE == 0.0, (np.float32([1e-40] * 9) * np.float32(1))[3] == 0.0
    assert python == array
    return bool(python)


@known
def test_denormal_numbers_are_zero_within_and_are_not_behind() -> None:
    assert not is_zero()
    with flushed():
        assert is_zero()
    assert not is_zero()
    with pytest.raises(RuntimeError), flushed():
        raise RuntimeError
    assert not is_zero()


@known
def test_other_threads_feel_nothing() -> None:
    found: list[bool] = []
    inside, seen = threading.Event(), threading.Event()

    def look() -> None:
        inside.wait(20)
        found.append(is_zero())
        seen.set()

    thread = threading.Thread(target=look)
    thread.start()
    with flushed():
        inside.set()
        assert seen.wait(20)
    thread.join()
    assert found == [False]


def test_where_it_is_not_wanted_or_not_known_nothing_changes(
        monkeypatch: pytest.MonkeyPatch) -> None:
    with flushed(wanted=False):
        assert not is_zero()
    monkeypatch.setattr(denormals, "KNOWN", False)
    with denormals._Flushed():
        assert not is_zero()
