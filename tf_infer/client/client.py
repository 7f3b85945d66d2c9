"""Client: ask a server of TensorFlow Serving's API, ours or any other.

    with Client("localhost:8500") as client:
        for answer in client.classify("intents", ["where is my parcel?"]):
            print(answer.label, answer.score)
"""

from __future__ import annotations

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
from tf_infer.client.streaming import TextStream
from tf_infer.client.transport import ChannelOptions, GrpcTransport, Hear, Metadata, Transport
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


class Client:
    """Asks a server; every method is one call, and threads may share a client.

    Args:
        target: "host:port", several with commas or as a list (each is asked in turn, and one that
            does not answer is left out for a while), "dns:///host:port", "unix:/path".
        credentials: `INSECURE`, `tls(...)` or `bearer(...)` of `client.credentials`.
        timeout_s: time for one call, retries included; None for no limit; each method may differ.
        retry: when a failed call is sent again.
        options: compression, keepalive, connection.
        transport: what carries the bytes, instead of gRPC to `target`.

    Raises (every method):
        ConfigError, ShapeError: what can be seen to be wrong before anything is sent.
        ServingError: what the server answered, as the exception of its status code.
    """

    def __init__(self, target: str | Sequence[str] = "localhost:8500", *,
                 credentials: Credentials = INSECURE, timeout_s: float | None = 10.0,
                 retry: RetryPolicy | None = None, options: ChannelOptions | None = None,
                 transport: Transport | None = None) -> None:
        self._timeout_s = calls.seconds(timeout_s, None)
        self._retry = retry or RetryPolicy()
        self._transport = transport or GrpcTransport(target, credentials=credentials,
                                                     options=options)
        self._decoders: dict[ModelRef, ModelMetadata] = {}
        self._class_names: dict[ModelRef, tuple[str, ...]] = {}

    def predict(self, model: str | ModelRef, inputs: Mapping[str, Any], *,
                signature: str = SERVING_DEFAULT, outputs: Sequence[str] = (),
                dtypes: Mapping[str, str] | None = None, timeout_s: Timeout = UNSET,
                timings: bool | Detail = False) -> Prediction:
        """Ask any signature, by TensorFlow Serving's Predict.

        Args:
            model: a name (its highest version), or a ModelRef with a version or a label.
            inputs: name -> array, number, text, or nested lists of them; arrays keep their dtype,
                Python floats become float32 and ints int32 (int64 where they do not fit).
            signature: its name.
            outputs: names of the wanted outputs; empty for all.
            dtypes: name -> dtype to send an input as ("bfloat16", "float16", "int64", ...).
            timeout_s: for this call; None for no limit.
            timings: ask a server of ours where the time went, for `Prediction.timings`. True splits
                the run into its stages, which slows it down (docs/runtime.md); "queue" does not.
        """
        call = calls.predict(calls.reference(model), inputs, signature=signature, outputs=outputs,
                             dtypes=dtypes)
        if timings is False:
            return self._run(call, timeout_s)
        heard: list[Sequence[tuple[str, Any]]] = []
        prediction = self._run(call, timeout_s, metadata=calls.asking_for(timings),
                               hear=heard.append)
        return calls.timed(prediction, heard)

    def classify(self, model: str | ModelRef, texts: Sequence[Text], *,
                 text_pairs: Sequence[Text] | None = None, signature: str = SERVING_DEFAULT,
                 timeout_s: Timeout = UNSET) -> list[Classification]:
        """Label texts.

        Args:
            model: a classifier.
            texts: one row each.
            text_pairs: the second texts, for a model of pairs.
            signature: takes `text` (and `text_pair`), gives `label`, `score`, perhaps `scores`.
            timeout_s: for this call. The first one to a version may ask for its class names, too.
        """
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, self._timeout_s))
        call = calls.classify(ref, texts, text_pairs=text_pairs, signature=signature)
        prediction = self._run(call, deadline.left_s())
        names = self._class_names.get(prediction.model)
        if names is None and not calls.class_names_known(prediction):
            try:
                names = self._run(calls.class_names(prediction.model), deadline.left_s())
            except InvalidRequest:
                names = ()  # not a model of ours: scores stay nameless
            except ServingError:
                return calls.classifications(prediction, ())  # asked again next time
            self._class_names[prediction.model] = names
        return calls.classifications(prediction, names or ())

    def explain(self, model: str | ModelRef, texts: Sequence[Text], *,
                text_pairs: Sequence[Text] | None = None,
                target: str | Sequence[str] | None = None,
                timeout_s: Timeout = UNSET) -> list[Explanation]:
        """Say which tokens made the labels of texts.

        Args:
            model: a classifier exported with `explain`.
            texts: one row each.
            text_pairs: the second texts, for a model of pairs.
            target: the class to explain, one for all or one for each text; None or "" for the best.
            timeout_s: for this call; a text costs about as much as 60 labels.
        """
        return self._run(calls.explain(calls.reference(model), texts, text_pairs=text_pairs,
                                       target=target), timeout_s)

    def explain_token(self, model: str | ModelRef, prompts: Sequence[Text], *,
                      continuations: Sequence[Text] | None = None,
                      place: int | Sequence[int] = 0, timeout_s: Timeout = UNSET
                      ) -> list[Explanation]:
        """Say which tokens made one token of a continuation likely.

        Args:
            model: a decoder exported with `explain`.
            prompts: one row each.
            continuations: what follows them; None or "" explains the likeliest next token.
            place: which token of the continuation, from 0, one for all or one for each prompt.
            timeout_s: for this call; a prompt of n tokens costs about as much as reading 150 + n
                of them.
        """
        return self._run(calls.explain_token(
            calls.reference(model), prompts, continuations=continuations, place=place), timeout_s)

    def classify_examples(self, model: str | ModelRef, examples: Sequence[Mapping[str, Any]], *,
                          context: Mapping[str, Any] | None = None, signature: str = "classify",
                          timeout_s: Timeout = UNSET) -> list[list[Label]]:
        """Ask TensorFlow Serving's own Classify: all classes of each example.

        Args:
            model: any model with a classification signature.
            examples: feature name -> value or list, as tf.Example takes them.
            context: features that every example has beside its own.
            signature: its name.
            timeout_s: for this call.
        """
        return self._run(calls.classify_examples(
            calls.reference(model), examples, signature=signature, context=context), timeout_s)

    def regress_examples(self, model: str | ModelRef, examples: Sequence[Mapping[str, Any]], *,
                         context: Mapping[str, Any] | None = None, signature: str = "regress",
                         timeout_s: Timeout = UNSET) -> np.ndarray:
        """Ask TensorFlow Serving's own Regress: [B] float32, one value for each example."""
        return self._run(calls.regress_examples(
            calls.reference(model), examples, signature=signature, context=context), timeout_s)

    def generate(self, model: str | ModelRef, prompts: Sequence[Text], *,
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
        """Continue prompts.

        Args:
            model: a decoder.
            prompts: one row each.
            max_new_tokens, temperature, top_k, top_p: one value, or one for each prompt. What is
                left out takes the model's own default; of a model that tells none, `calls.OPTIONS`.
            seed: one int, from which each prompt gets its own (`calls.row_seeds`), or one each.
            stop: strings that end a text before them, for all prompts, or a list for each.
            logprobs: how many alternatives to tell for each token, 0 for the token alone; None
                tells nothing.
            n: continuations of each prompt: all of the first one, then all of the next. They share
                a seed and differ in their `draw`.
            choices: the texts of which it must be one, for all prompts, or a list for each.
            constraint: what the text must be, by the name it was exported with, or one for each
                prompt. Patterns and schemas of a request: `stream`.
            options: further ones of the model's `generate` (docs/generation.md): min_new_tokens,
                min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty, draw,
                stop_ids and banned (lists), logit_bias ({id: value}), forced_prefix; one value, or
                one for each prompt.
            speculative: the same answer by speculative decoding, and how its guesses did; of a
                decoder that was exported with guesses, without the options that it does not take.
            timeout_s: for this call; the first one with options also asks for the signature.
        """
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, self._timeout_s))
        chosen = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k,
                  "top_p": top_p, "seed": seed, "stop": stop, "logprobs": logprobs,
                  "choices": choices, "constraint": constraint, **(options or {})}
        if all(value is None for value in chosen.values()) and n == 1 and not speculative:
            call = calls.generate_default(ref, prompts)
            return calls.generations(self._run(call, deadline.left_s()))
        signature = calls.SPECULATE if speculative else calls.GENERATE
        return calls.generations(self._asked(ref, prompts, chosen, signature, deadline, n))

    def beam_search(self, model: str | ModelRef, prompts: Sequence[Text], *,
                    max_new_tokens: int | Sequence[int] | None = None,
                    length_penalty: float | Sequence[float] | None = None,
                    options: Mapping[str, Any] | None = None,
                    timeout_s: Timeout = UNSET) -> list[list[Generation]]:
        """Find the best continuations of prompts by beam search.

        Args:
            model: a decoder that was exported with beams.
            prompts: one row each.
            max_new_tokens: one value, or one for each prompt.
            length_penalty: p: n tokens rank by their score / n ** p; 0 ranks by scores.
            options: min_new_tokens, banned, forced_prefix, as of `generate`.
            timeout_s: for this call; the first one also asks for the signature.

        Returns:
            For each prompt its continuations, best first, as many as the model has beams or fewer.
        """
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, self._timeout_s))
        chosen = {"max_new_tokens": max_new_tokens, "length_penalty": length_penalty,
                  **(options or {})}
        return calls.hypotheses(self._asked(ref, prompts, chosen, calls.BEAM, deadline))

    def score(self, model: str | ModelRef, prompts: Sequence[Text],
              continuations: Sequence[Text], *, timeout_s: Timeout = UNSET) -> list[Likelihood]:
        """Say how likely continuations of prompts are: log-probabilities and perplexity.

        Args:
            model: a decoder.
            prompts: one row each; "" where the whole text is to count.
            continuations: what follows them, one each.
            timeout_s: for this call.
        """
        return self._run(calls.score(calls.reference(model), prompts, continuations), timeout_s)

    def _asked(self, ref: ModelRef, prompts: Sequence[Text], options: Mapping[str, Any],
               signature: str, deadline: Deadline, draws: int = 1) -> Prediction:
        """Ask a decoder with options; its signature is asked for once."""
        found = self._decoders.get(ref)
        if found is None:
            found = self._run(calls.metadata(ref), deadline.left_s())
        call = calls.generate(ref, prompts, options, calls.generate_signature(found, signature),
                              draws=draws)
        self._decoders[ref] = found
        try:
            prediction = self._run(call, deadline.left_s())
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
               ) -> TextStream:
        """Continue one prompt and give the text as it comes, by a server of ours.

        Args:
            model: a decoder.
            prompt: one text.
            max_new_tokens, temperature, top_k, top_p, seed, stop: as of `generate`; what is left
                out takes the model's default. Row 0 of a batch with the same seed is the same text.
            options: further ones: min_new_tokens, min_p, typical_p, repetition_penalty,
                presence_penalty, frequency_penalty, draw, stop_ids, banned, logit_bias,
                forced_prefix.
            regex, json_schema, choices, constraint: what the text must be: one of them; a schema as
                text or as an object, a constraint by the name it was exported with.
            logprobs: alternatives to tell for each token, 0 for the chosen one alone.
            echo: the text begins with the prompt.
            timeout_s: for the whole stream.

        Raises:
            ConfigError: what can be seen to be wrong. What the server answers comes while reading.
        """
        ref = calls.reference(model)
        data = streaming.request(
            ref, prompt, streaming.stream_options(
                options, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k,
                top_p=top_p, seed=seed, stop=stop),
            limits={"regex": regex, "json_schema": json_schema, "choices": choices,
                    "constraint": constraint}, logprobs=logprobs, echo=echo)
        metadata = (("x-request-id", uuid.uuid4().hex),)
        return TextStream(
            ref, self._retry, calls.seconds(timeout_s, self._timeout_s),
            lambda: self._transport.addresses_up() > 0,
            lambda left_s: self._transport.stream(GENERATE.path, data, timeout_s=left_s,
                                                  metadata=metadata))

    def status(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> ModelStatus:
        """Return the versions that the server knows, and their states. A label is ignored."""
        return self._run(calls.status(calls.reference(model)), timeout_s)

    def metadata(self, model: str | ModelRef, *, timeout_s: Timeout = UNSET) -> ModelMetadata:
        """Return the signatures of a model: names, dtypes, shapes."""
        return self._run(calls.metadata(calls.reference(model)), timeout_s)

    def wait_until_ready(self, model: str | ModelRef, *, timeout_s: float | None = 60.0
                         ) -> ModelStatus:
        """Return as soon as the model (or the version asked for) is AVAILABLE.

        Raises:
            DeadlineExceeded: it was not within `timeout_s`; says what was last seen.
            ServerFailure: every version failed to load.
        """
        ref = calls.reference(model)
        deadline = Deadline(calls.seconds(timeout_s, None))
        last: ModelStatus | ServingError | None = None
        while True:
            left_s = deadline.left_or_zero_s()
            if left_s == 0.0:
                raise DeadlineExceeded(calls.not_ready(ref, deadline.timeout_s or 0.0, last))
            try:
                last = self._attempt(calls.status(ref), min(left_s or 5.0, 5.0))
                if calls.is_ready(last):
                    return last
            except DeadlineExceeded as error:
                last = last or error  # cut short by our own limit: tells less than what was seen
            except (ServerUnavailable, ModelNotFound) as error:
                last = error
            time.sleep(min(READY_POLL_S, left_s or READY_POLL_S))

    def _attempt(self, call: Call[T], timeout_s: float | None) -> T:
        return call.answer(self._transport.unary(
            call.method.path, call.request, timeout_s=timeout_s))

    def _run(self, call: Call[T], timeout_s: Timeout, *,
             metadata: Metadata = (), hear: Hear | None = None) -> T:
        limit_s = calls.seconds(timeout_s, self._timeout_s)
        request, path = call.request, call.method.path
        metadata = (("x-request-id", uuid.uuid4().hex), *metadata)
        started_s, attempt, left_s = time.monotonic(), 1, limit_s
        while True:
            try:
                return call.answer(self._transport.unary(path, request, timeout_s=left_s,
                                                         metadata=metadata, hear=hear))
            except ServingError as error:
                wait_s = plan_retry(
                    self._retry, attempt=attempt, code=error.code,
                    elapsed_s=time.monotonic() - started_s, timeout_s=limit_s,
                    elsewhere=self._transport.addresses_up() > 0, draw=random.random())
                if wait_s is None:
                    raise
            time.sleep(wait_s)
            attempt += 1
            if limit_s is not None:
                left_s = max(limit_s - (time.monotonic() - started_s), 0.001)

    def close(self) -> None:
        """Close the connections; calls in flight end with Cancelled."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
