"""The loop that greedy search and sampling share, and its single step for loops of the host.

`advance` takes the logits of all rows, chooses, and writes down what follows from it; `decode` puts
`advance` and a `StepFn` in a row inside the graph. A loop on the host (an engine's step, continuous
batching) calls `begin`, then its own step and `advance` by turns. Nothing is remembered between
calls but `Progress`, whose every field has the row axis first, so that rows may join and leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from tf_infer.decoding.contracts import Cache, Hypotheses, Limits, Start, StepFn
from tf_infer.decoding.score import token_log_probs
from tf_infer.stages import DECODING

# logits [N, V], tokens produced so far [N] int32 -> next tokens [N] int32
Choose: TypeAlias = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Progress(NamedTuple):
    """How far each row has come.

    Attributes:
        tokens: [N] int32, chosen last; what the next step reads where `live`.
        live: [N] bool, still producing.
        ids: [N, L] int32, produced so far, pad_id behind them.
        lengths: [N] int32, how many; the end token does not count.
        scores: [N] float32, nats, of these and the end token.
        finished: [N] bool, ended with an end id.
    """

    tokens: tf.Tensor
    live: tf.Tensor
    ids: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor


def begin(limits: Limits) -> Progress:
    """Return the progress of rows that have produced nothing; N is that of `max_new_tokens`."""
    nothing = tf.zeros_like(limits.max_new_tokens)                           # [N] int32
    ids = tf.fill([tf.shape(nothing)[0], limits.capacity], limits.pad_id)    # [N, L]
    return Progress(
        tokens=nothing + limits.pad_id, live=limits.max_new_tokens > 0, ids=ids, lengths=nothing,
        scores=tf.zeros_like(nothing, tf.float32), finished=tf.zeros_like(nothing, tf.bool))


def advance(progress: Progress, logits: tf.Tensor, limits: Limits, choose: Choose) -> Progress:
    """Choose the next token of every live row and write it down; the other rows stay as they are.

    Args:
        progress: of N rows.
        logits: [N, V] float32; those of rows that are not live are not looked at.
        limits: capacity, limits and end ids.
        choose: the decision.

    A row stays live until it chooses an end id or holds min(max_new_tokens, capacity) tokens.
    """
    with tf.name_scope(DECODING):
        return _advanced(progress, logits, limits, choose(logits, progress.lengths))


def _advanced(progress: Progress, logits: tf.Tensor, limits: Limits, chosen: tf.Tensor
              ) -> Progress:
    """Write down what `chosen` [N] int32 means for every row."""
    tokens = tf.where(progress.live, chosen, limits.pad_id)
    ends = progress.live & _is_end(chosen, limits.end_ids)
    kept = progress.live & ~ends
    here = tf.range(limits.capacity) == progress.lengths[:, None]            # [N, L]
    lengths = progress.lengths + tf.cast(kept, tf.int32)
    allowed = tf.minimum(limits.max_new_tokens, limits.capacity)
    return Progress(
        tokens=tokens, live=kept & (lengths < allowed),
        ids=tf.where(here & kept[:, None], tokens[:, None], progress.ids), lengths=lengths,
        scores=progress.scores + tf.where(progress.live, token_log_probs(logits, chosen), 0.0),
        finished=progress.finished | ends)


def _is_end(tokens: tf.Tensor, end_ids: tuple[int, ...]) -> tf.Tensor:
    """[N] int32 -> [N] bool, one of the end ids."""
    if not end_ids:
        return tf.zeros_like(tokens, tf.bool)
    return tf.reduce_any(tokens[:, None] == tf.constant(end_ids, tf.int32), axis=-1)


def decode(step: StepFn, start: Start, limits: Limits, choose: Choose) -> Hypotheses:
    """Produce tokens until every row has ended or reached its limit.

    Args:
        step: reads one token of each row.
        start: what prefill gave, B rows.
        limits: capacity, limits and end ids.
        choose: the decision.

    Returns:
        Hypotheses with K = 1.

    Runs eagerly, in a tf.function (trace it with a free row axis), and under XLA. The last token
    of a row is never read by `step`: a row that produces n tokens takes n - 1 steps.
    """
    progress, _ = run(step, start, limits, choose)
    return hypotheses(progress)


def run(step: StepFn, start: Start, limits: Limits, choose: Choose) -> tuple[Progress, Cache]:
    """Do what `decode` does, and return the progress and the cache that the last step left."""
    first = advance(begin(limits), start.logits, limits, choose)

    def going(progress: Progress, cache: Cache) -> tf.Tensor:
        del cache
        return tf.reduce_any(progress.live)

    def once(progress: Progress, cache: Cache) -> tuple[Progress, Cache]:
        logits, moved = step(progress.tokens, progress.live, cache)
        moved = tf.nest.map_structure(_with_shape_of, moved, cache)
        return advance(progress, logits, limits, choose), moved

    progress, cache = tf.while_loop(going, once, (first, start.cache))
    return progress, cache


def _with_shape_of(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    # A loop's variables keep their static shapes; a step may know less of them than prefill did.
    return tf.ensure_shape(new, old.shape)


def hypotheses(progress: Progress) -> Hypotheses:
    """Return progress as hypotheses with K = 1."""
    return Hypotheses(ids=progress.ids[:, None], lengths=progress.lengths[:, None],
                      scores=progress.scores[:, None], finished=progress.finished[:, None])
