"""Byte-level BPE (GPT-2, RoBERTa, Llama 3) in the graph, without a cache that grows.

A text is cut into words by regular expressions, which put a mark between them; its bytes become the
characters U+0000 to U+00FF. A word that is a token by itself is found in a frozen table. The others
are split by SentencePiece's BPE, with a model built from the merge table, where few or long; many
short ones merge by merge, all together, which costs less. Merge tables for which SentencePiece
would not do the same (`merges.analyse`) are always run merge by merge.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tf_infer.config import BytePairConfig
from tf_infer.errors import CheckpointError
from tf_infer.text.added_tokens import AddedTokens, encode_around
from tf_infer.text.contracts import Tokens
from tf_infer.text.exact_merges import ExactMerges
from tf_infer.text.merges import (
    MergeTable,
    analyse,
    byte_alphabet,
    read_merges,
    read_vocabulary,
)
from tf_infer.text.pieces import ModelFile, ModelKind, Piece, PieceKind
from tf_infer.text.regex_split import MARK, mark_words
from tf_infer.text.rows import row_ids
from tf_infer.token_bytes import TokenBytes

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"

_DROPPED = -1            # id of a byte that has none
_LONG, _EMPTY = -1, -2   # words that are no symbol, and no word
_FEW_WORDS = 200         # below, one op on the words costs less than the steps of a loop
_LONG_BYTES = 64         # above, the loop would take as many steps for one word


class BytePairCodec(tf.Module):
    """Encodes and decodes as Hugging Face's `tokenizers` does with `ByteLevel` and `BPE`.

    Offsets are those of the library with `trim_offsets=False`: the raw span of each token, with the
    space before a word in it; a token that is a part of a character has the span of the character.
    A byte without an id gives `unknown_token`, or nothing where there is none.

    Attributes: see `TextCodec`.
    """

    def __init__(self, config: BytePairConfig, folder: Path) -> None:
        """Read `vocab.json` and `merges.txt` in `folder`.

        Raises:
            CheckpointError: a file is missing or is not what it should be, or a special token of
                `config` has no id.
        """
        super().__init__(name="bytepair_codec")
        path = Path(folder) / VOCABULARY_FILE
        vocabulary = read_vocabulary(path)
        merges = read_merges(Path(folder) / MERGES_FILE, vocabulary)
        ids = {**vocabulary, **{token.text: token.id for token in config.added_tokens}}

        def special(text: str | None) -> int | None:
            if text is not None and text not in ids:
                raise CheckpointError(
                    f"{path}: expected the special token {text!r}, got {len(ids)} tokens without "
                    "it. Name another in the configuration, or None.")
            return None if text is None else ids[text]

        self.pad_id, self.start_id = special(config.pad_token), special(config.start_token)
        self.end_id, self.unknown_id = special(config.end_token), special(config.unknown_token)
        self.vocab_size = max(ids.values()) + 1
        self._config = config
        self._added = AddedTokens(config.added_tokens)
        self._words = _Words(config, vocabulary, merges, self.unknown_id)
        self._bytes = tf.constant(self._spellings(config, vocabulary))

    def _spellings(self, config: BytePairConfig, vocabulary: dict[str, int]) -> list[bytes]:
        """Return the bytes that each id decodes to."""
        codes = {char: byte for byte, char in enumerate(byte_alphabet())}

        def spell(text: str) -> bytes:
            if all(char in codes for char in text):
                return bytes(codes[char] for char in text)
            return text.encode()

        found = [b""] * self.vocab_size
        for text, number in vocabulary.items():
            found[number] = spell(text)
        for token in config.added_tokens:
            found[token.id] = b"" if token.special else spell(token.text)
        for dropped in (self.pad_id, self.start_id, self.end_id):
            if dropped is not None:
                found[dropped] = b""
        return found

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Tokens:
        """Split [B] strings into ids; see `TextCodec.encode`."""
        return encode_around(
            texts, self._added, lambda t: self._words.encode(t, offsets=offsets), offsets=offsets)

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Join ids [..., L] into strings [...]; bytes that are no UTF-8 become U+FFFD."""
        ids, lengths = tf.convert_to_tensor(ids), tf.convert_to_tensor(lengths)
        keep = tf.sequence_mask(lengths, maxlen=tf.shape(ids)[-1])
        keep &= (ids >= 0) & (ids < tf.cast(self.vocab_size, ids.dtype))
        parts = tf.where(keep, tf.gather(self._bytes, tf.where(keep, ids, 0)), "")
        joined = tf.strings.reduce_join(parts, axis=-1)
        return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace",
                                            replacement_char=0xFFFD)

    def spellings(self) -> tf.Tensor:
        """Return the bytes of each id; see `TextCodec.spellings`."""
        return self._bytes

    def token_bytes(self) -> TokenBytes:
        """Return what each id adds to a text, with the first of a text."""
        tokens = tuple(self._bytes.numpy().tolist())
        return TokenBytes(tokens=tokens, first=tokens, vanishing=frozenset())


class _Symbols(NamedTuple):
    """What the merges work on: strings of the code points U+0000 to U+00FF, one for each byte.

    Attributes:
        texts: the 256 bytes, then the joins, the earliest first, then words taken whole.
        ids: their ids in the vocabulary; `_DROPPED` for bytes without an id.
        mergeable: how many of them merges know.
        single: those that a word can be as a whole.
    """

    texts: list[str]
    ids: list[int]
    mergeable: int
    single: list[str]


def _symbols(config: BytePairConfig, vocabulary: dict[str, int], table: MergeTable,
             unknown_id: int | None) -> _Symbols:
    latin = {char: chr(byte) for byte, char in enumerate(byte_alphabet())}
    missing = _DROPPED if unknown_id is None else unknown_id
    joins = list(dict.fromkeys(left + right for left, right in table.pairs))
    known = {*latin, *joins}
    whole = [text for text in vocabulary if config.ignore_merges and text not in known
             and text and all(char in latin for char in text)]
    sure = [*latin, *joins] if table.ordered or config.ignore_merges else [*latin]
    spelled = ["".join(latin[char] for char in text) for text in [*joins, *whole]]
    return _Symbols(
        [*latin.values(), *spelled],
        [vocabulary.get(char, missing) for char in latin] + [vocabulary[x] for x in joins + whole],
        256 + len(joins),
        ["".join(latin[char] for char in text) for text in [*sure, *whole]])


class _Words(tf.Module):
    """Splits texts without added tokens."""

    def __init__(self, config: BytePairConfig, vocabulary: dict[str, int],
                 merges: list[tuple[str, str]], unknown_id: int | None) -> None:
        super().__init__(name="words")
        self._split = config.split
        self._add_prefix_space = config.add_prefix_space
        latin = {char: chr(byte) for byte, char in enumerate(byte_alphabet())}
        table = analyse([pair for pair in merges if all(c in latin for c in "".join(pair))])
        symbols = _symbols(config, vocabulary, table, unknown_id)
        number = {text: i for i, text in enumerate(symbols.texts)}
        self._ids = tf.constant(symbols.ids, tf.int32)
        self._sizes = tf.constant([len(text) for text in symbols.texts], tf.int32)
        self._gaps = [chr(i) for i, found in enumerate(symbols.ids) if found == _DROPPED]
        self._single = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(
                tf.constant(["", *symbols.single]),
                tf.constant([_EMPTY, *(number[text] for text in symbols.single)], tf.int32)), _LONG)
        spelled = [["".join(latin[c] for c in part) for part in pair] for pair in table.pairs]
        self._merges = ExactMerges([(number[a], number[b], number[a + b]) for a, b in spelled],
                                   len(symbols.texts))
        self._pieces = _pieces(symbols) if table.ordered else None

    def encode(self, texts: tf.Tensor, *, offsets: bool) -> Tokens:
        """Split [S] well-formed strings into ids, and offsets if asked for."""
        longer = tf.zeros_like(texts, tf.bool)                             # [S]
        if self._add_prefix_space:
            longer = tf.strings.regex_full_match(texts, "(?s)[^ ].*")
            texts = tf.strings.join([tf.where(longer, " ", ""), texts])
        marked = tf.strings.unicode_transcode(
            mark_words(texts, self._split), "ISO-8859-1", "UTF-8")
        if self._gaps:
            marked = tf.strings.regex_replace(
                marked, "[" + "".join(rf"\x{{{ord(c):x}}}" for c in self._gaps) + "]", "")
        found = self._symbols_of(tf.strings.split(marked, MARK.decode("latin-1")))   # [S, (t)]
        ids = found.with_values(tf.gather(self._ids, found.values))
        if not offsets:
            return Tokens(ids, None, None)
        return self._with_offsets(texts, ids, tf.gather(self._sizes, found.values), longer)

    def _symbols_of(self, words: tf.RaggedTensor) -> tf.RaggedTensor:
        """Split words [S, (w)], some of them empty, into symbols [S, (t)]."""
        index = self._single.lookup(words.values)                          # [w]
        long = tf.where(index == _LONG)[:, 0]
        counts = tf.cast(index != _EMPTY, tf.int64)

        def short_only() -> tuple[tf.Tensor, tf.Tensor]:
            return tf.boolean_mask(index, index != _EMPTY), counts

        def with_long() -> tuple[tf.Tensor, tf.Tensor]:
            parts = self._merge(tf.gather(words.values, long))             # [l, (t)]
            sizes = tf.tensor_scatter_nd_update(counts, long[:, None], parts.row_lengths())
            begin = tf.cumsum(sizes, exclusive=True)
            origin = tf.gather(tf.gather(begin, long) - parts.row_splits[:-1],
                               row_ids(parts.row_splits))
            short = tf.where(index >= 0)[:, 0]
            place = tf.concat([origin + tf.range(tf.size(origin, tf.int64)),
                               tf.gather(begin, short)], axis=0)
            values = tf.concat([parts.values, tf.gather(index, short)], axis=0)
            return tf.scatter_nd(place[:, None], values, tf.shape(place, tf.int64)), sizes

        values, sizes = tf.cond(tf.size(long) > 0, with_long, short_only)
        before = tf.concat([tf.zeros([1], tf.int64), tf.cumsum(sizes)], axis=0)
        return tf.RaggedTensor.from_row_splits(
            values, tf.gather(before, words.row_splits), validate=False)

    def _merge(self, words: tf.Tensor) -> tf.RaggedTensor:
        """Split [l] words into symbols [l, (t)]."""
        if self._pieces is None:
            return self._merge_by_merge(words)
        sizes = tf.strings.length(words)
        few = (tf.size(words) < _FEW_WORDS) | (tf.reduce_max(sizes) > _LONG_BYTES)
        return tf.cond(few, lambda: self._pieces.tokenize(words),
                       lambda: self._merge_by_merge(words))

    def _merge_by_merge(self, words: tf.Tensor) -> tf.RaggedTensor:
        codes = tf.strings.unicode_decode(words, "UTF-8")                  # [l, (c)]
        return self._merges.run(codes.with_values(tf.cast(codes.values, tf.int32)))

    def _with_offsets(self, texts: tf.Tensor, ids: tf.RaggedTensor, sizes: tf.Tensor,
                      longer: tf.Tensor) -> Tokens:
        """Place tokens of `sizes` [n] bytes one after the other, out to whole characters.

        Rows that are `longer` [S] by a space count it as a part of their first character.
        """
        data = tf.io.decode_raw(tf.strings.reduce_join(texts), tf.uint8)   # [N] all rows
        place = tf.range(tf.size(data))
        if self._gaps:
            gap = np.zeros(256, bool)
            gap[[ord(char) for char in self._gaps]] = True
            place = tf.boolean_mask(place, ~tf.gather(tf.constant(gap), tf.cast(data, tf.int32)))
        begin = tf.cumsum(sizes, exclusive=True)
        starts = tf.gather(place, begin)
        ends = tf.gather(place, begin + sizes - 1) + 1
        first = tf.cumsum(tf.strings.length(texts), exclusive=True)        # [S]
        heads = tf.pad((data & 0xC0) != 0x80, [[0, 1]], constant_values=True)
        if self._add_prefix_space:
            second = tf.boolean_mask(first, longer)[:, None] + 1
            heads = tf.tensor_scatter_nd_update(heads, second, tf.zeros_like(second[:, 0], tf.bool))
        for _ in range(4):
            starts -= tf.cast(~tf.gather(heads, starts), tf.int32)
            ends += tf.cast(~tf.gather(heads, ends), tf.int32)
        origin = tf.gather(first + tf.cast(longer, tf.int32), row_ids(ids.row_splits))
        return Tokens(ids, ids.with_values(tf.maximum(starts - origin, 0)),
                      ids.with_values(ends - origin))


def _pieces(symbols: _Symbols) -> tf_text.SentencepieceTokenizer:
    """Return a BPE model of SentencePiece: the earlier the symbol, the better its score."""
    pieces = [Piece(text=text, score=-float(rank))
              for rank, text in enumerate(symbols.texts[:symbols.mergeable])]
    model = ModelFile(pieces=(*pieces, Piece(text="<unk>", kind=PieceKind.UNKNOWN)),
                      kind=ModelKind.BPE)
    return tf_text.SentencepieceTokenizer(model.without_normalization().to_bytes())
