"""How long a caller of an engine still waits: while it queues, and between parts of its work."""

from __future__ import annotations

import threading
import time

from tf_infer.errors import DeadlineExceeded

LATE = ("engine: expected its turn before the deadline of the call. Wait longer, or ask for fewer "
        "rows at once.")


class Deadline:
    """When a call is given up.

    Args:
        timeout_s: from now on; None for never.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._ends_s = None if timeout_s is None else time.monotonic() + timeout_s

    def left_s(self) -> float | None:
        """Return the time that is left, above 0; None for no limit.

        Raises:
            DeadlineExceeded: there is none.
        """
        if self._ends_s is None:
            return None
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0.0:
            raise DeadlineExceeded(LATE)
        return min(left_s, threading.TIMEOUT_MAX)

    def check(self) -> None:
        """Raise DeadlineExceeded when the time is up."""
        self.left_s()

    def acquire(self, lock: threading.Lock) -> None:
        """Wait for a lock no longer than that.

        Raises:
            DeadlineExceeded: the time is up, with the lock not held.
        """
        left_s = self.left_s()
        if not lock.acquire(timeout=-1.0 if left_s is None else left_s):
            raise DeadlineExceeded(LATE)
