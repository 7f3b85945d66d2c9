"""BERT-style WordPiece: equal to Hugging Face's tokenizers, in the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tf_infer.config import AddedToken, WordPieceConfig, check
from tf_infer.errors import CheckpointError
from tf_infer.text import vocabulary
from tf_infer.text.added_tokens import AddedTokens, encode_around
from tf_infer.text.contracts import Tokens
from tf_infer.text.normalize import Normalizer, Steps
from tf_infer.text.offsets import through
from tf_infer.token_bytes import TokenBytes

# What the decoder takes out, in this order, from each token with the space before it.
_CLEANUP = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
            (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


class WordPieceCodec(tf.Module):
    """The codec of `WordPieceConfig`; see `text.contracts.TextCodec`.

    Rows of printable ASCII go straight to FastWordpieceTokenizer; all others are normalised first,
    code point by code point.
    """

    def __init__(self, config: WordPieceConfig, folder: Path) -> None:
        """Read `vocab.txt` in `folder`.

        Raises:
            CheckpointError: the file is missing, or lacks a token that `config` names.
        """
        super().__init__(name="wordpiece_codec")
        self.config = config
        path = folder / "vocab.txt"
        tokens = vocabulary.read(path)
        ids = {token: number for number, token in enumerate(tokens)}
        ids.update({token.text: token.id for token in config.added_tokens})
        self.vocab_size = max(len(tokens), *(id_ + 1 for id_ in ids.values()))
        self.pad_id: int | None = _find(ids, config.pad_token, "pad_token", path)
        self.start_id = _find(ids, config.start_token, "start_token", path)
        self.end_id = _find(ids, config.end_token, "end_token", path)
        self.unknown_id: int | None = _find(ids, config.unknown_token, "unknown_token", path)
        self.vocabulary = tf.saved_model.Asset(str(path))
        plain = [token for token in config.added_tokens if not token.normalized]
        late = [token for token in config.added_tokens if token.normalized]
        self._added = AddedTokens(plain)
        self._late = _LateTokens(config, late) if late else None
        self._words = _Words(config, tokens, after=self._late is not None)
        self._decoder = _Decoder(self, tokens, self._late.written if self._late else {})

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Tokens:
        """Split [B] strings into ids; see `text.contracts.TextCodec`."""
        encode = self._words if self._late is None else self._late.around(self._words)
        return encode_around(texts, self._added, lambda part: encode(part, offsets=offsets),
                             offsets=offsets)

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Join ids [..., L] of which the first `lengths` [...] count into strings [...].

        Equal to Hugging Face's `decode(skip_special_tokens=True)` with its WordPiece decoder,
        cleanup on.
        """
        return self._decoder(ids, lengths)

    def spellings(self) -> tf.Tensor:
        """Return what each id adds behind the first one; see `TextCodec.spellings`."""
        return self._decoder.later[:self.vocab_size]

    def token_bytes(self) -> TokenBytes:
        """Return what each id adds to a text, with the first of a text."""
        return self._decoder.token_bytes()


class Encode(Protocol):
    """A function of [S] well-formed strings that gives [S, (T)] tokens."""

    def __call__(self, texts: tf.Tensor, *, offsets: bool) -> Tokens: ...


class _Words(tf.Module):
    """Normalises texts, splits words, and finds the pieces of each word.

    Args (of the constructor):
        after: the texts it gets are normalised already, with white space around Chinese.
    """

    def __init__(self, config: WordPieceConfig, tokens: Sequence[str], *, after: bool) -> None:
        super().__init__(name="words")
        split_chinese = config.split_chinese and not after
        seal = vocabulary.make_seal(tokens, config, split_chinese=split_chinese)
        written = vocabulary.seal_tokens(tokens, seal, config, split_chinese=split_chinese)
        self._lowercase = config.lowercase and not after
        self._normalizer = Normalizer(
            Steps(seal=seal) if after else vocabulary.steps(config, seal=seal))
        # Words of up to that many ASCII characters between white space, and nothing else.
        word = rf"[!-~]{{0,{min(config.max_word_chars, 100)}}}"
        self._plain = rf"(?:{word}[ \t\r\n]+)*{word}"
        model = tf_text.build_fast_wordpiece_model(
            written, 4 * config.max_word_chars, config.prefix, config.unknown_token, False, False)
        self._pieces = tf_text.FastWordpieceTokenizer(
            model_buffer=tf.constant(np.frombuffer(model, np.uint8)), token_out_type=tf.int32)

    def __call__(self, texts: tf.Tensor, *, offsets: bool) -> Tokens:
        plain = tf.strings.regex_full_match(texts, self._plain)                    # [S]
        lowered = tf.strings.lower(texts) if self._lowercase else texts
        none = tf.zeros([0], tf.int32)
        written, starts, ends, sizes = tf.cond(
            tf.reduce_all(plain),
            lambda: (lowered, none, none, tf.zeros_like(plain, tf.int64)),
            lambda: self._write(texts, lowered, plain, offsets))
        ids, first, last = self._pieces.tokenize_with_offsets(written)
        if not offsets:
            return Tokens(ids, None, None)
        tokens = Tokens(ids, tf.cast(first, tf.int32), tf.cast(last, tf.int32))
        return through(tokens, tf.RaggedTensor.from_row_lengths(starts, sizes, validate=False),
                       tf.RaggedTensor.from_row_lengths(ends, sizes, validate=False))

    def _write(self, texts: tf.Tensor, lowered: tf.Tensor, plain: tf.Tensor, offsets: bool
               ) -> tuple[tf.Tensor, ...]:
        """Return the texts to look up; for each byte of those not plain its source; their sizes."""
        rows = tf.where(~plain)                                                    # [R, 1]
        normal = self._normalizer(tf.gather(texts, rows[:, 0]), offsets=offsets)
        written = tf.tensor_scatter_nd_update(lowered, rows, normal.texts)
        sizes = tf.zeros_like(plain, tf.int64)
        if normal.starts is None or normal.ends is None:
            return written, tf.zeros([0], tf.int32), tf.zeros([0], tf.int32), sizes
        sizes = tf.tensor_scatter_nd_update(sizes, rows, normal.starts.row_lengths())
        return written, normal.starts.values, normal.ends.values, sizes


class _LateTokens(tf.Module):
    """Added tokens that are looked for in the normalised text."""

    def __init__(self, config: WordPieceConfig, late: Sequence[AddedToken]) -> None:
        super().__init__(name="late_tokens")
        self._normalizer = Normalizer(replace(vocabulary.steps(config), space_chinese=True))
        texts = self._normalizer(tf.constant([token.text for token in late]), offsets=False).texts
        written = [text.decode() for text in texts.numpy()]
        check(len(set(written)) == len(late) and all(written), "WordPieceConfig.added_tokens",
              "tokens that stay different, and not empty, when normalised", written)
        self.written = {token.id: text for token, text in zip(late, written)}
        self._tokens = AddedTokens([replace(token, text=text)
                                    for token, text in zip(late, written)])

    def around(self, words: Encode) -> Encode:
        """Return a function that normalises, cuts at these tokens, and encodes the rest."""
        def encode(texts: tf.Tensor, *, offsets: bool) -> Tokens:
            normal = self._normalizer(texts, offsets=offsets)
            pieces = self._tokens.split(normal.texts)
            tokens = self._tokens.join(pieces, words(pieces.texts, offsets=offsets))
            if normal.starts is None or normal.ends is None:
                return tokens
            return through(tokens, normal.starts, normal.ends)

        return encode


class _Decoder(tf.Module):
    """Ids -> text by two tables: what an id adds at the start of a text, and elsewhere."""

    def __init__(self, codec: WordPieceCodec, tokens: Sequence[str], late: Mapping[int, str]
                 ) -> None:
        super().__init__(name="decoder")
        config = codec.config
        texts = {number: token for token, number in {t: n for n, t in enumerate(tokens)}.items()}
        texts.update({token.id: token.text for token in config.added_tokens})
        hidden = {token.text for token in config.added_tokens if token.special}
        hidden |= {token for token in (config.pad_token, config.start_token, config.end_token)
                   if token is not None}
        # As in tokenizers, an added token that is looked for when normalised comes back normalised.
        shown = {number: late.get(number, text) for number, text in texts.items()
                 if text not in hidden}
        self._size = codec.vocab_size
        self._first = _strings({n: _clean(text) for n, text in shown.items()}, self._size)
        self.later = _strings({n: _clean(_joined(text, config.prefix))
                               for n, text in shown.items()}, self._size)
        self._shown = tf.constant([number in shown for number in range(self._size)] + [False])

    def __call__(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        live = tf.sequence_mask(lengths, tf.shape(ids)[-1])                        # [..., L]
        known = tf.where(live & (ids >= 0) & (ids < self._size), ids, self._size)
        shown = tf.gather(self._shown, known)
        leading = shown & (tf.cumsum(tf.cast(shown, tf.int32), axis=-1) == 1)
        parts = tf.where(leading, tf.gather(self._first, known), tf.gather(self.later, known))
        return tf.strings.reduce_join(parts, axis=-1)

    def token_bytes(self) -> TokenBytes:
        first, later, shown = (table.numpy()[:self._size].tolist()
                               for table in (self._first, self.later, self._shown))
        vanishing = frozenset(number for number, kept in enumerate(shown) if not kept)
        return TokenBytes(tokens=tuple(later), first=tuple(first), vanishing=vanishing)


def _find(ids: dict[str, int], token: str | None, field: str, path: Path) -> int | None:
    if token is None:
        return None
    if token not in ids:
        raise CheckpointError(f"{path}: expected the token {token!r} of WordPieceConfig.{field}, "
                              f"got {len(ids)} others. Name the token this vocabulary uses.")
    return ids[token]


def _joined(token: str, prefix: str) -> str:
    return token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"


def _clean(text: str) -> str:
    for found, instead in _CLEANUP:
        text = text.replace(found, instead)
    return text


def _strings(texts: dict[int, str], size: int) -> tf.Tensor:
    """Return [size + 1] strings, empty where `texts` has none."""
    return tf.constant([texts.get(number, "") for number in range(size)] + [""])
