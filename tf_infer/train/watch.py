"""What watches a training run: told of its start, of each epoch, and of its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tf_infer import metrics
from tf_infer.config import ClassifierConfig, TrainConfig
from tf_infer.tasks.base import Task

MOST_CHARS = 300  # of a text in a sample


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Epoch:
    """One epoch, as a watcher is told of it; the task then has the weights that were judged.

    Attributes:
        number: from 1.
        steps: done in all.
        losses: of each of its steps.
        found: what `History.epochs` holds of it.
        answers, targets: of the validation rows, as the objective has them: logits [N, C] and
            [N] or [N, C] for a classifier; None without validation.
    """

    number: int
    steps: int
    losses: Sequence[float]
    found: Mapping[str, Any]
    answers: np.ndarray | None = None
    targets: np.ndarray | None = None


class Watcher(Protocol):
    """Is told of a run. What it raises ends the run, as it was after the epoch before."""

    def started(self, task: Task, config: TrainConfig, step: Callable[[], tf.Graph]) -> None:
        """Is told before the first epoch, or before the run goes on; `step()` is a step's graph."""

    def epoch(self, told: Epoch) -> None:
        """Is told after each epoch."""

    def ended(self) -> None:
        """Is told once, when nothing follows: at the end, or when the run was interrupted."""


def scalars(told: Epoch) -> Iterator[tuple[str, float, int]]:
    """Yield the numbers of an epoch as name, value, step."""
    for number, loss in enumerate(told.losses, start=told.steps - len(told.losses) + 1):
        yield "train/step_loss", float(loss), number
    for name in ("loss", "learning_rate"):
        yield f"train/{name}", float(told.found[name]), told.steps
    for name, value in told.found.get("validation", {}).items():
        yield f"validation/{name}", float(value), told.steps


def pictures(told: Epoch, config: Any) -> dict[str, bytes]:
    """Return pictures of a classifier's validation as PNG files, by name; of a decoder none."""
    from tf_infer import pictures as drawn

    if not isinstance(config, ClassifierConfig) or told.answers is None or told.targets is None:
        return {}
    logits = told.answers / config.temperature
    if config.multi_label:
        scores = tf.sigmoid(logits).numpy()
        bins = metrics.reliability(scores.reshape(-1), told.targets.reshape(-1).astype(bool))
        counts = None
    else:
        scores, found = tf.nn.softmax(logits).numpy(), logits.argmax(axis=1)
        bins = metrics.reliability(scores.max(axis=1), found == told.targets)
        counts = metrics.confusion(found, told.targets, len(config.classes))
    made = {"reliability": drawn.png(lambda axes: drawn.reliability(axes, bins), (4.2, 4.0))}
    if counts is not None:
        made["confusion"] = drawn.png(
            lambda axes: drawn.confusion(axes, counts, config.classes),
            drawn.confusion_inches(len(config.classes)))
    return made


class Samples:
    """Texts and what the task answers: a table in Markdown. It holds these texts.

    Args:
        task: asked with its present weights.
        texts: what to ask; of a pair both.
    """

    def __init__(self, task: Task, texts: Sequence[tuple[bytes, bytes | None]]) -> None:
        signature = task.signatures()["serving_default"]
        self._names = list(signature.input_specs())
        self._run = tf.function(signature.function, autograph=False)
        self._texts = texts
        self._answer = "label" if isinstance(task.config, ClassifierConfig) else "text"

    def table(self) -> str:
        """Ask, and return the table."""
        columns = [[first for first, _ in self._texts],
                   [second or b"" for _, second in self._texts]]
        given = dict(zip(self._names, columns))
        told = self._run(**{name: tf.constant(column) for name, column in given.items()})
        scores = told["score"].numpy()
        rows = [[*(column[row] for column in given.values()), told[self._answer].numpy()[row],
                 b"%.3f" % scores[row]] for row in range(len(self._texts))]
        head = [*self._names, "answer", "score"]
        return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head),
                          *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)])


def _cell(text: bytes) -> str:
    shown = text.decode("utf-8", "replace")[:MOST_CHARS]
    return shown.replace("|", "\\|").replace("\r", " ").replace("\n", " ")
