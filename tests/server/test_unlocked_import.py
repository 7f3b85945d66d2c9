"""A graph is imported through TensorFlow's C library, while others have the interpreter lock."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

from tf_infer.server.graph_pieces import Piece  # noqa: E402
from tf_infer.server.loading import BareGraph, free  # noqa: E402
from tf_infer.server.unlocked_import import (  # noqa: E402
    LIBRARY,
    UnlockedImport,
    graph_address,
    unlocked_import,
)

ATTEMPTS = 2000


@pytest.fixture
def session() -> Any:
    found = tf.compat.v1.Session(graph=tf.Graph())
    yield found
    free(found)


def at_once(act: Callable[[], Any]) -> Any:
    return act()


def part(build: Callable[[], object], *left_out: str) -> bytes:
    """Return the nodes that `build` makes as a GraphDef, but for some that others hold."""
    graph = tf.Graph()
    with graph.as_default():
        build()
    found = graph.as_graph_def()
    kept = [node for node in found.node if node.name not in left_out]
    del found.node[:]
    found.node.extend(kept)
    return bytes(found.SerializeToString())


def unlocked(session: Any) -> UnlockedImport:
    found = unlocked_import(session, tf.sysconfig.get_lib())
    if found is None:
        pytest.skip("this TensorFlow does not tell where a session's graph lies")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the library has this name on Linux alone")
def test_the_tensorflow_that_is_tested_with_tells_where_a_graph_lies(session: Any) -> None:
    assert tf.__version__.startswith("2.")
    assert unlocked_import(session, tf.sysconfig.get_lib()) is not None


def test_an_address_that_the_graph_of_python_does_not_hold_is_none(session: Any) -> None:
    unlocked(session)
    assert graph_address(SimpleNamespace(_session=session._session, graph=tf.Graph())) is None


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read through /proc")
def test_no_address_is_none_though_an_empty_place_of_pythons_graph_is_like_it() -> None:
    class Binding:
        __slots__ = ("place",)

    class Graph:
        __slots__ = ("empty",)

    binding, nothing = Binding(), ctypes.create_string_buffer(32)
    place = ctypes.c_void_p.from_address(id(binding) + object.__basicsize__)
    place.value = ctypes.addressof(nothing)
    try:
        assert graph_address(SimpleNamespace(_session=binding, graph=Graph())) is None
    finally:
        place.value = None  # no object's: nothing may count it


def test_a_library_that_the_process_has_not_loaded_is_not_loaded_beside(tmp_path: Path) -> None:
    (tmp_path / LIBRARY).write_bytes(b"no library")
    assert unlocked_import(None, str(tmp_path)) is None


def test_a_part_reads_what_is_in_earlier_ones_and_the_session_runs_it(session: Any) -> None:
    def build() -> None:
        first, second = tf.unstack(tf.constant([2.0, 3.0], name="pair"), name="split")
        with tf.control_dependencies([first]):
            tf.identity(second, name="end")

    imported = unlocked(session)
    assert imported.add(part(build, "end"), (), at_once) == (0, "")
    with pytest.raises(KeyError):
        imported.add(part(build, "pair", "split"), ("elsewhere:1",), at_once)
    assert imported.add(part(build, "pair", "split"), ("split:1", "^split"), at_once) == (0, "")
    graph = BareGraph(session)
    session._extend_graph()
    found = session._call_tf_sessionrun(None, {}, [graph.tensor("end")], [], None)
    assert found == [3.0]
    with pytest.raises(KeyError):
        graph.tensor("end:1")
    with pytest.raises(KeyError):
        graph.operation("elsewhere")


def test_what_is_no_graph_is_said_as_tensorflow_says_it(session: Any) -> None:
    graph = BareGraph(session)
    unlocked(session)
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph.add(Piece(b"\xff" * 9, (), frozenset()), None)
    data = part(lambda: tf.constant(1, name="one"))
    graph.add(Piece(data, ("one",), frozenset()), None)
    with pytest.raises(tf.errors.InvalidArgumentError, match="one"):
        graph.add(Piece(data, ("one",), frozenset()), None)


def test_while_a_part_is_imported_another_thread_has_the_interpreter_lock(session: Any) -> None:
    """With turns of an hour a thread that waits for the lock has it only when it is let go of."""
    imported = unlocked(session)
    data = part(lambda: tf.constant(np.arange(300_000), name="numbers"))
    turns, seen, beside = threading.Semaphore(0), list[bool](), list[bool]()

    def wait() -> None:
        while turns.acquire() and data:
            seen.append(True)

    def act(call: Callable[[], Any]) -> None:
        before = len(seen)
        turns.release()
        call()
        beside.append(len(seen) > before)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    usual = sys.getswitchinterval()
    sys.setswitchinterval(3600.0)
    try:
        while not any(beside) and len(beside) < ATTEMPTS:
            imported.add(data, (), act)  # says that it is there since the first attempt
            while len(seen) < len(beside):
                time.sleep(0.0001)
    finally:
        sys.setswitchinterval(usual)
    data = b""
    turns.release()
    thread.join()
    assert any(beside)
