"""What generates text for the server: a request, what comes of it piece by piece, who does it.

Protocols (streaming gRPC, OpenAI's HTTP API) turn what they were sent into a `GenerationRequest`
and give it to a `Generator`; the slot engine (slots.py) is one. Needs no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from tf_infer.config import ChatFormat
from tf_infer.errors import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraint:
    """What a text must look like.

    Attributes:
        kind: "name" (of an automaton that was exported with the model), "regex", "json_schema",
            "choices".
        value: the name, the expression, the schema as JSON text, the choices joined by "\\x1f".
    """

    kind: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRequest:
    """One prompt and how to go on from it.

    Attributes:
        prompt: UTF-8; read as the signature `generate` reads it.
        options: inputs of the signature `generate` beside `prompt`, by name, one value each, as
            `tasks.options` names them (`max_new_tokens`, `temperature`, `top_k`, `top_p`, `seed`,
            `stop`, ...); what is left out takes the model's default.
        constraint: None for any text.
        top_logprobs: how many alternatives to tell for each token; None for no log-probabilities,
            0 for those of the chosen tokens alone.
        echo: whether pieces begin with the prompt.
        deadline_s: on the clock of `time.monotonic`; None for none.
    """

    prompt: bytes
    options: Mapping[str, int | float | str | bytes] = field(default_factory=dict)
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    echo: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One produced token.

    Attributes:
        id: of the vocabulary.
        piece: its bytes alone; may be part of a character.
        logprob: nats, of the model itself; NaN where nobody asked.
        top: (id, piece, logprob) of the likeliest tokens at this place, best first.
    """

    id: int
    piece: bytes
    logprob: float = float("nan")
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What came next. The texts of all pieces joined are the answer's text.

    Attributes:
        text: UTF-8 that never ends inside a character; may be empty.
        tokens: produced since the last piece; their bytes may be ahead of `text`.
        finish_reason: None until the last piece; then "stop" (end id, stop string), "length"
            (a limit), or what stands in docs/generation.md.
        prompt_tokens, cached_tokens, new_tokens: counts so far: ids of the prompt, how many of them
            were not computed anew, and ids produced.
        score: nats, sum over the tokens produced so far and the end id.
    """

    text: bytes
    tokens: tuple[Token, ...] = ()
    finish_reason: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    score: float = 0.0


# Called on a thread of the generator, in order; after the last piece or an error never again.
# It must not block.
Listener: TypeAlias = Callable[["Piece | ServingError"], None]


class Ticket(Protocol):
    """A request on its way."""

    def cancel(self) -> None:
        """Give the request up: its slot is free at the next step, its listener is quiet."""


class Generator(Protocol):
    """What answers generation requests of one version of a model."""

    def prepare(self) -> None:
        """Do before the first request what it would have to wait for; faults are told to requests.
        """

    def submit(self, request: GenerationRequest, listener: Listener) -> Ticket:
        """Take a request.

        Raises:
            ServingError: INVALID_ARGUMENT (an option, prompt or constraint that cannot be),
                RESOURCE_EXHAUSTED (the queue is full), UNIMPLEMENTED (the model cannot do that).
        """

    def close(self) -> None:
        """End what runs with UNAVAILABLE, and free what the generator holds."""


class Lent(Protocol):
    """A generator that is lent to one request: its version stays until it is given back.

    Attributes:
        name, version: of the model that answers.
        generator: what answers.
        chat: how messages become a prompt (`manifest.read_chat`); None where the model was exported
            without a template.
    """

    name: str
    version: int
    generator: Generator
    chat: ChatFormat | None

    def give_back(self) -> None:
        """Let the version go; called once."""


class Generators(Protocol):
    """The generators of a server's models."""

    def of(self, model: str, version: int | None, label: str | None) -> Lent:
        """Lend the generator of a version, as `Versions.borrow` finds it.

        Raises:
            ServingError: NOT_FOUND, INVALID_ARGUMENT (such a label), UNIMPLEMENTED (the version
                does not generate).
        """

    def names(self) -> tuple[str, ...]:
        """Return the models of which a version is available that generates."""
