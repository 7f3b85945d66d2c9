"""Learn a SentencePiece model from texts, for decoders that are trained from nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from tf_infer.errors import BackendMissing, DataError

MODEL_FILE = "tokenizer.model"


def learn_sentencepiece(texts: Iterable[str], folder: Path, *, vocab_size: int) -> Path:
    """Learn a unigram model with byte fallback and write it as `tokenizer.model`.

    Text is kept as it is (no Unicode normalisation), and every byte has a piece, so that any text
    can be read and written. Ids: pad 0, unknown 1, start 2, end 3.

    Args:
        texts: what to learn from; kept in memory by the library.
        folder: where the file goes; made when it does not exist.
        vocab_size: at least 300 (256 bytes and the special ids); the model gets fewer pieces where
            the texts do not hold as many.

    Returns:
        The path of the file.

    Raises:
        BackendMissing: the sentencepiece library is not installed.
        DataError: the library cannot learn from these texts; carries its reason.

    Source: Kudo 2018, arXiv:1804.10959; github.com/google/sentencepiece.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise BackendMissing("learn_sentencepiece needs sentencepiece, not installed here. "
                             "Run: pip install 'tf_infer[models]'") from error
    if vocab_size < 300:
        raise DataError(f"vocab_size: expected at least 300, got {vocab_size}.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size,
            model_type="unigram", character_coverage=1.0, byte_fallback=True,
            normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2,
            num_threads=1, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    except RuntimeError as error:
        raise DataError("texts: expected some that SentencePiece can learn from, got none it "
                        "takes.") from error
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    path.write_bytes(model.getvalue())
    return path
