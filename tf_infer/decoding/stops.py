"""End a row as soon as its text holds a stop string, wherever the borders of its tokens lie.

Texts are bytes here. A row's stop strings and the last bytes of its text are dense, so that XLA can
compile the search: every byte of a new token is compared once with the ends of all strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_infer.decoding.contracts import Choice, Watcher

NOTHING = -2  # stands before a text; no stop string holds it


class Spellings(NamedTuple):
    """The bytes of every token: `data` [total] uint8, token i being data[splits[i]:splits[i + 1]].

    NumPy arrays; in a graph they are constants.
    """

    data: np.ndarray
    splits: np.ndarray


def spellings(tokens: Sequence[bytes]) -> Spellings:
    """Return the bytes of all tokens, [V], in one row."""
    sizes = [len(token) for token in tokens]
    data = np.frombuffer(b"".join(tokens) or b"\0", np.uint8)
    return Spellings(data, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))


class Search(NamedTuple):
    """How far the search has come.

    Attributes:
        tail: [N, M] int16, the last M bytes of each text, `NOTHING` before its beginning.
        cut: [N] int32, bytes from the end of the text back to the stop string's beginning; 0 while
            none was found.
    """

    tail: tf.Tensor
    cut: tf.Tensor


def watcher(table: Spellings, stops: tf.Tensor) -> Watcher:
    """Return a watcher that ends rows at their stop strings.

    Args:
        table: the bytes of every token.
        stops: [N, S, M] int16, S strings of up to M bytes, with -1 before their first byte; a
            string of -1 alone is none.

    The string that is whole first counts; of several that end together the longest. A row that
    ends by another limit with part of a string keeps that part.
    """
    sizes_of = tf.reduce_sum(tf.cast(stops >= 0, tf.int32), axis=-1)         # [N, S]
    asked = tf.reduce_any(sizes_of > 0, axis=-1)                             # [N]
    anybody = tf.reduce_any(asked)
    state = Search(tf.zeros_like(stops[:, 0]) + NOTHING, tf.zeros_like(asked, tf.int32))

    def watch(choice: Choice, state: Search) -> tuple[tf.Tensor, Search]:
        found = tf.cond(anybody, lambda: _read(table, stops, sizes_of, state, choice.tokens,
                                               choice.kept & asked), lambda: state)
        return found.cut > 0, found

    return Watcher(state, watch)


def _read(table: Spellings, stops: tf.Tensor, sizes_of: tf.Tensor, state: Search,
          tokens: tf.Tensor, reads: tf.Tensor) -> Search:
    """Read one more token of each row that `reads` [N] bool, byte by byte."""
    data, splits = tf.constant(table.data), tf.constant(table.splits)
    starts = tf.gather(splits, tokens)
    sizes = tf.where(reads, tf.gather(splits, tokens + 1) - starts, 0)       # [N]
    longest = tf.reduce_max(tf.concat([sizes, [0]], axis=0))

    def once(place: tf.Tensor, search: Search) -> tuple[tf.Tensor, Search]:
        spot = tf.minimum(starts + place, len(table.data) - 1)
        byte = tf.cast(tf.gather(data, spot), tf.int16)
        here = place < sizes
        moved = tf.concat([search.tail[:, 1:], tf.expand_dims(byte, 1)], axis=1)
        tail = tf.where(tf.expand_dims(here, 1), moved, search.tail)         # [N, M]
        same = tf.reduce_all((stops == tail[:, None, :]) | (stops < 0), axis=-1)
        size = tf.reduce_max(tf.where(same, sizes_of, 0), axis=-1)           # [N]
        whole = here & (size > 0) & (search.cut == 0)
        cut = tf.where(whole, size + sizes - 1 - place, search.cut)
        return place + 1, Search(tf.ensure_shape(tail, search.tail.shape), cut)

    _, found = tf.while_loop(lambda place, search: place < longest, once,
                             (tf.constant(0), state))
    return found
