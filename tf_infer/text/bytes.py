"""One id per byte: needs no file and takes every byte string as it is, valid UTF-8 or not."""

from __future__ import annotations

import tensorflow as tf

from tf_infer.config import BytesConfig
from tf_infer.text.contracts import Tokens
from tf_infer.text.rows import row_ids
from tf_infer.text.utf8 import vector
from tf_infer.token_bytes import TokenBytes

FIRST = 3  # pad 0, start 1, end 2


class BytesCodec(tf.Module):
    """The codec of `BytesConfig`; see `text.contracts.TextCodec`."""

    def __init__(self, config: BytesConfig) -> None:
        super().__init__(name="bytes_codec")
        self.config = config
        self.vocab_size = FIRST + 256
        self.pad_id: int | None = 0
        self.start_id: int | None = 1
        self.end_id: int | None = 2
        self.unknown_id: int | None = None

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Tokens:
        """Split [B] strings into one id per byte; invalid UTF-8 is kept as it is."""
        texts = vector(texts)
        data = tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8)          # [N]
        ids = tf.RaggedTensor.from_row_lengths(
            tf.cast(data, tf.int32) + FIRST,
            tf.cast(tf.strings.length(texts), tf.int64), validate=False)
        if not offsets:
            return Tokens(ids, None, None)
        begin = tf.gather(ids.row_splits, row_ids(ids.row_splits))
        starts = tf.cast(tf.range(tf.size(data, tf.int64)) - begin, tf.int32)     # [N]
        return Tokens(ids, ids.with_values(starts), ids.with_values(starts + 1))

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Join ids [..., L], of which the first `lengths` [...] count, into strings [...]."""
        live = tf.sequence_mask(lengths, tf.shape(ids)[-1])                       # [..., L]
        live &= (ids >= FIRST) & (ids < self.vocab_size)
        alphabet = tf.constant([b""] + [bytes([byte]) for byte in range(256)])    # [257]
        letters = tf.gather(alphabet, tf.where(live, ids - FIRST + 1, 0))
        return tf.strings.reduce_join(letters, axis=-1)

    def spellings(self) -> tf.Tensor:
        """Return the byte of each id; see `TextCodec.spellings`."""
        return tf.constant([b""] * FIRST + [bytes([byte]) for byte in range(256)])

    def token_bytes(self) -> TokenBytes:
        """Return what each id adds to a text, with the first of a text."""
        tokens = (b"",) * FIRST + tuple(bytes([byte]) for byte in range(256))
        return TokenBytes(tokens=tokens, first=tokens, vanishing=frozenset())
