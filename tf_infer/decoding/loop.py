"""The loop that greedy search and sampling share, and its single step for loops of the host.

`advance` takes the logits of all rows, chooses, and writes down what follows from it; `decode` puts
`advance` and a `StepFn` in a row inside the graph. A loop on the host (an engine's step, continuous
batching) calls `begin`, then its own step and `advance` by turns. Nothing is remembered between
calls but `Progress`, whose every tensor has the row axis first, so that rows may join and leave.

`Processor`s change the logits that the choice is made from, in the order in which they are given;
scores are taken from the logits before, so they stay the model's own. `Watcher`s look at each
choice, and may end rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from tf_infer.decoding.contracts import (
    Cache,
    Choice,
    Hypotheses,
    Limits,
    Processor,
    Start,
    StepFn,
    Watcher,
)
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
        finished: [N] bool, ended with an end id, or by a watcher.
        states: what each processor remembers.
        seen: what each watcher remembers.
    """

    tokens: tf.Tensor
    live: tf.Tensor
    ids: tf.Tensor
    lengths: tf.Tensor
    scores: tf.Tensor
    finished: tf.Tensor
    states: tuple[Any, ...] = ()
    seen: tuple[Any, ...] = ()


def begin(limits: Limits, processors: Sequence[Processor] = (), watchers: Sequence[Watcher] = (),
          ) -> Progress:
    """Return the progress of rows that have produced nothing; N is that of `max_new_tokens`."""
    nothing = tf.zeros_like(limits.max_new_tokens)                           # [N] int32
    ids = tf.fill([tf.size(nothing), limits.capacity], limits.pad_id)      # [N, L]
    return Progress(
        tokens=nothing + limits.pad_id, live=limits.max_new_tokens > 0, ids=ids, lengths=nothing,
        scores=tf.zeros_like(nothing, tf.float32), finished=tf.zeros_like(nothing, tf.bool),
        states=tuple(processor.state for processor in processors),
        seen=tuple(watcher.state for watcher in watchers))


def advance(progress: Progress, logits: tf.Tensor, limits: Limits, choose: Choose,
            processors: Sequence[Processor] = (), watchers: Sequence[Watcher] = ()) -> Progress:
    """Choose the next token of every live row and write it down; the other rows stay as they are.

    Args:
        progress: of N rows.
        logits: [N, V] float32; those of rows that are not live are not looked at.
        limits: capacity, limits and end ids.
        choose: the decision.
        processors: change the logits that `choose` sees; those that `begin` was given.
        watchers: look at what was chosen; those that `begin` was given.

    A row stays live until it chooses an end id, a watcher ends it, or it holds
    min(max_new_tokens, capacity) tokens.
    """
    with tf.name_scope(DECODING):
        changed = logits
        for processor, state in zip(processors, progress.states, strict=True):
            changed = processor.change(changed, progress.lengths, state)
        chosen = choose(changed, progress.lengths)
        moved = _advanced(progress, logits, limits, chosen, watchers)
        states = tuple(processor.accept(state, moved.tokens, progress.live)
                       for processor, state in zip(processors, progress.states, strict=True))
        return moved._replace(states=states)


def _advanced(progress: Progress, logits: tf.Tensor, limits: Limits, chosen: tf.Tensor,
              watchers: Sequence[Watcher]) -> Progress:
    """Write down what `chosen` [N] int32 means for every row; processors have not heard of it."""
    tokens = tf.where(progress.live, chosen, limits.pad_id)
    ends = progress.live & is_end(chosen, limits)
    kept = progress.live & ~ends
    here = tf.range(limits.capacity) == tf.expand_dims(progress.lengths, 1)            # [N, L]
    lengths = progress.lengths + tf.cast(kept, tf.int32)
    allowed = tf.minimum(limits.max_new_tokens, limits.capacity)
    log_probs = token_log_probs(logits, chosen)
    choice = Choice(logits, tokens, log_probs, kept, progress.lengths)
    stopped, seen = tf.zeros_like(kept), []
    for watcher, state in zip(watchers, progress.seen, strict=True):
        stops, state = watcher.watch(choice, state)
        stopped |= kept & stops
        seen.append(state)
    return Progress(
        tokens=tokens, live=kept & ~stopped & (lengths < allowed),
        ids=tf.where(here & tf.expand_dims(kept, 1), tf.expand_dims(tokens, 1), progress.ids),
        lengths=lengths,
        scores=progress.scores + tf.where(progress.live, log_probs, 0.0),
        finished=progress.finished | ends | stopped, states=progress.states, seen=tuple(seen))


def is_end(tokens: tf.Tensor, limits: Limits) -> tf.Tensor:
    """[N] int32 -> [N] bool, one of the end ids, or of the row's own stop ids."""
    ends = tf.zeros_like(tokens, tf.bool)
    if limits.end_ids:
        ids = tf.constant(limits.end_ids, tf.int32)
        ends = tf.reduce_any(tf.expand_dims(tokens, 1) == ids, axis=-1)
    if limits.stop_ids is not None:
        ends |= tf.reduce_any(tf.expand_dims(tokens, 1) == limits.stop_ids, axis=-1)
    return ends


def decode(step: StepFn, start: Start, limits: Limits, choose: Choose,
           processors: Sequence[Processor] = (), watchers: Sequence[Watcher] = ()) -> Hypotheses:
    """Produce tokens until every row has ended or reached its limit.

    Args:
        step: reads one token of each row.
        start: what prefill gave, B rows.
        limits: capacity, limits and end ids.
        choose: the decision.
        processors: change the logits that `choose` sees.
        watchers: look at what was chosen.

    Returns:
        Hypotheses with K = 1.

    Runs eagerly, in a tf.function (trace it with a free row axis), and under XLA. The last token
    of a row is never read by `step`: a row that produces n tokens takes n - 1 steps.
    """
    progress, _ = run(step, start, limits, choose, processors, watchers)
    return hypotheses(progress)


def run(step: StepFn, start: Start, limits: Limits, choose: Choose,
        processors: Sequence[Processor] = (), watchers: Sequence[Watcher] = ()
        ) -> tuple[Progress, Cache]:
    """Do what `decode` does, and return the progress and the cache that the last step left."""
    rules = (limits, choose, processors, watchers)
    none = begin(limits, processors, watchers)
    first = advance(none, start.logits, *rules)

    def going(progress: Progress, cache: Cache) -> tf.Tensor:
        del cache
        return tf.reduce_any(progress.live)

    def once(progress: Progress, cache: Cache) -> tuple[Progress, Cache]:
        logits, moved = step(progress.tokens, progress.live, cache)
        after = advance(progress, logits, *rules)
        return with_shapes_of(after, progress), with_shapes_of(moved, cache)

    progress, cache = tf.while_loop(going, once, (first, start.cache))
    return progress, cache


def with_shapes_of(new: Any, old: Any) -> Any:
    """Give a nest of tensors the static shapes of another one.

    A loop's variables keep theirs; a step may know less of them than prefill did.
    """
    return tf.nest.map_structure(
        lambda n, o: n if n.shape.as_list() == o.shape.as_list() else tf.ensure_shape(n, o.shape),
        new, old)


def in_rows(rows: tf.Tensor, new: Any, old: Any) -> Any:
    """Take the tensors of `new` in some `rows` [N] bool and those of `old` in the others."""
    return tf.nest.map_structure(
        lambda n, o: tf.where(tf.reshape(rows, [-1, *[1] * (n.shape.rank - 1)]), n, o), new, old)


def hypotheses(progress: Progress) -> Hypotheses:
    """Return progress as hypotheses with K = 1."""
    return Hypotheses(*(tf.expand_dims(part, 1) for part in (
        progress.ids, progress.lengths, progress.scores, progress.finished)))
