"""FastAPI on uvicorn, with a batcher as one writes it by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import common
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Question(BaseModel):
    text: str


queue: asyncio.Queue[tuple[str, asyncio.Future[Any]]] = asyncio.Queue()
answer = common.load()


async def work(pool: ThreadPoolExecutor) -> None:
    """Run batches of what waits, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        batch = [await queue.get()]
        end = loop.time() + common.WAIT_S
        while len(batch) < common.ROWS:
            if queue.empty() and loop.time() >= end:
                break
            try:
                batch.append(queue.get_nowait() if not queue.empty() else
                             await asyncio.wait_for(queue.get(), end - loop.time()))
            except asyncio.TimeoutError:
                break
        try:
            answers = await loop.run_in_executor(pool, answer, [text for text, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), one in zip(batch, answers):
                if not future.done():
                    future.set_result(one)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    pool = ThreadPoolExecutor(common.WORKERS)
    tasks = [asyncio.create_task(work(pool)) for _ in range(common.WORKERS)]
    yield
    for task in tasks:
        task.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(question: Question) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    queue.put_nowait((question.text, future))
    return await future


@app.get("/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


if __name__ == "__main__":
    uvicorn.run(app, port=common.PORT, access_log=False, log_level="warning")
