"""Learn a SentencePiece model from texts, for decoders that are trained from nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from tf_infer.errors import BackendMissing, DataError

MODEL_FILE = "tokenizer.model"
SPECIAL_IDS = 256 + 4  # a piece for every byte; pad, unknown, start, end
SPACE = " \u2581"


def learn_sentencepiece(texts: Iterable[str], folder: Path, *, vocab_size: int) -> Path:
    """Learn a unigram model with byte fallback and write it as `tokenizer.model`.

    Text is kept as it is (no Unicode normalisation), and every byte has a piece, so that any text
    can be read and written. Ids: pad 0, unknown 1, start 2, end 3.

    Args:
        texts: what to learn from; kept in memory by the library.
        folder: where the file goes; made when it does not exist.
        vocab_size: room for 256 bytes, the special ids and every character of the texts at least;
            the model gets fewer pieces where the texts do not hold as many.

    Returns:
        The path of the file.

    Raises:
        BackendMissing: the sentencepiece library is not installed.
        DataError: there are no texts, or `vocab_size` is too small for their characters.

    Source: Kudo 2018, arXiv:1804.10959; github.com/google/sentencepiece.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise BackendMissing("learn_sentencepiece needs sentencepiece, not installed here. "
                             "Run: pip install 'tf_infer[models]'") from error
    texts = list(texts)
    least = SPECIAL_IDS + len({*"".join(texts), *SPACE})
    if not any(texts):
        raise DataError("texts: expected at least one that is not empty, got none.")
    if vocab_size < least:
        raise DataError(f"vocab_size: expected at least {least} for the characters of these texts, "
                        f"got {vocab_size}.")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=vocab_size,
        model_type="unigram", character_coverage=1.0, byte_fallback=True,
        normalization_rule_name="identity", hard_vocab_limit=False, minloglevel=2,
        num_threads=1, pad_id=0, unk_id=1, bos_id=2, eos_id=3)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MODEL_FILE
    path.write_bytes(model.getvalue())
    return path
