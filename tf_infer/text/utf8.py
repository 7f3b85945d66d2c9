"""Invalid UTF-8 -> U+FFFD in the graph, and the way back to the bytes that were given."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from tf_infer.errors import ShapeError
from tf_infer.text.contracts import Tokens
from tf_infer.text.rows import row_ids, spread

# RE2 compiles the two ranges to the byte sequences of well-formed UTF-8 and to no other.
_WELL_FORMED = r"[\x{0}-\x{d7ff}\x{e000}-\x{10ffff}]*"
REPLACEMENT = 0xFFFD


class Repaired(NamedTuple):
    """Texts that are well-formed UTF-8.

    Attributes:
        texts: [B] string.
        changed: [] bool, whether any row differs from its source.
        origins: [B, (n + 1)] int32, source byte of each byte of the repaired row and of its end;
            without values unless `changed`; None when offsets were not asked for.
    """

    texts: tf.Tensor
    changed: tf.Tensor
    origins: tf.RaggedTensor | None


def repair(texts: tf.Tensor, *, offsets: bool) -> Repaired:
    """Replace each maximal ill-formed part of each text by U+FFFD.

    Args:
        texts: [B] string, any bytes.
        offsets: whether `origins` is wanted.

    The rule is that of Unicode 15, section 3.9 (best practice for U+FFFD), which Python's
    `bytes.decode("utf-8", "replace")` follows too. Cost: one scan where all rows are well-formed,
    a fifth of it where all are printable ASCII.
    """
    changed = tf.cond(
        printable(texts),
        lambda: tf.constant(False),
        lambda: ~tf.reduce_all(tf.strings.regex_full_match(texts, _WELL_FORMED)))
    repaired = tf.cond(
        changed,
        lambda: tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace",
                                             replacement_char=REPLACEMENT),
        lambda: texts)
    repaired.set_shape(texts.shape)
    if not offsets:
        return Repaired(repaired, changed, None)
    values, splits = tf.cond(
        changed,
        lambda: _origins(texts),
        lambda: (tf.zeros([0], tf.int32), tf.zeros([tf.size(texts) + 1], tf.int64)))
    origins = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
    return Repaired(repaired, changed, origins)


def to_source(tokens: Tokens, repaired: Repaired) -> Tokens:
    """Move the offsets of `tokens` from the repaired texts to the bytes that were given."""
    if tokens.starts is None or tokens.ends is None or repaired.origins is None:
        return tokens
    origins, given = repaired.origins, (tokens.starts, tokens.ends)

    def mapped() -> list[tf.Tensor]:
        first = tf.gather(origins.row_splits, row_ids(given[0].row_splits))
        return [tf.gather(origins.values, first + tf.cast(x.values, first.dtype)) for x in given]

    starts, ends = tf.cond(repaired.changed, mapped, lambda: [x.values for x in given])
    return tokens._replace(starts=given[0].with_values(starts), ends=given[1].with_values(ends))


def vector(texts: tf.Tensor) -> tf.Tensor:
    """Return [B] strings as they are, and refuse other ranks, which end the process in some ops.

    Raises:
        ShapeError: the rank is known while tracing and is not 1; tf.errors.InvalidArgumentError
            where it is found when the graph runs.
    """
    texts = tf.convert_to_tensor(texts)
    if texts.shape.rank not in (None, 1):
        raise ShapeError(f"texts: expected a vector of strings, got shape {tuple(texts.shape)}. "
                         "Put one text into a list; flatten a matrix.")
    return tf.ensure_shape(texts, [None])


def printable(texts: tf.Tensor) -> tf.Tensor:
    """Return [] bool, whether all bytes of [B] strings are U+0020 to U+007E."""
    data = tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8)               # [N]
    return tf.reduce_max(data - 0x20) <= 0x7E - 0x20


def decode_with_ends(texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor, tf.Tensor]:
    """Return code points [B, (c)] int32 of any bytes, and the bytes of each: [N], [N] int32."""
    codes, begin = tf.strings.unicode_decode_with_offsets(
        texts, "UTF-8", errors="replace", replacement_char=REPLACEMENT)
    starts, rows = tf.cast(begin.values, tf.int32), row_ids(begin.row_splits)
    following = tf.concat([starts[1:], [0]], axis=0)[:tf.size(starts)]
    same_row = tf.concat([rows[1:] == rows[:-1], [False]], axis=0)[:tf.size(starts)]
    ends = tf.where(same_row, following, tf.gather(tf.strings.length(texts), rows))
    return codes, starts, ends


def code_widths(codes: tf.Tensor) -> tf.Tensor:
    """Return how many bytes each code point takes in UTF-8: int32, 1 to 4."""
    return (1 + tf.cast(codes > 0x7F, tf.int32) + tf.cast(codes > 0x7FF, tf.int32)
            + tf.cast(codes > 0xFFFF, tf.int32))


def _origins(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return values [N] int32 and row splits [B + 1] int64 of `Repaired.origins`."""
    codes, starts = tf.strings.unicode_decode_with_offsets(
        texts, "UTF-8", errors="replace", replacement_char=REPLACEMENT)
    rows = tf.shape(texts)[0]
    ends = tf.cast(tf.strings.length(texts), tf.int64)[:, None]       # [B, 1]
    starts = tf.concat([starts, ends], axis=1)                        # [B, (c + 1)]
    widths = tf.concat([codes.with_values(code_widths(codes.values)),
                        tf.ones([rows, 1], tf.int32)], axis=1)        # [B, (c + 1)]
    stops = tf.concat([starts[:, 1:], ends], axis=1)                  # [B, (c + 1)]
    index, inside = spread(widths.values)
    values = tf.minimum(tf.gather(tf.cast(starts.values, tf.int32), index) + inside,
                        tf.gather(tf.cast(stops.values, tf.int32), index))
    total = tf.concat([[0], tf.cumsum(widths.values)], axis=0)        # [N + 1]
    splits = tf.gather(total, widths.row_splits)
    return values, tf.cast(splits, tf.int64)
