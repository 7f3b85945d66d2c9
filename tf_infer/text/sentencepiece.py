"""SentencePiece: unigram, BPE, word and character model files, in the graph."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from tf_infer.config import SentencePieceConfig
from tf_infer.errors import CheckpointError
from tf_infer.text.added_tokens import AddedTokens, encode_around
from tf_infer.text.byte_decoding import checked_bytes
from tf_infer.text.contracts import Tokens
from tf_infer.text.pieces import SPACE, ModelFile, ModelKind, Piece, PieceKind, read_model
from tf_infer.text.unigram import Unigram
from tf_infer.token_bytes import TokenBytes

FILE_NAME = "tokenizer.model"


class SentencePieceCodec(tf.Module):
    """Encodes and decodes as the sentencepiece library does with `tokenizer.model`.

    The model file becomes a constant of the graph, so an export needs no file beside it. Text
    between added tokens is encoded by itself, with its own dummy prefix (the legacy behaviour of
    Hugging Face's Llama and T5 tokenizers).

    Attributes: see `TextCodec`.
    """

    def __init__(self, config: SentencePieceConfig, folder: Path) -> None:
        """Read `tokenizer.model` in `folder`.

        Raises:
            CheckpointError: the file is missing or is no sentencepiece model.
        """
        super().__init__(name="sentencepiece_codec")
        path = Path(folder) / FILE_NAME
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CheckpointError(
                f"{path}: cannot be read: {error.strerror}. Put the model file there.") from error
        model = read_model(data, where=str(path))
        self.unknown_id: int | None = model.unknown()
        self.start_id = _chosen(config.start_id, model.control(model.start_piece))
        self.end_id = _chosen(config.end_id, model.control(model.end_piece))
        self.pad_id = _chosen(config.pad_id, model.control(model.pad_piece))
        self.vocab_size = max([len(model.pieces), *(t.id + 1 for t in config.added_tokens)])
        self._added = AddedTokens(config.added_tokens)
        self._splitter = (Unigram(model) if model.kind == ModelKind.UNIGRAM
                          else _Ordinary(model))
        self._decoder = _Decoder(model, config, self)

    def encode(self, texts: tf.Tensor, *, offsets: bool = False) -> Tokens:
        """Split [B] strings into ids; see `TextCodec.encode`."""
        return encode_around(
            texts, self._added, lambda some: self._splitter.encode(some, offsets=offsets),
            offsets=offsets)

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Join ids [..., L] into strings [...]; see `TextCodec.decode`."""
        return self._decoder.decode(tf.convert_to_tensor(ids), tf.convert_to_tensor(lengths))

    def spellings(self) -> tf.Tensor:
        """Return the bytes of each id; see `TextCodec.spellings`."""
        return self._decoder.spellings

    def token_bytes(self) -> TokenBytes:
        """Return what each id adds to a text, with the first of a text."""
        return self._decoder.token_bytes()


class _Ordinary(tf.Module):
    """BPE, word and character models: TF-Text's op gives what the library gives."""

    def __init__(self, model: ModelFile) -> None:
        super().__init__(name="ordinary")
        self._op = tf_text.SentencepieceTokenizer(model.to_bytes())

    def encode(self, texts: tf.Tensor, *, offsets: bool) -> Tokens:
        """Split [S] well-formed strings into ids [S, (T)]."""
        if not offsets:
            return Tokens(self._op.tokenize(texts), None, None)
        ids, starts, ends = self._op.tokenize_with_offsets(texts)
        return Tokens(ids, tf.cast(starts, tf.int32), tf.cast(ends, tf.int32))


class _Decoder(tf.Module):
    """Ids -> strings with the rules of `SentencePieceProcessor::Decode` for the first space."""

    def __init__(self, model: ModelFile, config: SentencePieceConfig, codec: SentencePieceCodec
                 ) -> None:
        super().__init__(name="decoder")
        whole = [_surface(piece, model) for piece in model.pieces]
        stripped = [text[1:] if piece.text.startswith(SPACE) and _has_text(piece) else text
                    for piece, text in zip(model.pieces, whole)]
        bytes_ = [int(piece.text[3:5], 16) if piece.kind == PieceKind.BYTE else -1
                  for piece in model.pieces]
        missing = codec.vocab_size - len(whole)
        whole, stripped = whole + [""] * missing, stripped + [""] * missing
        bytes_ += [-1] * missing
        for token in config.added_tokens:
            whole[token.id] = stripped[token.id] = "" if token.special else token.text
            bytes_[token.id] = -1
        for special in (codec.pad_id, codec.start_id, codec.end_id):
            if special is not None:
                whole[special] = stripped[special] = ""
                bytes_[special] = -1
        self._vocab_size = codec.vocab_size
        self._strips = model.dummy_prefix or model.remove_extra_spaces
        vanishing = stripped if model.remove_extra_spaces else whole
        self._vanishes = tf.constant([text == "" and byte < 0
                                      for text, byte in zip(vanishing, bytes_)])
        self._whole, self._stripped = tf.constant(whole), tf.constant(stripped)
        self._bytes = tf.constant(bytes_, tf.int32) if model.byte_fallback else None
        self.spellings = self._whole if not model.byte_fallback else tf.constant(
            [bytes([byte]) if byte >= 0 else text.encode() for text, byte in zip(whole, bytes_)])

    def decode(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        shape = tf.shape(lengths)
        ids = tf.cast(tf.reshape(ids, [-1, tf.shape(ids)[-1]]), tf.int32)        # [N, L]
        keep = tf.sequence_mask(tf.reshape(lengths, [-1]), maxlen=tf.shape(ids)[1])
        kept = tf.ragged.boolean_mask(ids, keep & (ids >= 0) & (ids < self._vocab_size))
        ids = kept.to_tensor()
        keep = tf.sequence_mask(kept.row_lengths(), maxlen=tf.shape(ids)[1])
        texts = tf.gather(self._whole, ids)                                      # [N, L]
        if self._strips:
            empty = tf.gather(self._vanishes, ids) | ~keep
            place = tf.cumsum(tf.cast(~empty, tf.int32), axis=1, exclusive=True)
            texts = tf.where(place == 0, tf.gather(self._stripped, ids), texts)
        if self._bytes is not None:
            texts = checked_bytes(tf.where(keep, tf.gather(self._bytes, ids), -1), texts)
        texts = tf.where(keep, texts, "")
        joined = tf.reshape(tf.strings.reduce_join(texts, axis=1), shape)
        joined.set_shape(lengths.shape)
        return joined

    def token_bytes(self) -> TokenBytes:
        tokens = tuple(self.spellings.numpy().tolist())
        if not self._strips:
            return TokenBytes(tokens=tokens, first=tokens, vanishing=frozenset())
        stripped, vanishes = self._stripped.numpy().tolist(), self._vanishes.numpy()
        bytes_ = [-1] * len(tokens) if self._bytes is None else self._bytes.numpy().tolist()
        first = tuple(token if byte >= 0 else text
                      for token, text, byte in zip(tokens, stripped, bytes_))
        return TokenBytes(tokens=tokens, first=first,
                          vanishing=frozenset(vanishes.nonzero()[0].tolist()))


def _chosen(configured: int | None, found: int | None) -> int | None:
    if configured is None:
        return found
    return configured if configured >= 0 else None


def _has_text(piece: Piece) -> bool:
    return piece.kind not in (PieceKind.CONTROL, PieceKind.UNKNOWN, PieceKind.BYTE)


def _surface(piece: Piece, model: ModelFile) -> str:
    if piece.kind == PieceKind.UNKNOWN:
        return model.unknown_surface
    return piece.text.replace(SPACE, " ") if _has_text(piece) else ""
