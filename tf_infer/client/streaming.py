"""Streams of text: what `Client.stream` and `AsyncClient.stream` give back, and what they send."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any

from tf_infer.client.calls import Text
from tf_infer.client.results import StreamPiece, StreamToken, Usage
from tf_infer.client.retry import RetryPolicy, plan_retry
from tf_infer.client.transport import AsyncResponses, Responses
from tf_infer.errors import ConfigError, InvalidRequest, ServerFailure, ServingError
from tf_infer.wire import generation_pb2 as pb
from tf_infer.wire import methods
from tf_infer.wire.messages import ModelRef

_FIELDS = pb.GenerateOptions.DESCRIPTOR.fields_by_name
_LISTS = ("stop", "stop_ids", "banned")
_KINDS = ("constraint", "regex", "json_schema", "choices")


def request(ref: ModelRef, prompt: Text, options: Mapping[str, Any], *,
            limits: Mapping[str, Any], logprobs: int | None, echo: bool) -> bytes:
    """Return the bytes of a GenerateRequest.

    Args:
        ref: the model.
        prompt: one text.
        options: name -> value; None counts as left out.
        limits: at most one of `constraint`, `regex`, `json_schema` (text or an object), `choices`.
        logprobs: alternatives for each token; None for none at all.
        echo: begin with the prompt.

    Raises:
        ConfigError: not one text, an option that there is not, a value of another type, or two
            constraints.
    """
    if not isinstance(prompt, (str, bytes)):
        raise ConfigError(f"prompt: expected one text, got {type(prompt).__name__}. "
                          "Stream each prompt by itself, or use generate().")
    raw = prompt.encode("utf-8", "surrogatepass") if isinstance(prompt, str) else prompt
    made = pb.GenerateRequest(prompt=raw, options=_options(options), echo=echo,
                              model=pb.ModelChoice(name=ref.name))
    if ref.version is not None:
        made.model.version = ref.version
    elif ref.label is not None:
        made.model.label = ref.label
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) > 1:
        raise ConfigError(f"constraint: expected one of {list(_KINDS)}, got {sorted(given)}.")
    for name, value in given.items():
        _constrain(made.constraint, name, value)
    if logprobs is not None:
        _set(made, "top_logprobs", logprobs, "logprobs")
    encoded: bytes = made.SerializeToString()
    return encoded


def _options(options: Mapping[str, Any]) -> pb.GenerateOptions:
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(_FIELDS)):
        raise ConfigError(f"options: expected some of {sorted(_FIELDS)}, got {unknown}.")
    made = pb.GenerateOptions()
    for name, value in given.items():
        if name == "logit_bias":
            _fill(made.logit_bias.update, dict(value), name)
        elif name in _LISTS:
            listed = [value] if isinstance(value, str) else list(value)
            _fill(getattr(made, name).extend, listed, name)
        else:
            _set(made, name, value, name)
    return made


def _constrain(made: pb.Constraint, name: str, value: Any) -> None:
    if name == "choices":
        if isinstance(value, str):
            raise ConfigError("choices: expected a list of texts, got one text.")
        _fill(made.choices.choice.extend, list(value), name)
        return
    if name == "json_schema" and not isinstance(value, str):
        try:
            value = json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError("json_schema: expected text or what JSON can hold, "
                              f"got {type(value).__name__}.") from error
    _set(made, "name" if name == "constraint" else name, value, name)


def _set(made: Any, field: str, value: Any, name: str) -> None:
    _fill(lambda given: setattr(made, field, given), value, name)


def _fill(fill: Callable[[Any], Any], value: Any, name: str) -> None:
    """Put a value into a message; protobuf's own error would quote it."""
    try:
        fill(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: expected another type or range than that of the "
                          f"{type(value).__name__} that was given.") from None


class _Reading:
    """What both forms of a stream know: how far it got, and whether to ask again."""

    def __init__(self, ref: ModelRef, retry: RetryPolicy, timeout_s: float | None,
                 elsewhere: Callable[[], bool]) -> None:
        self.model = ref
        self.text, self.finish_reason, self.usage, self.score = "", "", Usage(), 0.0
        self._retry, self._timeout_s, self._elsewhere = retry, timeout_s, elsewhere
        self._started_s = time.monotonic()
        self._attempt = 1
        self._heard = False
        self._over = False

    def _left_s(self) -> float | None:
        if self._timeout_s is None:
            return None
        return max(self._timeout_s - (time.monotonic() - self._started_s), 0.001)

    def _wait_s(self, error: ServingError) -> float | None:
        """Return how long to wait before asking again; None for not: a piece was heard, perhaps."""
        if self._heard:
            return None
        wait_s = plan_retry(
            self._retry, attempt=self._attempt, code=error.code,
            elapsed_s=time.monotonic() - self._started_s, timeout_s=self._timeout_s,
            elsewhere=self._elsewhere(), draw=random.random())
        self._attempt += 1
        return wait_s

    def _read(self, data: bytes) -> StreamPiece:
        try:
            message = methods.parse(pb.GenerateResponse, data, where="answer to Generate")
        except InvalidRequest as error:
            raise ServerFailure(f"{error.details} The server's answer cannot be read.") from error
        piece = StreamPiece(
            message.text.decode("utf-8", "replace"),
            tuple(StreamToken(
                token.id, token.piece,
                token.logprob if token.HasField("logprob") else float("nan"),
                tuple((one.id, one.piece, one.logprob) for one in token.top))
                for token in message.tokens),
            message.finish_reason or None,
            Usage(message.prompt_tokens, message.cached_tokens, message.new_tokens), message.score)
        if not self._heard and message.model:
            self.model = ModelRef(message.model, version=message.version)
        self._heard = True
        self.text += piece.text
        self.usage, self.score = piece.usage, piece.score
        self.finish_reason = piece.finish_reason or ""
        return piece

    def _unfinished(self) -> ServerFailure:
        return ServerFailure(f"The stream of {self.model} ended without a reason after "
                             f"{self.usage.new_tokens} tokens.")


class TextStream(_Reading):
    """An answer as it comes: iterate over its pieces.

        with client.stream("writer", "Once upon a time") as stream:
            for piece in stream:
                print(piece.text, end="", flush=True)

    Leaving the `with`, `close()`, and dropping the stream end the request on the server. An error
    comes where the next piece would; before the first piece the request is sent again as every
    other, after it never.

    Attributes:
        text: all of it so far.
        finish_reason: "" until the last piece.
        usage, score: of the last piece.
        model: who answers; its version is known with the first piece.
    """

    def __init__(self, ref: ModelRef, retry: RetryPolicy, timeout_s: float | None,
                 elsewhere: Callable[[], bool], begin: Callable[[float | None], Responses]) -> None:
        super().__init__(ref, retry, timeout_s, elsewhere)
        self._begin = begin
        self._responses = begin(self._left_s())

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> StreamPiece:
        if self._over or self.finish_reason:
            raise StopIteration
        while True:
            try:
                return self._read(next(self._responses))
            except StopIteration:
                self.close()
                raise self._unfinished() from None
            except ServingError as error:
                if self._over:  # closed meanwhile
                    raise StopIteration from None
                wait_s = self._wait_s(error)
                if wait_s is None:
                    self.close()
                    raise
            except BaseException:  # Ctrl-C
                self.close()
                raise
            time.sleep(wait_s)
            self._responses = self._begin(self._left_s())

    def close(self) -> None:
        """End the request; nothing more comes. From any thread."""
        self._over = True
        if not self.finish_reason:
            self._responses.cancel()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class AsyncTextStream(_Reading):
    """An answer as it comes, awaited; see `TextStream`.

        async with client.stream("writer", "Once upon a time") as stream:
            async for piece in stream:
                print(piece.text, end="", flush=True)
    """

    def __init__(self, ref: ModelRef, retry: RetryPolicy, timeout_s: float | None,
                 elsewhere: Callable[[], bool],
                 begin: Callable[[float | None], AsyncResponses]) -> None:
        super().__init__(ref, retry, timeout_s, elsewhere)
        self._begin = begin
        self._responses = begin(self._left_s())

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> StreamPiece:
        if self._over or self.finish_reason:
            raise StopAsyncIteration
        while True:
            try:
                return self._read(await self._responses.__anext__())
            except StopAsyncIteration:
                self._end()
                raise self._unfinished() from None
            except ServingError as error:
                if self._over:  # closed meanwhile
                    raise StopAsyncIteration from None
                wait_s = self._wait_s(error)
                if wait_s is None:
                    self._end()
                    raise
            except BaseException:  # the task was cancelled
                self._end()
                raise
            await asyncio.sleep(wait_s)
            self._responses = self._begin(self._left_s())

    def _end(self) -> None:
        self._over = True
        if not self.finish_reason:
            self._responses.cancel()

    async def close(self) -> None:
        """End the request; nothing more comes."""
        self._end()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        self._end()

    def __del__(self) -> None:  # gRPC's loop would hold the call, while a sync one ends by itself
        if hasattr(self, "_responses"):
            with suppress(RuntimeError):  # the loop is closed
                self._end()


def stream_options(further: Mapping[str, Any] | None, **named: Any) -> dict[str, Any]:
    """Return the options of a call: those with a name of their own, and further ones.

    Raises:
        ConfigError: one is given twice.
    """
    given = {name: value for name, value in named.items() if value is not None}
    if twice := sorted(set(given) & set(further or {})):
        raise ConfigError(f"options: expected each option once, got {twice} twice.")
    return {**given, **(further or {})}


