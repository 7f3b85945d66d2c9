"""What threads have to tell an asyncio loop: it is woken once for all that comes before it looks.

Each wake-up is a system call, in which the thread gives the interpreter lock away and then waits
for it: one by one, a batch of 32 answers costs its thread 32 turns, and a generator's thread has
one for each token and caller.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any


class Mailbox:
    """Calls of threads that the loop makes, in the order in which they came.

    Args:
        loop: that makes them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._lock = threading.Lock()

    def put(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the loop call a function, which must not raise; forgotten when the loop has ended."""
        with self._lock:
            woken = bool(self._calls)
            self._calls.append((function, arguments))
        if not woken:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
        for function, arguments in calls:
            function(*arguments)
