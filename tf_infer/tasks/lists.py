"""Options that hold lists: one string a row, items joined by U+001F -> dense, of fixed sizes.

Dense numbers are one more than what they stand for, so that 0 is nothing: a batch may be padded
with rows of zeros. All lists are split at once, because a graph should stay small.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import tensorflow as tf

from tf_infer.decoding.shared import Shared
from tf_infer.stages import PREPROCESS
from tf_infer.tasks.grid import require

SEPARATOR = "\x1f"
NAMES = ("stop", "stop_ids", "logit_bias", "banned")
STOPS, STOP_BYTES = 8, 64       # stop strings of a row, bytes of one
STOP_IDS = 16                   # of a row
BIASES = 256                    # tokens of a row with a bias
WORDS, WORD_IDS = 16, 32        # banned words of a row, ids of one
MOST = {"stop": STOPS, "stop_ids": STOP_IDS, "logit_bias": BIASES, "banned": WORDS}
NUMBER = r"\d{1,9}"
VALUE = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?"


class Words(NamedTuple):
    """Banned words as they may stand in a text: each as it is, and behind a space.

    Attributes:
        texts: [total, 2] string; "" where a word begins with a space already.
        places: [total, 2] int32, row and number in the row.
    """

    texts: tf.Tensor
    places: tf.Tensor


class Lists(NamedTuple):
    """What the lists of B rows hold, but for the words, which have to be encoded."""

    stops: tf.Tensor        # [B, STOPS, STOP_BYTES] int16, bytes of each string at the right
    stop_ids: tf.Tensor     # [B, STOP_IDS] int32
    bias_ids: tf.Tensor     # [B, BIASES] int32
    bias_values: tf.Tensor  # [B, BIASES] float32
    words: Words


def specs() -> dict[str, tf.TensorSpec]:
    """Return the dense parts of `Lists`, by name; rows are free."""
    return {"stops": tf.TensorSpec([None, STOPS, STOP_BYTES], tf.int16),
            "stop_ids": tf.TensorSpec([None, STOP_IDS], tf.int32),
            "bias_ids": tf.TensorSpec([None, BIASES], tf.int32),
            "bias_values": tf.TensorSpec([None, BIASES], tf.float32)}


def read(inputs: Mapping[str, tf.Tensor], vocab_size: int) -> Lists:
    """Read the lists of B rows.

    Args:
        inputs: [B] string each, those of NAMES; one that is missing is empty.
        vocab_size: ids are below it.

    Raises:
        tf.errors.InvalidArgumentError: an item breaks its rule; names option and row.
    """
    given = {name: inputs[name] for name in NAMES if name in inputs}
    rows = tf.shape(next(iter(given.values())))[0]
    joined = tf.concat(list(given.values()), axis=0)                         # [kinds * B]

    def nothing() -> Lists:
        dense = {name: tf.zeros([rows, *spec.shape[1:]], spec.dtype)
                 for name, spec in specs().items()}
        return Lists(**dense, words=Words(tf.zeros([0, 2], tf.string), tf.zeros([0, 2], tf.int32)))

    found = tf.cond(tf.reduce_any(joined != ""),
                    lambda: _reader(tuple(given), vocab_size)(joined, rows), nothing)
    return tf.nest.map_structure(
        lambda tensor, shape: tf.ensure_shape(tensor, shape), found,
        Lists(**{name: spec.shape for name, spec in specs().items()},
              words=Words(tf.TensorShape([None, 2]), tf.TensorShape([None, 2]))))


@lru_cache
def _reader(kinds: tuple[str, ...], vocab_size: int) -> Shared:
    """Return what reads lists that are not all empty: [kinds * B] string, [] int32 -> Lists."""
    return Shared(PREPROCESS, lambda joined, rows: _Items(kinds, joined, rows).lists(vocab_size),
                  [tf.TensorSpec([None], tf.string), tf.TensorSpec([], tf.int32)])


class _Items:
    """The items of all lists in a row, with what each belongs to."""

    def __init__(self, kinds: tuple[str, ...], joined: tf.Tensor, rows: tf.Tensor) -> None:
        split = tf.raw_ops.StringSplitV2(input=joined, sep=SEPARATOR)
        line = tf.cast(split.indices[:, 0], tf.int32)
        # The one item of an empty string is none.
        self.real = tf.gather(joined, line) != ""                            # [total]
        self.texts = split.values
        self.kinds = kinds
        self.kind, self.row = line // rows, line % rows
        self.place = tf.cast(split.indices[:, 1], tf.int32)
        self.rows = rows

    def of(self, name: str) -> tf.Tensor:
        """[total] bool, the items of one option."""
        if name not in self.kinds:
            return tf.zeros_like(self.real)
        return self.real & (self.kind == self.kinds.index(name))

    def check(self, name: str, rule: tf.Tensor, words: str) -> None:
        """Fail where an item of an option breaks a rule [total] bool, or a row has too many."""
        if name not in self.kinds:
            return
        broken = self.of(name) & ~(rule & (self.place < MOST[name]))
        require(tf.math.unsorted_segment_max(tf.cast(broken, tf.int32), self.row, self.rows) < 1,
                f"{name}: expected at most {MOST[name]} {words}")

    def dense(self, name: str, values: tf.Tensor) -> tf.Tensor:
        """Lay the values [total, ...] of an option into rows: [B, most, ...]."""
        most = MOST[name]
        mine = self.of(name) & (self.place < most)
        # What is not this option's goes to a row that is cut off again.
        spots = tf.stack([tf.where(mine, self.row, self.rows), self.place % most], axis=1)
        shape = tf.concat([[self.rows + 1, most], tf.shape(values)[1:]], axis=0)
        return tf.scatter_nd(spots, values, shape)[:-1]

    def lists(self, vocab_size: int) -> Lists:
        """Check and lay out everything."""
        sizes = tf.strings.length(self.texts)
        self.check("stop", (sizes > 0) & (sizes <= STOP_BYTES), f"strings of 1 to {STOP_BYTES} "
                   "bytes.")
        self.check("banned", sizes > 0, "words that are not empty.")
        right = tf.strings.regex_full_match(self.texts, f"{NUMBER}(:{VALUE})?")
        valued = tf.strings.regex_full_match(self.texts, ".*:.*")
        number = tf.strings.to_number(tf.where(right, tf.strings.regex_replace(
            self.texts, ":.*", ""), "0"), tf.int32)
        value = tf.strings.to_number(tf.where(right & valued, tf.strings.regex_replace(
            self.texts, ".*:", ""), "0"), tf.float64)
        known = right & (number < vocab_size)
        self.check("stop_ids", known & ~valued, f"ids from 0 to {vocab_size - 1}.")
        self.check("logit_bias", known & valued & (tf.abs(value) <= tf.float32.max),
                   f"items id:value with ids from 0 to {vocab_size - 1} and finite values.")
        words = tf.where(self.of("banned"))[:, 0]
        texts = tf.gather(self.texts, words)
        spaced = tf.where(tf.strings.substr(texts, 0, 1) == " ", "",
                          tf.strings.join([" ", texts]))
        return Lists(
            stops=self.dense("stop", self._bytes(sizes)),
            stop_ids=self.dense("stop_ids", number + 1),
            bias_ids=self.dense("logit_bias", number + 1),
            bias_values=self.dense("logit_bias", tf.cast(value, tf.float32)),
            words=Words(tf.stack([texts, spaced], axis=1), tf.stack(
                [tf.gather(self.row, words), tf.gather(self.place, words)], axis=1)))

    def _bytes(self, sizes: tf.Tensor) -> tf.Tensor:
        """Return the bytes of all items, at the right: [total, STOP_BYTES] int16."""
        filled = tf.strings.join([tf.constant("\0" * STOP_BYTES), self.texts])
        width = tf.fill(tf.shape(sizes), STOP_BYTES)
        data = tf.io.decode_raw(tf.strings.substr(filled, sizes, width), tf.uint8,
                                fixed_length=STOP_BYTES)
        real = tf.range(STOP_BYTES) >= STOP_BYTES - sizes[:, None]
        return tf.where(real, tf.cast(data, tf.int16) + 1, 0)


def word_ids(places: tf.Tensor, encoded: tf.RaggedTensor, rows: tf.Tensor) -> tf.Tensor:
    """Return the ids of banned words.

    Args:
        places: of `Words`, as `read` gives them.
        encoded: [2 * total, (T)] int32, ids of their texts.
        rows: [] int32, B.

    Returns:
        [B, 2 * WORDS, WORD_IDS] int32, one more than the ids, 0 behind the last one.
    """
    sizes = tf.cast(tf.reshape(encoded.row_lengths(), [-1, 2]), tf.int32)
    row, place = places[:, 0], places[:, 1] % WORDS
    longest = tf.math.unsorted_segment_max(tf.reduce_max(sizes, axis=1), row, rows)
    require(longest <= WORD_IDS, f"banned: expected words of at most {WORD_IDS} ids.")
    ids = tf.reshape(in_width(encoded, WORD_IDS), [-1, 2, WORD_IDS])         # [total, 2, S]
    found = tf.scatter_nd(tf.stack([row, place], axis=1), ids, [rows, WORDS, 2, WORD_IDS])
    return tf.reshape(found, [-1, 2 * WORDS, WORD_IDS])


def in_width(ids: tf.RaggedTensor, width: int) -> tf.Tensor:
    """Return [N, (T)] int32 as [N, width], one more than each, 0 behind the last one."""
    found = tf.raw_ops.RaggedTensorToTensor(
        shape=tf.constant([-1, width], tf.int64), values=ids.flat_values + 1,
        default_value=tf.constant(0, ids.dtype), row_partition_tensors=[ids.row_splits],
        row_partition_types=["ROW_SPLITS"])
    return tf.ensure_shape(found, [None, width])


def some_rows(ids: tf.RaggedTensor, start: tf.Tensor | int, stop: tf.Tensor | int | None = None
              ) -> tf.RaggedTensor:
    """Return rows `start` .. `stop` of [N, (T)]; written out, because slicing it takes ten times
    the operations."""
    splits = ids.row_splits[start:] if stop is None else ids.row_splits[start:stop + 1]
    first = splits[0]
    return tf.RaggedTensor.from_row_splits(
        ids.flat_values[first:splits[-1]], splits - first, validate=False)
