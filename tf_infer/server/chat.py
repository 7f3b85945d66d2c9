"""Chat templates: messages -> the prompt that a model was trained on, in jinja2's sandbox.

A template travels with a model and may come from anywhere, so it runs in
`ImmutableSandboxedEnvironment`, within a time and a size, and without the filters that make a long
text of a short one. What it may use is what Hugging Face's `apply_chat_template` gives it.
"""

from __future__ import annotations

import datetime
import functools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tf_infer.config import ChatFormat
from tf_infer.errors import InvalidRequest, ServerFailure, ServingError

MAX_S = 1.0
MAX_CHARS = 4 * 2**20  # of the prompt, and of any text on the way to it
MAX_TEMPLATES = 32  # kept compiled
# they make a long text, or a long list, of a short one
FILTERS = ("batch", "center", "format", "indent", "slice", "sum", "wordwrap", "xmlattr", "pprint",
           "urlize")
METHODS = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate",
           "to_bytes")

Message = Mapping[str, str]


class _Refused(TemplateError):
    """The template called `raise_exception`."""


class _Over(Exception):
    """The template takes too long, or its text grows too large."""


class _Clock(threading.local):
    """When the template that this thread runs must have ended."""

    end_s = 0.0


_clock = _Clock()


def _look(value: Any) -> Any:
    """Return a value that the template has come to, in time and of a bounded size."""
    if time.monotonic() > _clock.end_s or (
            isinstance(value, (str, bytes, list, tuple)) and len(value) > MAX_CHARS):
        raise _Over
    return value


def _looking(filter: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(filter)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        return _look(filter(*args, **kwargs))
    return filtered


def _replace(text: Any, old: Any, new: Any, *count: Any) -> str:
    if len(str(text)) + str(text).count(str(old)) * len(str(new)) > MAX_CHARS:
        raise _Over
    return str(text).replace(str(old), str(new), *count)


def _join(parts: Iterable[Any], between: Any = "", attribute: Any = None) -> str:
    texts = [str(one) if attribute is None else str(one[attribute]) for one in parts]
    if sum(map(len, texts)) + len(texts) * len(str(between)) > MAX_CHARS:
        raise _Over
    return str(between).join(texts)


class _Marks(Extension):
    """`{% generation %}`, which marks what a model wrote for training, and says nothing else."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 declares it

    def parse(self, parser: Any) -> Any:
        """Return what is inside the marks."""
        line = next(parser.stream).lineno
        inside = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(inside).set_lineno(line)


class _Generator(CodeGenerator):
    """Writes `a ~ b` and loops so that they are looked at, which no hook of the sandbox does."""

    def visit_For(self, node: Any, frame: Any) -> None:
        """Write a loop."""
        look = nodes.Call(nodes.EnvironmentAttribute("turned"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(look).set_lineno(node.lineno))
        super().visit_For(node, frame)

    def visit_Concat(self, node: Any, frame: Any) -> None:
        """Write a concatenation."""
        self.write("environment.concatenated((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Looks at clock and sizes wherever a template reads, calls, or computes."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Marks])
        for name in FILTERS:
            self.filters.pop(name, None)
        for name in ("lipsum", "cycler"):
            self.globals.pop(name, None)
        self.filters |= {"tojson": _tojson, "replace": _replace, "join": _join}
        self.filters = {name: _looking(one) for name, one in self.filters.items()}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}

    def turned(self) -> None:
        """Look at the clock, in each turn of a loop."""

    def concatenated(self, parts: Sequence[Any]) -> str:
        """Return `a ~ b`."""
        return str(_look("".join(map(str, parts))))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Read an attribute."""
        return _look(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Read an item."""
        return _look(super().getitem(obj, argument))

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what the template calls."""
        text, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(text, (str, bytes, int)) and name in METHODS:
            raise SecurityError(name)
        if isinstance(text, str):
            if name == "replace":
                return _replace(text, *args)
            if name == "join":
                return _join(args[0], text)
        return _look(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute; repeated texts and powers stay small."""
        if operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError(operator)
        if operator in ("*", "**"):
            sizes = [len(one) if isinstance(one, (str, bytes, list, tuple)) else 1
                     for one in (left, right)]
            numbers = [abs(one) for one in (left, right) if isinstance(one, (int, float))]
            if sizes[0] * sizes[1] * max(numbers, default=1) > MAX_CHARS:
                raise _Over
        return _look(super().call_binop(context, operator, left, right))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys,
                      indent=indent if indent is None else min(indent, 8))


def _raise(text: str = "") -> None:
    raise _Refused(text)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form[:256])


class Template:
    """One compiled template.

    Args:
        text: of the template.

    Raises:
        ServerFailure: it is no template; the message tells the line.
    """

    def __init__(self, text: str) -> None:
        environment = _Sandbox()
        try:
            # what it says of messages that it does not take; else their text might be in it
            self._reasons = {one.args[0].value for one in environment.parse(text).find_all(
                nodes.Call) if getattr(one.node, "name", "") == "raise_exception" and one.args
                and isinstance(one.args[0], nodes.Const)}
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise ServerFailure("the model's chat template cannot be read: a fault in line "
                                f"{error.lineno}.") from error

    def render(self, messages: Sequence[Message], tokens: Mapping[str, str], *,
               seconds: float = MAX_S) -> str:
        """Return the prompt.

        Raises:
            InvalidRequest: the template does not take these messages, or they are too long.
            ServerFailure: it takes too long, or does what the sandbox forbids.
        """
        _clock.end_s = time.monotonic() + seconds
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(
                    messages=[dict(message) for message in messages], add_generation_prompt=True,
                    tools=None, documents=None, **tokens):
                parts.append(part)
                size += len(part)
                if size > MAX_CHARS:
                    raise InvalidRequest("messages: expected a prompt of at most "
                                         f"{MAX_CHARS} characters, got more. Shorten them.")
        except _Refused as error:
            reason = error.message if error.message in self._reasons else "it tells no reason"
            raise InvalidRequest("messages: expected what the model's chat template takes, got "
                                 f"others: {reason}") from None
        except _Over:
            raise ServerFailure("the model's chat template takes too long or grows too large."
                                ) from None
        except SecurityError:
            raise ServerFailure("the model's chat template does what its sandbox forbids."
                                ) from None
        except ServingError:
            raise
        except Exception as error:  # the template's own fault; its text may hold a message
            raise ServerFailure("the model's chat template failed on these messages: "
                                f"{type(error).__name__}.") from None
        return "".join(parts)


@functools.lru_cache(MAX_TEMPLATES)
def _compiled(text: str) -> Template:
    return Template(text)


def prompt_of(format: ChatFormat, messages: Sequence[Message]) -> str:
    """Return the prompt of a chat; see `Template.render`.

    A start token that the template writes is left out where the codec puts one before every prompt.
    """
    prompt = _compiled(format.template).render(messages, format.tokens)
    return prompt.removeprefix(format.tokens.get("bos_token", "")) if format.start else prompt
