"""BentoML with its adaptive batching: `bentoml serve bentoml_service:Classifier`."""

from __future__ import annotations

from typing import Any

import bentoml
import common


@bentoml.service(workers=common.WORKERS, http={"port": common.PORT},
                 traffic={"timeout": 60, "max_concurrency": 1024},
                 logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Classifier:
    def __init__(self) -> None:
        self.answer = common.load()

    @bentoml.api(batchable=True, max_batch_size=common.ROWS,
                 max_latency_ms=int(1000 * common.WAIT_S) or 1)
    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.answer(texts)
