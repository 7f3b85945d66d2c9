"""WordPiece vocabularies: reading, writing for FastWordpieceTokenizer, learning from texts."""

from __future__ import annotations

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
from tf_infer.errors import CheckpointError, DataError
from tf_infer.text.normalize import Normalizer, Seal, Steps, sealed
from tf_infer.text.unicode import Facts, facts

_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def read(path: Path) -> list[str]:
    """Read `vocab.txt`: one token a line, the line number is the id.

    Raises:
        CheckpointError: the file is missing, empty, or not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise CheckpointError(f"{path}: expected a vocabulary, one token a line, got: {reason}. "
                              "Copy the tokenizer's files again.") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise CheckpointError(f"{path}: expected one token a line, got an empty file. "
                              "Copy the tokenizer's files again.")
    return lines


def steps(config: WordPieceConfig, *, seal: Seal | None = None) -> Steps:
    """Return the normalisation that a configuration asks for."""
    return Steps(clean_text=config.clean_text, split_chinese=config.split_chinese,
                 strip_accents=config.strip_accents, lowercase=config.lowercase, seal=seal)


def make_seal(tokens: Sequence[str], config: WordPieceConfig, *, split_chinese: bool) -> Seal:
    """Choose letters of the private use areas for what FastWordpieceTokenizer would split.

    Args:
        tokens: the vocabulary.
        config: its prefix and the limit of a word.
        split_chinese: whether Chinese characters are words by themselves in the sealed text.
    """
    known = facts()
    used = {ord(char) for token in tokens for char in token}
    differs = sorted(code for code in used if (known.fast_space[code] or known.fast_alone[code])
                     and not _alone(code, known, split_chinese) and not known.space[code])
    free = (code for area in _PRIVATE for code in area if code not in used)
    unknown, _ = next(free), next(free)
    return Seal(letters={code: next(free) for code in differs}, unknown=unknown,
                max_word_chars=config.max_word_chars)


def seal_tokens(tokens: Sequence[str], seal: Seal, config: WordPieceConfig, *, split_chinese: bool
                ) -> list[str]:
    """Return the vocabulary as FastWordpieceTokenizer must see it, ids unchanged.

    Tokens that no text can give (white space or a word break inside, an earlier line with the same
    token) are written so that nothing matches them.
    """
    known = facts()
    last = {token: number for number, token in enumerate(tokens)}
    never = chr(seal.unknown + 1)

    def written(number: int, token: str) -> str:
        if token == config.unknown_token and last[token] == number:
            return token
        prefix = config.prefix if token.startswith(config.prefix) else ""
        body = [ord(char) for char in token.removeprefix(prefix)]
        breaks = [_alone(code, known, split_chinese) for code in body]
        if last[token] != number or not _reachable(token, config.prefix, known, split_chinese):
            return f"{never}{number}"
        return prefix + "".join(chr(sealed(code, alone, seal, known))
                                for code, alone in zip(body, breaks))

    return [written(number, token) for number, token in enumerate(tokens)]


def learn_vocabulary(texts: Iterable[str], size: int, config: WordPieceConfig | None = None
                     ) -> list[str]:
    """Learn a WordPiece vocabulary from texts, for networks that are trained from nothing.

    Args:
        texts: what the network will read; the order does not matter.
        size: most tokens, special ones included.
        config: how words are normalised and split, and the special tokens; None takes the defaults.

    Returns:
        At most `size` tokens: special tokens, characters, pieces, the frequent ones first. Write
        them one a line to `vocab.txt`.

    Raises:
        DataError: no text holds a word.
        ConfigError: `size` leaves no room beside the special tokens.

    Source: the learner of TensorFlow Text (tensorflow_text.tools.wordpiece_vocab), over words that
    are cut and normalised as `WordPieceCodec` does it.
    """
    config = config or WordPieceConfig()
    named = (config.pad_token, config.unknown_token, config.start_token, config.end_token)
    reserved = list(dict.fromkeys([token for token in (
        *named, *(token.text for token in config.added_tokens)) if token]))
    check(size > len(reserved) + 1, "size", f"more than {len(reserved) + 1}", size)
    counts = Counter(word for word in _words(texts, config) if len(word) <= config.max_word_chars)
    if not counts:
        raise DataError("texts: expected at least one word, got none. Check the training file.")
    known = facts()
    # Punctuation and Chinese characters are words by themselves and never part of a longer piece.
    alone = {word: count for word, count in counts.items()
             if _alone(ord(word[0]), known, config.split_chinese)}
    single = sorted(alone, key=lambda word: (-alone[word], word))[:size // 2]
    longer = [(word, count) for word, count in counts.items() if word not in alone]
    reserved += [word for word in single if word not in reserved]
    if not longer:
        return reserved[:size]
    # Other characters take two tokens, alone and inside words; half of the room is for pieces.
    learned: list[str] = learner.learn(
        longer, size, reserved, lower_thresh=1, upper_thresh=max(counts.values()),
        max_unique_chars=max(1, (size - len(reserved)) // 4), joiner=config.prefix)
    return learned[:size]


def _words(texts: Iterable[str], config: WordPieceConfig) -> Iterator[str]:
    """Normalise texts and cut them into words, a thousand at a time."""
    normalizer = Normalizer(replace(steps(config), space_chinese=True))
    known = facts()
    punctuation = "".join(re.escape(chr(code)) for code in np.flatnonzero(known.punctuation))
    space = "".join(re.escape(chr(code)) for code in np.flatnonzero(known.space))
    word = re.compile(f"[{punctuation}]|[^{punctuation}{space}]+")
    remaining = iter(texts)
    while batch := list(itertools.islice(remaining, 1000)):
        for text in normalizer(tf.constant(batch), offsets=False).texts.numpy():
            yield from word.findall(text.decode("utf-8"))


def _reachable(token: str, prefix: str, known: Facts, split_chinese: bool) -> bool:
    """Return whether a text can give this token: no white space, no word break inside."""
    inside = token.startswith(prefix)
    body = [ord(char) for char in token.removeprefix(prefix)]
    alone = any(_alone(code, known, split_chinese) for code in body)
    return bool(body) and not any(known.space[code] for code in body) and (
        not alone or (len(body) == 1 and not inside))


def _alone(code: int, known: Facts, split_chinese: bool) -> bool:
    return bool(known.punctuation[code] or (split_chinese and known.chinese[code]))
