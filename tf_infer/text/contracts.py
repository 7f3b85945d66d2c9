"""What every codec promises: TextCodec, and encoded text in two forms, Tokens and TokenBatch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import tensorflow as tf

from tf_infer.token_bytes import TokenBytes


class Tokens(NamedTuple):
    """Encoded texts before packing: no special ids, no padding.

    Attributes:
        ids: [B, (T)] int32.
        starts: [B, (T)] int32, first byte of the token in its source text; None when not asked for.
        ends: [B, (T)] int32, one past its last byte; None when not asked for.
    """

    ids: tf.RaggedTensor
    starts: tf.RaggedTensor | None
    ends: tf.RaggedTensor | None


class TokenBatch(NamedTuple):
    """Packed rows, ready for a network.

    Attributes:
        ids: [B, T] int32, T is one of the length buckets; `pad_id` where `mask` is False.
        mask: [B, T] bool, True on real ids (special ones too), each row True first.
        segments: [B, T] int32, 1 on the second text of a pair and the end id behind it, else 0.
        starts: [B, T] int32, first byte in the id's own source text; 0 on special ids and padding.
        ends: [B, T] int32, one past its last byte; 0 on special ids and padding.
    """

    ids: tf.Tensor
    mask: tf.Tensor
    segments: tf.Tensor
    starts: tf.Tensor
    ends: tf.Tensor


class TextCodec(Protocol):
    """A tokenizer and its inverse, as a `tf.Module` whose files are tracked assets.

    Attributes:
        vocab_size: ids are 0 .. vocab_size - 1, added tokens included.
        pad_id, start_id, end_id, unknown_id: None where the tokenizer has none.
    """

    vocab_size: int
    pad_id: int | None
    start_id: int | None
    end_id: int | None
    unknown_id: int | None

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Tokens:
        """Split [B] strings into ids; runs eagerly and inside any tf.function, never under XLA.

        Invalid UTF-8 is read as U+FFFD, one for each maximal ill-formed part (Unicode 15, 3.9), and
        offsets still point into the bytes that were given.
        """

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Join ids [..., L] of which the first `lengths` [...] count into strings [...].

        Special added tokens, start, end and padding ids are dropped; ids out of range are dropped.
        """

    def spellings(self) -> tf.Tensor:
        """Return [vocab_size] strings: the bytes that each id adds to a text that has begun.

        Ids that `decode` drops add none. Part of a character stays what it is; joined, they are
        what `decode` gives but for its first space and ill-formed bytes.
        """

    def token_bytes(self) -> TokenBytes:
        """Return `spellings` and what the first id of a text adds; not inside a graph."""
