"""Watch model folders, load and unload versions, and lend loaded ones to requests.

The decisions are `decide.py`; this file is the loop and the table they act on. A version is lent
(`lease`) with a count, so that an unload waits for the requests that run on it (VR17).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tf_infer.errors import (
    Cancelled,
    Code,
    ConfigError,
    InvalidRequest,
    ModelNotFound,
    ServingError,
)
from tf_infer.server import memory
from tf_infer.server.config import ModelConfig, check_models
from tf_infer.server.contracts import LoadFn, LoadTimes, Servable
from tf_infer.server.decide import Seen, State, aspired, plan, start_outcome, versions_in
from tf_infer.server.logs import event, place
from tf_infer.server.metrics import Metrics


@dataclass(slots=True)
class _Entry:
    """One version in the table; guarded by the table's lock."""

    name: str
    version: int
    path: Path
    state: State = State.START
    error: ServingError | None = None
    tried: bool = False
    failing: bool = False
    servable: Servable | None = None
    times: LoadTimes = field(default_factory=LoadTimes)
    users: int = 0


class Lease(NamedTuple):
    """A version that is lent to one request."""

    name: str
    version: int
    servable: Servable
    entry: _Entry


class VersionStatus(NamedTuple):
    """One line of GetModelStatus; `error` is None while all is well."""

    version: int
    state: State
    error: ServingError | None
    times: LoadTimes


class ModelRef(NamedTuple):
    """Which version a request asks for; neither version nor label: the highest available.

    Not `wire.messages.ModelRef`, which the client builds and which refuses a negative version or an
    empty label: who sends them gets TensorFlow Serving's own answer.
    """

    name: str
    version: int | None = None
    label: str | None = None


class Versions:
    """The table of all versions, and the threads that keep it as the folders are.

    Args:
        load: version directory -> warm and proven servable.
        max_load_retries, load_retry_interval_s: FL31.
        labels_for_unavailable: FL36.
        load_threads: loads at once.
        start_load_threads: ... while the first configuration is loaded; 0 for the same (VR20).
        poll_s: how often the folders are looked at; 0 once per configuration, negative never.
        metrics: is told which models and versions there are.
        loaded: told of a version before it is available; what it raises is logged.
        unloading: told of a servable that nobody uses any more, before it is closed.
    """

    def __init__(self, load: LoadFn, *, max_load_retries: int = 5,
                 load_retry_interval_s: float = 60.0, labels_for_unavailable: bool = False,
                 load_threads: int = 4, start_load_threads: int = 0, poll_s: float = 1.0,
                 metrics: Metrics | None = None,
                 loaded: Callable[[Lease], None] | None = None,
                 unloading: Callable[[Servable], None] | None = None) -> None:
        self._load = load
        self._loaded = loaded
        self._unloading = unloading
        self._metrics = metrics or Metrics(page=False)
        self._retries = max_load_retries
        self._interval_s = load_retry_interval_s
        self._labels_for_unavailable = labels_for_unavailable
        self._changed = threading.Condition()
        self._reloading = threading.Lock()
        self._models: tuple[ModelConfig, ...] = ()
        self._labels: Mapping[str, Mapping[str, int]] = {}
        self._wanted: dict[str, dict[int, Path]] = {}
        self._table: dict[str, dict[int, _Entry]] = {}  # every version ever seen
        self._answering: dict[str, dict[int, _Entry]] = {}  # those of it that are available
        self._lent = 0
        self._stopping = threading.Event()
        self._pools = (_loaders(start_load_threads or load_threads), _loaders(load_threads))
        self._workers = self._pools[0]
        self._poll_s = poll_s
        self._poll_fault = ""
        self._poller = threading.Thread(target=self._poll_forever, name="tf-infer-poll",
                                        daemon=True)
        if poll_s > 0:
            self._poller.start()

    # ------------------------------------------------------------------ configuration

    def configure(self, models: Sequence[ModelConfig], *, timeout_s: float | None = None) -> None:
        """Take `models` as the whole truth and wait until every new name is served.

        Raises:
            ServingError: the list breaks a rule (CF05, CF12), and nothing has changed; or UNKNOWN,
                a new model failed to load for good (MS14), the others being served.
            TimeoutError: `timeout_s` is over.
            Cancelled: the server was stopped meanwhile.
        """
        check_models(models)
        end = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._reloading.acquire(timeout=-1 if timeout_s is None else timeout_s):
            raise TimeoutError(f"models: another reload was not done after {timeout_s} s.")
        try:
            with self._changed:
                self._check_labels(models)
                known = {model.name for model in self._models}
                self._models = tuple(models)
                self._labels = {model.name: dict(model.labels) for model in models}
                self._let_go({model.name for model in models})
            self._metrics.configured(model.name for model in models)
            if self._poll_s >= 0:
                self.poll()
            self._wait_for([model.name for model in models if model.name not in known], end)
        finally:
            with self._changed:
                self._workers = self._pools[1]
            self._pools[0].shutdown(wait=False)  # what it has been given it does
            self._reloading.release()

    def _let_go(self, kept: Collection[str]) -> None:
        """Unload what is configured no more (CF21), whatever can be seen of the others' folders."""
        self._wanted = {name: paths for name, paths in self._wanted.items() if name in kept}
        self._act()

    def _check_labels(self, models: Sequence[ModelConfig]) -> None:
        for model in models:
            in_use = self._labels.get(model.name, {})
            for label, version in model.labels.items():
                entry = self._table.get(model.name, {}).get(version)
                if entry is not None and entry.state is State.AVAILABLE:
                    continue
                if self._labels_for_unavailable and label not in in_use:
                    continue
                raise InvalidRequest(
                    f"Request to assign label to version {version} of model {model.name}, which "
                    "is not currently available for inference", code=Code.FAILED_PRECONDITION)

    def _wait_for(self, names: Sequence[str], end: float | None) -> None:
        with self._changed:
            while not self._stopping.is_set():
                outcomes = {name: start_outcome(self._wanted.get(name, ()), self._seen(name))
                            for name in names}
                if None not in outcomes.values():
                    failed = [name for name, good in outcomes.items() if not good]
                    if failed:
                        raise ServingError(self._failure_text(failed), code=Code.UNKNOWN)
                    return
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"models {names}: not available after the time given.")
                self._changed.wait(left)
        raise Cancelled("The server is stopping.")

    def _failure_text(self, names: Sequence[str]) -> str:
        lines = [f"{{name: {name} version: {entry.version}}} due to error: "
                 f"{entry.error.code.name}: {entry.error.details}"
                 for name in names for version in self._wanted[name]
                 if (entry := self._table[name][version]).error]
        return f"{len(names)} servable(s) did not become available: {'; '.join(lines)}"

    # ------------------------------------------------------------------ polling

    def _poll_forever(self) -> None:
        while not self._stopping.wait(self._poll_s):
            self.poll()

    def poll(self) -> bool:
        """Look at every folder once and start what follows; False when one cannot be read.

        One folder that cannot be read stops the whole look (FL29, VR10).
        """
        with self._changed:
            models = self._models
        wanted: dict[str, dict[int, Path]] = {}
        for model in models:
            try:
                on_disk = versions_in(os.listdir(model.base_path))
            except OSError as error:
                fault = f"{model.name} {model.base_path} {error.strerror}"
                if fault != self._poll_fault:  # said once, not every second
                    event("poll", logging.WARNING, model=model.name, base_path=model.base_path,
                          error=error.strerror)
                self._poll_fault = fault
                return False
            wanted[model.name] = {version: Path(model.base_path) / on_disk[version]
                                  for version in aspired(model.policy, on_disk)}
        self._poll_fault = ""
        with self._changed:
            if models is self._models:
                self._wanted = wanted
                self._act()
        return True

    def _seen(self, name: str) -> dict[int, Seen]:
        return {version: Seen(entry.state, entry.tried, entry.failing)
                for version, entry in self._table.get(name, {}).items()}

    def _act(self) -> None:
        """Start every load and unload that is due; called with the lock held."""
        if self._stopping.is_set():
            return
        for name in {*self._wanted, *self._table}:
            wanted = self._wanted.get(name, {})
            actions = plan(wanted, self._seen(name))
            rows = self._table.setdefault(name, {})
            for version in actions.forgive:
                rows[version].tried = False
            for version in actions.load:
                entry = _Entry(name, version, wanted[version])
                rows[version] = entry
                self._workers.submit(self._load_entry, entry)
            for version in actions.unload:
                self._set(rows[version], State.UNLOADING)
                self._unload_later(rows[version])
        self._changed.notify_all()

    def _set(self, entry: _Entry, state: State) -> None:
        entry.state = state
        answering = self._answering.setdefault(entry.name, {})
        if state is State.AVAILABLE:
            answering[entry.version] = entry
        else:
            answering.pop(entry.version, None)
        self._changed.notify_all()
        event("state", model=entry.name, version=entry.version, state=state.name)

    # ------------------------------------------------------------------ loading, unloading

    def _load_entry(self, entry: _Entry) -> None:
        with self._changed:
            self._set(entry, State.LOADING)
        error: ServingError | None = None
        for attempt in range(self._retries + 1):
            if attempt and (self._stopping.wait(max(0.0, self._interval_s))
                            or not self._is_wanted(entry)):
                break
            started = time.perf_counter()
            error = self._try_load(entry)
            self._metrics.version_load(entry.name, error.code if error else Code.OK,
                                       time.perf_counter() - started)
            if error is None:
                break
            event("load", logging.WARNING, model=entry.name, version=entry.version,
                  attempt=attempt + 1, code=error.code.name, error=error.details)
            with self._changed:
                entry.failing = True
                self._changed.notify_all()
        if entry.servable is not None:
            self._metrics.loaded(entry.name, entry.version, entry.servable.signatures)
            self._tell_loaded(Lease(entry.name, entry.version, entry.servable, entry))
        with self._changed:
            late = error is None and self._stopping.is_set()
            entry.error, entry.tried = error, error is not None
            self._set(entry, State.END if error else State.UNLOADING if late else State.AVAILABLE)
            self._act()
        if late:
            self._unload_entry(entry)

    def _tell_loaded(self, lease: Lease) -> None:
        try:
            if self._loaded is not None:
                self._loaded(lease)
        except Exception as error:  # whoever asks for it is told
            event("fault", logging.ERROR, where="a version that was loaded", model=lease.name,
                  version=lease.version, error=type(error).__name__, at=place(error))

    def _is_wanted(self, entry: _Entry) -> bool:
        with self._changed:
            return entry.version in self._wanted.get(entry.name, {})

    def _try_load(self, entry: _Entry) -> ServingError | None:
        try:
            entry.servable, entry.times = self._load(entry.path)
        except ServingError as error:
            return error
        except ConfigError as error:
            return InvalidRequest(str(error))
        except Exception as error:
            return ServingError(f"{type(error).__name__}: {error}", code=Code.UNKNOWN)
        return None

    def _unload_later(self, entry: _Entry) -> None:
        threading.Thread(target=self._unload_entry, args=(entry,), name="tf-infer-unload",
                         daemon=True).start()

    def _unload_entry(self, entry: _Entry) -> None:
        with self._changed:
            self._changed.wait_for(lambda: entry.users == 0)
            servable, entry.servable = entry.servable, None
        if servable is not None:
            if self._unloading is not None:
                self._unloading(servable)
            servable.close()
            del servable
            memory.give_back()
        self._metrics.unloaded(entry.name, entry.version)
        with self._changed:
            entry.error, entry.tried = None, False
            self._set(entry, State.END)
            self._act()

    # ------------------------------------------------------------------ lending, telling

    def borrow(self, ref: ModelRef) -> Lease:
        """Lend the version that `ref` names, until `give_back`.

        Raises:
            InvalidRequest: an unknown label (CF19).
            ModelNotFound: not loaded (GE05, GE06, CF16).
        """
        with self._changed:
            entry = self._find(ref)
            entry.users += 1
            self._lent += 1
            assert entry.servable is not None
            return Lease(entry.name, entry.version, entry.servable, entry)

    def lent(self) -> int:
        """Return how often a version has been lent so far: it grows while somebody asks."""
        return self._lent

    def give_back(self, lease: Lease) -> None:
        """Take a lent version back, once a lease."""
        with self._changed:
            lease.entry.users -= 1
            if lease.entry.state is State.UNLOADING:
                self._changed.notify_all()

    def _find(self, ref: ModelRef) -> _Entry:
        version = ref.version
        if ref.label is not None:
            version = self._labels.get(ref.name, {}).get(ref.label)
            if version is None:
                raise InvalidRequest(f"Unrecognized servable version label: {ref.label}")
        available = self._answering.get(ref.name, {})
        if version is None and available:
            return available[max(available)]
        if version in available:
            return available[version]
        what = f"Latest({ref.name})" if version is None else f"Specific({ref.name}, {version})"
        raise ModelNotFound(f"Servable not found for request: {what}")

    def status(self, name: str, version: int | None = None) -> tuple[VersionStatus, ...]:
        """Return every version ever seen, highest first, or just the one (MS01, MS04).

        Raises:
            ModelNotFound: none (MS04, MS05).
        """
        with self._changed:
            rows = self._table.get(name, {})
            found = [VersionStatus(number, entry.state, entry.error, entry.times)
                     for number, entry in sorted(rows.items(), reverse=True)
                     if version in (None, number)]
        if not found and version is not None:
            raise ModelNotFound(f"Could not find version {version} of model {name}")
        if not found:
            raise ModelNotFound(f"Could not find any versions of model {name}")
        return tuple(found)

    def serving(self) -> bool:
        """Whether any version of any model answers now."""
        with self._changed:
            return any(self._answering.values())

    def names(self) -> tuple[str, ...]:
        """Return the names of the configured models."""
        with self._changed:
            return tuple(model.name for model in self._models)

    def cancel(self) -> None:
        """End what waits, and look and load no more; what is loaded is still lent."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        for workers in self._pools:
            workers.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """`cancel`, and close what is loaded; what a request runs on, as soon as it has ended."""
        self.cancel()
        if self._poller.is_alive():
            self._poller.join(timeout=5.0)
        with self._changed:
            loaded = [entry for rows in self._answering.values() for entry in rows.values()]
            for entry in loaded:
                self._set(entry, State.UNLOADING)
        for entry in loaded:
            if entry.users:
                self._unload_later(entry)
            else:
                self._unload_entry(entry)


def _loaders(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tf-infer-load")
