"""A version of ours, loaded as the embedded server loads it; tokenizer included.

Form: what computes the network, as `ServerConfig.classifier_engine`; with "-threads" behind it
TensorFlow's operations have a thread for each CPU, which the server gives them where there are more
than two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classifier_common as common
import numpy as np


def load(settings: dict[str, Any]) -> common.Classify:
    from tf_infer.server.config import ModelConfig, ServerConfig
    from tf_infer.server.servable import load_version

    version, (engine, _, threads) = Path(settings["model"]), settings["form"].partition("-")
    servable, _ = load_version(version, ServerConfig(
        models=(ModelConfig(name="model", base_path=str(version.parent)),),
        classifier_engine=engine, golden_replay=False,
        intra_op_threads=common.THREADS if threads else 0))

    def classify(texts: Any) -> np.ndarray:
        given = np.array([text.encode() for text in texts], dtype=object)
        return servable.run("serving_default", {"text": given}, outputs=("logits",),
                            timeout_s=None)["logits"]

    return classify


if __name__ == "__main__":
    common.run(load)
