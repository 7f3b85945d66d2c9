"""WordPiece vocabularies: reading, and writing for FastWordpieceTokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tf_infer.config import WordPieceConfig
from tf_infer.errors import CheckpointError
from tf_infer.text.normalize import Seal, Steps, sealed
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
                     and not stands_alone(code, known, split_chinese) and not known.space[code])
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
        breaks = [stands_alone(code, known, split_chinese) for code in body]
        if last[token] != number or not reachable(token, config.prefix, known, split_chinese):
            return f"{never}{number}"
        return prefix + "".join(chr(sealed(code, alone, seal, known))
                                for code, alone in zip(body, breaks))

    return [written(number, token) for number, token in enumerate(tokens)]


def reachable(token: str, prefix: str, known: Facts, split_chinese: bool) -> bool:
    """Return whether a text can give this token: no white space, no word break inside."""
    inside = token.startswith(prefix)
    body = [ord(char) for char in token.removeprefix(prefix)]
    alone = any(stands_alone(code, known, split_chinese) for code in body)
    return bool(body) and not any(known.space[code] for code in body) and (
        not alone or (len(body) == 1 and not inside))


def stands_alone(code: int, known: Facts, split_chinese: bool) -> bool:
    """Return whether this character is a word by itself."""
    return bool(known.punctuation[code] or (split_chinese and known.chinese[code]))
