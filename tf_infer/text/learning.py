"""Learn a tokenizer's files from texts, for networks that are trained from nothing."""

from __future__ import annotations

import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

from tf_infer.config import WordPieceConfig, check
from tf_infer.errors import BackendMissing, DataError
from tf_infer.text.normalize import Normalizer
from tf_infer.text.unicode import facts
from tf_infer.text.vocabulary import stands_alone, steps

MODEL_FILE = "tokenizer.model"
VOCABULARY_FILE = "vocab.txt"
SPECIAL_IDS = 256 + 4  # a piece for every byte; pad, unknown, start, end
SPACE = " \u2581"
NORMALIZE_ROWS = 1_000
LEAST_KEPT_SHARE = 0.95  # of running words that a learned vocabulary must be able to spell


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


def learn_wordpiece(texts: Iterable[str], folder: Path, *, vocab_size: int,
                    config: WordPieceConfig | None = None) -> Path:
    """Learn a WordPiece vocabulary and write it as `vocab.txt`.

    Args:
        texts: what the network will read; the order does not matter.
        folder: where the file goes; made when it does not exist.
        vocab_size: most tokens, special ones included; fewer where the texts do not hold as many.
        config: how words are normalised and split, and the special tokens; None takes the defaults.

    Returns:
        The path of the file: special tokens, words of one character, pieces, one token a line.

    Raises:
        DataError: no text holds a word, or `vocab_size` is too small for the texts' characters.
        ConfigError: `vocab_size` leaves no room beside the special tokens.

    Source: the learner of TensorFlow Text (tensorflow_text.tools.wordpiece_vocab), over words that
    are cut and normalised as `WordPieceCodec` does it.
    """
    config = config or WordPieceConfig()
    tokens = _learn_tokens(texts, vocab_size, config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / VOCABULARY_FILE
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    return path


def _learn_tokens(texts: Iterable[str], size: int, config: WordPieceConfig) -> list[str]:
    named = (config.pad_token, config.unknown_token, config.start_token, config.end_token)
    reserved = list(dict.fromkeys([token for token in (
        *named, *(token.text for token in config.added_tokens)) if token]))
    check(size > len(reserved) + 1, "vocab_size", f"more than {len(reserved) + 1}", size)
    counts = Counter(word for word in _words(texts, config) if len(word) <= config.max_word_chars)
    if not counts:
        raise DataError("texts: expected at least one word, got none. Check the training file.")
    known = facts()
    # Punctuation and Chinese characters are words by themselves and never part of a longer piece.
    alone = {word: count for word, count in counts.items()
             if stands_alone(ord(word[0]), known, config.split_chinese)}
    single = sorted(alone, key=lambda word: (-alone[word], word))[:size // 2]
    longer = [(word, count) for word, count in counts.items() if word not in alone]
    reserved += [word for word in single if word not in reserved]
    if not longer:
        return reserved[:size]
    # Other characters take two tokens, alone and inside words; half of the room is for pieces.
    kept_chars = max(1, (size - len(reserved)) // 4)
    _check_room(longer, kept_chars, size, len(reserved))
    learned: list[str] = learner.learn(
        longer, size, reserved, lower_thresh=1, upper_thresh=max(counts.values()),
        max_unique_chars=kept_chars, joiner=config.prefix)
    return learned[:size]


def _check_room(words: Sequence[tuple[str, int]], kept_chars: int, size: int, reserved: int
                ) -> None:
    """Raise DataError when the learner, which drops words with rare characters, drops many."""
    chars: Counter[str] = Counter()
    for word, count in words:
        for char in word:
            chars[char] += count
    kept = {char for char, _ in chars.most_common(kept_chars)}
    kept_words = sum(count for word, count in words if kept.issuperset(word))
    if kept_words < LEAST_KEPT_SHARE * sum(count for _, count in words):
        raise DataError(f"vocab_size: expected at least {reserved + 4 * len(chars)} for the "
                        f"{len(chars)} characters of these texts, got {size}.")


def _words(texts: Iterable[str], config: WordPieceConfig) -> Iterator[str]:
    """Normalise texts and cut them into words, some rows at a time."""
    normalizer = Normalizer(replace(steps(config), space_chinese=True))
    known = facts()
    punctuation = "".join(re.escape(chr(code)) for code in np.flatnonzero(known.punctuation))
    space = "".join(re.escape(chr(code)) for code in np.flatnonzero(known.space))
    word = re.compile(f"[{punctuation}]|[^{punctuation}{space}]+")
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, NORMALIZE_ROWS)):
        for text in normalizer(tf.constant(batch), offsets=False).texts.numpy():
            yield from word.findall(text.decode("utf-8"))
