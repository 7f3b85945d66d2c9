"""Requests of OpenAI's API, /v1/completions and /v1/chat/completions: JSON -> what is wanted.

A field that is not known is an error: one that is silently left out would be an answer to another
question. Known fields without any effect here (`user`, `metadata`, ...) are taken and ignored;
those that ask for what there is not are refused unless they say "nothing" (`tools: []`). Beside
OpenAI's fields stand some of vLLM's, under its names. Source: the OpenAPI description of OpenAI's
API, docs.vllm.ai "OpenAI-Compatible Server".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tf_infer.errors import InvalidRequest
from tf_infer.wire import generation

Kind = Literal["completions", "chat"]

MAX_ANSWERS = 128  # prompts x n
MAX_MESSAGES = 4096
MAX_TOP_LOGPROBS = 20
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
INT32, INT64 = 2**31, 2**63
ANY_OBJECT = ("json_schema", '{"type": "object"}')  # of json_object

_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier",
                      "prompt_cache_key", "parallel_tool_calls"})
# may only ask for nothing
_NOTHING: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none",),
    "suffix": ("",), "modalities": (["text"],), "best_of": (1,)}
_OF_KIND = {"completions": frozenset({"prompt", "echo", "logprobs", "best_of", "suffix"}),
            "chat": frozenset({"messages", "logprobs", "top_logprobs", "max_completion_tokens",
                               "tools", "tool_choice", "functions", "function_call", "modalities"})}
# field -> option of the signature `generate`
_INTS = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens",
         "min_tokens": "min_new_tokens", "top_k": "top_k"}
_FLOATS = {name: name for name in (
    "temperature", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty",
    "repetition_penalty")}
_TEXTS = {"stop": "stop", "bad_words": "banned"}
_CONSTRAINTS = ("response_format", "structured_outputs", "guided_json", "guided_regex",
                "guided_choice", "constraint")
_COMMON = frozenset({"model", "n", "stream", "stream_options", "seed", "logit_bias",
                     "stop_token_ids", *_INTS, *_FLOATS, *_TEXTS, *_CONSTRAINTS}
                    ) - {"max_completion_tokens"}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_MODEL = re.compile(r"([^/]+)(?:/versions/(\d{1,19})|/labels/([^/]+))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a request asks for, checked as far as that needs no model.

    Attributes:
        kind: which of the two.
        model: its name as it was sent, which answers repeat.
        name, version, label: which model.
        prompts: of completions, UTF-8.
        messages: of a chat: role, content, perhaps name; all text.
        options: inputs of the signature `generate`, lists joined; without seed where none was
            given.
        constraint: kind and value; None for any text.
        logprobs: alternatives for each token; None for no log-probabilities.
        n: answers for each prompt.
        echo: the text begins with the prompt.
        stream, include_usage: pieces as they come, and a last one with the counts.
    """

    kind: Kind
    model: str
    name: str
    version: int | None = None
    label: str | None = None
    prompts: tuple[bytes, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    options: Mapping[str, int | float | str | bytes] = field(default_factory=dict)
    constraint: tuple[str, str] | None = None
    logprobs: int | None = None
    n: int = 1
    echo: bool = False
    stream: bool = False
    include_usage: bool = False


def read(kind: Kind, content: bytes) -> Wanted:
    """Read the body of a request.

    Raises:
        InvalidRequest: it is no JSON, or a field is not as it should be; the text begins with the
            field's name and never holds the caller's text.
    """
    body = parse(content)
    given = {name: value for name, value in body.items() if value is not None}
    _check_names(kind, given)
    name, version, label = read_model(_take(given, "model", _text))
    options = _options(given)
    count = _take(given, "n", _int(1, MAX_ANSWERS), 1)
    prompts = _prompts(given) if kind == "completions" else ()
    if len(prompts) * count > MAX_ANSWERS:
        raise InvalidRequest(f"n: expected at most {MAX_ANSWERS} answers for all prompts, "
                             f"got {len(prompts)} x {count}.")
    logprobs = _logprobs(kind, given)
    echo = _take(given, "echo", _bool, False)
    if echo and logprobs is not None:
        raise InvalidRequest("logprobs: expected none beside echo, for those of the prompt are not "
                             "told. Ask the model's signature `score` by Predict.")
    streams = _take(given, "stream", _bool, False)
    return Wanted(
        kind=kind, model=given["model"], name=name, version=version, label=label, prompts=prompts,
        messages=_messages(given) if kind == "chat" else (), options=options,
        constraint=_constraint(given), logprobs=logprobs, n=count, echo=echo, stream=streams,
        include_usage=_include_usage(given, streams))


def parse(content: bytes) -> dict[str, Any]:
    """Return the object that a body holds; raises InvalidRequest for any other body."""
    try:
        body = json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"body: expected UTF-8, got other bytes at {error.start}.") from None
    except _NoNumber:
        raise InvalidRequest("body: expected JSON, which has no NaN and no Infinity, got one. Send "
                             "a finite number.") from None
    except RecursionError:
        raise InvalidRequest("body: expected JSON of some depth, got one too deep.") from None
    except ValueError as error:
        raise InvalidRequest("body: expected a JSON object, got a fault at position "
                             f"{getattr(error, 'pos', 0)}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest(f"body: expected a JSON object, got {_kind_of(body)}.")
    return body


class _NoNumber(ValueError):
    """Python's reader has met NaN or Infinity, which it would take."""


def _no_number(name: str) -> Any:
    raise _NoNumber


def read_model(text: str) -> tuple[str, int | None, str | None]:
    """Return name, version and label of "name", "name/versions/7" or "name/labels/stable".

    Raises:
        InvalidRequest: another form.
    """
    found = _MODEL.fullmatch(text)
    if found is None or int(found[2] or 0) >= INT64:
        raise InvalidRequest("model: expected NAME, NAME/versions/NUMBER or NAME/labels/LABEL, got "
                             f"another text of {len(text)} characters.")
    return found[1], None if found[2] is None else int(found[2]), found[3]


def _check_names(kind: Kind, given: Mapping[str, Any]) -> None:
    known = _COMMON | _OF_KIND[kind] | _IGNORED
    for name, value in given.items():
        if name not in known:
            shown = repr(name) if _IDENTIFIER.fullmatch(name) else f"{len(name)} characters"
            raise InvalidRequest(f"body: expected fields that {kind} has here, got the unknown "
                                 f"name {shown}. Leave it out, or see docs/streaming.md.")
        if name in _NOTHING and value not in _NOTHING[name]:
            raise InvalidRequest(f"{name}: expected none, for that is not offered. Leave it out.")


# ---------------------------------------------------------------------------- values


def _kind_of(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a text", bool: "a boolean",
            type(None): "null"}.get(type(value), "a number")


def _take(given: Mapping[str, Any], name: str, read: Callable[[Any, str], Any],
          default: Any = ...) -> Any:
    if name not in given:
        if default is ...:
            raise InvalidRequest(f"{name}: expected a value, got none.")
        return default
    return read(given[name], name)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}: expected a text, got {_kind_of(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{where}: expected Unicode, got half of a pair of surrogates at "
                             f"character {error.start}.") from None
    return value


def _bool(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}: expected true or false, got {_kind_of(value)}.")
    return value


def _int(least: int, most: int) -> Callable[[Any, str], int]:
    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidRequest(f"{where}: expected a whole number, got {_kind_of(value)}.")
        if not least <= value <= most:
            raise InvalidRequest(f"{where}: expected {least} to {most}, got another number.")
        return value
    return read


def _float(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(f"{where}: expected a number, got {_kind_of(value)}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidRequest(f"{where}: expected a finite number, got a larger one.")
    return number


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: expected an array, got {_kind_of(value)}.")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: expected an object, got {_kind_of(value)}.")
    return value


def _texts(value: Any, where: str) -> list[str]:
    """Return one text or several as a list."""
    return [_text(one, where) for one in ([value] if isinstance(value, str)
                                          else _list(value, where))]


# ---------------------------------------------------------------------------- fields


def _options(given: Mapping[str, Any]) -> dict[str, int | float | str | bytes]:
    options: dict[str, int | float | str | bytes] = {}
    number = _int(-INT32, INT32 - 1)
    if "max_tokens" in given and "max_completion_tokens" in given:
        raise InvalidRequest("max_tokens: expected none beside max_completion_tokens. Leave one "
                             "out.")
    for name, option in _INTS.items():
        if name in given:
            options[option] = number(given[name], name)
    if options.get("top_k") == -1:  # as vLLM says "all"
        options["top_k"] = 0
    for name, option in _FLOATS.items():
        if name in given:
            options[option] = _float(given[name], name)
    for name, option in _TEXTS.items():
        if name in given and (texts := _texts(given[name], name)):
            options[option] = generation.join(texts, where=name)
    if "seed" in given:
        options["seed"] = _int(-INT64, INT64 - 1)(given["seed"], "seed")
    if ids := [number(one, "stop_token_ids")
               for one in _list(given.get("stop_token_ids", []), "stop_token_ids")]:
        options["stop_ids"] = generation.join_ids(ids, where="stop_token_ids")
    if bias := _object(given.get("logit_bias", {}), "logit_bias"):
        options["logit_bias"] = generation.join_bias(
            {_id(key): _float(value, "logit_bias") for key, value in bias.items()},
            where="logit_bias")
    return options


def _id(key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", key) or int(key) >= INT32:
        raise InvalidRequest("logit_bias: expected token ids as names, got a name of "
                             f"{len(key)} characters that is none.")
    return int(key)


def _prompts(given: Mapping[str, Any]) -> tuple[bytes, ...]:
    value = given.get("prompt")
    if value is None:
        raise InvalidRequest("prompt: expected a text or an array of texts, got none.")
    if isinstance(value, list) and (not value or not isinstance(value[0], str)):
        raise InvalidRequest("prompt: expected a text or an array of texts, got an empty array or "
                             "one of something else. Token ids are not taken.")
    return tuple(text.encode() for text in _texts(value, "prompt"))


def _logprobs(kind: Kind, given: Mapping[str, Any]) -> int | None:
    most = _int(0, MAX_TOP_LOGPROBS)
    if kind == "completions":
        asked: int | None = _take(given, "logprobs", most, None)
        return asked
    if _take(given, "logprobs", _bool, False):
        count: int = _take(given, "top_logprobs", most, 0)
        return count
    if _take(given, "top_logprobs", most, 0):
        raise InvalidRequest("top_logprobs: expected logprobs: true beside it.")
    return None


def _include_usage(given: Mapping[str, Any], streams: bool) -> bool:
    options = _take(given, "stream_options", _object, {})
    if options and not streams:
        raise InvalidRequest("stream_options: expected stream: true beside it.")
    if set(options) - {"include_usage", "include_obfuscation", "continuous_usage_stats"}:
        raise InvalidRequest("stream_options: expected include_usage alone.")
    if options.get("continuous_usage_stats"):
        raise InvalidRequest("stream_options: expected no continuous_usage_stats.")
    usage: bool = _take(options, "include_usage", _bool, False)
    return usage


def _messages(given: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    listed = _take(given, "messages", _list)
    if not 1 <= len(listed) <= MAX_MESSAGES:
        raise InvalidRequest(f"messages: expected 1 to {MAX_MESSAGES}, got {len(listed)}.")
    return tuple(_message(one, f"messages[{place}]") for place, one in enumerate(listed))


def _message(value: Any, where: str) -> dict[str, str]:
    message = {name: one for name, one in _object(value, where).items() if one is not None}
    role = _take(message, "role", lambda one, _: _text(one, f"{where}.role"), "")
    if role not in ROLES:
        raise InvalidRequest(f"{where}.role: expected one of {', '.join(ROLES)}, got another.")
    if set(message) - {"role", "content", "name", "refusal", "annotations"} and any(
            message[name] for name in set(message) - {"role", "content", "name"}):
        raise InvalidRequest(f"{where}: expected role, content and name, got another field. Tools "
                             "and sounds are not offered.")
    made = {"role": ROLES[role], "content": _content(message.get("content", ""),
                                                     f"{where}.content")}
    if "name" in message:
        made["name"] = _text(message["name"], f"{where}.name")
    return made


def _content(value: Any, where: str) -> str:
    """Return a message's text, which may come in parts."""
    if not isinstance(value, list):
        return _text(value, where)
    parts = []
    for place, part in enumerate(value):
        part = _object(part, f"{where}[{place}]")
        if part.get("type") != "text":
            raise InvalidRequest(f"{where}[{place}].type: expected text, got another. Images and "
                                 "sounds are not offered.")
        parts.append(_text(part.get("text"), f"{where}[{place}].text"))
    return "".join(parts)


# ---------------------------------------------------------------------------- constraints


def _constraint(given: Mapping[str, Any]) -> tuple[str, str] | None:
    found = [(name, one) for name in _CONSTRAINTS if name in given
             for one in [_constraint_of(name, given[name])] if one is not None]
    if len(found) > 1:
        raise InvalidRequest(f"{found[1][0]}: expected one constraint, got {found[0][0]} beside "
                             "it. Leave one out.")
    return found[0][1] if found else None


def _constraint_of(name: str, value: Any) -> tuple[str, str] | None:
    if name == "response_format":
        return _response_format(_object(value, name))
    if name == "structured_outputs":
        return _structured(_object(value, name))
    if name == "constraint":
        return "name", _text(value, name)
    return _limit({"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice"}[name],
                  value, name)


def _response_format(value: Mapping[str, Any]) -> tuple[str, str] | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    if kind == "json_schema":
        inside = _object(value.get("json_schema"), "response_format.json_schema")
        return _limit("json", inside.get("schema"), "response_format.json_schema.schema")
    raise InvalidRequest("response_format.type: expected text, json_schema or json_object, got "
                         "another.")


def _structured(value: Mapping[str, Any]) -> tuple[str, str] | None:
    """Read vLLM's `structured_outputs`: one of json, regex, choice, json_object."""
    given = {name: one for name, one in value.items() if one is not None}
    if len(given) != 1 or not set(given) <= {"json", "regex", "choice", "json_object"}:
        raise InvalidRequest("structured_outputs: expected one of json, regex, choice, "
                             "json_object, got none, several or others.")
    (name, one), = given.items()
    if name == "json_object":
        return ANY_OBJECT if _bool(one, "structured_outputs.json_object") else None
    return _limit(name, one, f"structured_outputs.{name}")


def _limit(kind: str, value: Any, where: str) -> tuple[str, str]:
    if kind == "regex":
        return "regex", _text(value, where)
    if kind == "choice":
        choices = _texts(_list(value, where), where)
        if not choices:
            raise InvalidRequest(f"{where}: expected at least one choice, got none.")
        return "choices", generation.join(choices, where=where)
    if isinstance(value, str):
        return "json_schema", _text(value, where)
    if not isinstance(value, (dict, bool)):
        raise InvalidRequest(f"{where}: expected a JSON Schema, got {_kind_of(value)}.")
    return "json_schema", _text(json.dumps(value, ensure_ascii=False), where)
