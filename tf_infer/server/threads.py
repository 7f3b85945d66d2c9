"""A thread pool that stays small while work flows and grows only when all its threads are held.

Measured on two cores, a trivial model, 16 callers: 4 threads answer 2,400 calls/s, 32 threads
1,000 to 1,300, since Python threads fight for one lock. But four slow requests would then hold up
all others (LI06). So the pool has a few threads, and adds one whenever work waits and nothing has
ended for a while; the added ones go as soon as nothing waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Item(NamedTuple):
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class ElasticExecutor(Executor):
    """See the module.

    Args:
        core: threads that stay.
        most: threads at most; >= core.
        patience_s: how long nothing ends, while work waits, before a thread is added.
    """

    def __init__(self, core: int, most: int, *, patience_s: float = 0.05,
                 name: str = "tf-infer") -> None:
        self._core, self._most, self._patience_s, self._name = core, most, patience_s, name
        self._items: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._threads = self._idle = self._started = 0
        self._ended_s = time.monotonic()
        self._closed = False
        self._watcher: threading.Thread | None = None
        self._alive: set[threading.Thread] = set()

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return self._threads

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a thread; see `concurrent.futures.Executor`."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._items.append(_Item(future, fn, args, kwargs))
            if self._idle < len(self._items) and self._threads < self._core:
                self._add()
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch, daemon=True,
                                                 name=f"{self._name}-watch")
                self._watcher.start()
            self._changed.notify()
        return future

    def _add(self) -> None:
        self._threads += 1
        self._started += 1
        thread = threading.Thread(target=self._work, daemon=True,
                                  name=f"{self._name}-{self._started}")
        self._alive.add(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._items and not self._closed and self._threads <= self._core:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                if not self._items:
                    self._threads -= 1
                    self._alive.discard(threading.current_thread())
                    return
                item = self._items.popleft()
            if item.future.set_running_or_notify_cancel():
                try:
                    item.future.set_result(item.function(*item.arguments, **item.keywords))
                except BaseException as error:
                    item.future.set_exception(error)
            del item
            self._ended_s = time.monotonic()

    def _watch(self) -> None:
        """Add a thread whenever work waits and nothing has ended for `patience_s`."""
        while not self._closed:
            time.sleep(self._patience_s)
            with self._changed:
                quiet_s = time.monotonic() - self._ended_s
                if (self._items and not self._idle and self._threads < self._most
                        and quiet_s >= self._patience_s):
                    self._add()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when their work is done; see `concurrent.futures.Executor`."""
        with self._changed:
            self._closed = True
            if cancel_futures:
                for item in self._items:
                    item.future.cancel()
            self._changed.notify_all()
            alive = list(self._alive)
        if wait:
            for thread in alive:
                thread.join()
