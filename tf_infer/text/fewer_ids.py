"""A tokenizer with fewer ids: which may go so that every text still encodes, and its files anew.

A text of which every id stays is encoded as before, id for id under the new numbers. Of other
texts, a piece that went is spelled by smaller ones.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tf_infer.config import (
    AddedToken,
    BytePairConfig,
    BytesConfig,
    CodecConfig,
    SentencePieceConfig,
    WordPieceConfig,
)
from tf_infer.errors import ConfigError
from tf_infer.text import files, merges, vocabulary
from tf_infer.text.pieces import ModelFile, ModelKind, PieceKind, read_model
from tf_infer.text.unicode import facts

VOCABULARY, VOCABULARY_JSON, MERGES, MODEL = (
    "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model")
ConfigT = TypeVar("ConfigT", WordPieceConfig, SentencePieceConfig, BytePairConfig)


def needed(config: CodecConfig, folder: Path, used: Collection[int]) -> tuple[int, ...]:
    """Return the ids that must stay, ascending.

    Args:
        config: of the codec.
        folder: where its files lie.
        used: ids that shall stay.

    To them come special and added tokens, single characters and bytes, and what the codec puts
    together on its way to an id that stays.

    Raises:
        ConfigError: a codec of bytes, which has no vocabulary.
        CheckpointError: a file is missing or is not what it should be.
    """
    if isinstance(config, WordPieceConfig):
        found = _wordpiece(config, vocabulary.read(folder / VOCABULARY), used)
    elif isinstance(config, SentencePieceConfig):
        found = _sentencepiece(config, _model(folder), used)
    elif isinstance(config, BytePairConfig):
        ids = merges.read_vocabulary(folder / VOCABULARY_JSON)
        found = _bytepair(config, ids, merges.read_merges(folder / MERGES, ids), used)
    else:
        raise ConfigError("vocabulary: expected a tokenizer with a vocabulary, got one of bytes, "
                          "which needs all of its ids. Leave the vocabulary as it is.")
    return tuple(sorted({*found, *(token.id for token in config.added_tokens)}))


def rewrite(config: CodecConfig, folder: Path, kept: Sequence[int], target: Path) -> CodecConfig:
    """Write a codec's files with the ids `kept`, which become 0, 1, 2, ..., into `target`.

    Args:
        config: of the codec.
        folder: where its files lie.
        kept: ascending, as `needed` gives them.
        target: an existing folder.

    Returns:
        The configuration of the new codec.
    """
    assert not isinstance(config, BytesConfig)
    new = {old: number for number, old in enumerate(kept)}
    files.copy_chat(folder, target)
    if isinstance(config, WordPieceConfig):
        lines = vocabulary.read(folder / VOCABULARY)
        stay = [lines[number] for number in kept if number < len(lines)]
        (target / VOCABULARY).write_bytes("".join(f"{line}\n" for line in stay).encode())
        return _renumbered(config, new)
    if isinstance(config, SentencePieceConfig):
        model = _model(folder)
        stay_pieces = tuple(model.pieces[number] for number in kept if number < len(model.pieces))
        (target / MODEL).write_bytes(replace(model, pieces=stay_pieces).to_bytes())

        def moved(number: int | None) -> int | None:
            return number if number is None or number < 0 else new[number]

        return replace(_renumbered(config, new), pad_id=moved(config.pad_id),
                       start_id=moved(config.start_id), end_id=moved(config.end_id))
    ids = merges.read_vocabulary(folder / VOCABULARY_JSON)
    stay_ids = {text: new[number] for text, number in ids.items() if number in new}
    (target / VOCABULARY_JSON).write_text(json.dumps(stay_ids, ensure_ascii=False),
                                          encoding="utf-8")
    pairs = merges.read_merges(folder / MERGES, ids)
    (target / MERGES).write_bytes("".join(
        f"{left} {right}\n" for left, right in pairs
        if left in stay_ids and right in stay_ids and left + right in stay_ids).encode())
    return _renumbered(config, new)


def _renumbered(config: ConfigT, new: Mapping[int, int]) -> ConfigT:
    def moved(token: AddedToken) -> AddedToken:
        return dataclasses.replace(token, id=new[token.id])

    return replace(config, added_tokens=tuple(moved(token) for token in config.added_tokens))


def _model(folder: Path) -> ModelFile:
    path = folder / MODEL
    return read_model(path.read_bytes(), where=str(path))


# ---------------------------------------------------------------------------- what is needed


def _wordpiece(config: WordPieceConfig, lines: Sequence[str], used: Collection[int]) -> set[int]:
    ids = {line: number for number, line in enumerate(lines)}
    named = (config.unknown_token, config.pad_token, config.start_token, config.end_token)
    found = {*used, *(number for token, number in ids.items() if token in named)}
    known = facts()
    for token, number in ids.items():
        inside = token.startswith(config.prefix)
        text = token.removeprefix(config.prefix)
        spelling = [f"{config.prefix if inside or place else ''}{char}"
                    for place, char in enumerate(text)]
        # A piece with a character that has no id of its own could not be spelled without it. What
        # no text can give, such as [unused1], is not missed.
        if vocabulary.reachable(token, config.prefix, known, config.split_chinese) and (
                len(text) == 1 or any(part not in ids for part in spelling)):
            found.add(number)
    return found


def _sentencepiece(config: SentencePieceConfig, model: ModelFile, used: Collection[int]
                   ) -> set[int]:
    normal = {piece.text: number for number, piece in enumerate(model.pieces)
              if piece.kind == PieceKind.NORMAL}
    found = {*used, *(number for number in (config.pad_id, config.start_id, config.end_id)
                      if number is not None and number >= 0)}
    found |= {number for number, piece in enumerate(model.pieces)
              if piece.kind != PieceKind.NORMAL or len(piece.text) == 1}
    if model.kind == ModelKind.BPE:
        def rank(left: str, right: str) -> float | None:
            number = normal.get(left + right)
            return None if number is None else -model.pieces[number].score

        return found | _ways(found, {number: text for text, number in normal.items()}, normal, rank)
    if model.kind == ModelKind.UNIGRAM and normal:
        # The penalty of an unknown character hangs on the lowest score of all.
        found.add(min(normal.values(), key=lambda number: (model.pieces[number].score, number)))
    return found


def _bytepair(config: BytePairConfig, ids: Mapping[str, int], pairs: Sequence[merges.Pair],
              used: Collection[int]) -> set[int]:
    named = (config.unknown_token, config.pad_token, config.start_token, config.end_token)
    found = {*used, *(number for token, number in ids.items()
                      if len(token) == 1 or token in named)}
    ranks = {pair: number for number, pair in enumerate(pairs)}
    texts = {number: text for text, number in ids.items()}
    return found | _ways(found, texts, ids, lambda left, right: ranks.get((left, right)))


def _ways(found: Collection[int], texts: Mapping[int, str], ids: Mapping[str, int],
          rank: Callable[[str, str], float | None]) -> set[int]:
    """Return the ids of all that is joined on the way to these.

    Of each alone that is the same as inside a longer text: nothing was joined across its ends.
    """
    way: set[int] = set()
    for number in found:
        parts = list(texts.get(number, ""))
        while len(parts) > 1:
            ranks = [rank(left, right) for left, right in itertools.pairwise(parts)]
            best = min((value for value in ranks if value is not None), default=None)
            if best is None:
                break
            place = ranks.index(best)
            parts[place:place + 2] = [parts[place] + parts[place + 1]]
            way.add(ids[parts[place]])
    return way
