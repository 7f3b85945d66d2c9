"""Change logits before a token is chosen: penalties, biases, bans, minimum length, forced prefix.

Each function is pure and looks at one row at a time, so rows with different options share a batch.
The scores of a hypothesis stay the model's own: they are taken from the logits before.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_infer.decoding.score import finite

BANNED = -1e30  # logit of a token that must not be chosen while any other may


class Penalties(NamedTuple):
    """What repeating a token costs, for each row for itself.

    Attributes:
        repetition: [N] float32 > 0; logits of tokens seen in prompt or output are divided by it
            where positive, multiplied where negative; 1 is off. Keskar et al. 2019,
            arXiv:1909.05858, as Hugging Face applies it.
        presence: [N] float32, taken off the logits of every token that the output holds; 0 is off.
        frequency: [N] float32, taken off once for each time that the output holds it; 0 is off.
            Both as in OpenAI's API.
    """

    repetition: tf.Tensor
    presence: tf.Tensor
    frequency: tf.Tensor


def penalize(logits: tf.Tensor, penalties: Penalties, *, prompt: tf.Tensor,
             prompt_lengths: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Make tokens that have been said less likely.

    Args:
        logits: [N, V] float32.
        penalties: of each row.
        prompt: [N, T] int32, the first `prompt_lengths` [N] int32 of each row count.
        ids: [N, L] int32, produced so far, the first `lengths` [N] int32 of each row.

    Returns:
        [N, V] float32. A batch in which no row asks for a penalty is handed back as it is.
    """
    asks = ((penalties.repetition != 1.0) | (penalties.presence != 0.0)
            | (penalties.frequency != 0.0))

    def changed() -> tf.Tensor:
        size = tf.shape(logits)[1]
        said = token_counts(ids, lengths, size)                              # [N, V]
        seen = (said > 0.0) | (token_counts(prompt, prompt_lengths, size) > 0.0)
        factor = penalties.repetition[:, None]
        plain = finite(logits)
        repeated = tf.where(plain > 0.0, plain / factor, plain * factor)
        lowered = tf.where(seen, repeated, plain)
        lowered -= penalties.presence[:, None] * tf.cast(said > 0.0, tf.float32)
        lowered -= penalties.frequency[:, None] * said
        return tf.where(asks[:, None], finite(lowered), logits)

    return tf.cond(tf.reduce_any(asks), changed, lambda: logits)


def token_counts(ids: tf.Tensor, lengths: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Return how often each row holds each id: [N, L] int32, [N] int32 -> [N, size] float32."""
    rows, width = tf.shape(ids)[0], tf.shape(ids)[1]
    real = tf.sequence_mask(lengths, width)                                  # [N, L]
    places = tf.stack([tf.broadcast_to(tf.range(rows)[:, None], [rows, width]),
                       tf.where(real, ids, 0)], axis=-1)                     # [N, L, 2]
    return tf.scatter_nd(places, tf.cast(real, tf.float32), [rows, size])


def add_bias(logits: tf.Tensor, ids: tf.Tensor, values: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Add a bias to some tokens of each row.

    Args:
        logits: [N, V] float32.
        ids: [N, M] int32, which tokens; the first `counts` [N] int32 of each row count, and an id
            that stands twice gets both.
        values: [N, M] float32.

    Returns:
        [N, V] float32; ids outside 0 .. V - 1 change nothing.
    """
    rows, width, size = tf.shape(ids)[0], tf.shape(ids)[1], tf.shape(logits)[1]
    real = tf.sequence_mask(counts, width) & (ids >= 0) & (ids < size)
    places = tf.stack([tf.broadcast_to(tf.range(rows)[:, None], [rows, width]),
                       tf.where(real, ids, 0)], axis=-1)
    return logits + tf.scatter_nd(places, tf.where(real, values, 0.0), [rows, size])


def forbid(logits: tf.Tensor, banned: tf.Tensor) -> tf.Tensor:
    """Let no banned token be chosen: logits [N, V], banned [N, V] or [V] bool -> [N, V].

    A row whose every token is banned is handed back as a row of equals.
    """
    return tf.where(banned, tf.constant(BANNED, logits.dtype), logits)


def forbid_ends(logits: tf.Tensor, end_ids: tuple[int, ...], produced: tf.Tensor,
                at_least: tf.Tensor) -> tf.Tensor:
    """Let no row end before it has `at_least` [N] int32 tokens; `produced` [N] int32 it has."""
    if not end_ids:
        return logits
    is_end = tf.reduce_any(
        tf.range(tf.shape(logits)[1])[:, None] == tf.constant(end_ids, tf.int32), axis=-1)
    return forbid(logits, (produced < at_least)[:, None] & is_end)


def force(logits: tf.Tensor, prefix: tf.Tensor, prefix_lengths: tf.Tensor, produced: tf.Tensor,
          ) -> tf.Tensor:
    """Let each row begin with its prefix.

    Args:
        logits: [N, V] float32.
        prefix: [N, P] int32, the first `prefix_lengths` [N] int32 of each row count.
        produced: [N] int32, tokens that the row has.

    Returns:
        [N, V] float32: while produced < prefix length, every token but the next one of the prefix
        is banned.
    """
    width = tf.shape(prefix)[1]
    place = tf.minimum(produced, tf.maximum(width - 1, 0))
    padded = tf.pad(prefix, [[0, 0], [0, 1]])                                # P may be 0
    wanted = tf.gather(padded, place, batch_dims=1)                          # [N]
    others = tf.range(tf.shape(logits)[1]) != wanted[:, None]
    return forbid(logits, (produced < prefix_lengths)[:, None] & others)
