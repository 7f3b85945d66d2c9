"""Merge tables of byte-level BPE: read them, and decide how they may be run.

SentencePiece's BPE joins the neighbours whose join has the best score, whatever two pieces they
are; GPT-2 joins the listed pair of the lowest rank. The two are the same for a table in which each
merge comes after those that make its two parts, once the merges that can never fire are left out.
For let P = ab be the join of rank r, and all ranks below r done: what has become of P then is
decided by P alone, as nothing was joined across its borders. If that is not [a, b], the merge never
fires. Else no other two neighbours can spell P, so no join is possible that is not listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tf_infer.errors import CheckpointError

Pair = tuple[str, str]


def byte_alphabet() -> list[str]:
    """Return the printable character that stands for each byte in GPT-2's files."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


class MergeTable(NamedTuple):
    """Merges, lowest rank first.

    Attributes:
        pairs: the merges that can fire; all of them unless `ordered`.
        ordered: the table is one for which SentencePiece gives the same ids.
    """

    pairs: tuple[Pair, ...]
    ordered: bool


def analyse(pairs: Sequence[Pair]) -> MergeTable:
    """Decide how a merge table can be run; a pair that is listed twice has its last rank."""
    last = {pair: rank for rank, pair in enumerate(pairs)}
    ranks = {pair: rank for rank, pair in enumerate(sorted(last, key=lambda pair: last[pair]))}
    latest = {a + b: rank for (a, b), rank in ranks.items()}
    born: dict[str, int] = {}
    parts: dict[str, Pair] = {}
    live, early = [], False
    for pair, rank in ranks.items():
        missing = [part for part in pair if len(part) > 1 and part not in born]
        if missing:
            early |= any(latest.get(part, -1) > rank for part in missing)
        elif _survives(pair, rank, ranks, born, parts):
            join = pair[0] + pair[1]
            born[join], parts[join] = rank, pair
            live.append(pair)
    if not early:
        return MergeTable(tuple(live), True)
    return MergeTable(tuple(ranks), _one_way_each(ranks, set(latest)))


def _survives(pair: Pair, rank: int, ranks: Mapping[Pair, int], born: Mapping[str, int],
              parts: Mapping[str, Pair]) -> bool:
    """Return whether merges below `rank` make `pair` of its own text, and not another cut.

    Goes back in time from the two parts to their characters at the border between them: a listed
    pair that stood there early enough would have been joined across it.
    """
    left, right = pair
    limit = rank
    while ranks.get((left, right), limit) >= limit:
        left_born, right_born = born.get(left, -1), born.get(right, -1)
        if left_born < 0 and right_born < 0:
            return True
        if right_born >= left_born:
            limit, right = right_born + 1, parts[right][0]
        else:
            limit, left = left_born, parts[left][1]
    return False


def _one_way_each(ranks: Mapping[Pair, int], products: set[str]) -> bool:
    """Return whether each product can be cut into two symbols in its listed way only."""
    def known(text: str) -> bool:
        return len(text) == 1 or text in products

    return all((join[:i], join[i:]) in ranks for join in products for i in range(1, len(join))
               if known(join[:i]) and known(join[i:])) and len(products) == len(ranks)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read `vocab.json`: token in the byte alphabet -> id.

    Raises:
        CheckpointError: missing, or not such a file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise CheckpointError(f"{path}: cannot be read: {reason}. Copy it again.") from error
    if not isinstance(found, dict) or not found or not all(
            isinstance(i, int) and i >= 0 for i in found.values()):
        raise CheckpointError(f"{path}: expected an object of token -> id, got something else. "
                              "Copy the vocab.json of the model.")
    return found


def read_merges(path: Path, vocabulary: Mapping[str, int]) -> list[Pair]:
    """Read `merges.txt`: two tokens and a space in each line; a first line `#version` is skipped.

    Raises:
        CheckpointError: missing, a line that is no pair, or a join that has no id.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise CheckpointError(f"{path}: cannot be read: {reason}. Copy it again.") from error
    pairs: list[Pair] = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or line.startswith("#version"):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right or any(
                text not in vocabulary for text in (left, right, left + right)):
            raise CheckpointError(
                f"{path}: line {number}: expected two tokens whose join is in vocab.json, got "
                f"{len(line)} characters that are not. Take both files from the same model.")
        pairs.append((left, right))
    return pairs
