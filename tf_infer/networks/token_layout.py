"""Where the tokens of a group of rows lie: one after the other without padding, or padded.

Dense layers take [M, D], a token a row; attention takes [N, H, W, d], rows padded to a width. Both
layouts lead from the one to the other. `Joined` leaves padding out of the dense layers, and the
gathers that put it back for attention take the place of the transpositions to heads.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from tf_infer.networks.attention import MASKED
from tf_infer.networks.heads import pool

# Numbers of tokens that dense layers are shown: oneDNN makes code for each number that it meets.
FINEST, STEPS = 16, 8  # multiples of 16, and above 128 eight sizes between a power of two and next


class Layout(Protocol):
    """Tokens of N rows, M of them with those that only fill up, and W positions for attention.

    Attributes:
        positions: [M] int32, of each token in its row.
        hidden: [N, 1, 1, W] float32, 0 where a query may look, else MASKED.
    """

    positions: tf.Tensor
    hidden: tf.Tensor

    def tokens(self, padded: tf.Tensor) -> tf.Tensor:
        """[N, T] -> [M]."""

    def split(self, projected: tf.Tensor, heads: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[M, 3 H d], query, keys and values beside each other -> three [N, H, W, d]."""

    def join(self, attended: tf.Tensor) -> tf.Tensor:
        """[N, H, W, d] -> [M, H d]."""

    def pool(self, hidden: tf.Tensor, how: str) -> tf.Tensor:
        """[M, D] -> [N, D]: "first", "mean" or "max" of a row's tokens (networks/heads.py)."""


class Joined:
    """Rows one after the other without their padding (Layout); not for XLA, whose shapes are fixed.

    A row without a token keeps its first one: attention needs something to look at.

    Args:
        mask: [N, T] bool, True on real tokens.
        width: W [] int32, at least the tokens of the longest row.
        most: M is at most this number, or what the rows hold.
    """

    def __init__(self, mask: tf.Tensor, width: tf.Tensor, most: int) -> None:
        rows, columns = tf.shape(mask)[0], tf.shape(mask)[1]
        self.mask, self.width, self.columns = mask, width, columns
        real = mask | ((tf.range(columns) == 0) & ~tf.reduce_any(mask, axis=1, keepdims=True))
        self.lengths = tf.reduce_sum(tf.cast(real, tf.int32), axis=1)        # [N]
        self.starts = tf.cumsum(self.lengths, exclusive=True)                # [N]
        places = tf.cast(tf.where(real), tf.int32)                           # [tokens, 2]
        count = tf.shape(places)[0]
        missing = rounded_up(count, most) - count
        self.rows = tf.pad(places[:, 0], [[0, missing]])                     # [M]
        self.positions = tf.pad(places[:, 1], [[0, missing]])                # [M]
        slots = tf.range(count) - tf.gather(self.starts, places[:, 0])
        self.back = self.rows, tf.pad(slots, [[0, missing]])
        # What fills a row up is its last token once more: finite, and nobody looks at it.
        last = tf.minimum(tf.range(width), self.lengths[:, None] - 1)        # [N, W]
        self.slots = self.starts[:, None] + last
        visible = tf.range(width) < self.lengths[:, None]
        self.hidden = tf.where(visible, 0.0, MASKED)[:, None, None]
        self.count = rows
        self._heads: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}

    def tokens(self, padded: tf.Tensor) -> tf.Tensor:
        """[N, T] -> [M]."""
        return tf.gather(tf.reshape(padded, [-1]), self.rows * self.columns + self.positions)

    def split(self, projected: tf.Tensor, heads: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[M, 3 H d] -> three [N, H, W, d]."""
        size = projected.shape[1] // (3 * heads)
        flat = tf.reshape(projected, [-1, size])                             # [M 3 H, d]
        query = self._places(heads)[0]
        return (tf.gather(flat, query), tf.gather(flat, query + heads),
                tf.gather(flat, query + 2 * heads))

    def join(self, attended: tf.Tensor) -> tf.Tensor:
        """[N, H, W, d] -> [M, H d]."""
        heads, size = attended.shape[1], attended.shape[3]
        found = tf.gather(tf.reshape(attended, [-1, size]), self._places(heads)[1])
        return tf.reshape(found, [-1, heads * size])                         # [M, H d]

    def _places(self, heads: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Return where heads lie: of queries in [M 3 H], [N, H, W]; in [N H W], [M, H]."""
        if heads not in self._heads:
            every = tf.range(heads)
            query = self.slots[:, None] * (3 * heads) + every[:, None]       # [N, H, W]
            row, slot = self.back
            there = (row[:, None] * heads + every) * self.width + slot[:, None]
            self._heads[heads] = query, there
        return self._heads[heads]

    def pool(self, hidden: tf.Tensor, how: str) -> tf.Tensor:
        """[M, D] -> [N, D]."""
        if how == "first":
            return tf.gather(hidden, self.starts)
        # A row that has no real token keeps none here: its mean and its best are 0.
        counts = tf.reduce_sum(tf.cast(self.mask, tf.int32), axis=1)
        return pool(tf.gather(hidden, self.slots), tf.range(self.width) < counts[:, None], how)


class Padded:
    """Rows as they come, [N, T], with their padding (Layout); for XLA.

    Args:
        mask: [N, T] bool, True on real tokens.
    """

    def __init__(self, mask: tf.Tensor) -> None:
        shape = tf.shape(mask)
        self.mask, self.shape = mask, shape
        self.positions = tf.tile(tf.range(shape[1]), shape[:1])
        nothing = ~tf.reduce_any(mask, axis=1, keepdims=True)
        visible = mask | (nothing & (tf.range(shape[1]) == 0))
        self.hidden = tf.where(visible, 0.0, MASKED)[:, None, None]

    def tokens(self, padded: tf.Tensor) -> tf.Tensor:
        """[N, T] -> [N T]."""
        return tf.reshape(padded, [-1])

    def split(self, projected: tf.Tensor, heads: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """[N T, 3 H d] -> three [N, H, T, d]."""
        size = projected.shape[1] // (3 * heads)
        parts = tf.transpose(
            tf.reshape(projected, [self.shape[0], self.shape[1], 3, heads, size]), [2, 0, 3, 1, 4])
        return parts[0], parts[1], parts[2]

    def join(self, attended: tf.Tensor) -> tf.Tensor:
        """[N, H, T, d] -> [N T, H d]."""
        heads, size = attended.shape[1], attended.shape[3]
        return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [-1, heads * size])

    def pool(self, hidden: tf.Tensor, how: str) -> tf.Tensor:
        """[N T, D] -> [N, D]."""
        return pool(tf.reshape(hidden, [self.shape[0], self.shape[1], hidden.shape[1]]), self.mask,
                    how)


def token_sizes(most: int) -> tuple[int, ...]:
    """Return the numbers of tokens up to `most`, and it, that dense layers may be shown."""
    sizes, size = [], FINEST
    while size < most:
        sizes.append(size)
        size += max(FINEST, (1 << (size.bit_length() - 1)) // STEPS)
    return (*sizes, most)


def rounded_up(count: tf.Tensor, most: int) -> tf.Tensor:
    """Return the first of `token_sizes(most)` that is at least `count` [] int32; of 0 that is 0."""
    sizes = tf.constant((0, *token_sizes(most)))
    return tf.gather(sizes, tf.searchsorted(sizes, count[None])[0])


def cells_of(lengths: tf.Tensor, widths: tuple[int, ...], most_tokens: int
             ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sort rows by the width they need, and cut each width into cells of a bounded size.

    A row's width depends on that row alone, so its attention has the same shape in any company.

    Args:
        lengths: [B] int32, tokens of a row, at most the last width.
        widths: ascending.
        most_tokens: rows x width of a cell, or one row.

    Returns:
        order: [B] int32, rows by width, in their order.
        starts: [cells + 1] int32, where each cell begins in `order`, and B; one cell at least.
        width: [cells] int32.
    """
    sizes = tf.constant(widths)
    level = tf.searchsorted(sizes, lengths)                                  # [B]
    order = tf.argsort(level, stable=True)
    level = tf.gather(level, order)
    # The how manieth row of its width each one is.
    before = tf.searchsorted(level, tf.range(len(widths)))                   # [widths]
    number = tf.range(tf.shape(level)[0]) - tf.gather(before, level)
    room = tf.constant([max(1, most_tokens // width) for width in widths])
    begins = tf.equal(number % tf.gather(room, level), 0)
    starts = tf.cast(tf.where(begins)[:, 0], tf.int32)
    width = tf.gather(sizes, tf.gather(level, starts))
    none = tf.cast(tf.equal(tf.shape(level)[0], 0), tf.int32)  # no row is one cell of no row
    return (order, tf.concat([tf.zeros([none], tf.int32), starts, tf.shape(level)[:1]], axis=0),
            tf.concat([tf.fill([none], widths[0]), width], axis=0))
