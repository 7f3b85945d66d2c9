"""A version of ours, loaded as the embedded server loads it; tokenizer included.

Form: what computes the network, as `ServerConfig.classifier_engine`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import classifier_common as common
import numpy as np


def load(settings: dict[str, Any]) -> common.Classify:
    from tf_infer.server.config import ServerConfig
    from tf_infer.server.servable import load_version

    servable, _ = load_version(Path(settings["model"]), ServerConfig(
        models=(), classifier_engine=settings["form"], golden_replay=False))

    def classify(texts: Any) -> np.ndarray:
        given = np.array([text.encode() for text in texts], dtype=object)
        return servable.run("serving_default", {"text": given}, outputs=("logits",),
                            timeout_s=None)["logits"]

    return classify


if __name__ == "__main__":
    common.run(load)
