"""A batch of a classifier as two halves at once, on two CPUs whose runs have one thread each.

A caller who sends many texts and is alone would leave one of two CPUs idle: TensorFlow's operations
have one thread there (`session_config.py`), since two of them wait for each other at every one of a
few hundred operations. A row's answer does not depend on the rows beside it, so a batch may be cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import numpy as np

from tf_infer.config import ClassifierConfig
from tf_infer.errors import InvalidRequest
from tf_infer.manifest import ModelManifest
from tf_infer.server.contracts import Arrays

LEAST_ROWS = 16  # what a run costs beside its rows is spent twice: docs/runtime.md
CPUS = 2


def worth_it(*, usable: int, threads: int, devices: Iterable[str]) -> bool:
    """Whether halves at once are faster than the whole.

    Args:
        usable: CPUs of this process.
        threads: of TensorFlow inside an operation.
        devices: kinds of TensorFlow's devices; a GPU computes a whole batch at once.
    """
    return usable == CPUS and threads == 1 and set(devices) <= {"CPU"}


def divisible(manifest: ModelManifest | None, signature: str, outputs: Sequence[str]) -> bool:
    """Whether what is wanted of a batch is what is wanted of its parts, one behind the other.

    An output whose width depends on the longest row is not, nor is a form that XLA compiled for
    certain numbers of rows.
    """
    if (manifest is None or not isinstance(manifest.task, ClassifierConfig)
            or manifest.compiled != "none"):
        return False
    spec = next((one for one in manifest.signatures if one.name == signature), None)
    shapes = {} if spec is None else {one.name: one.shape for one in spec.outputs}
    return bool(outputs) and all(
        name in shapes and len(shapes[name]) > 0 and shapes[name][0] is None
        and None not in shapes[name][1:] for name in outputs)


def order_of(inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the rows of a batch so that every second of them is half of the work; longest first.

    None for a batch that is not cut: of few rows, or whose inputs do not have one number of rows.
    """
    sizes = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(sizes) != 1 or (count := sizes.pop()) < LEAST_ROWS:
        return None
    lengths = np.zeros(count, np.int64)
    for array in inputs.values():
        if array.dtype == object and array.ndim == 1:
            lengths += [len(text) for text in array]
    return np.argsort(-lengths, kind="stable")


class Halves:
    """Runs of one version: how many are under way, and a second thread for one that is alone.

    Attributes:
        wanted: whether a run that is alone is cut; not before warm-up has ended.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._lock, self._running = threading.Lock(), 0
        self._other = ThreadPoolExecutor(1, thread_name_prefix="tf-infer-half")  # starts when used

    @contextmanager
    def entered(self) -> Iterator[bool]:
        """Count a run while it lasts; whether it is the only one."""
        with self._lock:
            self._running += 1
            alone = self._running == 1
        try:
            yield alone
        finally:
            with self._lock:
                self._running -= 1

    def run(self, inputs: Mapping[str, np.ndarray], order: np.ndarray,
            run: Callable[[Mapping[str, np.ndarray]], Arrays]) -> tuple[Arrays, float] | None:
        """Run two halves at once.

        Args:
            inputs: of the whole.
            order: see `order_of`.
            run: inputs -> outputs, each with a row for each row.

        Returns:
            What the whole gives, and the seconds for which the second thread computed. None where a
            half is refused: what is wrong is to be said of the whole, whose rows have other
            numbers.

        Raises:
            ServingError: a half failed otherwise; both have ended.
        """
        first, second = order[::2], order[1::2]

        def timed(half: Mapping[str, np.ndarray]) -> tuple[Arrays, float]:
            began_s = time.thread_time()
            return run(half), time.thread_time() - began_s

        other = self._other.submit(timed, {name: array[second] for name, array in inputs.items()})
        try:
            try:
                mine = run({name: array[first] for name, array in inputs.items()})
            finally:
                wait([other])
            theirs, seconds = other.result()
        except InvalidRequest:
            return None
        back = np.empty(len(order), np.int64)
        back[np.concatenate([first, second])] = np.arange(len(order))
        return {name: np.concatenate([mine[name], theirs[name]])[back] for name in mine}, seconds

    def close(self) -> None:
        """End the second thread."""
        self._other.shutdown(wait=False)
