"""OpenVINO behind Hugging Face's tokenizer; form: precision-hint-rows, such as "bf16-latency-32".

With "throughput" the rows, sorted by length, run in parts at once, one stream for each CPU; with
"latency" one part after the other on all CPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import classifier_common as common
import numpy as np
import openvino


def load(settings: dict[str, Any]) -> common.Classify:
    precision, hint, rows = settings["form"].split("-")
    size = int(rows)
    encode = common.tokenizer(settings["checkpoint"])
    core = openvino.Core()
    compiled = core.compile_model(f"{settings['model']}/openvino_model.xml", "CPU", {
        "PERFORMANCE_HINT": hint.upper(), "INFERENCE_NUM_THREADS": common.THREADS,
        "INFERENCE_PRECISION_HINT": precision})
    names = {name for port in compiled.inputs for name in port.get_names()}

    def inputs(batch: common.Batch) -> dict[str, np.ndarray]:
        every = {"input_ids": batch.ids, "attention_mask": batch.mask,
                 "token_type_ids": np.zeros_like(batch.ids)}
        return {name: array for name, array in every.items() if name in names}

    run = at_once(compiled, inputs) if hint == "throughput" else in_turn(compiled, inputs)
    return lambda texts: common.by_length(run, encode(texts), size)


Inputs = Callable[[common.Batch], dict[str, np.ndarray]]
Run = Callable[[list[common.Batch]], list[np.ndarray]]


def in_turn(compiled: Any, inputs: Inputs) -> Run:
    request = compiled.create_infer_request()

    def run(batch: common.Batch) -> np.ndarray:
        request.infer(inputs(batch), share_inputs=True)
        return np.array(request.get_output_tensor(0).data)

    return common.one_by_one(run)


def at_once(compiled: Any, inputs: Inputs) -> Run:
    queue = openvino.AsyncInferQueue(compiled)

    def run(batches: list[common.Batch]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        queue.set_callback(lambda request, place: found.__setitem__(
            place, np.array(request.get_output_tensor(0).data)))
        for place, batch in enumerate(batches):
            queue.start_async(inputs(batch), place)
        queue.wait_all()
        return [found[place] for place in range(len(batches))]

    return run


if __name__ == "__main__":
    common.run(load)
