"""A codec whose two functions a graph holds once, however many signatures read and write texts."""

from __future__ import annotations

import tensorflow as tf

from tf_infer.decoding.shared import Shared
from tf_infer.stages import POSTPROCESS, PREPROCESS
from tf_infer.text.contracts import TextCodec, Tokens

TEXTS = tf.TensorSpec([None], tf.string)
IDS, LENGTHS = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([None], tf.int32)


class SharedCodec:
    """Encodes and decodes as a codec does: hundreds of operations each, in one call."""

    def __init__(self, codec: TextCodec) -> None:
        self._ids = Shared(PREPROCESS, lambda texts: codec.encode(texts).ids, [TEXTS])
        self._tokens = Shared(
            PREPROCESS, lambda texts: codec.encode(texts, offsets=True), [TEXTS])
        self._texts = Shared(POSTPROCESS, codec.decode, [IDS, LENGTHS])

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Tokens:
        """See `TextCodec.encode`."""
        return self._tokens(texts) if offsets else Tokens(self._ids(texts), None, None)

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """See `TextCodec.decode`; ids are [N, L]."""
        texts: tf.Tensor = self._texts(ids, lengths)
        return texts
