"""Options of a row that act on its logits, all in one order, as the `Processor` of a loop."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import tensorflow as tf

from tf_infer.decoding.contracts import Processor
from tf_infer.decoding.processors import (
    History,
    Penalties,
    add_bias,
    ban,
    forbid_ends,
    force,
    penalize,
    penalizes,
)


class Controls(NamedTuple):
    """What each row asks for, in the order in which it is done.

    Attributes:
        bias_ids: [N, M] int32, tokens whose logits get a bias, -1 behind the last one.
        bias_values: [N, M] float32, their biases.
        penalties: on what has been said.
        banned: [N, W, S] int32, sequences that must not be said, -1 behind their last ids.
        min_new_tokens: [N] int32, no end before these.
        prefix: [N, P] int32, what the row begins with, -1 behind its last id. It holds against
            all that stands above.
    """

    bias_ids: tf.Tensor
    bias_values: tf.Tensor
    penalties: Penalties
    banned: tf.Tensor
    min_new_tokens: tf.Tensor
    prefix: tf.Tensor


class Ends(NamedTuple):
    """What ends a row: ids of the model, and [N, E] int32 of each row's own, -1 for none."""

    end_ids: tuple[int, ...]
    stop_ids: tf.Tensor | None = None


class _Asked(NamedTuple):
    """Whether any row asks for it, [] bool each: what nobody asks for is not worked out."""

    bias: tf.Tensor
    penalties: tf.Tensor
    banned: tf.Tensor
    min_new_tokens: tf.Tensor
    prefix: tf.Tensor

    def anything(self) -> tf.Tensor:
        return tf.reduce_any(tf.stack(list(self)))


def _asked(controls: Controls) -> _Asked:
    return _Asked(
        bias=tf.reduce_any(controls.bias_values != 0.0),
        penalties=tf.reduce_any(penalizes(controls.penalties)),
        banned=tf.reduce_any(controls.banned >= 0),
        min_new_tokens=tf.reduce_any(controls.min_new_tokens > 0),
        prefix=tf.reduce_any(controls.prefix >= 0))


def asks(controls: Controls) -> tf.Tensor:
    """Return whether any row asks for anything: [] bool."""
    return _asked(controls).anything()


def control(logits: tf.Tensor, controls: Controls, ends: Ends, history: History,
            produced: tf.Tensor) -> tf.Tensor:
    """Do what each row asks for: logits [N, V] float32 -> [N, V] float32.

    `produced` [N] int32 is how many tokens each row has. A batch in which no row asks for anything
    is handed back as it is.
    """
    return _control(logits, controls, _asked(controls), ends, history, produced)


def _control(logits: tf.Tensor, controls: Controls, asked: _Asked, ends: Ends, history: History,
             produced: tf.Tensor) -> tf.Tensor:
    def changed() -> tf.Tensor:
        found = tf.cond(asked.bias, lambda: add_bias(
            logits, controls.bias_ids, controls.bias_values, _counts(controls.bias_ids)),
            lambda: logits)
        found = penalize(found, controls.penalties, history)
        found = tf.cond(asked.banned, lambda: ban(found, controls.banned, history), lambda: found)
        found = tf.cond(asked.min_new_tokens, lambda: forbid_ends(
            found, ends.end_ids, produced, controls.min_new_tokens, ends.stop_ids), lambda: found)
        return tf.cond(asked.prefix, lambda: force(
            found, controls.prefix, _counts(controls.prefix), produced), lambda: found)

    return tf.cond(asked.anything(), changed, lambda: logits)


def _counts(ids: tf.Tensor) -> tf.Tensor:
    """[N, M] int32, -1 behind the last one -> [N] int32, how many count."""
    return tf.reduce_sum(tf.cast(ids >= 0, tf.int32), axis=-1)


def processor(controls: Controls, ends: Ends, history: History, capacity: int, *,
              before: tf.Tensor | None = None) -> Processor:
    """Return `control` for a loop.

    Args:
        controls: of the rows of the loop.
        ends: what ends a row.
        history: what each row holds before the first token.
        capacity: tokens that a row may produce, fixed when traced.
        before: [N] int32, tokens that each row produced before the loop; None for none.
    """
    room = tf.pad(history.ids, [[0, 0], [0, capacity]])                      # [N, H + capacity]

    @lru_cache(maxsize=1)  # of the graph that was traced last
    def asked_in(graph: tf.Graph) -> _Asked:
        return _asked(controls)

    def asked() -> _Asked:
        return asked_in(tf.compat.v1.get_default_graph())

    def change(logits: tf.Tensor, produced: tf.Tensor, state: History) -> tf.Tensor:
        total = produced if before is None else produced + before
        return _control(logits, controls, asked(), ends, state, total)

    def accept(state: History, tokens: tf.Tensor, live: tf.Tensor) -> History:
        def written() -> tf.Tensor:
            places = tf.range(tf.shape(state.ids)[1])
            here = (places == tf.expand_dims(state.lengths, 1)) & tf.expand_dims(live, 1)
            return tf.where(here, tf.expand_dims(tokens, 1), state.ids)

        remembers = asked().penalties | asked().banned
        return History(tf.cond(remembers, written, lambda: state.ids), state.prompt_lengths,
                       state.lengths + tf.cast(live, tf.int32))

    return Processor(History(room, history.prompt_lengths, history.lengths), change, accept)
