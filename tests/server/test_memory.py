"""Memory goes back when versions go, without a long pause; descriptors for connections."""

from __future__ import annotations

import gc
import resource
import threading
import weakref
from collections.abc import Iterator

import pytest

from tf_infer.server import memory


class Knot:
    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def no_collections(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(memory, "_settled", threading.Event())
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.mark.usefixtures("no_collections")
def test_what_is_knotted_goes_once_the_process_has_settled() -> None:
    left = weakref.ref(Knot())
    memory.give_back()  # a process that is not ours alone is not paused
    assert left() is not None
    memory.settle()
    assert left() is None
    stays, left = Knot(), weakref.ref(Knot())
    memory.give_back()
    assert left() is None
    assert stays.self is stays


@pytest.mark.usefixtures("no_collections")
def test_what_was_set_aside_is_not_even_counted_when_a_version_goes(
        monkeypatch: pytest.MonkeyPatch) -> None:
    """A count looks at each object, and nobody is answered meanwhile."""
    memory.settle()
    left = weakref.ref(Knot())
    monkeypatch.delattr(memory.gc, "get_freeze_count")
    memory.give_back()
    assert left() is None


@pytest.mark.usefixtures("no_collections")
def test_a_collection_after_settling_looks_at_new_objects_alone() -> None:
    memory.settle()
    assert gc.get_freeze_count() > 1000
    assert len(gc.get_objects()) < 1000


def test_a_server_may_have_as_many_descriptors_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        memory.allow_connections()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
