"""What threads have to tell an asyncio loop: it is woken once for all that comes before it looks.

Each wake-up is a system call, in which the thread gives the interpreter lock away and then waits
for it, so a batch of 32 answers told one by one costs its thread 32 turns.
"""

from __future__ import annotations

import asyncio
from collections import deque
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
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._woken = False

    def put(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the loop call a function, which must not raise; forgotten when the loop has ended."""
        # In this order: whoever sees the loop woken has put his call before it begins to look.
        self._calls.append((function, arguments))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False
        while self._calls:
            function, arguments = self._calls.popleft()
            function(*arguments)
