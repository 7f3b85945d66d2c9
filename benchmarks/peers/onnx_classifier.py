"""ONNX Runtime behind Hugging Face's tokenizer; form: most rows at once, sorted by length."""

from __future__ import annotations

from typing import Any

import classifier_common as common
import numpy as np
import onnxruntime


def load(settings: dict[str, Any]) -> common.Classify:
    encode = common.tokenizer(settings["checkpoint"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = common.THREADS, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(f"{settings['model']}/model.onnx", options,
                                           providers=["CPUExecutionProvider"])

    def run(batch: common.Batch) -> np.ndarray:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask,
                  "token_type_ids": np.zeros_like(batch.ids)}
        found: np.ndarray = session.run(None, inputs)[0]
        return found

    size = int(settings["form"])
    return lambda texts: common.by_length(common.one_by_one(run), encode(texts), size)


if __name__ == "__main__":
    common.run(load)
