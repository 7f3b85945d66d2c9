"""Learn a WordPiece vocabulary from texts, for classifiers that are trained from nothing."""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from tf_infer.config import WordPieceConfig
from tf_infer.errors import DataError

VOCABULARY_FILE = "vocab.txt"
LEAST_COUNT = 2  # of a pair of pieces that becomes a piece
# The ranges that BERT's own tokenizer calls Chinese characters.
_CHINESE = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df"
                      "\U0002a700-\U0002b81f\U0002b820-\U0002ceaf\U0002f800-\U0002fa1f])")

Pair = tuple[str, str]


def learn_wordpiece(texts: Iterable[str], folder: Path, *, vocab_size: int,
                    config: WordPieceConfig | None = None) -> Path:
    """Learn a vocabulary and write it as `vocab.txt`, one token a line.

    First come the special tokens, then every character (at the start of a word and, with the
    prefix, inside one), then the pieces in the order in which they were joined: always the most
    frequent pair of neighbours, of equals the one that comes first in code point order. Joining
    ends at `vocab_size`, or when no pair stands twice.

    Args:
        texts: what to learn from.
        folder: where the file goes; made when it does not exist.
        vocab_size: most tokens; room for the special tokens and all characters at least.
        config: how texts are normalised, and what the special tokens are.

    Returns:
        The path of the file.

    Raises:
        DataError: no texts, or `vocab_size` is too small for their characters.

    Source: Schuster and Nakajima 2012 (doi:10.1109/ICASSP.2012.6289079), with the pair counts of
    Sennrich et al. 2016, arXiv:1508.07909, as the trainer of Hugging Face's `tokenizers` does.
    """
    config = config or WordPieceConfig()
    counts = Counter(word for text in texts for word in split_words(text, config)
                     if len(word) <= config.max_word_chars)
    if not counts:
        raise DataError("texts: expected at least one word, got none.")
    special = [token for token in (config.pad_token, config.unknown_token, config.start_token,
                                   config.end_token, "[MASK]") if token is not None]
    pieces = {word: [word[0], *(config.prefix + char for char in word[1:])] for word in counts}
    tokens = list(dict.fromkeys(special + sorted({p for parts in pieces.values() for p in parts})))
    if len(tokens) > vocab_size:
        raise DataError(f"vocab_size: expected at least {len(tokens)} for the special tokens and "
                        f"characters of these texts, got {vocab_size}.")
    known = set(tokens)
    for joined in _joins(counts, pieces, config.prefix):
        if len(tokens) >= vocab_size:
            break
        if joined not in known:
            known.add(joined)
            tokens.append(joined)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder) / VOCABULARY_FILE
    path.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    return path


def split_words(text: str, config: WordPieceConfig) -> list[str]:
    """Split a text at white space and around punctuation, normalised as `config` says."""
    if config.clean_text:
        text = "".join(char for char in text if char in "\t\n\r" or not _is_control(char))
    if config.split_chinese:
        text = _CHINESE.sub(r" \1 ", text)
    if config.lowercase:
        text = text.lower()
    if config.strip_accents:
        text = "".join(char for char in unicodedata.normalize("NFD", text)
                       if unicodedata.category(char) != "Mn")
    return "".join(f" {char} " if _is_punctuation(char) else char for char in text).split()


@lru_cache(maxsize=65536)
def _is_control(char: str) -> bool:
    return char in "\0\ufffd" or unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co", "Cs")


@lru_cache(maxsize=65536)
def _is_punctuation(char: str) -> bool:
    symbol = char.isascii() and char.isprintable() and not char.isalnum() and char != " "
    return symbol or unicodedata.category(char).startswith("P")


def _joins(counts: Counter[str], pieces: dict[str, list[str]], prefix: str) -> Iterable[str]:
    """Join the most frequent pair again and again, in `pieces` too; yield what each pair gives."""
    totals: Counter[Pair] = Counter()
    holders: defaultdict[Pair, set[str]] = defaultdict(set)  # words in which a pair may stand
    for word, parts in pieces.items():
        for pair in pairwise(parts):
            totals[pair] += counts[word]
            holders[pair].add(word)
    queue = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(queue)
    while queue:
        count, pair = heapq.heappop(queue)
        if -count != totals[pair]:  # changed since it was queued
            continue
        if -count < LEAST_COUNT:
            return
        joined = pair[0] + pair[1].removeprefix(prefix)
        changed: set[Pair] = set()
        for word in holders.pop(pair):
            before, after = pieces[word], _join(pieces[word], pair, joined)
            pieces[word] = after
            for old in pairwise(before):
                totals[old] -= counts[word]
                changed.add(old)
            for new in pairwise(after):
                totals[new] += counts[word]
                holders[new].add(word)
                changed.add(new)
        for other in changed:
            if totals[other] > 0:
                heapq.heappush(queue, (-totals[other], other))
        yield joined


def _join(parts: Sequence[str], pair: Pair, joined: str) -> list[str]:
    out: list[str] = []
    place = 0
    while place < len(parts):
        if tuple(parts[place:place + 2]) == pair:
            out.append(joined)
            place += 2
        else:
            out.append(parts[place])
            place += 1
    return out
