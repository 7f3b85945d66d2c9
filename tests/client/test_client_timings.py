"""client.predict(..., timings=...): asked by metadata, read from trailing metadata."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from tests.fakes.serving import FakeServer, echo
from tf_infer.client.aio import AsyncClient
from tf_infer.client.client import Client
from tf_infer.client.results import Prediction
from tf_infer.errors import ConfigError
from tf_infer.wire import methods
from tf_infer.wire.timings import ANSWER_KEY, REQUEST_KEY, Timings, to_text

SPLIT = Timings(queue_s=1e-6, tokenize_s=2e-6, model_s=3e-6, decode_s=4e-6, total_s=1.2e-5)


def timing(request: Any, context: grpc.ServicerContext) -> Any:
    if REQUEST_KEY in dict(context.invocation_metadata()):
        context.set_trailing_metadata(((ANSWER_KEY, to_text(SPLIT)),))
    return echo(request, context)


def ask(address: str, **options: Any) -> Prediction:
    with Client(address) as client:
        return client.predict("m", {"x": np.float32([1.5])}, **options)


def ask_awaited(address: str, **options: Any) -> Prediction:
    async def asked() -> Prediction:
        async with AsyncClient(address) as client:
            return await client.predict("m", {"x": np.float32([1.5])}, **options)

    return asyncio.run(asked())


Ask = Callable[..., Prediction]
both = pytest.mark.parametrize("asking", [ask, ask_awaited], ids=["sync", "aio"])


@both
@pytest.mark.parametrize(("wanted", "sent"), [
    (True, "stages"), ("stages", "stages"), ("queue", "queue")])
def test_timings_are_asked_for_and_read(asking: Ask, wanted: Any, sent: str) -> None:
    with FakeServer({methods.PREDICT: timing}) as server:
        answer = asking(server.address, timings=wanted)
    assert answer.timings == SPLIT
    assert answer["x"].tolist() == [1.5]
    assert server.requests[0][2][REQUEST_KEY] == sent


@both
def test_nothing_is_asked_unless_it_is_wanted(asking: Ask) -> None:
    with FakeServer({methods.PREDICT: timing}) as server:
        assert asking(server.address).timings is None
    assert REQUEST_KEY not in server.requests[0][2]


@both
def test_a_server_that_knows_no_timings_gives_none(asking: Ask) -> None:
    with FakeServer({methods.PREDICT: echo}) as server:
        answer = asking(server.address, timings=True)
    assert answer.timings is None
    assert answer["x"].tolist() == [1.5]


@both
def test_the_timings_are_those_of_the_attempt_that_answered(asking: Ask) -> None:
    answered = iter((False, True))

    def second_time(request: Any, context: grpc.ServicerContext) -> Any:
        if not next(answered):
            context.set_trailing_metadata(((ANSWER_KEY, "queue=9;model=9;total=9"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return timing(request, context)

    with FakeServer({methods.PREDICT: second_time}) as server:
        assert asking(server.address, timings=True).timings == SPLIT
    assert len(server.requests) == 2


@both
@pytest.mark.parametrize("wanted", ["all", 1, None])
def test_a_wrong_wish_is_refused(asking: Ask, wanted: Any) -> None:
    with pytest.raises(ConfigError, match='expected True, False, "queue" or "stages"'):
        asking("localhost:1", timings=wanted)
