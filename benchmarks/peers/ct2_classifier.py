"""CTranslate2's Encoder behind Hugging Face's tokenizer; form: its compute type.

It has no classifiers: the last dense layer on its pooled output is NumPy's. It leaves padding out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classifier_common as common
import ctranslate2
import numpy as np
from safetensors.numpy import load_file


def load(settings: dict[str, Any]) -> common.Classify:
    encode = common.tokenizer(settings["checkpoint"])
    encoder = ctranslate2.Encoder(settings["model"], device="cpu", compute_type=settings["form"],
                                  inter_threads=1, intra_threads=common.THREADS)
    tensors = load_file(Path(settings["checkpoint"]) / "model.safetensors")
    kernel, bias = tensors["classifier.weight"].T, tensors["classifier.bias"]  # [D, C], [C]

    def classify(texts: Any) -> np.ndarray:
        found = encoder.forward_batch(encode(texts))
        return np.asarray(found.pooler_output) @ kernel + bias

    return classify


if __name__ == "__main__":
    common.run(load)
