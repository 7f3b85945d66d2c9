"""Serialized tf.Examples: whether they can be parsed, asked before TensorFlow quotes them."""

from __future__ import annotations

import tensorflow as tf

from tf_infer.tasks.grid import require

FIELD = 10       # bytes that hold a tag and the longest length
LENGTH_BYTES = 5
KEY, VALUE = 0x0A, 0x12  # tags of fields 1 and 2 with a length before them


def parse(records: tf.Tensor, names: tuple[str, ...]) -> dict[str, tf.Tensor]:
    """Return the one string of each named feature: [B] serialized tf.Example -> [B] string each.

    Raises:
        tf.errors.InvalidArgumentError: a record is no tf.Example (names its row; TensorFlow's own
            message would quote all of it), or has not one string under a name (names the feature).
    """
    good = are_examples(records)
    checked = require(good, "inputs: expected serialized tf.Examples.")
    with tf.control_dependencies([] if checked is None else [checked]):
        # Nothing that cannot be parsed reaches the parser, whichever of the two runs first.
        records = tf.where(good, records, "")
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in names}
    found: dict[str, tf.Tensor] = tf.io.parse_example(records, features)
    return found


def are_examples(records: tf.Tensor) -> tf.Tensor:
    """Return whether each record is laid out as a tf.Example down to its features' values.

    A tf.Example holds a Features, that holds entries, that hold a name and a value, each after its
    tag and length (protobuf's wire format; tensorflow/core/example/example.proto). All records are
    walked at once, a field at a time; values are skipped.

    Args:
        records: [B] string.

    Returns:
        [B] bool.
    """
    whole = tf.strings.length(records)                                       # [B]
    zeros = tf.zeros_like(whole)

    def step(place: tf.Tensor, features: tf.Tensor, entry: tf.Tensor, good: tf.Tensor
             ) -> tuple[tf.Tensor, ...]:
        """Read one field; `features` and `entry` are where the open ones end, 0 outside."""
        live = good & (place < whole)
        field = tf.strings.substr(records, tf.minimum(place, whole), zeros + FIELD)
        data = tf.cast(tf.io.decode_raw(field, tf.uint8, fixed_length=FIELD), tf.int64)
        tag, size, used = data[:, 0], *_length(data[:, 1:1 + LENGTH_BYTES])
        inside, within = place < entry, place < features
        end = tf.where(inside, entry, tf.where(within, features, whole))
        start = tf.cast(place + 1, tf.int64) + used
        stop = start + size
        fits = (used > 0) & (stop <= tf.cast(end, tf.int64))
        known = tf.equal(tag, KEY) | (inside & tf.equal(tag, VALUE))
        start, stop = tf.cast(start, tf.int32), tf.cast(tf.where(fits, stop, 0), tf.int32)
        ahead = tf.where(inside, stop, start)  # values are skipped, the others entered
        return (tf.where(live, ahead, place),
                tf.where(live & ~inside & ~within, stop, features),
                tf.where(live & ~inside & within, stop, entry),
                good & (~live | (fits & known)))

    place, _, _, good = tf.while_loop(
        lambda place, _features, _entry, good: tf.reduce_any(good & (place < whole)), step,
        (zeros, zeros, zeros, tf.fill(tf.shape(whole), True)))
    return good & tf.equal(place, whole)


def _length(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """[B, 5] int64 bytes -> the varint at their beginning and its bytes, 0 where it has no end."""
    ends = data < 128
    used = tf.where(tf.reduce_any(ends, axis=1), tf.argmax(ends, axis=1) + 1, 0)         # [B]
    counts = tf.range(LENGTH_BYTES, dtype=tf.int64)[None, :] < used[:, None]
    shifted = tf.bitwise.left_shift(data % 128, tf.range(0, 7 * LENGTH_BYTES, 7, dtype=tf.int64))
    return tf.reduce_sum(tf.where(counts, shifted, 0), axis=1), used
