"""Answers of OpenAI's API: pieces of text -> JSON, whole or as server-sent events; its errors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tf_infer.errors import Code, ServingError, http_status
from tf_infer.wire.openai import Kind

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # stands for minus infinity, as OpenAI writes it

OBJECTS = {"completions": ("text_completion", "text_completion"),
           "chat": ("chat.completion", "chat.completion.chunk")}
_PREFIX = {"completions": "cmpl-", "chat": "chatcmpl-"}
_FINISH = {"stop": "stop", "length": "length"}

# code -> `type` and `code` of an error
_ERRORS: dict[Code, tuple[str, str | None]] = {
    Code.INVALID_ARGUMENT: ("invalid_request_error", None),
    Code.NOT_FOUND: ("invalid_request_error", "model_not_found"),
    Code.UNIMPLEMENTED: ("invalid_request_error", "not_supported"),
    Code.UNAUTHENTICATED: ("authentication_error", "invalid_api_key"),
    Code.PERMISSION_DENIED: ("permission_error", None),
    Code.RESOURCE_EXHAUSTED: ("rate_limit_error", "rate_limit_exceeded"),
    Code.DEADLINE_EXCEEDED: ("timeout_error", "timeout"),
    Code.UNAVAILABLE: ("server_error", "service_unavailable"),
}
# an error's text begins with a field; within a graph there is something before it
_FIELD = re.compile(r"(?:assertion failed: \[)?([a-z][a-z0-9_]*(?:[.\[][a-z0-9_.\]\[]*)?): ")
_RENAMED = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_ids":
            "stop_token_ids", "banned": "bad_words"}


class Token(Protocol):
    """One produced token, as the server's generators tell it."""

    @property
    def piece(self) -> bytes:
        """Its bytes alone."""

    @property
    def logprob(self) -> float:
        """In nats."""

    @property
    def top(self) -> Sequence[tuple[int, bytes, float]]:
        """The likeliest at this place: id, bytes, log-probability."""


class Piece(Protocol):
    """What came next, as the server's generators tell it."""

    @property
    def text(self) -> bytes:
        """Whole characters."""

    @property
    def tokens(self) -> Sequence[Token]:
        """Since the last piece."""

    @property
    def finish_reason(self) -> str | None:
        """None until the last piece."""

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt."""

    @property
    def cached_tokens(self) -> int:
        """Of them, those that were not computed anew."""

    @property
    def new_tokens(self) -> int:
        """So far."""


@dataclass(slots=True)
class Answer:
    """One answer of a request, as far as it has come.

    Attributes:
        index: its number.
        begun: a chunk has gone out.
        chars: characters of its tokens, and of the prompt it may begin with: where the next begins.
        prompt_tokens, cached_tokens, new_tokens: counts so far.
    """

    index: int
    begun: bool = False
    chars: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0

    def count(self, piece: Piece) -> None:
        """Take a piece's counts."""
        self.prompt_tokens, self.cached_tokens = piece.prompt_tokens, piece.cached_tokens
        self.new_tokens = piece.new_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What all chunks of an answer begin with.

    Attributes:
        kind: which API.
        id: unique, hexadecimal.
        created: seconds of the UNIX epoch.
        model: as the caller named it.
        version: that answers.
        logprobs: whether they are told.
    """

    kind: Kind
    id: str
    created: int
    model: str
    version: int
    logprobs: bool
    stream: bool
    _start: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_start", {
            "id": _PREFIX[self.kind] + self.id, "object": OBJECTS[self.kind][self.stream],
            "created": self.created, "model": self.model,
            "system_fingerprint": f"version-{self.version}"})

    def _event(self, choices: list[Any], usage: Any = ...) -> bytes:
        body = {**self._start, "choices": choices}
        if usage is not ...:
            body["usage"] = usage
        return b"data: " + _json(body) + b"\n\n"

    def chunk(self, answer: Answer, piece: Piece, *, usage: bool) -> bytes:
        """Return the event of one piece.

        Args:
            answer: which this changes.
            piece: what came.
            usage: whether the counts come at the end; until then they are null.
        """
        answer.count(piece)
        text = piece.text.decode("utf-8", "replace")
        choice: dict[str, Any] = {"index": answer.index}
        events = b""
        more = (None,) if usage else ()
        if self.kind == "chat":
            if not answer.begun:
                events = self._event([{"index": answer.index, "delta": {
                    "role": "assistant", "content": ""}, "finish_reason": None}], *more)
            choice["delta"] = {"content": text} if text or piece.tokens else {}
        else:
            choice["text"] = text
        choice["logprobs"] = self._logprobs(answer, piece) if self.logprobs else None
        choice["finish_reason"] = finish(piece.finish_reason)
        answer.begun = True
        return events + self._event([choice], *more)

    def last(self, answers: Sequence[Answer], prompts: int) -> bytes:
        """Return the event with the counts, behind all pieces."""
        return self._event([], usage(answers, prompts))

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Sequence[Piece]], prompts: int
              ) -> bytes:
        """Return the answer in one, given all pieces of each answer."""
        choices = []
        for answer, parts in zip(answers, pieces):
            text = b"".join(part.text for part in parts).decode("utf-8", "replace")
            choice: dict[str, Any] = {"index": answer.index}
            if self.kind == "chat":
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = text
            told = [self._logprobs(answer, part) for part in parts] if self.logprobs else []
            for part in parts:
                answer.count(part)
            choice["logprobs"] = _merged(told) if told else None
            choice["finish_reason"] = finish(parts[-1].finish_reason if parts else None)
            choices.append(choice)
        return _json({**self._start, "choices": choices, "usage": usage(answers, prompts)})

    def _logprobs(self, answer: Answer, piece: Piece) -> dict[str, Any]:
        if self.kind == "chat":
            return {"content": [{**_told(token.piece, token.logprob), "top_logprobs": [
                _told(raw, logprob) for _, raw, logprob in token.top]} for token in piece.tokens],
                "refusal": None}
        offsets = []
        for token in piece.tokens:
            offsets.append(answer.chars)
            answer.chars += beginnings(token.piece)
        return {"tokens": [name(token.piece) for token in piece.tokens],
                "token_logprobs": [_logprob(token.logprob) for token in piece.tokens],
                "top_logprobs": [{name(raw): _logprob(logprob) for _, raw, logprob in token.top}
                                 for token in piece.tokens],
                "text_offset": offsets}


def beginnings(piece: bytes) -> int:
    """Return how many characters begin in a token's bytes."""
    return sum(byte & 0xC0 != 0x80 for byte in piece)


def name(piece: bytes) -> str:
    """Return a token as completions write it: text, or "bytes:" where it is none by itself."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _told(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece),
            "logprob": _logprob(logprob)}


def _logprob(value: float) -> float | None:
    if value != value:
        return None
    return value if math.isfinite(value) else math.copysign(LEAST_LOGPROB, value)


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: None if value is None else [one for part in parts for one in part[key]]
            for key, value in parts[0].items()}


def finish(reason: str | None) -> str | None:
    """Return a reason as OpenAI names it; its own two are all that there are for texts."""
    return None if reason is None else _FINISH.get(reason, "length")


def usage(answers: Sequence[Answer], prompts: int) -> dict[str, Any]:
    """Return the counts of all answers; those of a prompt once, however many answers it has."""
    firsts = answers[::max(1, len(answers) // max(1, prompts))]
    asked = sum(answer.prompt_tokens for answer in firsts)
    made = sum(answer.new_tokens for answer in answers)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in firsts)}}


def models(names: Sequence[str], created: int) -> bytes:
    """Return the list of the models that generate."""
    return _json({"object": "list", "data": [
        {"id": one, "object": "model", "created": created, "owned_by": "tf_infer"}
        for one in names]})


def error_status(error: ServingError) -> int:
    """Return the HTTP status of an error; 400 for what a model cannot do: 5xx is asked again."""
    return 400 if error.code is Code.UNIMPLEMENTED else http_status(error.code)


def error_body(error: ServingError) -> bytes:
    """Return an error in OpenAI's shape; `param` is the field that its text begins with."""
    kind, code = _ERRORS.get(error.code, ("invalid_request_error", None)
                             if error_status(error) == 400 else ("server_error", None))
    found = _FIELD.match(error.details) if kind == "invalid_request_error" else None
    param = _RENAMED.get(found[1], found[1]) if found else None
    text = error.details if found is None else (
        f"{error.details[:found.start(1)]}{param}{error.details[found.end(1):]}")
    if error.code is Code.NOT_FOUND:
        param = "model"
    return _json({"error": {"message": text, "type": kind,
                            "param": None if param == "body" else param, "code": code}})


def error_event(error: ServingError) -> bytes:
    """Return an error as an event, in the middle of a stream."""
    return b"data: " + error_body(error) + b"\n\n"


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
