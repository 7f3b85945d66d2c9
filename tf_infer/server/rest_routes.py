"""Which request an HTTP method and target ask for: TensorFlow Serving's routes, and OpenAI's three.

Statements RS01 to RS11, RS21 and RS25 of its observed behaviour (http_rest_api_util.cc). The target
counts with its query. OpenAI's routes are ones that TensorFlow Serving answers with an error.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal, cast
from urllib.parse import unquote

from tf_infer.errors import InvalidRequest
from tf_infer.wire.messages import MAX_VERSION, ModelRef

Kind = Literal["predict", "classify", "regress", "status", "metadata"]

OpenAIRoute = Literal["completions", "chat", "models"]
_OPENAI: dict[tuple[str, str], OpenAIRoute] = {
    ("POST", "/v1/completions"): "completions", ("POST", "/v1/chat/completions"): "chat",
    ("GET", "/v1/models"): "models"}

MAX_DIGITS = len(str(MAX_VERSION))

_CHOICE = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_FLAGS = re.IGNORECASE | re.ASCII | re.DOTALL
_BELOW = re.compile(r"/v1/.*", _FLAGS)
_POST = re.compile(rf"/v1/models/([^/:]+){_CHOICE}:(classify|regress|predict)", _FLAGS)
_GET = re.compile(rf"/v1/models(?:/([^/:]+))?{_CHOICE}(?:/(metadata))?", _FLAGS)
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


@dataclass(frozen=True, slots=True)
class Route:
    """What is asked of which model."""

    kind: Kind
    model: ModelRef


def path_and_query(target: str) -> str:
    """Return the target of a request without scheme and host, which proxies may send."""
    origin = _ORIGIN.match(target)
    return target[origin.end():] or "/" if origin else target


def is_api(target: str) -> bool:
    """Return whether a target is below /v1/; others are unknown pages (RS04)."""
    return _BELOW.fullmatch(target) is not None


@functools.lru_cache(maxsize=256)  # callers ask for the same again and again
def route_of(method: str, target: str) -> Route:
    """Return what a request below /v1/ asks for.

    Args:
        method: as it was sent.
        target: path and query.

    Raises:
        InvalidRequest: no such route, a version beyond int64, or no model.
    """
    found = {"POST": _POST, "GET": _GET}[method].fullmatch(target) if method in (
        "POST", "GET") else None
    # The pattern ignores case, the verb does not (RS08); "/Metadata" is the status.
    if found is None or (method == "POST" and not found[4].islower()):
        raise malformed(method, target)
    name, version, label, last = found.groups()
    if version is not None and (len(version.lstrip("0")) > MAX_DIGITS
                                or int(version) > MAX_VERSION):
        raise InvalidRequest(f"Failed to convert version: {version} to numeric.")
    if not name:
        raise InvalidRequest("Missing model name in request.")
    kind = last if method == "POST" else "metadata" if last == "metadata" else "status"
    return Route(cast(Kind, kind), ModelRef(
        unquote(name, errors="replace"), version=None if version is None else int(version),
        label=None if label is None else unquote(label, errors="replace")))


def openai_route(method: str, target: str) -> OpenAIRoute | None:
    """Return which of OpenAI's routes is asked for; None for TensorFlow Serving's and others."""
    return _OPENAI.get((method, target.partition("?")[0]))


def malformed(method: str, target: str) -> InvalidRequest:
    """Return the error of a request that asks for nothing there is (RS03, RS05)."""
    return InvalidRequest(f"Malformed request: {method} {target}")


def is_preflight(method: str, origin: str | None) -> bool:
    """Return whether a browser asks for permission, which everybody gets (RS21)."""
    return method == "OPTIONS" and (origin or "").startswith(("http://", "https://"))
