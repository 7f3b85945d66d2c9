"""Schedulers: which scheduler the runs of a version go to."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

from tf_infer.server import cpus
from tf_infer.server.config import ServerConfig
from tf_infer.server.contracts import LoadFn, LoadTimes, Servable
from tf_infer.server.scheduler import (
    DirectScheduler,
    Job,
    Observe,
    Scheduler,
    WaitingCounts,
    unobserved,
)
from tf_infer.server.serving_batching import BatchingParameters, per_model_parameters
from tf_infer.server.serving_scheduler import ServingScheduler
from tf_infer.server.text_scheduler import TextScheduler

CPUS = cpus.usable()
CORE_THREADS = 4  # more are slower as long as none is held: see threads.py


class _With:
    """A ServingScheduler with the parameters of one version."""

    def __init__(self, scheduler: ServingScheduler, parameters: BatchingParameters) -> None:
        self._scheduler, self._parameters = scheduler, parameters
        self.give_up, self.close = scheduler.give_up, scheduler.close

    def submit(self, job: Job) -> None:
        """See `Scheduler.submit`."""
        self._scheduler.submit_with(job, self._parameters)


class Schedulers:
    """The schedulers of one server.

    Args:
        config: which there are, and their limits. `config.batching` is TensorFlow Serving's, for
            all models or for those that have a file of their own (BA20); without it our own is for
            models with a manifest, unless `config.scheduler` is "none".
        observe: told of every batch.
    """

    def __init__(self, config: ServerConfig, observe: Observe = unobserved) -> None:
        self.waiting = WaitingCounts(config.max_queued)
        self._direct = DirectScheduler(min(CORE_THREADS, config.threads), config.threads,
                                       self.waiting)
        self._batching, self._per_model = config.batching, config.per_model_batching
        self._text: TextScheduler | None = None
        self._serving: ServingScheduler | None = None
        self._own: weakref.WeakKeyDictionary[Servable, _With] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        if config.batching is not None:
            self._serving = ServingScheduler(
                config.batching.num_batch_threads or CPUS, self.waiting,
                name=config.batching.thread_pool_name, observe=observe)
            self._shared = _With(self._serving, config.batching)
        elif config.scheduler == "text":
            self._text = TextScheduler(config.batch_workers, self.waiting, self._direct, observe)

    def of(self, servable: Servable) -> Scheduler:
        """Return the scheduler for the runs of a version."""
        if self._serving is not None:
            if not self._per_model:
                return self._shared
            with self._lock:
                return self._own.get(servable, self._direct)
        if self._text is not None and servable.manifest is not None:
            return self._text
        return self._direct

    def reading(self, load: LoadFn) -> LoadFn:
        """Return `load`, and with it the reading of a version's own batching parameters (BA20)."""
        if self._serving is None or not self._per_model:
            return load

        def loading(path: Path) -> tuple[Servable, LoadTimes]:
            assert self._serving is not None and self._batching is not None
            parameters = per_model_parameters(path, self._batching)
            servable, times = load(path)
            if parameters is not None:
                with self._lock:
                    self._own[servable] = _With(self._serving, parameters)
            return servable, times

        return loading

    def close(self) -> None:
        """End the threads when what they have is done."""
        for scheduler in (self._text, self._serving, self._direct):
            if scheduler is not None:
                scheduler.close()
