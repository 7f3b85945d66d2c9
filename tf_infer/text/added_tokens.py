"""Tokens that are found in the text before anything else is split, as Hugging Face finds them.

`AddedTokens.split` cuts texts into pieces: added tokens, and the text between them; a codec encodes
the pieces of text; `AddedTokens.join` puts rows together again. `encode_around` does all of it.
Source of the rules: `AddedVocabulary` of Hugging Face's tokenizers 0.23.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf
import tensorflow_text as tf_text

from tf_infer.config import AddedToken, check
from tf_infer.text.contracts import Tokens
from tf_infer.text.rows import row_ids
from tf_infer.text.unicode import facts, re2_class
from tf_infer.text.utf8 import repair, to_source, vector

# Unicode's White_Space, as an RE2 class.
_SPACE = (r"[\t-\r \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}"
          r"\x{3000}]")
# Stands for a token that an earlier pass found; no token may contain it.
_FOUND = "\x02"


class Pieces(NamedTuple):
    """Texts cut at added tokens.

    Attributes:
        texts: [S] string, what is left for the codec; empty on added tokens.
        ids: [S] int32, id of the added token; -1 on text.
        starts, ends: [S] int32, bytes in the row.
        row_splits: [B + 1] int64, which pieces are of which row.
        found: [] bool, whether any row was cut; if not, piece i is row i.
    """

    texts: tf.Tensor
    ids: tf.Tensor
    starts: tf.Tensor
    ends: tf.Tensor
    row_splits: tf.Tensor
    found: tf.Tensor


class AddedTokens(tf.Module):
    """Finds added tokens: the leftmost, of those the longest; first those not `normalized`."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        super().__init__(name="added_tokens")
        plain = [token for token in tokens if not token.normalized]
        late = [token for token in tokens if token.normalized]
        self.finders = [_Finder(some) for some in (plain, late) if some]

    def split(self, texts: tf.Tensor) -> Pieces:
        """Cut [B] well-formed strings at added tokens."""
        pieces = whole(texts)
        for finder in self.finders:
            pieces = finder.cut(pieces)
        return pieces

    def join(self, pieces: Pieces, tokens: Tokens) -> Tokens:
        """Put together what the codec made of `pieces.texts`, and the added tokens: [B, (T)].

        Args:
            pieces: what `split` gave.
            tokens: [S, (T)], offsets counted from the start of each piece.
        """
        if not self.finders:
            return tokens
        added = pieces.ids >= 0
        some = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(pieces.ids, added), tf.cast(added, tf.int64), validate=False)

        def rows(values: tf.RaggedTensor, own: tf.Tensor) -> tf.RaggedTensor:
            both = tf.concat([values, some.with_values(tf.boolean_mask(own, added))], axis=1)
            return tf.RaggedTensor.from_row_splits(
                both.values, tf.gather(both.row_splits, pieces.row_splits), validate=False)

        def shifted(values: tf.RaggedTensor) -> tf.RaggedTensor:
            return values.with_values(
                values.values + tf.gather(pieces.starts, row_ids(values.row_splits)))

        if tokens.starts is None or tokens.ends is None:
            return Tokens(tf.cond(pieces.found, lambda: rows(tokens.ids, pieces.ids),
                                  lambda: tokens.ids), None, None)
        starts, ends = tokens.starts, tokens.ends
        return tf.cond(pieces.found, lambda: Tokens(rows(tokens.ids, pieces.ids),
                                                    rows(shifted(starts), pieces.starts),
                                                    rows(shifted(ends), pieces.ends)),
                       lambda: tokens)


def encode_around(texts: tf.Tensor, added: AddedTokens, encode: Callable[[tf.Tensor], Tokens], *,
                  offsets: bool) -> Tokens:
    """Encode [B] strings of any bytes: repair them, cut at added tokens, encode, join.

    Args:
        texts: [B] string.
        added: which tokens are found first.
        encode: the codec itself: [S] well-formed strings -> [S, (T)], with offsets into its own
            strings if `offsets`; an empty string must give no id.
        offsets: whether the result carries byte offsets into `texts`.
    """
    repaired = repair(vector(texts), offsets=offsets)
    pieces = added.split(repaired.texts)
    tokens = added.join(pieces, encode(pieces.texts))
    return to_source(tokens, repaired)


def whole(texts: tf.Tensor) -> Pieces:
    """Return the pieces of [B] texts that are not cut."""
    zeros = tf.zeros_like(texts, tf.int32)
    return Pieces(texts, zeros - 1, zeros, tf.strings.length(texts),
                  tf.range(tf.size(texts, tf.int64) + 1), tf.constant(False))


class _Finder(tf.Module):
    """One pass over the texts for one set of tokens."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        super().__init__(name="finder")
        for token in tokens:
            check(not _ESCAPING & set(token.text), f"AddedToken.text of id {token.id}",
                  "no character from U+0000 to U+0003", token.text)
        longest_first = sorted(tokens, key=lambda token: -len(token.text.encode()))
        self._pattern = "|".join(_quote(token.text) for token in longest_first)
        self._anywhere = rf"(?s).*(?:{self._pattern}).*"
        self._ids = tf.constant([token.id for token in tokens], tf.int32)
        self._single_word = tf.constant([token.single_word for token in tokens])
        self._left_strip = tf.constant([token.left_strip for token in tokens])
        self._right_strip = tf.constant([token.right_strip for token in tokens])
        self._any_single_word = any(token.single_word for token in tokens)
        self._any_strip = any(token.left_strip or token.right_strip for token in tokens)
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant([token.text for token in tokens]),
                tf.range(len(tokens), dtype=tf.int64)), default_value=-1)

    def cut(self, pieces: Pieces) -> Pieces:
        found = tf.reduce_any(tf.strings.regex_full_match(pieces.texts, self._anywhere))
        return tf.cond(found, lambda: self._cut(pieces), lambda: pieces)

    def _cut(self, pieces: Pieces) -> Pieces:
        texts = tf.where(pieces.ids < 0, pieces.texts, _FOUND)                     # [S]
        parts = tf_text.regex_split(_escape(texts), self._pattern, self._pattern)  # [S, (q)]
        rows = row_ids(parts.row_splits)                                           # [N]
        texts = _unescape(parts.values)
        which = tf.cast(self._table.lookup(texts), tf.int32)
        which = tf.where(tf.gather(pieces.ids, rows) < 0, which, -1)
        if self._any_single_word:
            texts, which, rows = self._keep_single_words(texts, which, rows)
        sizes = tf.strings.length(texts)
        begin = tf.cumsum(sizes, exclusive=True)
        row_begin = tf.gather(begin, tf.searchsorted(rows, rows))
        starts = tf.gather(pieces.starts, rows) + begin - row_begin
        ends = starts + sizes
        if self._any_strip:
            texts, which, rows, starts, ends = self._strip(texts, which, rows, starts, ends)
        earlier = tf.gather(pieces.ids, rows)
        ids = tf.where(which >= 0, tf.gather(self._ids, tf.maximum(which, 0)), earlier)
        starts = tf.where(earlier >= 0, tf.gather(pieces.starts, rows), starts)
        ends = tf.where(earlier >= 0, tf.gather(pieces.ends, rows), ends)
        counts = tf.RaggedTensor.from_value_rowids(
            ids, rows, nrows=tf.size(pieces.ids, tf.int64), validate=False)
        return Pieces(tf.where(ids >= 0, "", texts), ids, starts, ends,
                      tf.gather(counts.row_splits, pieces.row_splits), tf.constant(True))

    def _keep_single_words(self, texts: tf.Tensor, which: tf.Tensor, rows: tf.Tensor
                           ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Make text again of whole-word tokens that touch a word; join it to its neighbours."""
        behind, ahead = _same_as_last(rows), _same_as_next(rows)
        word = f"[{re2_class(facts().word)}]"
        touches = tf.roll(tf.strings.regex_full_match(texts, rf"(?s).*{word}"), 1, 0) & behind
        touches |= tf.roll(tf.strings.regex_full_match(texts, rf"(?s){word}.*"), -1, 0) & ahead
        single = tf.gather(self._single_word, tf.maximum(which, 0))
        which = tf.where(touches & single, -1, which)
        is_token = which >= 0
        fresh = ~behind | is_token | tf.roll(is_token, 1, 0)
        group = tf.cumsum(tf.cast(fresh, tf.int32)) - 1
        texts = tf.strings.unsorted_segment_join(
            texts, group, tf.reduce_sum(tf.cast(fresh, tf.int32)))
        return texts, tf.boolean_mask(which, fresh), tf.boolean_mask(rows, fresh)

    def _strip(self, texts: tf.Tensor, which: tf.Tensor, rows: tf.Tensor, starts: tf.Tensor,
               ends: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Give the white space beside a token to it, where it asks for that."""
        behind, ahead = _same_as_last(rows), _same_as_next(rows)
        is_token = which >= 0
        right = is_token & tf.gather(self._right_strip, tf.maximum(which, 0))
        left = is_token & tf.gather(self._left_strip, tf.maximum(which, 0))
        before = tf.strings.length(texts)
        strip_head = ~is_token & behind & tf.roll(right, 1, 0)
        texts = tf.where(strip_head, tf.strings.regex_replace(texts, rf"\A{_SPACE}+", ""), texts)
        head = before - tf.strings.length(texts)
        strip_tail = ~is_token & ahead & tf.roll(left, -1, 0)
        texts = tf.where(strip_tail, tf.strings.regex_replace(texts, rf"{_SPACE}+\z", ""), texts)
        tail = before - head - tf.strings.length(texts)
        starts += head - tf.where(left & behind, tf.roll(tail, 1, 0), 0)
        ends += tf.where(right & ahead, tf.roll(head, -1, 0), 0) - tail
        keep = is_token | (tf.strings.length(texts) > 0)
        return tuple(tf.boolean_mask(x, keep) for x in (texts, which, rows, starts, ends))


def _same_as_last(rows: tf.Tensor) -> tf.Tensor:
    return tf.concat([[False], rows[1:] == rows[:-1]], axis=0)[:tf.size(rows)]


def _same_as_next(rows: tf.Tensor) -> tf.Tensor:
    return tf.concat([rows[1:] == rows[:-1], [False]], axis=0)[:tf.size(rows)]


def _quote(text: str) -> str:
    """Return an RE2 pattern that matches `text` and nothing else."""
    return "".join(char if char.isascii() and char.isalnum() else rf"\x{{{ord(char):x}}}"
                   for char in text)


# tf_text.regex_split ends a text at its first NUL byte, so NUL is written as two bytes meanwhile.
_ESCAPING = frozenset("\x00\x01\x02\x03")


def _escape(texts: tf.Tensor) -> tf.Tensor:
    texts = tf.strings.regex_replace(texts, r"\x{1}", "\x01\x03")
    return tf.strings.regex_replace(texts, r"\x{0}", "\x01\x02")


def _unescape(texts: tf.Tensor) -> tf.Tensor:
    texts = tf.strings.regex_replace(texts, r"\x{1}\x{2}", "\x00")
    return tf.strings.regex_replace(texts, r"\x{1}\x{3}", "\x01")
