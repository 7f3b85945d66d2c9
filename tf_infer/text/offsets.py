"""Byte offsets through a change of the text: from the new text back to its source."""

from __future__ import annotations

import tensorflow as tf

from tf_infer.text.contracts import Tokens
from tf_infer.text.rows import row_ids


def through(tokens: Tokens, starts: tf.RaggedTensor, ends: tf.RaggedTensor) -> Tokens:
    """Move the offsets of `tokens` from changed texts to the texts they were made from.

    Args:
        tokens: [B, (T)] with offsets, none of them empty, into the changed texts.
        starts, ends: [B, (bytes)] int32, for each byte of a changed text the source bytes of its
            character; a row without values was not changed.
    """
    assert tokens.starts is not None and tokens.ends is not None
    rows = row_ids(tokens.starts.row_splits)                                       # [N]
    first = tf.gather(starts.row_splits, rows)
    changed = tf.gather(starts.row_splits, rows + 1) > first

    def moved(sources: tf.RaggedTensor, positions: tf.Tensor, back: int) -> tf.Tensor:
        place = first + tf.cast(positions, tf.int64) - back
        values = tf.concat([sources.values, [0]], axis=0)
        return tf.where(changed, tf.gather(values, tf.where(changed, place, 0)), positions)

    return tokens._replace(
        starts=tokens.starts.with_values(moved(starts, tokens.starts.values, 0)),
        ends=tokens.ends.with_values(moved(ends, tokens.ends.values, 1)))
