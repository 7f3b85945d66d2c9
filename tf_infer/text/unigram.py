"""Unigram models: the sentencepiece library's best path, in two ops of TF-Text.

`FastSentencepieceTokenizer` finds the same path as the library where every character of the text is
a piece, and is as fast. It differs where characters are unknown (it counts them by bytes, which
rounds other sums), and in normalisation (tab and line ends, a space mark in the text itself). So
text is first normalised by `SentencepieceTokenizer` with a model of single characters, which also
knows the source byte of each of them; unknown characters become one placeholder that is a piece.

One difference is left. The library (0.2.3) takes the sum so far out of all its float32 scores
whenever one goes beyond 100,000 nats; the ops, built from version 0.1.96, add on, and round more
coarsely. So the two may settle near ties differently, in texts of more than 100,000 nats only: some
16,000 random letters, or 60,000 characters of ordinary text.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tf_infer.text.contracts import Tokens
from tf_infer.text.pieces import (
    UNKNOWN_PENALTY,
    ModelFile,
    ModelKind,
    Piece,
    PieceKind,
    ascii_rules,
    maps_to_space,
    no_rules,
)
from tf_infer.text.rows import row_ids, spread
from tf_infer.text.utf8 import printable

_SKIPPED = (PieceKind.CONTROL, PieceKind.BYTE, PieceKind.UNUSED)


class Characters(NamedTuple):
    """Normalised text as characters, and each as the ids it becomes when it is no piece.

    Attributes:
        texts: [S] string, the characters joined, unknown ones as the placeholder.
        ids: [S, (u)] int32, known characters and the bytes of unknown ones.
        starts, ends: [S, (u)] int32, bytes of the source.
        heads: [U] bool, on the first byte of an unknown character and on each known one.
    """

    texts: tf.Tensor
    ids: tf.RaggedTensor
    starts: tf.RaggedTensor
    ends: tf.RaggedTensor
    heads: tf.Tensor


class Unigram(tf.Module):
    """Splits text as the library does with a unigram model file."""

    def __init__(self, model: ModelFile) -> None:
        super().__init__(name="unigram")
        self._unknown = model.unknown()
        self._byte_fallback = model.byte_fallback
        self._best_path = _BestPath(model)
        self._characters = _Splitter(model, self._best_path.alphabet, self._best_path.placeholder)
        self._quick = _Quick(model) if _can_be_quick(model) else None
        byte_ids = {p.text: i for i, p in enumerate(model.pieces) if p.kind == PieceKind.BYTE}
        self._byte_ids = tf.constant(
            [byte_ids.get(f"<0x{b:02X}>", self._unknown) for b in range(256)], tf.int32)

    def encode(self, texts: tf.Tensor, *, offsets: bool) -> Tokens:
        """Split [S] well-formed strings into ids [S, (T)]."""
        if offsets:
            return self._exact(texts)
        if self._quick is None:
            return Tokens(self._exact(texts).ids, None, None)
        ids, hard = self._quick.encode(texts)
        return Tokens(tf.cond(tf.reduce_any(hard) | tf.reduce_any(ids.values == self._unknown),
                              lambda: self._with_exact(texts, ids, hard), lambda: ids), None, None)

    def _with_exact(self, texts: tf.Tensor, ids: tf.RaggedTensor, hard: tf.Tensor
                    ) -> tf.RaggedTensor:
        """Replace the rows of `ids` that the quick op may have got wrong."""
        unknown = tf.cast(ids.values == self._unknown, tf.int32)
        before = tf.concat([[0], tf.cumsum(unknown)], axis=0)
        counts = tf.gather(before, ids.row_splits)
        hard |= counts[1:] > counts[:-1]
        again = tf.where(hard)[:, 0]
        both = tf.concat([ids, self._exact(tf.gather(texts, again)).ids], axis=0)
        place = tf.tensor_scatter_nd_update(
            tf.range(tf.size(texts)), again[:, None],
            tf.size(texts) + tf.range(tf.size(again)))
        return tf.gather(both, place)

    def _exact(self, texts: tf.Tensor) -> Tokens:
        chars = self._characters.split(texts)
        path = self._best_path.ids(chars.texts)                                # [S, (t)]
        sizes = tf.gather(self._best_path.sizes, path.values)                  # [t] characters
        head_at = tf.where(chars.heads)[:, 0]                                  # [h]
        first = tf.cumsum(sizes, exclusive=True)
        total = tf.size(chars.heads, tf.int64)
        begin = tf.gather(head_at, first)                                      # [t] in [U]
        end = tf.gather(tf.concat([head_at, [total]], axis=0), first + sizes) - 1
        starts, ends = tf.gather(chars.starts.values, begin), tf.gather(chars.ends.values, end)
        unknown = tf.gather(self._best_path.unknown, path.values)              # [t]
        ids = tf.where(unknown, self._unknown, path.values)
        if self._byte_fallback:
            return self._spell(chars, path, ids, starts, ends, begin, end, unknown)
        return self._merge(path, ids, starts, ends, unknown)

    def _merge(self, path: tf.RaggedTensor, ids: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor,
               unknown: tf.Tensor) -> Tokens:
        """Make one id of each run of unknown characters."""
        rows = row_ids(path.row_splits)
        joins = unknown[1:] & unknown[:-1] & (rows[1:] == rows[:-1])
        keep = tf.concat([[True], ~joins], axis=0)[:tf.size(ids)]
        last = tf.concat([~joins, [True]], axis=0)[:tf.size(ids)]
        splits = _kept_splits(path.row_splits, keep)
        return Tokens(*(tf.RaggedTensor.from_row_splits(tf.boolean_mask(x, mask), splits,
                                                        validate=False)
                        for x, mask in ((ids, keep), (starts, keep), (ends, last))))

    def _spell(self, chars: Characters, path: tf.RaggedTensor, ids: tf.Tensor, starts: tf.Tensor,
               ends: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, unknown: tf.Tensor) -> Tokens:
        """Put the bytes of unknown characters in their place."""
        counts = tf.where(unknown, end - begin + 1, 1)                         # [t]
        total = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(counts)], axis=0)
        source, inside = spread(counts)                                        # [n], [n]
        slot = tf.gather(begin, source) + inside
        spelled = tf.gather(unknown, source)

        def pick(slots: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
            return tf.where(spelled, tf.gather(slots, slot), tf.gather(tokens, source))

        splits = tf.gather(total, path.row_splits)
        return Tokens(*(tf.RaggedTensor.from_row_splits(pick(slots, tokens), splits,
                                                        validate=False)
                        for slots, tokens in ((chars.ids.values, ids),
                                              (chars.starts.values, starts),
                                              (chars.ends.values, ends))))


class _Quick(tf.Module):
    """Ids of texts by one op, and the rows that it may have got wrong for a reason of their own."""

    def __init__(self, model: ModelFile) -> None:
        super().__init__(name="quick")
        plain = [_replaced(piece) for piece in model.pieces]
        variant = model.variant(plain, kind=ModelKind.UNIGRAM)
        self._op = _fast(variant)
        # Without rules to look for, the op takes a tenth less time on text that no rule touches.
        rules = [key for key in ascii_rules(model.charsmap) if min(key) > 0x1F and max(key) < 0x7F]
        self._printable_op = self._op if rules else _fast(replace(variant, charsmap=no_rules()))
        ends = "" if all(maps_to_space(model.charsmap, c) for c in b"\t\n\r") else r"\t\n\r"
        self._plain = rf"[^\x{{2581}}\x{{0}}{ends}]*"

    def encode(self, texts: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
        return tf.cond(
            printable(texts),
            lambda: (_ragged64(self._printable_op.tokenize(texts)), tf.zeros_like(texts, tf.bool)),
            lambda: (_ragged64(self._op.tokenize(texts)),
                     ~tf.strings.regex_full_match(texts, self._plain)))


class _BestPath(tf.Module):
    """The best path through text in which every character is a piece.

    Attributes:
        alphabet: all characters of all pieces.
        placeholder: a character that is none of them, and stands for all others.
        sizes: [v] int32, characters of each piece.
        unknown: [v] bool, True on single characters that are no piece of the model.
    """

    def __init__(self, model: ModelFile) -> None:
        super().__init__(name="best_path")
        usable = [p for p in model.pieces if p.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED)]
        self.alphabet = sorted({char for piece in usable for char in piece.text})
        private_use = map(chr, range(0xE000, 0xF900))
        self.placeholder = next(char for char in private_use if char not in self.alphabet)
        known = {piece.text for piece in usable}
        normal = [np.float32(p.score) for p in usable if p.kind == PieceKind.NORMAL]
        low, high = (min(normal), max(normal)) if normal else (np.float32(0), np.float32(0))
        unknown = float(low - np.float32(UNKNOWN_PENALTY))
        pieces = [_replaced(piece, high=float(high)) for piece in model.pieces]
        singles = [c for c in [*self.alphabet, self.placeholder] if c not in known]
        pieces += [Piece(text=char, score=unknown) for char in singles]
        self._op = _fast(model.variant(pieces, kind=ModelKind.UNIGRAM).without_normalization())
        self.sizes = tf.constant([len(piece.text) for piece in pieces], tf.int32)
        self.unknown = tf.constant([i >= len(model.pieces) for i in range(len(pieces))])

    def ids(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return _ragged64(self._op.tokenize(texts))


class _Splitter(tf.Module):
    """Normalises texts and splits them into characters."""

    def __init__(self, model: ModelFile, alphabet: list[str], placeholder: str) -> None:
        super().__init__(name="characters")
        own = [p for p in model.pieces if p.kind in (PieceKind.UNKNOWN, PieceKind.USER_DEFINED)]
        whole = {piece.text for piece in own}
        pieces = own + [Piece(text=char) for char in alphabet if char not in whole]
        pieces += [Piece(text=f"<0x{b:02X}>", kind=PieceKind.BYTE) for b in range(256)]
        variant = model.variant(pieces, kind=ModelKind.CHAR, byte_fallback=True)
        self._op = tf_text.SentencepieceTokenizer(variant.to_bytes())
        origin = {p.text: i for i, p in enumerate(model.pieces) if p.kind != PieceKind.UNUSED}
        first_byte = len(pieces) - 256
        byte_ids = [origin.get(p.text, model.unknown()) for p in pieces[first_byte:]]
        slots: list[list[int]] = []       # ids of each piece when it is spelled
        strings: list[list[str]] = []     # what each of its slots adds to the text
        for i, piece in enumerate(pieces):
            if i >= first_byte:
                byte = i - first_byte
                slots.append([byte_ids[byte]])
                strings.append([""] if 0x80 <= byte < 0xC0 else [placeholder])
                continue
            units = [self._spelling(char, origin, byte_ids, model.byte_fallback)
                     for char in piece.text] if piece.kind != PieceKind.UNKNOWN else [[0]]
            slots.append([unit for char in units for unit in char])
            strings.append([text for char, unit in zip(piece.text, units)
                            for text in [char, *[""] * (len(unit) - 1)]][:len(slots[-1])])
        self._single = all(len(slot) == 1 for slot in slots)
        self._slots = tf.ragged.constant(slots, tf.int32, row_splits_dtype=tf.int64)
        self._strings = tf.ragged.constant(strings, tf.string, row_splits_dtype=tf.int64)

    @staticmethod
    def _spelling(char: str, origin: dict[str, int], byte_ids: list[int], fallback: bool
                  ) -> list[int]:
        if char in origin or not fallback:
            return [origin.get(char, 0)]
        return [byte_ids[byte] for byte in char.encode()]

    def split(self, texts: tf.Tensor) -> Characters:
        ids, starts, ends = self._op.tokenize_with_offsets(texts)
        flat, splits = ids.values, ids.row_splits
        begin, end = tf.cast(starts.values, tf.int32), tf.cast(ends.values, tf.int32)
        if self._single:
            slots = tf.gather(self._slots.values, flat)
            strings = tf.gather(self._strings.values, flat)
        else:
            counts = tf.gather(self._slots.row_lengths(), flat)
            slots = tf.gather(self._slots, flat).values
            strings = tf.gather(self._strings, flat).values
            total = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(counts)], axis=0)
            piece = row_ids(total)
            last = tf.range(1, tf.size(slots, tf.int64) + 1) == tf.gather(total, piece + 1)
            begin = tf.gather(begin, piece)
            end = tf.where(last, tf.gather(end, piece), begin)
            splits = tf.gather(total, splits)
        rows = tf.RaggedTensor.from_row_splits(slots, splits, validate=False)
        joined = tf.strings.unsorted_segment_join(
            strings, row_ids(rows.row_splits), tf.size(texts))
        return Characters(joined, rows, rows.with_values(begin), rows.with_values(end),
                          strings != "")


def _can_be_quick(model: ModelFile) -> bool:
    own = any(piece.kind == PieceKind.USER_DEFINED for piece in model.pieces)
    return model.escape_spaces and not model.space_is_suffix and not own


def _replaced(piece: Piece, *, high: float = 0.0) -> Piece:
    """Return a piece as the fast op understands it, with the library's score."""
    if piece.kind in _SKIPPED:
        return Piece(text=piece.text, kind=PieceKind.CONTROL)
    if piece.kind == PieceKind.USER_DEFINED:
        return Piece(text=piece.text, score=len(piece.text.encode()) * high - 0.1)
    return piece


def _fast(model: ModelFile) -> tf_text.FastSentencepieceTokenizer:
    return tf_text.FastSentencepieceTokenizer(model.to_bytes())


def _ragged64(ids: tf.RaggedTensor) -> tf.RaggedTensor:
    return tf.RaggedTensor.from_row_splits(
        ids.values, tf.cast(ids.row_splits, tf.int64), validate=False)


def _kept_splits(splits: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    """Return row splits after `tf.boolean_mask(values, keep)`."""
    before = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(tf.cast(keep, tf.int64))], axis=0)
    return tf.gather(before, splits)
