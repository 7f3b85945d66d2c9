"""Schedulers: which scheduler the runs of a version go to."""

from __future__ import annotations

from tf_infer.server.config import ServerConfig
from tf_infer.server.contracts import Servable
from tf_infer.server.scheduler import DirectScheduler, Scheduler, Waiting

CORE_THREADS = 4  # more are slower as long as none is held: see threads.py


class Schedulers:
    """The schedulers of one server.

    Args:
        config: which there are, and their limits.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.waiting = Waiting(config.max_queued)
        self._direct = DirectScheduler(min(CORE_THREADS, config.threads), config.threads,
                                       self.waiting)

    def of(self, servable: Servable) -> Scheduler:
        """Return the scheduler for the runs of a version."""
        return self._direct

    def close(self) -> None:
        """End the threads when what they have is done."""
        self._direct.close()
