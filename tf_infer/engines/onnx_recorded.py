"""A session of ONNX Runtime on CUDA whose calls are recorded: a CUDA graph for every shape.

To start a few hundred kernels one by one takes longer than a GPU needs to run them for a few rows.
A recorded call starts them all at once, over memory of its own into which inputs are copied.

ONNX Runtime keeps what it records by thread, and while CUDA records, it lets no other thread take
memory of the GPU: one thread of the process does all that is done there. What else uses the GPU
in this process would be refused memory, too, or make the recording fail: then nothing is recorded.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any, TypeVar

import numpy as np

from tf_infer.engines import gpus, onnx_runtime
from tf_infer.engines.deadline import LATE, Deadline
from tf_infer.errors import DeadlineExceeded

T = TypeVar("T")
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="tf_infer_gpu")


class Once:
    """What a function says when it is first asked, whoever asks; the others wait for that.

    Args:
        ask: the function; asked again only where it raised.
    """

    def __init__(self, ask: Callable[[], bool]) -> None:
        self._ask, self._lock = ask, threading.Lock()
        self._said: bool | None = None

    def __call__(self) -> bool:
        """Return it."""
        with self._lock:
            if self._said is None:
                self._said = self._ask()
            return self._said


def _alone() -> bool:
    """Whether nothing else in this process uses a GPU.

    TensorFlow that has one will use it for the graph of the version whose engine this is.
    """
    tensorflow: Any = sys.modules.get("tensorflow")
    return not gpus.used() and not (
        tensorflow is not None and tensorflow.config.list_physical_devices("GPU"))


# When the first engine is loaded: a second one would see what the first one has begun to use.
alone = Once(_alone)


def by_its_thread(work: Callable[[], T], deadline: Deadline | None = None) -> T:
    """Have the GPU's thread do something, and wait for it.

    Args:
        work: waits for nothing that the same thread would have to do.
        deadline: of waiting for what others asked for before; None for none.

    Raises:
        DeadlineExceeded: the time was up before its turn.
    """
    left_s = None if deadline is None else deadline.left_s()
    job = _THREAD.submit(work)
    try:
        return job.result(left_s)
    except Late:
        if job.cancel():
            raise DeadlineExceeded(LATE) from None
        return job.result()  # it has begun


class Recorded:
    """Calls of a session, each shape recorded when it is first met; of one thread alone.

    Args:
        session: opened so that it records (`onnx_runtime.records`).
        output: name of its one output, [rows, columns] float32.
        columns: of the output.
        device: "cuda"; "cpu" has no graphs, and computes the same.
    """

    def __init__(self, session: Any, output: str, columns: int, *, device: str = "cuda") -> None:
        self._session, self._output, self._columns = session, output, columns
        self._runtime, self._device = onnx_runtime.library(), device
        self._calls: dict[tuple[int, ...], _Call] = {}

    def run(self, given: Mapping[str, np.ndarray]) -> np.ndarray:
        """Compute one batch.

        Args:
            given: inputs by name, all [rows, tokens].

        Returns:
            [rows, columns] float32, the caller's own.
        """
        shape = next(iter(given.values())).shape
        if shape not in self._calls:
            self._calls[shape] = self._new(given, len(self._calls) + 1)
        call = self._calls[shape]
        for name, array in given.items():
            call.inputs[name].update_inplace(array)
        self._session.run_with_iobinding(call.binding, call.options)
        return np.array(call.output.numpy())

    def close(self) -> None:
        """Free all of it, the session too where nobody else holds it; no call follows."""
        self._calls.clear()
        self._session = None

    def _new(self, given: Mapping[str, np.ndarray], number: int) -> _Call:
        return _Call(self._runtime, self._session, given, self._output, self._columns,
                     self._device, number)


class _Call:
    """The memory of one shape, and the number of its graph."""

    def __init__(self, runtime: Any, session: Any, given: Mapping[str, np.ndarray], output: str,
                 columns: int, device: str, number: int) -> None:
        def held(array: np.ndarray) -> Any:
            return runtime.OrtValue.ortvalue_from_numpy(array.copy(), device, 0)  # "cpu" keeps it

        self.inputs = {name: held(array) for name, array in given.items()}
        rows = next(iter(given.values())).shape[0]
        self.output = held(np.zeros((rows, columns), np.float32))
        self.binding, self.options = session.io_binding(), runtime.RunOptions()
        for name, value in self.inputs.items():
            self.binding.bind_ortvalue_input(name, value)
        self.binding.bind_ortvalue_output(output, self.output)
        self.options.add_run_config_entry("gpu_graph_id", str(number))
