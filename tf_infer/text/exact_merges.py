"""Byte-level BPE of many words at once, merge by merge, for any merge table."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf_infer.text.rows import row_ids

_NEVER = 2**31 - 1


class ExactMerges(tf.Module):
    """Joins in each word the pair of the lowest rank, the leftmost first, until none is listed.

    All words take their step together, and a word that is done leaves. Where a join cannot make a
    pair of a still lower rank, all its places in a word are joined in one step. Cost: as many steps
    as the word with most different merges needs, each over the symbols of the words left.
    """

    def __init__(self, merges: Sequence[tuple[int, int, int]], symbols: int) -> None:
        """Take (left, right, join) symbols, lowest rank first; symbols are 0 .. `symbols` - 1."""
        super().__init__(name="exact_merges")
        self._symbols = symbols
        keys = [left * symbols + right for left, right, _ in merges] or [-1]
        self._ranks = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(
            tf.constant(keys, tf.int64), tf.range(len(keys), dtype=tf.int64)), _NEVER)
        self._joins = tf.constant([join for _, _, join in merges] or [0], tf.int32)
        made = {join: rank for rank, (_, _, join) in enumerate(merges)}
        risky = {part for rank, (left, right, _) in enumerate(merges)
                 for part in (left, right) if made.get(part, -1) > rank}
        alone = [join in risky for _, _, join in merges]
        self._alone = tf.constant(alone) if any(alone) else None

    def run(self, words: tf.RaggedTensor) -> tf.RaggedTensor:
        """Merge [W, (m)] int32 symbols."""
        symbols, owner = words.values, tf.cast(row_ids(words.row_splits), tf.int32)
        place = tf.range(tf.size(symbols))
        any_size = tf.TensorShape([None])
        *_, result = tf.while_loop(
            lambda symbols, *_: tf.size(symbols) > 0, self._step,
            (symbols, owner, place, tf.cast(words.nrows(), tf.int32), symbols),
            shape_invariants=(any_size, any_size, any_size, tf.TensorShape([]), any_size))
        keep = result >= 0
        before = tf.concat([[0], tf.cumsum(tf.cast(keep, tf.int32))], axis=0)
        splits = tf.cast(tf.gather(before, words.row_splits), tf.int64)
        return tf.RaggedTensor.from_row_splits(tf.boolean_mask(result, keep), splits,
                                               validate=False)

    def _step(self, symbols: tf.Tensor, owner: tf.Tensor, place: tf.Tensor, count: tf.Tensor,
              result: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Do one merge in each word.

        Args:
            symbols, owner, place: [m] int32, the symbols of words in work, their words, and where
                each stands in `result`.
            count: [] int32, how many words there are.
            result: [M] int32, all symbols; -1 where one was joined to the one before it.
        """
        wide = tf.cast(symbols, tf.int64)
        ranks = tf.cast(self._ranks.lookup(wide[:-1] * self._symbols + wide[1:]), tf.int32)
        ranks = tf.concat([tf.where(owner[1:] == owner[:-1], ranks, _NEVER), [_NEVER]], axis=0)
        best = tf.gather(tf.math.unsorted_segment_min(ranks, owner, count), owner)     # [m]
        busy = best < _NEVER
        chosen = busy & (ranks == best)
        rank = tf.where(busy, best, 0)
        if self._alone is not None:
            index = tf.range(tf.size(ranks))
            first = tf.math.unsorted_segment_min(tf.where(chosen, index, _NEVER), owner, count)
            chosen &= ~tf.gather(self._alone, rank) | (index == tf.gather(first, owner))
        chosen = _every_other(chosen)
        gone = tf.concat([[False], chosen[:-1]], axis=0)
        symbols = tf.where(chosen, tf.gather(self._joins, rank), symbols)
        made, lost = tf.boolean_mask(place, chosen), tf.boolean_mask(place, gone)
        result = tf.tensor_scatter_nd_update(
            result, tf.concat([made, lost], axis=0)[:, None],
            tf.concat([tf.boolean_mask(symbols, chosen), -tf.ones_like(lost)], axis=0))
        keep = tf.where(busy & ~gone)[:, 0]
        return (tf.gather(symbols, keep), tf.gather(owner, keep), tf.gather(place, keep), count,
                result)


def _every_other(chosen: tf.Tensor) -> tf.Tensor:
    """Keep the first, third, fifth ... of each run of True, so that no two are neighbours."""
    place = tf.range(tf.size(chosen))
    begins = chosen & ~tf.concat([[False], chosen[:-1]], axis=0)
    run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    start = tf.gather(tf.concat([tf.boolean_mask(place, begins), [0]], axis=0),
                      tf.maximum(run, 0))
    return chosen & ((place - start) % 2 == 0)
