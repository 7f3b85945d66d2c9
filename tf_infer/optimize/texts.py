"""Given texts as a classifier's network reads them: they set ranges, and judge what can go"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import tensorflow as tf

from tf_infer.config import ClassifierConfig
from tf_infer.tasks.base import Task

# A text of a classifier, a pair of them where it takes pairs, or a document of a decoder.
Text: TypeAlias = bytes | tuple[bytes, bytes]
MAX_TEXTS = 512  # that set ranges
BATCH_ROWS = 16


def encoded(task: Task, texts: Sequence[Text]) -> dict[str, tf.Tensor]:
    """Return ids, mask, segments [B, T] of a batch of texts, encoded as a request's are.

    Args:
        task: a classifier.
        texts: at least one; of a pair classifier a text that is no pair stands beside itself.
    """
    assert isinstance(task.config, ClassifierConfig)
    names = ("text", "text_pair") if task.config.pair else ("text",)
    parts = zip(*(text if isinstance(text, tuple) else (text,) * len(names) for text in texts))
    dense = task.preprocess(**{name: tf.constant(part) for name, part in zip(names, parts)})
    return {name: dense[name] for name in ("ids", "mask", "segments")}


def in_batches(task: Task, texts: Sequence[Text]) -> Iterator[dict[str, tf.Tensor]]:
    """Return the first MAX_TEXTS as `encoded` gives them, BATCH_ROWS at a time."""
    texts = texts[:MAX_TEXTS]
    for start in range(0, len(texts), BATCH_ROWS):
        yield encoded(task, texts[start:start + BATCH_ROWS])
