"""Uniform random numbers from integer bits and a seed per row: the same on every path.

TensorFlow's own stateless floats differ between graph and XLA for one seed (2.21, also with Philox
chosen); additions, shifts and exclusive-ors of uint32 do not. So the bits come from Threefry-2x32
with 20 rounds, written in these three operations: the row's seed is the key, the number of the draw
is the counter. A row's draws know nothing of its neighbours.
Source: Salmon et al. 2011, doi:10.1145/2063384.2063405 (Random123).
"""

from __future__ import annotations

import tensorflow as tf

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
WORD = 32  # bits
PARITY = 0x1BD11BDA  # of the key schedule, from Skein


def threefry(key: tuple[tf.Tensor, tf.Tensor], counter: tuple[tf.Tensor, tf.Tensor]
             ) -> tuple[tf.Tensor, tf.Tensor]:
    """Mix a counter with a key into 64 random bits (Threefry-2x32, 20 rounds).

    Args:
        key, counter: two words each, uint32 of one shape.

    Returns:
        two words of random bits, uint32 of that shape.
    """
    schedule = (key[0], key[1], key[0] ^ key[1] ^ tf.constant(PARITY, tf.uint32))
    left, right = counter[0] + schedule[0], counter[1] + schedule[1]
    # One constant for each number: a graph would hold one for each place.
    shifts = {bits: tf.constant(bits, tf.uint32)
              for pair in ROTATIONS for one in pair for bits in (one, WORD - one)}
    for group in range(5):
        for distance in ROTATIONS[group % 2]:
            left += right
            right = left ^ (tf.bitwise.left_shift(right, shifts[distance])
                            | tf.bitwise.right_shift(right, shifts[WORD - distance]))
        left += schedule[(group + 1) % 3]
        right += schedule[(group + 2) % 3] + tf.constant(group + 1, tf.uint32)
    return left, right


def uniforms(seeds: tf.Tensor, draws: tf.Tensor, streams: tf.Tensor | None = None) -> tf.Tensor:
    """Return one uniform number for each row.

    Args:
        seeds: [N] int64, any value.
        draws: [N] int32 >= 0, which draw of the row this is: the number of its new token.
        streams: [N] int32 >= 0, which of the seed's rows of numbers; None takes number 0.

    Returns:
        [N] float32, multiples of 2**-24 in [0, 1): every bit is the same on every path.
    """
    # The shift of a signed word is arithmetic; the mask drops what it brings in.
    low = tf.cast(tf.bitwise.bitwise_and(seeds, 0xFFFFFFFF), tf.uint32)
    high = tf.cast(
        tf.bitwise.bitwise_and(tf.bitwise.right_shift(seeds, tf.constant(32, tf.int64)),
                               0xFFFFFFFF), tf.uint32)
    stream = tf.zeros_like(low) if streams is None else tf.cast(streams, tf.uint32)
    counter = (tf.cast(draws, tf.uint32), stream)
    bits, _ = threefry((low, high), counter)
    return tf.cast(tf.bitwise.right_shift(bits, tf.constant(8, tf.uint32)), tf.float32) * 2.0**-24
