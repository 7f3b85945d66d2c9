"""LitServe with its own batching."""

from __future__ import annotations

from typing import Any

import common
import litserve


class Classifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.answer = common.load()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        return inputs

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.answer(texts)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return output


if __name__ == "__main__":
    api = Classifier(max_batch_size=common.ROWS, batch_timeout=common.WAIT_S)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=common.WORKERS,
                                fast_queue=True)
    server.run(port=common.PORT, log_level="warning", generate_client_file=False)
