"""Change logits before a token is chosen: penalties, biases, bans, minimum length, forced prefix.

Each function is pure and looks at one row at a time, so rows with different options share a batch.
The scores of a hypothesis stay the model's own: they are taken from the logits before. `controlled`
is all of them in their order; controls.py makes it the `Processor` of a loop.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_infer.decoding.score import finite

BANNED = -1e30  # logit of a token that must not be chosen while any other may
NEVER = -3e38   # of one that must not even be chosen while all others are banned


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


class History(NamedTuple):
    """What each row holds: its prompt, and behind it what it has produced.

    Attributes:
        ids: [N, H] int32.
        prompt_lengths: [N] int32, how many of them are the prompt.
        lengths: [N] int32, how many of them count, prompt and produced.
    """

    ids: tf.Tensor
    prompt_lengths: tf.Tensor
    lengths: tf.Tensor


def penalize(logits: tf.Tensor, penalties: Penalties, history: History) -> tf.Tensor:
    """Make tokens that have been said less likely.

    Args:
        logits: [N, V] float32.
        penalties: of each row.
        history: of each row.

    Returns:
        [N, V] float32. A batch in which no row asks for a penalty is handed back as it is.
    """
    asks = penalizes(penalties)

    def changed() -> tf.Tensor:
        size = tf.shape(logits)[1]
        seen = token_counts(history.ids, history.lengths, size)              # [N, V]
        said = seen - token_counts(history.ids, history.prompt_lengths, size)
        factor = tf.expand_dims(penalties.repetition, 1)
        plain = finite(logits)
        repeated = tf.where(plain > 0.0, plain / factor, plain * factor)
        lowered = tf.where(seen > 0.0, repeated, plain)
        lowered -= tf.expand_dims(penalties.presence, 1) * tf.cast(said > 0.0, tf.float32)
        lowered -= tf.expand_dims(penalties.frequency, 1) * said
        return tf.where(tf.expand_dims(asks, 1), finite(lowered), logits)

    return tf.cond(tf.reduce_any(asks), changed, lambda: logits)


def penalizes(penalties: Penalties) -> tf.Tensor:
    """[N] bool, rows that ask for a penalty; a repetition of 0 stands in rows that ask nothing."""
    return (((penalties.repetition != 1.0) & (penalties.repetition > 0.0))
            | (penalties.presence != 0.0) | (penalties.frequency != 0.0))


def token_counts(ids: tf.Tensor, lengths: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Return how often each row holds each id: [N, L] int32, [N] int32 -> [N, size] float32."""
    rows, width = tf.unstack(tf.shape(ids))
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
    rows, size = tf.unstack(tf.shape(logits))
    width = tf.unstack(tf.shape(ids))[1]
    real = tf.sequence_mask(counts, width) & (ids >= 0) & (ids < size)
    places = tf.stack([tf.broadcast_to(tf.range(rows)[:, None], [rows, width]),
                       tf.where(real, ids, 0)], axis=-1)
    return logits + tf.scatter_nd(places, tf.where(real, values, 0.0), [rows, size])


def forbid(logits: tf.Tensor, banned: tf.Tensor) -> tf.Tensor:
    """Let no banned token be chosen: logits [N, V], banned [N, V] or [V] bool -> [N, V].

    A row whose every token is banned is handed back as a row of equals.
    """
    return tf.where(banned, tf.constant(BANNED, logits.dtype), logits)


def only(logits: tf.Tensor, allowed: tf.Tensor) -> tf.Tensor:
    """Let only allowed tokens be chosen, whatever else bans them.

    Args:
        logits: [N, V] float32.
        allowed: [N, W] int32, bit i % 32 of word i // 32 says whether token i may be chosen; W is
            0 (all may) or enough for V bits.

    Returns:
        [N, V] float32.
    """

    def masked() -> tf.Tensor:
        tokens = tf.range(tf.shape(logits)[1])
        words = tf.gather(allowed, tokens // 32, axis=1)                     # [N, V]
        bits = tf.bitwise.bitwise_and(tf.bitwise.right_shift(words, tokens % 32), 1)
        return tf.where(bits == 1, tf.maximum(finite(logits), BANNED), NEVER)

    return tf.cond(tf.shape(allowed)[1] > 0, masked, lambda: logits)


def ban(logits: tf.Tensor, banned: tf.Tensor, history: History) -> tf.Tensor:
    """Let no row say a banned sequence: its last token is forbidden where the others stand before.

    Args:
        logits: [N, V] float32.
        banned: [N, W, S] int32, W sequences of up to S ids each, -1 behind their last ones.
        history: of each row; only what it produced counts.

    Returns:
        [N, V] float32.
    """
    rows, words, longest = tf.unstack(tf.shape(banned))
    size = tf.unstack(tf.shape(logits))[1]
    counts = tf.reduce_sum(tf.cast(banned >= 0, tf.int32), axis=-1)          # [N, W]
    places = tf.range(longest)
    # Place s of a sequence of n ids stands n - 1 - s places before the end of what was produced.
    back = history.lengths[:, None, None] - (counts[..., None] - 1) + places  # [N, W, S]
    known = tf.gather(history.ids, tf.clip_by_value(back, 0, tf.shape(history.ids)[1] - 1),
                      batch_dims=1)
    same = (known == banned) & (back >= history.prompt_lengths[:, None, None])
    before = places < counts[..., None] - 1
    hit = tf.reduce_all(same | ~before, axis=-1) & (counts > 0)              # [N, W]
    last = tf.gather(banned, tf.maximum(counts - 1, 0), batch_dims=2)
    inside = hit & (last < size)
    spots = tf.stack([tf.broadcast_to(tf.range(rows)[:, None], [rows, words]),
                      tf.where(inside, last, 0)], axis=-1)
    marks = tf.scatter_nd(spots, tf.cast(inside, tf.int32), [rows, size])
    return forbid(logits, marks > 0)


def forbid_ends(logits: tf.Tensor, end_ids: tuple[int, ...], produced: tf.Tensor,
                at_least: tf.Tensor, stop_ids: tf.Tensor | None = None) -> tf.Tensor:
    """Let no row end before it has `at_least` [N] int32 tokens; `produced` [N] int32 it has.

    `stop_ids` [N, E] int32 are ends of the row's own, -1 for none.
    """
    if not end_ids and stop_ids is None:
        return logits
    tokens = tf.range(tf.shape(logits)[1])
    is_end = tf.zeros_like(tokens, tf.bool)
    if end_ids:
        is_end = tf.reduce_any(tf.expand_dims(tokens, 1) == tf.constant(end_ids, tf.int32), axis=-1)
    if stop_ids is not None:
        is_end |= tf.reduce_any(tf.expand_dims(tokens, 1) == stop_ids[:, None, :], axis=-1)
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
        is banned, which is the best one then, whatever it was before.
    """
    width = tf.shape(prefix)[1]
    place = tf.minimum(produced, tf.maximum(width - 1, 0))
    padded = tf.pad(prefix, [[0, 0], [0, 1]])                                # P may be 0
    wanted = tf.gather(padded, place, batch_dims=1)                          # [N]
    others = tf.range(tf.shape(logits)[1]) != tf.expand_dims(wanted, 1)
    only = tf.where(others, tf.constant(BANNED, logits.dtype), 0.0)
    return tf.where((produced < prefix_lengths)[:, None], only, logits)
