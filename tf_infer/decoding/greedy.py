"""Greedy search: the best token at every step."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_infer.decoding.argmax import best
from tf_infer.decoding.contracts import Hypotheses, Limits, Processor, Start, StepFn
from tf_infer.decoding.loop import decode


def search(step: StepFn, start: Start, limits: Limits, processors: Sequence[Processor] = (),
           ) -> Hypotheses:
    """Take the most probable next token until a row ends or reaches its limit.

    Args:
        step: reads one token of each row; see `StepFn`.
        start: what prefill gave, B rows.
        limits: buffer size, tokens allowed for each row, end ids.
        processors: change the logits before the choice.

    Returns:
        Hypotheses with K = 1.

    Ties go to the lower id. Cost: at most capacity - 1 steps, fewer when all rows have ended.
    """
    return decode(step, start, limits, choose, processors)


def choose(logits: tf.Tensor, produced: tf.Tensor) -> tf.Tensor:
    """Return the best token of each row: [N, V], [N] -> [N] int32."""
    del produced  # the number of the draw, which only sampling needs
    return best(logits)
