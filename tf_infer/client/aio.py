"""AsyncClient: the methods of Client, awaited.

    async with AsyncClient("localhost:8500") as client:
        rows = await asyncio.gather(*(client.classify("intents", [text]) for text in texts))
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from tf_infer.client import calls, streaming
from tf_infer.client.calls import UNSET, Call, Deadline, Text, Timeout
from tf_infer.client.credentials import INSECURE, Credentials
from tf_infer.client.explanations import Explanation
from tf_infer.client.results import (
    Classification,
    Generation,
    Label,
    Likelihood,
    ModelMetadata,
    ModelStatus,
    Prediction,
)
from tf_infer.client.retry import RetryPolicy, plan_retry
from tf_infer.client.streaming import AsyncTextStream
from tf_infer.client.transport import (
    AioTransport,
    AsyncTransport,
    ChannelOptions,
    Hear,
    Metadata,
)
from tf_infer.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    ServerUnavailable,
    ServingError,
)
from tf_infer.wire.messages import SERVING_DEFAULT, ModelRef
from tf_infer.wire.methods import GENERATE
from tf_infer.wire.timings import Detail

T = TypeVar("T")

READY_POLL_S = 0.1


class AsyncClient:
    """Asks a server; every method is one awaited call. Arguments and errors are those of `Client`.

    Belongs to the event loop of its first call. Any number of calls may run at once.
    """

    def __init__(self, target: str | Sequence[str] = "localhost:8500", *,
                 credentials: Credentials = INSECURE, timeout_s: float | None = 10.0,
                 retry: RetryPolicy | None = None, options: ChannelOptions | None = None,
                 transport: AsyncTransport | None = None) -> None:
        self._timeout_s = calls.seconds(timeout_s, None)
        self._retry = retry or RetryPolicy()
        self._transport = transport or AioTransport(target, credentials=credentials,
                                                     options=options)
        self._decoders: dict[ModelRef, ModelMetadata] = {}
        self._class_names: dict[ModelRef, tuple[str, ...]] = {}

    async def predict(self, model: str | ModelRef, inputs: Mapping[str, Any], *,
                      signature: str = SERVING_DEFAULT, outputs: Sequence[str] = (),
                      dtypes: Mapping[str, str] | None = None, timeout_s: Timeout = UNSET,
                      timings: bool | Detail = False) -> Prediction:
        """Ask any signature; see `Client.predict`."""
        call = calls.predict(calls.reference(model), inputs, signature=signature, outputs=outputs,
                             dtypes=dtypes)
        if timings is False:
            return await self._run(call, timeout_s)
        heard: list[Sequence[tuple[str, Any]]] = []
        prediction = await self._run(call, timeout_s, metadata=calls.asking_for(timings),
                                     hear=heard.append)
        return calls.timed(prediction, heard)

    async def classify(self, model: str | ModelRef, texts: Sequence[Text], *,
                       text_pairs: Sequence[Text] | None = None, signature: str = SERVING_DEFAULT,
                       timeout_s: Timeout = UNSET) -> list[Classification]:
        """Label texts; see `Client.classify`."""
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, self._timeout_s))
        call = calls.classify(ref, texts, text_pairs=text_pairs, signature=signature)
        prediction = await self._run(call, deadline.left_s())
        names = self._class_names.get(prediction.model)
        if names is None and not calls.class_names_known(prediction):
            try:
                names = await self._run(calls.class_names(prediction.model), deadline.left_s())
            except InvalidRequest:
                names = ()  # not a model of ours: scores stay nameless
            except ServingError:
                return calls.classifications(prediction, ())  # asked again next time
            self._class_names[prediction.model] = names
        return calls.classifications(prediction, names or ())

    async def explain(self, model: str | ModelRef, texts: Sequence[Text], *,
                      text_pairs: Sequence[Text] | None = None,
                      target: str | Sequence[str] | None = None,
                      timeout_s: Timeout = UNSET) -> list[Explanation]:
        """Say which tokens made the labels of texts; see `Client.explain`."""
        return await self._run(calls.explain(calls.reference(model), texts, text_pairs=text_pairs,
                                             target=target), timeout_s)

    async def explain_token(self, model: str | ModelRef, prompts: Sequence[Text], *,
                            continuations: Sequence[Text] | None = None,
                            place: int | Sequence[int] = 0, timeout_s: Timeout = UNSET
                            ) -> list[Explanation]:
        """Say which tokens made one token of a continuation likely; see `Client.explain_token`."""
        return await self._run(calls.explain_token(
            calls.reference(model), prompts, continuations=continuations, place=place), timeout_s)

    async def classify_examples(self, model: str | ModelRef,
                                examples: Sequence[Mapping[str, Any]], *,
                                context: Mapping[str, Any] | None = None,
                                signature: str = "classify",
                                timeout_s: Timeout = UNSET) -> list[list[Label]]:
        """Ask TensorFlow Serving's Classify; see `Client.classify_examples`."""
        return await self._run(calls.classify_examples(
            calls.reference(model), examples, signature=signature, context=context), timeout_s)

    async def regress_examples(self, model: str | ModelRef,
                               examples: Sequence[Mapping[str, Any]], *,
                               context: Mapping[str, Any] | None = None, signature: str = "regress",
                               timeout_s: Timeout = UNSET) -> np.ndarray:
        """Ask TensorFlow Serving's Regress; see `Client.regress_examples`."""
        return await self._run(calls.regress_examples(
            calls.reference(model), examples, signature=signature, context=context), timeout_s)

    async def generate(self, model: str | ModelRef, prompts: Sequence[Text], *,
                       max_new_tokens: int | Sequence[int] | None = None,
                       temperature: float | Sequence[float] | None = None,
                       top_k: int | Sequence[int] | None = None,
                       top_p: float | Sequence[float] | None = None,
                       seed: int | Sequence[int] | None = None,
                       stop: Sequence[str] | Sequence[Sequence[str]] | str | None = None,
                       logprobs: int | Sequence[int] | None = None, n: int = 1,
                       choices: Sequence[str] | Sequence[Sequence[str]] | None = None,
                       constraint: str | Sequence[str] | None = None,
                       options: Mapping[str, Any] | None = None, speculative: bool = False,
                       timeout_s: Timeout = UNSET) -> list[Generation]:
        """Continue prompts; see `Client.generate`."""
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, self._timeout_s))
        chosen = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
                  "top_p": top_p, "seed": seed, "stop": stop, "logprobs": logprobs,
                  "choices": choices, "constraint": constraint, **(options or {})}
        if all(value is None for value in chosen.values()) and n == 1 and not speculative:
            call = calls.generate_default(ref, prompts)
            return calls.generations(await self._run(call, deadline.left_s()))
        signature = calls.SPECULATE if speculative else calls.GENERATE
        return calls.generations(await self._asked(ref, prompts, chosen, signature, deadline, n))

    async def beam_search(self, model: str | ModelRef, prompts: Sequence[Text], *,
                          max_new_tokens: int | Sequence[int] | None = None,
                          length_penalty: float | Sequence[float] | None = None,
                          options: Mapping[str, Any] | None = None,
                          timeout_s: Timeout = UNSET) -> list[list[Generation]]:
        """Continue prompts by beam search; see `Client.beam_search`."""
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, self._timeout_s))
        chosen = {"max_new_tokens": max_new_tokens, "length_penalty": length_penalty,
                  **(options or {})}
        return calls.hypotheses(await self._asked(ref, prompts, chosen, calls.BEAM, deadline))

    async def score(self, model: str | ModelRef, prompts: Sequence[Text],
                    continuations: Sequence[Text], *, timeout_s: Timeout = UNSET
                    ) -> list[Likelihood]:
        """Say how likely continuations of prompts are; see `Client.score`."""
        return await self._run(calls.score(calls.reference(model), prompts, continuations),
                               timeout_s)

    async def _asked(self, ref: ModelRef, prompts: Sequence[Text], options: Mapping[str, Any],
                     signature: str, deadline: Deadline, draws: int = 1) -> Prediction:
        """Ask a decoder with options; its signature is asked for once."""
        found = self._decoders.get(ref)
        if found is None:
            found = await self._run(calls.metadata(ref), deadline.left_s())
        call = calls.generate(ref, prompts, options, calls.generate_signature(found, signature),
                              draws=draws)
        self._decoders[ref] = found
        try:
            prediction = await self._run(call, deadline.left_s())
        except InvalidRequest:
            self._decoders.pop(ref, None)  # perhaps a new version takes other options
            raise
        if prediction.model.version != found.model.version:
            self._decoders.pop(ref, None)  # a new version answers, with defaults of its own
        return prediction

    def stream(self, model: str | ModelRef, prompt: Text, *, max_new_tokens: int | None = None,
               temperature: float | None = None, top_k: int | None = None,
               top_p: float | None = None, seed: int | None = None,
               stop: Sequence[str] | None = None, options: Mapping[str, Any] | None = None,
               regex: str | None = None, json_schema: str | Mapping[str, Any] | None = None,
               choices: Sequence[str] | None = None, constraint: str | None = None,
               logprobs: int | None = None, echo: bool = False, timeout_s: Timeout = UNSET,
               ) -> AsyncTextStream:
        """Continue one prompt and give the text as it comes; see `Client.stream`.

        Call it on the loop; nothing is awaited before the first piece.
        """
        ref = calls.reference(model)
        data = streaming.request(
            ref, prompt, streaming.stream_options(
                options, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                top_p=top_p, seed=seed, stop=stop),
            limits={"regex": regex, "json_schema": json_schema, "choices": choices,
                    "constraint": constraint}, logprobs=logprobs, echo=echo)
        metadata = (("x-request-id", uuid.uuid4().hex),)
        return AsyncTextStream(
            ref, self._retry, calls.seconds(timeout_s, self._timeout_s),
            lambda: self._transport.addresses_up() > 0,
            lambda left_s: self._transport.stream(GENERATE.path, data, timeout_s=left_s,
                                                  metadata=metadata))

    async def status(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> ModelStatus:
        """Return the versions and their states; see `Client.status`."""
        return await self._run(calls.status(calls.reference(model)), timeout_s)

    async def metadata(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> ModelMetadata:
        """Return the signatures of a model; see `Client.metadata`."""
        return await self._run(calls.metadata(calls.reference(model)), timeout_s)

    async def wait_until_ready(self, model: str | ModelRef, *, timeout_s: float | None = 60.0
                               ) -> ModelStatus:
        """Return as soon as the model is AVAILABLE; see `Client.wait_until_ready`."""
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, None))
        last: ModelStatus | ServingError | None = None
        while True:
            left_s = deadline.left_or_zero_s()
            if left_s == 0.0:
                raise DeadlineExceeded(calls.not_ready(ref, deadline.timeout_s or 0.0, last))
            try:
                last = await self._attempt(calls.status(ref), min(left_s or 5.0, 5.0))
                if calls.is_ready(last):
                    return last
            except DeadlineExceeded as error:
                last = last or error  # cut short by our own limit: tells less than what was seen
            except (ServerUnavailable, ModelNotFound) as error:
                last = error
            await asyncio.sleep(min(READY_POLL_S, left_s or READY_POLL_S))

    async def _attempt(self, call: Call[T], timeout_s: float | None) -> T:
        return call.answer(await self._transport.unary(
            call.method.path, call.request, timeout_s=timeout_s))

    async def _run(self, call: Call[T], timeout_s: Timeout, *,
                   metadata: Metadata = (), hear: Hear | None = None) -> T:
        limit_s = calls.seconds(timeout_s, self._timeout_s)
        request, path = call.request, call.method.path
        metadata = (("x-request-id", uuid.uuid4().hex), *metadata)
        started_s, attempt, left_s = time.monotonic(), 1, limit_s
        while True:
            try:
                return call.answer(await self._transport.unary(path, request, timeout_s=left_s,
                                                         metadata=metadata, hear=hear))
            except ServingError as error:
                wait_s = plan_retry(
                    self._retry, attempt=attempt, code=error.code,
                    elapsed_s=time.monotonic() - started_s, timeout_s=limit_s,
                    elsewhere=self._transport.addresses_up() > 0, draw=random.random())
                if wait_s is None:
                    raise
            await asyncio.sleep(wait_s)
            attempt += 1
            if limit_s is not None:
                left_s = max(limit_s - (time.monotonic() - started_s), 0.001)

    async def close(self) -> None:
        """Close the connections; calls in flight end with Cancelled."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        await self.close()
