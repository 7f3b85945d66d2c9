"""Client.stream and AsyncClient.stream, against servers in this process."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.server.generationkit import SCRIPT, TEXT, Serving, serving, until
from tf_infer.client.aio import AsyncClient
from tf_infer.client.client import Client
from tf_infer.client.retry import NO_RETRY, RetryPolicy
from tf_infer.client.streaming import TextStream
from tf_infer.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    NotOffered,
    Overloaded,
    ServerFailure,
    ServerUnavailable,
    ServingError,
)
from tf_infer.server.generation import Constraint
from tf_infer.server.scripted import Writer
from tf_infer.wire import generation_pb2 as pb
from tf_infer.wire import methods
from tf_infer.wire.messages import ModelRef

SOON = RetryPolicy(attempts=3, initial_backoff_s=0.01)


class AsyncStream:
    """An AsyncTextStream seen as a TextStream."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: Any) -> None:
        self._loop, self._stream = loop, stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> AsyncStream:
        return self

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(self._stream.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        self._loop.run_until_complete(self._stream.close())

    def __enter__(self) -> AsyncStream:
        self._loop.run_until_complete(self._stream.__aenter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._loop.run_until_complete(self._stream.__aexit__(*error))


class AsyncAsked:
    """An AsyncClient seen as a Client, so that one test asks both."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*args, **options)

    def stream(self, *args: Any, **options: Any) -> AsyncStream:
        async def begun() -> Any:
            return self._client.stream(*args, **options)
        return AsyncStream(self._loop, self._loop.run_until_complete(begun()))

    def __enter__(self) -> AsyncAsked:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()


@pytest.fixture(params=[Client, AsyncAsked], ids=["sync", "aio"])
def make(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("models"), Writer(SCRIPT, every_s=0.002)) as running:
        yield running


@pytest.fixture
def one(shared: Serving) -> Serving:
    shared.writer.requests.clear()
    return shared


def address(one: Serving) -> str:
    return one.server.addresses[0]


@contextmanager
def answering(answer: Callable[[Any, Any], Iterator[pb.GenerateResponse]]) -> Iterator[str]:
    """Serve Generate by a function; yields the address."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
        methods.GENERATION_SERVICE, {"Generate": grpc.unary_stream_rpc_method_handler(
            answer, pb.GenerateRequest.FromString, pb.GenerateResponse.SerializeToString)}),))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(0).wait()


def test_pieces_joined_are_the_answer(make: Any, one: Serving) -> None:
    with make(address(one)) as client, client.stream("writer", "Once") as stream:
        pieces = list(stream)
        assert "".join(piece.text for piece in pieces) == stream.text == TEXT
        assert stream.model == ModelRef("writer", version=7)
        assert stream.finish_reason == pieces[-1].finish_reason == "stop"
        assert (stream.usage.prompt_tokens, stream.usage.new_tokens, stream.score) == (
            4, len(SCRIPT), -5.0)
        assert list(stream) == []
    assert [token.piece for piece in pieces for token in piece.tokens] == list(SCRIPT)
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_every_option_arrives(make: Any, one: Serving) -> None:
    with make(address(one)) as client:
        list(client.stream(
            ModelRef("writer", label="stable"), b"\xff", max_new_tokens=2, temperature=0.5,
            top_k=3, top_p=0.75, seed=-7, stop=["a", "b"], regex="x+", logprobs=1, echo=True,
            options={"stop_ids": [1, 2], "logit_bias": {5: -1.5}, "min_p": 0.25, "draw": 1}))
        request = one.writer.requests[0]
    assert dict(request.options) == {
        "max_new_tokens": 2, "temperature": 0.5, "top_k": 3, "top_p": 0.75, "seed": -7,
        "stop": "a\x1fb", "stop_ids": "1\x1f2", "logit_bias": "5:-1.5", "min_p": 0.25, "draw": 1}
    assert (request.prompt, request.top_logprobs, request.echo) == (b"\xff", 1, True)
    assert request.constraint == Constraint(kind="regex", value="x+")


@pytest.mark.parametrize(("given", "expected"), [
    ({"json_schema": {"type": "object"}}, Constraint(kind="json_schema",
                                                      value='{"type": "object"}')),
    ({"json_schema": "{}"}, Constraint(kind="json_schema", value="{}")),
    ({"choices": ["yes", "no"]}, Constraint(kind="choices", value="yes\x1fno")),
    ({"constraint": "date"}, Constraint(kind="name", value="date")),
])
def test_every_constraint_arrives(one: Serving, given: dict[str, Any], expected: Constraint
                                  ) -> None:
    with Client(address(one)) as client:
        list(client.stream("writer", "a", **given))
        assert one.writer.requests[0].constraint == expected


def test_log_probabilities_are_told_or_nan(one: Serving) -> None:
    with Client(address(one)) as client:
        token = next(client.stream("writer", "a", logprobs=1)).tokens[0]
        assert (token.logprob, token.top) == (-0.5, ((1000, b"t0", -0.5),))
        plain = next(client.stream("writer", "a")).tokens[0]
    assert plain.logprob != plain.logprob and plain.top == ()


@pytest.mark.parametrize(("given", "text"), [
    ({"prompt": ["a", "b"]}, "prompt: expected one text, got list"),
    ({"options": {"beams": 3}}, r"\['beams'\]"),
    ({"options": {"seed": 1}, "seed": 2}, r"\['seed'\] twice"),
    ({"seed": 2**70}, "seed: expected another"),
    ({"temperature": "secret"}, "temperature: expected another type"),
    ({"stop": [5]}, "stop: expected another type"),
    ({"options": {"logit_bias": {"secret": 1}}}, "logit_bias: expected another type"),
    ({"json_schema": {"secret": object()}}, "json_schema: expected text or what JSON can hold"),
    ({"choices": "yes"}, "choices: expected a list"),
    ({"regex": "a", "choices": ["b"]}, r"got \['choices', 'regex'\]"),
    ({"logprobs": 2**40}, "logprobs: expected another"),
    ({"timeout_s": -1}, "timeout_s"),
])
def test_what_cannot_be_sent_is_refused_before(make: Any, one: Serving, given: dict[str, Any],
                                               text: str) -> None:
    with make(address(one)) as client, pytest.raises(ConfigError, match=text) as caught:
        client.stream("writer", **{"prompt": "a", **given})
    assert "secret" not in str(caught.value)
    assert one.writer.requests == []


@pytest.mark.parametrize(("model", "given", "error"), [
    ("nobody", {}, ModelNotFound), ("echo", {}, NotOffered),
    ("writer", {"max_new_tokens": -1}, InvalidRequest),
    ("writer", {"temperature": float("nan")}, InvalidRequest),
    ("writer", {"stop": [""]}, InvalidRequest), ("writer", {"regex": "a("}, InvalidRequest),
])
def test_what_the_server_refuses_is_an_error_of_ours(make: Any, one: Serving, model: str,
                                                     given: dict[str, Any], error: Any) -> None:
    with make(address(one)) as client, pytest.raises(error):
        list(client.stream(model, "a", **given))


@pytest.mark.parametrize("leave", ["close", "with"])
def test_who_leaves_ends_the_request_on_the_server(make: Any, tmp_path: Path, leave: str) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one, make(address(one)) as client:
        stream = client.stream("writer", "Once")
        if leave == "with":
            with stream:
                next(stream)
        else:
            next(stream)
        if leave == "close":
            stream.close()
            assert list(stream) == []
        assert until(lambda: writer.cancelled == 1 and one.lent() == 0)


def test_a_stream_that_is_dropped_ends_the_request(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)

    async def dropped(target: str) -> None:
        async with AsyncClient(target) as client:
            async for _ in client.stream("writer", "Once"):
                break
            gc.collect()
            assert await asyncio.to_thread(until, lambda: writer.cancelled == 2)

    with serving(tmp_path, writer) as one, Client(address(one)) as client:
        for _ in client.stream("writer", "Once"):
            break
        assert until(lambda: writer.cancelled == 1)
        asyncio.run(dropped(address(one)))


def test_an_exception_inside_the_with_ends_the_request(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one, Client(address(one)) as client:
        with pytest.raises(KeyError), client.stream("writer", "Once") as stream:
            next(stream)
            raise KeyError
        assert until(lambda: writer.cancelled == 1)


def test_another_thread_may_close_a_stream(tmp_path: Path) -> None:
    writer = Writer([b"a"])
    writer.gate = threading.Semaphore(0)
    with serving(tmp_path, writer) as one, Client(address(one)) as client:
        stream = client.stream("writer", "Once")
        closer = threading.Timer(0.1, stream.close)
        closer.start()
        assert list(stream) == []
        closer.join()


def test_a_cancelled_task_ends_the_request(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)

    async def read(client: AsyncClient) -> None:
        async for _ in client.stream("writer", "Once"):
            pass

    async def main(target: str) -> None:
        async with AsyncClient(target) as client:
            task = asyncio.ensure_future(read(client))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(until, lambda: writer.cancelled == 1)

    with serving(tmp_path, writer) as one:
        asyncio.run(main(address(one)))


def test_the_deadline_ends_a_stream_on_both_sides(make: Any, tmp_path: Path) -> None:
    writer = Writer([b"a"] * 10_000, every_s=0.01, capacity=10_000)
    with serving(tmp_path, writer) as one, make(address(one)) as client:
        for timeout_s in (0.3, 3.0, 10.0):  # until a piece comes in time
            stream = client.stream("writer", "Once", timeout_s=timeout_s)
            with pytest.raises(DeadlineExceeded):
                list(stream)
            assert until(lambda: writer.cancelled == len(writer.requests))
            if stream.text:
                break
        assert stream.text


def test_a_refusal_before_the_first_piece_is_asked_again(make: Any) -> None:
    asked: list[str] = []

    def answer(request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        asked.append(dict(context.invocation_metadata())["x-request-id"])
        if len(asked) < 3:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        yield pb.GenerateResponse(text=b"a", finish_reason="stop")

    with answering(answer) as target, make(target, retry=SOON) as client:
        assert [piece.text for piece in client.stream("m", "x")] == ["a"]
    assert len(asked) == 3 and len(set(asked)) == 1


def test_nothing_is_asked_again_behind_the_first_piece(make: Any) -> None:
    asked = []

    def answer(request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        asked.append(1)
        yield pb.GenerateResponse(text=b"a")
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with answering(answer) as target, make(target, retry=SOON) as client:
        stream = client.stream("m", "x")
        assert next(stream).text == "a"
        with pytest.raises(ServerUnavailable, match="gone"):
            next(stream)
        assert list(stream) == []
    assert len(asked) == 1


def test_retries_end_with_the_last_error(make: Any) -> None:
    def answer(request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        yield pb.GenerateResponse()

    with (answering(answer) as target, make(target, retry=NO_RETRY) as client,
          pytest.raises(Overloaded, match="full")):
        list(client.stream("m", "x"))


def test_a_stream_that_ends_without_a_reason_is_a_failure(make: Any) -> None:
    def answer(request: Any, context: Any) -> Iterator[pb.GenerateResponse]:
        yield pb.GenerateResponse(text=b"a", new_tokens=1)

    with answering(answer) as target, make(target) as client:
        stream = client.stream("m", "x")
        next(stream)
        with pytest.raises(ServerFailure, match="without a reason after 1 tokens"):
            next(stream)


def test_a_server_that_stops_in_mid_stream_is_unavailable(make: Any, tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)
    with serving(tmp_path, writer) as one, make(address(one)) as client:
        stream = client.stream("writer", "Once")
        next(stream)
        stopping = threading.Thread(target=one.server.stop, args=(0.1,))
        stopping.start()
        with pytest.raises(ServerUnavailable):
            list(stream)
        stopping.join()


def test_a_closed_client_streams_no_more(one: Serving) -> None:
    client = Client(address(one))
    running = client.stream("writer", "a")
    client.close()
    with pytest.raises(ServingError):
        list(running)
    with pytest.raises(ConfigError, match="Make a new Client"):
        client.stream("writer", "a")


def test_a_closed_async_client_streams_no_more(one: Serving) -> None:
    async def main() -> None:
        client = AsyncClient(address(one))
        running = client.stream("writer", "a")
        await running.__anext__()
        await client.close()
        with pytest.raises(Cancelled):
            async for _ in running:
                pass
        with pytest.raises(ConfigError, match="Make a new Client"):
            client.stream("writer", "a")

    asyncio.run(main())


def test_ctrl_c_while_waiting_ends_the_request(tmp_path: Path) -> None:
    writer = Writer([b"a"] * 1000, every_s=0.01)

    class Interrupted:
        def __init__(self, inner: Any) -> None:
            self.inner, self.count = inner, 0

        def __next__(self) -> bytes:
            self.count += 1
            if self.count == 3:
                raise KeyboardInterrupt
            answer: bytes = next(self.inner)
            return answer

        def cancel(self) -> None:
            self.inner.cancel()

    with serving(tmp_path, writer) as one, Client(address(one)) as client:
        def begin(left_s: float | None) -> Any:
            return Interrupted(client._transport.stream(
                methods.GENERATE.path, pb.GenerateRequest(
                    model=pb.ModelChoice(name="writer")).SerializeToString(), timeout_s=left_s))
        stream = TextStream(ModelRef("writer"), NO_RETRY, 10.0, lambda: False, begin)
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        assert until(lambda: writer.cancelled == 1)


def test_a_schema_as_text_is_sent_as_it_is(one: Serving) -> None:
    text = json.dumps({"type": "string"}, indent=2)
    with Client(address(one)) as client:
        list(client.stream("writer", "a", json_schema=text))
    constraint = one.writer.requests[0].constraint
    assert constraint is not None and constraint.value == text
