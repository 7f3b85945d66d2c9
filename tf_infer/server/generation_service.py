"""GenerationService over gRPC: one call a prompt, its text in pieces. Our own service.

No thread is held while a request waits or generates: a pool's thread begins it, and one thread
hands the pieces of all requests to gRPC, so that the generator's thread does not: what it says in a
microsecond costs 40 of system calls (benchmarks/streaming.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc

from tf_infer.errors import Code, InvalidRequest
from tf_infer.server import reading
from tf_infer.server.generation import Constraint, GenerationRequest, Generators, Piece
from tf_infer.server.generation_log import Record, finish
from tf_infer.server.grpc_service import deadline_of, header_of, truncated
from tf_infer.server.metrics import GRPC, Metrics
from tf_infer.server.replies import StreamReply
from tf_infer.server.scheduler import as_serving_error
from tf_infer.server.streams import Sender, Stream
from tf_infer.server.versions import ModelRef
from tf_infer.wire import generation, methods
from tf_infer.wire import generation_pb2 as pb


def read_request(message: pb.GenerateRequest, deadline_s: float | None) -> GenerationRequest:
    """Return what a message asks for; what is right is the generator's to say.

    Raises:
        InvalidRequest: a list with an empty item or one that cannot travel, or too long.
    """
    return GenerationRequest(
        prompt=message.prompt, options=read_options(message.options),
        constraint=read_constraint(message.constraint), echo=message.echo, deadline_s=deadline_s,
        top_logprobs=message.top_logprobs if message.HasField("top_logprobs") else None)


def read_options(message: pb.GenerateOptions) -> dict[str, int | float | str | bytes]:
    """Return the options that were given, by the names of the signature `generate`."""
    options: dict[str, int | float | str | bytes] = {}
    for field, value in message.ListFields():
        if field.name in ("stop", "banned"):
            options[field.name] = generation.join(value, where=field.name)
        elif field.name == "stop_ids":
            options[field.name] = generation.join_ids(value, where=field.name)
        elif field.name == "logit_bias":
            options[field.name] = generation.join_bias(value, where=field.name)
        else:
            options[field.name] = value
    return options


def read_constraint(message: pb.Constraint) -> Constraint | None:
    """Return the constraint that was given."""
    kind = message.WhichOneof("kind")
    if kind is None:
        return None
    if kind == "choices":
        return Constraint(kind=kind, value=generation.join(message.choices.choice, where=kind))
    return Constraint(kind=kind, value=getattr(message, kind))


def model_ref(choice: pb.ModelChoice) -> ModelRef:
    """Return which version is asked for; raises InvalidRequest without a name."""
    if not choice.name:
        raise InvalidRequest("model.name: expected the name of a model, got none.")
    which = choice.WhichOneof("choice")
    return ModelRef(choice.name, choice.version if which == "version" else None,
                    choice.label if which == "label" else None)


def response(piece: Piece) -> pb.GenerateResponse:
    """Return a piece as a message; log-probabilities that nobody asked for stay out."""
    made = pb.GenerateResponse(
        text=piece.text, finish_reason=piece.finish_reason or "",
        prompt_tokens=piece.prompt_tokens, cached_tokens=piece.cached_tokens,
        new_tokens=piece.new_tokens, score=piece.score)
    for token in piece.tokens:
        told = made.tokens.add(id=token.id, piece=token.piece)
        if token.logprob == token.logprob:
            told.logprob = token.logprob
        for number, bytes_, logprob in token.top:
            told.top.add(id=number, piece=bytes_, logprob=logprob)
    return made


class GenerationService:
    """Answers `tf_infer.GenerationService`.

    Args:
        generators: what answers.
        metrics: hears of every call.
        pool: `submit` of a pool; begins a request, which may take long.
    """

    def __init__(self, generators: Generators, metrics: Metrics, pool: Callable[..., Any]) -> None:
        self._generators, self._metrics, self._pool = generators, metrics, pool
        self._sender = Sender()

    def handlers(self) -> list[Any]:
        """Return what a gRPC server adds to answer the service."""
        return [grpc.method_handlers_generic_handler(methods.GENERATION_SERVICE, {
            methods.GENERATE.name: reading.handler(self._received)})]

    def close(self) -> None:
        """End the thread that writes, when no call is answered any more."""
        self._sender.close()

    def _received(self, data: bytes, context: Any, send: Callable[[bytes | None], None]) -> None:
        self._pool(self._answer, data, context, send)

    def _answer(self, data: bytes, context: Any, send: Callable[[bytes | None], None]) -> None:
        reply = StreamReply(context, send, self._pool)
        record = Record("Generate", GRPC, time.monotonic(), len(data),
                        request_id=header_of(context, "x-request-id"))
        try:
            message = _parse(data)
            record.model = message.model.name
            wanted = read_request(message, deadline_of(context, record.started_s))
            stream = self._open(model_ref(message.model), reply, record)
        except Exception as error:
            failed = as_serving_error(error, "Generate")
            finish(self._metrics, record, failed.code)
            reply.fail(failed.code, truncated(failed.details))
            return
        reply.when_gone(stream.cancel)
        stream.submit(wanted)

    def _open(self, model: ModelRef, reply: StreamReply, record: Record) -> Stream:
        first = True

        def write(piece: Piece) -> None:
            nonlocal first
            made = response(piece)
            if first:
                first = False
                made.model, made.version = stream.answering.name, stream.answering.version
            if piece.finish_reason is None:
                reply.write(made.SerializeToString(), stream.written)
            else:
                reply.send(made.SerializeToString())

        def ended(which: Stream, code: Code) -> None:
            record.heard(which)
            finish(self._metrics, record, code)

        stream = Stream(self._generators.of(*model), write,
                        lambda error: reply.fail(error.code, truncated(error.details)), ended,
                        self._sender.put)
        return stream


def _parse(data: bytes) -> pb.GenerateRequest:
    parsed: pb.GenerateRequest = methods.parse(pb.GenerateRequest, data,
                                               where="request of Generate")
    return parsed
