"""A session of ONNX Runtime on CUDA whose calls are recorded: a CUDA graph for every shape.

To start a few hundred kernels one by one takes longer than a GPU needs to run them for a few rows.
A recorded call starts them all at once, over memory of its own into which inputs are copied.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_infer.engines import onnx_runtime
from tf_infer.engines.deadline import Deadline

# Of the whole process: while CUDA records, it refuses other threads what may wait for the GPU.
_TURN = threading.Lock()


class Recorded:
    """Calls of a session, one at a time, each shape recorded when it is first met.

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

    def run(self, given: Mapping[str, np.ndarray], deadline: Deadline) -> np.ndarray:
        """Compute one batch.

        Args:
            given: inputs by name, all [rows, tokens].
            deadline: of waiting for the calls before this one.

        Returns:
            [rows, columns] float32, the caller's own.

        Raises:
            DeadlineExceeded: the time was up before its turn.
        """
        shape = next(iter(given.values())).shape
        deadline.acquire(_TURN)
        try:
            if shape not in self._calls:
                self._calls[shape] = self._new(given, len(self._calls) + 1)
            call = self._calls[shape]
            for name, array in given.items():
                call.inputs[name].update_inplace(array)
            self._session.run_with_iobinding(call.binding, call.options)
            return np.array(call.output.numpy())
        finally:
            _TURN.release()

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
