"""Ray Serve with serve.batch."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import common
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=1024, num_replicas=common.WORKERS,
                  ray_actor_options={"num_cpus": 1})
class Classifier:
    def __init__(self) -> None:
        self.answer = common.load()

    @serve.batch(max_batch_size=common.ROWS, batch_wait_timeout_s=common.WAIT_S,
                 max_concurrent_batches=1)
    async def joined(self, texts: list[str]) -> list[dict[str, Any]]:
        return await asyncio.get_running_loop().run_in_executor(None, self.answer, texts)

    async def __call__(self, request: Request) -> dict[str, Any]:
        question = await request.json()
        found: dict[str, Any] = await self.joined(question["text"])
        return found


if __name__ == "__main__":
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False,
             object_store_memory=100_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": common.PORT},
                logging_config={"enable_access_log": False})
    serve.run(Classifier.bind(), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
