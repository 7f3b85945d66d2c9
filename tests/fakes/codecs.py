"""Codecs with one awkward habit each, on top of the bytes codec."""

from __future__ import annotations

import tensorflow as tf

from tf_infer.config import BytesConfig
from tf_infer.text.bytes import BytesCodec


class LeadingSpaceCodec(BytesCodec):
    """Drops one space before the first word when it decodes, as SentencePiece does."""

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return tf.strings.regex_replace(super().decode(ids, lengths), r"^ ", "")


class RepairingCodec(BytesCodec):
    """Decodes ill-formed bytes to U+FFFD."""

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        return tf.strings.unicode_transcode(super().decode(ids, lengths), "UTF-8", "UTF-8")


class BareCodec(BytesCodec):
    """Has no start id, and where `end` is False no end id either."""

    def __init__(self, *, end: bool) -> None:
        super().__init__(BytesConfig())
        self.start_id = None
        if not end:
            self.end_id = None
