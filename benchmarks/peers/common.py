"""What all peers share: the SavedModel behind a function of texts, and their settings.

A peer runs in an environment of its own, with TensorFlow and TF-Text but without tf_infer. Settings
come from the environment: MODEL (version directory), PORT, ROWS (most rows of a batch), WAIT_MS
(how long a batch is left open), WORKERS (batches at once, where the peer offers that), THREADS
(of TensorFlow inside one operation; 0 for its own choice).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

PORT = int(os.environ.get("PORT", "8000"))
ROWS = int(os.environ.get("ROWS", "32"))
WAIT_S = float(os.environ.get("WAIT_MS", "5")) / 1000
WORKERS = int(os.environ.get("WORKERS", "1"))
THREADS = int(os.environ.get("THREADS", "0"))

Answers = list[dict[str, Any]]


def load() -> Callable[[Sequence[str]], Answers]:
    """Return a function from texts to labels and scores, warmed up."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the ops of the tokenizer

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    model = tf.saved_model.load(os.environ["MODEL"])
    signature = model.signatures["serving_default"]

    def answer(texts: Sequence[str]) -> Answers:
        assert model is not None  # the signature alone does not keep its variables
        outputs = signature(text=tf.constant(list(texts)))
        return [{"label": label.decode(), "score": score} for label, score in zip(
            outputs["label"].numpy().tolist(), outputs["score"].numpy().tolist())]

    for rows in (1, ROWS):
        answer(["warm"] * rows)
    return answer
