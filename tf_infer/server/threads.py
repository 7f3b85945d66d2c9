"""Threads that stay few while work flows and grow only when all of them are held.

Measured on two cores, a trivial model, 16 callers: 4 threads answer 2,400 calls/s, 32 threads
1,000 to 1,300, since Python threads fight for one lock. But four slow requests would then hold up
all others (LI06). So there are a few threads, and one more whenever work waits and nothing has
ended for a while; the added ones go as soon as nothing waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Item(NamedTuple):
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class ElasticThreads:
    """See the module. The queue is C's, since a Python condition costs more than a short run.

    Args:
        core: threads that stay.
        most: threads at most; >= core.
        patience_s: how long nothing ends, while work waits, before a thread is added.
    """

    def __init__(self, core: int, most: int, *, patience_s: float = 0.05,
                 name: str = "tf-infer") -> None:
        self._core, self._most, self._patience_s, self._name = core, most, patience_s, name
        self._items: SimpleQueue[_Item | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._ended_s = time.monotonic()
        self._closed = False
        self._alive: set[threading.Thread] = set()

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return len(self._alive)

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function in a thread; it must not raise."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads are closed")
            self._items.put(_Item(function, arguments))
        if self._started < self._core:
            self._add(self._core)

    def _add(self, most: int) -> None:
        with self._lock:
            if len(self._alive) >= most or self._closed:
                return
            if not self._started:
                threading.Thread(target=self._watch, daemon=True,
                                 name=f"{self._name}-watch").start()
            self._started += 1
            thread = threading.Thread(target=self._work, daemon=True,
                                      name=f"{self._name}-{self._started}")
            try:
                thread.start()  # within the lock: `close` joins all that are alive
            except RuntimeError:  # the machine gives no more; `_watch` asks again while work waits
                return
            self._alive.add(thread)

    def _work(self) -> None:
        while True:
            if len(self._alive) > self._core and self._items.empty() and self._leave():
                return
            item = self._items.get()
            if item is None:
                self._leave()
                return
            item.function(*item.arguments)
            del item
            self._ended_s = time.monotonic()

    def _leave(self) -> bool:
        """End this thread unless it is one of those that stay; return whether it ends."""
        with self._lock:
            if len(self._alive) <= self._core and not self._closed:
                return False
            self._alive.discard(threading.current_thread())
            return True

    def _watch(self) -> None:
        """Add a thread whenever work waits and nothing has ended for `patience_s`."""
        while not self._closed:
            time.sleep(self._patience_s)
            quiet_s = time.monotonic() - self._ended_s
            if not self._items.empty() and quiet_s >= self._patience_s:
                self._add(self._most)

    def close(self, *, wait: bool = True, drop: bool = False) -> list[tuple[Any, ...]]:
        """End the threads when their work is done.

        Args:
            wait: for them to end.
            drop: what no thread has yet.

        Returns:
            The arguments of what was dropped.
        """
        with self._lock:
            self._closed = True
            alive = list(self._alive)
        dropped = []
        while drop:
            try:
                item = self._items.get_nowait()
            except Empty:
                break
            if item is not None:
                dropped.append(item.arguments)
        for _ in alive:
            self._items.put(None)
        for thread in alive if wait else ():
            thread.join()
        return dropped


class ElasticExecutor(Executor):
    """The same with futures, for those who want an Executor."""

    def __init__(self, core: int, most: int, *, patience_s: float = 0.05,
                 name: str = "tf-infer") -> None:
        self._pool = ElasticThreads(core, most, patience_s=patience_s, name=name)

    @property
    def threads(self) -> int:
        """How many threads there are now."""
        return self._pool.threads

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run `fn` in a thread; see `concurrent.futures.Executor`."""
        future: Future[T] = Future()
        self._pool.start(_fulfil, future, fn, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads when their work is done; see `concurrent.futures.Executor`."""
        for future, *_ in self._pool.close(wait=wait, drop=cancel_futures):
            future.cancel()


def _fulfil(future: Future[T], function: Callable[..., T], arguments: tuple[Any, ...],
            keywords: dict[str, Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(*arguments, **keywords))
        except BaseException as error:
            future.set_exception(error)
