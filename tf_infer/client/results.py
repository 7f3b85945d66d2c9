"""Frozen results of the client's methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tf_infer.wire.messages import ModelRef, SignatureInfo, VersionState
from tf_infer.wire.timings import Timings


@dataclass(frozen=True, slots=True)
class Label:
    """A class and its score.

    Attributes:
        name: of the class; "" when the server does not tell it.
        score: from 0 to 1: softmax over the classes, or sigmoid of one with several labels.
    """

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for one text.

    Attributes:
        label: name of the class with the highest score.
        score: its score.
        scores: every class in the model's order; empty when the model gives only the best one.
        labels: names of all classes the text is given: one, or any number (none, too) of a model
            with several labels.
    """

    label: str
    score: float
    scores: tuple[Label, ...] = ()
    labels: tuple[str, ...] = ()

    def top(self, count: int) -> tuple[Label, ...]:
        """Return the `count` best classes, best first; ties in the model's order."""
        return tuple(sorted(self.scores, key=lambda label: -label.score)[:count])

    def above(self, threshold: float) -> tuple[Label, ...]:
        """Return the classes with a score of at least `threshold`, in the model's order."""
        return tuple(label for label in self.scores if label.score >= threshold)


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that might have stood at some place, and its natural-log probability, in nats."""

    id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class Generation:
    """The continuation of one prompt.

    Attributes:
        text: what was written; bytes that are not UTF-8 replaced by U+FFFD.
        ids: the token ids, without the end token.
        score: sum of the natural-log probabilities the model gave them, in nats.
        finish_reason: why it ended, such as "stop" (an end, a stop string) or "length".
        token_logprobs: natural-log probability of each of `ids` under the model; empty unless asked
            for.
        top_logprobs: the likeliest tokens at the place of each of `ids`, best first; likewise.
        rounds, proposed, accepted: of speculative decoding: times that the model has read, guesses
            that it read, and those of them that it took; 0 without.
    """

    text: str
    ids: tuple[int, ...] = ()
    score: float = float("nan")
    finish_reason: str = ""
    token_logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[Alternative, ...], ...] = ()
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model holds a continuation of a prompt.

    Attributes:
        score: sum of the natural-log probabilities of its ids, in nats.
        token_logprobs: of each of them; one that begins in the prompt counts, too.
        perplexity: exp(-score / number of ids); 1 without any.
    """

    score: float
    token_logprobs: tuple[float, ...]
    perplexity: float


@dataclass(frozen=True, slots=True)
class StreamToken:
    """One produced token of a stream.

    Attributes:
        id: of the vocabulary.
        piece: its bytes alone; may be a part of a character.
        logprob: nats, of the model itself; NaN unless asked for.
        top: (id, piece, logprob) of the likeliest tokens at this place, best first.
    """

    id: int
    piece: bytes
    logprob: float = float("nan")
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens so far: of the prompt, of those not computed anew, and new ones."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """What came next of a stream. The texts of all pieces joined are the answer's text.

    Attributes:
        text: whole characters; may be empty.
        tokens: since the last piece; their bytes may be ahead of `text`.
        finish_reason: None until the last piece; then "stop", "length", or what docs/streaming.md
            tells.
        usage: counts so far.
        score: nats, sum over the new tokens and the end token.
    """

    text: str
    tokens: tuple[StreamToken, ...] = ()
    finish_reason: str | None = None
    usage: Usage = Usage()
    score: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Prediction(Mapping[str, np.ndarray]):
    """What Predict answered: a mapping from output name to array.

    Strings are objects of bytes; arrays of numbers may be read-only: copy them to write.

    Attributes:
        model: name and the version that ran.
        signature: that ran.
        outputs: name -> array.
        timings: where the server spent the time; None unless asked for, and of other servers.
    """

    model: ModelRef
    signature: str
    outputs: Mapping[str, np.ndarray]
    timings: Timings | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the server says of a model's versions, highest first."""

    model: ModelRef
    versions: tuple[VersionState, ...]

    @property
    def available(self) -> tuple[int, ...]:
        """The versions that answer."""
        return tuple(one.version for one in self.versions if one.state == "AVAILABLE")


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The signatures of the version that was asked, by name.

    Attributes:
        model: name and version.
        signatures: those that start with "__" are TensorFlow's own.
    """

    model: ModelRef
    signatures: Mapping[str, SignatureInfo]
