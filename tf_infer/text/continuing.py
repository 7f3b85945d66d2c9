"""Encode a text as it stands behind another one: without a space that nobody wrote."""

from __future__ import annotations

import tensorflow as tf

from tf_infer.text.contracts import TextCodec

# Written before a text so that the space a codec puts before a first word goes there.
ANCHORS = ("¶", "§", "~", "|", "=")


class Continuing:
    """What a codec makes of texts that go on from another one.

    A SentencePiece model puts a space before the first word of what it encodes, and so would turn
    "s" behind "thing" into " s". An anchor before the text takes that space, and its ids are
    dropped again. Where no anchor keeps its ids to itself (a WordPiece vocabulary, whose words
    always come behind a space) texts are encoded as they are.
    """

    def __init__(self, codec: TextCodec) -> None:
        spellings = codec.spellings().numpy()
        self.anchor = ""
        self.lead: tuple[int, ...] = ()

        def ids_of(text: str) -> tuple[int, ...]:
            return tuple(codec.encode(tf.constant([text])).ids.flat_values.numpy().tolist())

        def spelled(ids: tuple[int, ...]) -> bytes:
            return b"".join(spellings[i] for i in ids)

        if spelled(ids_of("a")) == b"a":
            return
        for anchor in ANCHORS:
            lead, both = ids_of(anchor), ids_of(anchor + "a")
            if both[:len(lead)] == lead and spelled(both[len(lead):]) == b"a":
                self.anchor, self.lead = anchor, lead
                return

    def written(self, texts: tf.Tensor) -> tf.Tensor:
        """Return what is to be encoded for [N] texts; nothing for an empty one."""
        if not self.anchor:
            return texts
        return tf.where(texts == "", texts, tf.strings.join([self.anchor, texts]))

    def read(self, ids: tf.RaggedTensor) -> tf.RaggedTensor:
        """Return [N, (T)] ids without those of the anchor; rows that merged with it stay whole."""
        if not self.anchor:
            return ids
        size = len(self.lead)
        first = ids.to_tensor(-1, shape=[None, None])
        first = tf.pad(first, [[0, 0], [0, size]], constant_values=-1)[:, :size]
        led = tf.reduce_all(first == tf.constant(self.lead, ids.dtype), axis=1)
        begins = tf.where(led, tf.constant(size, tf.int64), tf.constant(0, tf.int64))
        place = tf.ragged.range(tf.cast(ids.row_lengths(), tf.int64)).flat_values
        kept = place >= tf.repeat(begins, ids.row_lengths())
        return tf.ragged.boolean_mask(ids, ids.with_values(kept))
