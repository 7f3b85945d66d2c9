"""BERT's text normalisation in the graph: clean, strip accents, lower-case, mark the word breaks.

A text becomes code points, each code point is looked up once in a table that holds the outcome of
all steps, and what is left becomes a text again. Rare cases (one code point to several, canonical
order of combining marks, words over the limit) run only in batches that have them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_infer.text.rows import row_ids, spread
from tf_infer.text.unicode import POINTS, Facts, facts
from tf_infer.text.utf8 import REPLACEMENT, code_widths, decode_with_ends

_PAGE = 256
_SPACE = 0x20
_MARK, _REMOVED, _SEVERAL = -1, -2, -3      # dropped by strip_accents, by clean_text; see _Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """What is done to a text; the first four as in Hugging Face's BertNormalizer.

    Attributes:
        space_chinese: put white space around Chinese characters instead of only breaking there.
        seal: write the text so that FastWordpieceTokenizer breaks it where BertPreTokenizer does;
            None leaves the text as it is normalised.
    """

    clean_text: bool = False
    split_chinese: bool = False
    strip_accents: bool = False
    lowercase: bool = False
    space_chinese: bool = False
    seal: Seal | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """How to write code points that FastWordpieceTokenizer would break at, though BERT does not.

    Attributes:
        letters: such a code point -> a letter that stands for it in text and vocabulary.
        unknown: the letter for all that the vocabulary does not have.
        max_word_chars: a longer word is written as `unknown`.
    """

    letters: Mapping[int, int]
    unknown: int
    max_word_chars: int


class Normal(NamedTuple):
    """Normalised texts.

    Attributes:
        texts: [B] string.
        starts, ends: [B, (bytes)] int32, for each byte of `texts` the source bytes of its
            character; None when offsets were not asked for.
    """

    texts: tf.Tensor
    starts: tf.RaggedTensor | None
    ends: tf.RaggedTensor | None


class _Chars(NamedTuple):
    """Characters of a batch: packed values [N] int32, source character [N] int32, row splits."""

    values: tf.Tensor
    source: tf.Tensor
    splits: tf.Tensor


class Normalizer(tf.Module):
    """Applies `Steps` to a batch of texts."""

    def __init__(self, steps: Steps) -> None:
        super().__init__(name="normalizer")
        self.steps = steps
        outcome = _Outcome(steps, facts())
        self._table = _Table(outcome.values, per_code=2)
        self._first = tf.constant(outcome.first, tf.int32)          # [M + 1]
        self._several = tf.constant(outcome.several, tf.int32)
        self._loose_count = outcome.loose_count
        self._order = _MarkOrder(facts()) if outcome.loose_count else None

    def __call__(self, texts: tf.Tensor, *, offsets: bool) -> Normal:
        """Normalise [B] strings of any bytes; ill-formed parts are read as U+FFFD."""
        starts = ends = None
        if offsets:
            decoded, starts, ends = decode_with_ends(texts)
        else:
            decoded = tf.strings.unicode_decode(
                texts, "UTF-8", errors="replace", replacement_char=REPLACEMENT)
        values = self._table(decoded.values)
        chars = _Chars(values, tf.range(tf.size(values)), decoded.row_splits)
        chars = tf.cond(tf.reduce_any(values <= _SEVERAL),
                        lambda: self._expand(decoded.values, chars), lambda: chars)
        chars = _filter(chars, chars.values >= 0)
        if offsets:
            starts, ends = tf.gather(starts, chars.source), tf.gather(ends, chars.source)
        if self.steps.seal is not None:
            chars, starts, ends = self._shorten(chars, starts, ends)
        return _write(chars, starts, ends)

    def _expand(self, codes: tf.Tensor, chars: _Chars) -> _Chars:
        """Replace the characters that become several, none of them yet dropped."""
        if self._order is not None:
            order = self._order
            loose = (chars.values <= _SEVERAL) & (chars.values > _SEVERAL - self._loose_count)

            def reordered() -> _Chars:
                sorted_codes, sorted_chars = order(codes, chars)
                return sorted_chars._replace(values=self._table(sorted_codes))

            chars = tf.cond(tf.math.count_nonzero(loose) > 1, reordered, lambda: chars)
        which = tf.maximum(_SEVERAL - chars.values, 0)
        several = chars.values <= _SEVERAL
        count = tf.where(several, tf.gather(self._first, which + 1) - tf.gather(self._first, which),
                         1)
        index, inside = spread(count)
        place = tf.gather(tf.gather(self._first, which), index) + inside
        several = tf.gather(several, index)
        values = tf.where(several, tf.gather(self._several, tf.where(several, place, 0)),
                          tf.gather(chars.values, index))
        return _Chars(values, tf.gather(chars.source, index), _moved(chars.splits, count))

    def _shorten(self, chars: _Chars, starts: tf.Tensor | None, ends: tf.Tensor | None
                 ) -> tuple[_Chars, tf.Tensor | None, tf.Tensor | None]:
        """Write each word over the limit as one letter that no vocabulary has."""
        assert self.steps.seal is not None
        seal = self.steps.seal
        breaks = tf.where(chars.values & 1 > 0)[:, 0]
        edges = tf.concat([[-1], breaks, [tf.size(chars.values, tf.int64)]], axis=0)
        longest = tf.reduce_max(edges[1:] - edges[:-1]) - 1      # over row ends: an upper bound
        given = () if starts is None or ends is None else (starts, ends)

        def shortened() -> tuple[tf.Tensor, ...]:
            alone = chars.values & 1 > 0
            rows = row_ids(chars.splits)
            fresh = alone | tf.concat(
                [[True], alone[:-1] | (rows[1:] != rows[:-1])], axis=0)
            word = tf.cumsum(tf.cast(fresh, tf.int32)) - 1
            sizes = tf.math.segment_sum(tf.ones_like(word), word)
            long = tf.gather(sizes > seal.max_word_chars, word)
            values = tf.where(long, seal.unknown << 1, chars.values)
            keep = fresh | ~long
            short = _filter(_Chars(values, chars.source, chars.splits), keep)
            if not given:
                return tuple(short)
            whole = tf.gather(tf.math.segment_max(ends, word), word)
            return (*short, tf.boolean_mask(starts, keep),
                    tf.boolean_mask(tf.where(long, whole, ends), keep))

        result = tf.cond(longest > seal.max_word_chars, shortened, lambda: (*chars, *given))
        if not given:
            return _Chars(*result), None, None
        return _Chars(*result[:3]), result[3], result[4]


class _Outcome:
    """The table: code point -> character << 1 | 1 where a word breaks on both sides of it.

    _MARK and _REMOVED drop it, _SEVERAL - m stands for several[first[m]:first[m + 1]].
    Those whose decomposition holds a combining character that stays come first (`loose_count`).
    """

    def __init__(self, steps: Steps, known: Facts) -> None:
        self._steps, self._known = steps, known
        codes = np.arange(POINTS, dtype=np.int32)
        removed = known.removed if steps.clean_text else np.zeros(POINTS, bool)
        lists = {code: self._list(code)
                 for code in np.flatnonzero(self._changing() & ~removed).tolist()}
        self.values = np.where(removed, _REMOVED, codes << 1 | self._alone(codes))
        loose = [code for code in lists if self._is_loose(code)] if steps.strip_accents else []
        several = loose + sorted({code for code, chars in lists.items() if len(chars) > 1}
                                 - set(loose))
        for code, chars in lists.items():
            self.values[code] = chars[0] if chars else _MARK
        for number, code in enumerate(several):
            self.values[code] = _SEVERAL - number
        sizes = [len(lists[code]) for code in several]
        self.loose_count = len(loose)
        self.first = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        if not several:
            self.first = np.zeros(2, np.int32)
        self.several = np.array([char for code in several for char in lists[code]] or [0], np.int32)

    def _alone(self, codes: np.ndarray) -> np.ndarray:
        known = self._known
        alone = known.punctuation[codes] | known.space[codes]
        if self._steps.split_chinese:
            alone = alone | known.chinese[codes]
        return alone.astype(np.int32)

    def _changing(self) -> np.ndarray:
        """Return which code points may become anything but themselves."""
        steps, known = self._steps, self._known
        changing = np.zeros(POINTS, bool)
        if steps.clean_text:
            changing |= known.cleaned_to_space
        if steps.split_chinese and steps.space_chinese:
            changing |= known.chinese
        if steps.strip_accents:
            changing |= known.mark | (known.combining > 0)
            changing[list(known.decomposed)] = True
        if steps.lowercase:
            changing[list(known.lowered)] = True
        if steps.seal is not None:
            alone = known.punctuation | (known.chinese if steps.split_chinese else False)
            changing |= known.space | (alone != known.fast_alone) | known.fast_space
            changing[list(steps.seal.letters)] = True
            changing[list(steps.seal.letters.values())] = True
            changing[steps.seal.unknown] = True
        return changing

    def _is_loose(self, code: int) -> bool:
        known = self._known
        return any(known.combining[char] and not known.mark[char]
                   for char in known.decomposed.get(code, [code]))

    def _list(self, code: int) -> list[int]:
        """Return the packed characters that a code point becomes."""
        steps, known = self._steps, self._known
        chars = [_SPACE if steps.clean_text and known.cleaned_to_space[code] else code]
        chinese = bool(steps.split_chinese and known.chinese[code])
        if steps.strip_accents:
            chars = [char for part in chars for char in known.decomposed.get(part, [part])
                     if not known.mark[char]]
        if steps.lowercase:
            chars = [char for part in chars for char in known.lowered.get(part, [part])]
        if steps.seal is not None:
            return [char for part in chars for char in self._sealed(part, chinese)]
        packed = [char << 1 | (chinese or int(known.punctuation[char] or known.space[char]))
                  for char in chars]
        gap = [_SPACE << 1 | 1] if chinese and steps.space_chinese else []
        return gap + packed + gap

    def _sealed(self, char: int, chinese: bool) -> list[int]:
        known, gap = self._known, _SPACE << 1 | 1
        if known.space[char]:
            return [gap]
        alone = bool(chinese or known.punctuation[char])
        written = sealed(char, alone, self._steps.seal, known)
        packed = written << 1 | alone
        return [gap, packed, gap] if alone and not known.fast_alone[written] else [packed]


def sealed(char: int, alone: bool, seal: Seal | None, known: Facts) -> int:
    """Return the code point that stands for `char` before FastWordpieceTokenizer.

    Args:
        char: a code point that is no white space.
        alone: whether it is a word by itself (then `Outcome` puts white space around it if needed).
    """
    assert seal is not None
    if char in seal.letters:
        return seal.letters[char]
    taken = char == seal.unknown or char in seal.letters.values()
    differs = known.fast_space[char] or (known.fast_alone[char] and not alone)
    return seal.unknown if taken or differs else char


class _Table(tf.Module):
    """A function of code points, as pages of 256 of which equal ones are stored once."""

    def __init__(self, values: np.ndarray, *, per_code: int) -> None:
        """Store values [POINTS]; those >= 0 as their distance from `per_code` times the code."""
        super().__init__(name="code_table")
        distance = values - np.arange(POINTS, dtype=np.int32) * per_code
        scale = np.where(values < 0, 0, per_code)
        both = np.stack([np.where(values < 0, values, distance), scale], axis=1)
        rows = both.astype(np.int32).reshape(-1, _PAGE * 2)
        numbers: dict[bytes, int] = {}
        index = [numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]
        pages = np.frombuffer(b"".join(numbers), np.int32).reshape(-1, 2)
        self._index = tf.constant(index, tf.int32)                   # [POINTS / 256]
        self._distance = tf.constant(pages[:, 0], tf.int32)          # [pages * 256]
        self._scale = tf.constant(pages[:, 1], tf.int32)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        page = tf.gather(self._index, tf.bitwise.right_shift(codes, 8))
        place = page * _PAGE + tf.bitwise.bitwise_and(codes, _PAGE - 1)
        return tf.gather(self._distance, place) + codes * tf.gather(self._scale, place)


class _MarkOrder(tf.Module):
    """Canonical order of combining characters (Unicode 15, section 3.11), before marks drop."""

    def __init__(self, known: Facts) -> None:
        super().__init__(name="mark_order")
        self._combining = tf.constant(known.combining)               # [POINTS] uint8
        moving = {code: parts for code, parts in known.decomposed.items()
                  if any(known.combining[part] for part in parts)}
        which = np.full(POINTS, 0, np.int32)
        which[sorted(moving)] = np.arange(len(moving)) + 1
        sizes = [1] + [len(moving[code]) for code in sorted(moving)]
        self._which = _Table(which, per_code=0)
        self._first = tf.constant(np.cumsum([0, *sizes]), tf.int32)
        self._parts = tf.constant([0] + [p for code in sorted(moving) for p in moving[code]])

    def __call__(self, codes: tf.Tensor, chars: _Chars) -> tuple[tf.Tensor, _Chars]:
        # Code points that clean_text removes must not separate marks.
        keep = chars.values != _REMOVED
        codes, chars = tf.boolean_mask(codes, keep), _filter(chars, keep)
        which = self._which(codes)
        first = tf.gather(self._first, which)
        count = tf.gather(self._first, which + 1) - first
        index, inside = spread(count)
        parts = tf.gather(self._parts, tf.gather(first, index) + inside)
        codes = tf.where(tf.gather(which, index) > 0, parts, tf.gather(codes, index))
        splits = _moved(chars.splits, count)
        rows = row_ids(splits)
        group = tf.cast(tf.gather(self._combining, codes), tf.int64)
        fresh = (group == 0) | tf.concat([[True], rows[1:] != rows[:-1]], axis=0)
        run = tf.cumsum(tf.cast(fresh, tf.int64))
        order = tf.argsort(run * 256 + group, stable=True)
        # As in tokenizers, the k-th of the characters that begin a decomposition is traced back to
        # the k-th source character, wherever the order put it; the others follow the one before.
        begins = tf.gather(tf.cast(inside == 0, tf.int32), order)
        source = tf.gather(chars.source, tf.maximum(tf.cumsum(begins) - 1, 0))
        return tf.gather(codes, order), _Chars(codes, source, splits)


def _filter(chars: _Chars, keep: tf.Tensor) -> _Chars:
    return _Chars(tf.boolean_mask(chars.values, keep), tf.boolean_mask(chars.source, keep),
                  _moved(chars.splits, tf.cast(keep, tf.int32)))


def _moved(splits: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Return the row splits after each of N values became `counts` [N] values."""
    total = tf.concat([[0], tf.cumsum(counts)], axis=0)
    return tf.cast(tf.gather(total, splits), tf.int64)


def _write(chars: _Chars, starts: tf.Tensor | None, ends: tf.Tensor | None) -> Normal:
    codes = tf.bitwise.right_shift(chars.values, 1)
    ragged = tf.RaggedTensor.from_row_splits(codes, chars.splits, validate=False)
    texts = tf.strings.unicode_encode(ragged, "UTF-8")
    if starts is None or ends is None:
        return Normal(texts, None, None)
    widths = code_widths(codes)
    splits = _moved(chars.splits, widths)
    index, _ = spread(widths)
    return Normal(texts, *(tf.RaggedTensor.from_row_splits(
        tf.gather(values, index), splits, validate=False) for values in (starts, ends)))
