"""Byte pieces -> characters, as the sentencepiece library puts them together."""

from __future__ import annotations

import tensorflow as tf

# first byte from, to; bounds of the second byte; how many bytes (Unicode 15, table 3-7)
_FORMS = ((0x00, 0x7F, 0, 0, 1), (0xC2, 0xDF, 0x80, 0xBF, 2), (0xE0, 0xE0, 0xA0, 0xBF, 3),
          (0xE1, 0xEC, 0x80, 0xBF, 3), (0xED, 0xED, 0x80, 0x9F, 3), (0xEE, 0xEF, 0x80, 0xBF, 3),
          (0xF0, 0xF0, 0x90, 0xBF, 4), (0xF1, 0xF3, 0x80, 0xBF, 4), (0xF4, 0xF4, 0x80, 0x8F, 4))


def checked_bytes(values: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
    """Put bytes into `texts`, and U+FFFD for each byte that is part of no character.

    Args:
        values: [N, L] int32, 0 to 255 on byte pieces, -1 on all others.
        texts: [N, L] string, what the others stand for.

    Returns:
        [N, L] string.
    """
    ahead = [_shifted(values, i) for i in range(4)]                              # [N, L] each
    follows = [(byte >= 0x80) & (byte <= 0xBF) for byte in ahead]
    size = tf.zeros_like(values)
    for low, high, second_low, second_high, count in _FORMS:
        fits = (values >= low) & (values <= high)
        if count > 1:
            fits &= (ahead[1] >= second_low) & (ahead[1] <= second_high)
        for i in range(2, count):
            fits &= follows[i]
        size = tf.where(fits, count, size)
    part = size > 0
    for back in range(1, 4):
        part |= _shifted(size, -back, 0) > back
    alphabet = tf.constant([bytes([byte]) for byte in range(256)])
    found = tf.where(part, tf.gather(alphabet, tf.maximum(values, 0)), "\ufffd")
    return tf.where(values >= 0, found, texts)


def _shifted(values: tf.Tensor, by: int, fill: int = -1) -> tf.Tensor:
    """Return `values` [N, L] moved `by` places to the left, with `fill` behind."""
    if by >= 0:
        return tf.pad(values, [[0, 0], [0, by]], constant_values=fill)[:, by:]
    return tf.pad(values, [[0, 0], [-by, 0]], constant_values=fill)[:, :by]
