"""Build the LiteRT engine of a decoder: one file with a graph for each size of step and read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_infer.config import check
from tf_infer.manifest import StepEngineManifest, write_engine
from tf_infer.networks.arrays import arrays_of
from tf_infer.optimize import litert_attention, litert_file
from tf_infer.optimize.litert_attention import SUMMED, Precision
from tf_infer.optimize.litert_decoder import DecoderFile

PAGE = litert_attention.PIECE  # positions of the smallest page, but for a lone one of half as many
GUESSES = 3
MOST_GUESSES = 15  # with the token before them they reach over two pages at most
ROUNDED_HEAD = 32  # numbers of a head from which on it is kept as int8
# Share of the spread of log-probabilities (verify/engine.py) by which the worst may be off. The
# worst of 3 million on a trained decoder of width 64: int8 0.14, float32 1e-5.
TOLERANCE: dict[Precision, float] = {"float32": 5e-4, "int8": 0.25}


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """What an engine can hold and how it computes.

    Attributes:
        precision: of the weights.
        cache: of keys and values; None is what `cache_of` says.
        positions: P, ids of a slot; None takes what the task can need.
        rows: sizes of a step, ascending; the last is the number of slots.
        chunks: sizes of a read, ascending.
        guesses: tokens of a text that may be guessed and read in one go with its last; 0 for none.
        tolerance: how far log-probabilities may be from the network's, as a share of their
            spread; None takes that of the precision.
    """

    precision: Precision = "int8"
    cache: Precision | None = None
    positions: int | None = None
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    chunks: tuple[int, ...] = (16, 32, 64, 128, 256)
    guesses: int = GUESSES
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "chunks"):
            sizes = getattr(self, name)
            ascending = all(a < b for a, b in itertools.pairwise(sizes))
            check(bool(sizes) and sizes[0] > 0 and ascending, f"EngineSettings.{name}",
                  "one or more ascending sizes > 0", sizes)
        check(self.chunks[0] > 1, "EngineSettings.chunks", "sizes > 1", self.chunks)
        check(self.tolerance is None or self.tolerance >= 0, "EngineSettings.tolerance", ">= 0",
              self.tolerance)
        check(self.positions is None or self.positions > 0, "EngineSettings.positions", "> 0",
              self.positions)
        check(0 <= self.guesses <= MOST_GUESSES, "EngineSettings.guesses",
              f"0 to {MOST_GUESSES}", self.guesses)

    @property
    def allowed(self) -> float:
        """Return `tolerance`, or that of the precision."""
        return TOLERANCE[self.precision] if self.tolerance is None else self.tolerance


def cache_of(precision: Precision, head_size: int) -> Precision:
    """Return what the cache holds: int8 beside int8 weights, but for small or odd heads.

    Each head's numbers of a place share a scale. Of 8 numbers too little is averaged away: on
    stories260K the loss of an id was off by 0.091 nats instead of 0.058 (root mean square).
    Of an odd number some heads and rows of a page begin where the runtime does not want it.
    """
    small = head_size < ROUNDED_HEAD or head_size % 2
    return "int8" if precision == "int8" and not small else "float32"


def row_sizes(slots: int) -> tuple[int, ...]:
    """Return sizes of a step up to `slots`: 1, 2, 4, ... and the slots themselves."""
    return (*(2**n for n in range(slots.bit_length()) if 2**n < slots), slots)


def joined_shapes(slots: int, chunks: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (rows, ids of each) of reads of several slots: 2, 4, 8, ... rows of each size.

    Args:
        slots: most rows.
        chunks: sizes of a read, ascending; together rows have no more ids than the last.
    """
    rows = [2**power for power in range(1, slots.bit_length()) if 2**power <= slots]
    return tuple((count, tokens) for tokens in chunks for count in rows
                 if count * tokens <= chunks[-1])


def page_sizes(positions: int, *, fine: bool) -> tuple[int, ...]:
    """Return pages that hold `positions` together, each about half of those before it.

    64, 64, 64, 64, 128, 192, 256, ..., the last one cut: a text meets few more positions than it
    has. `fine`, the second is two: there softmax sees SUMMED places at once in any case, else a
    text would have other bits over more pages, beside a longer one. Multiples of PAGE, but for a
    lone page of half of it: every row of a page begins where the runtime wants it, and values are
    added up by pieces of PAGE, whatever pages there are.
    """
    pages: list[int] = []
    while (held := sum(pages)) < positions:
        size = PAGE if fine and SUMMED <= held < 2 * SUMMED else max(
            SUMMED, held // 2 // SUMMED * SUMMED)
        unit = PAGE if positions > PAGE // 2 else PAGE // 2
        pages.append(min(size, -(-(positions - held) // unit) * unit))
    return tuple(pages)


def most_pages(tokens: int, chunks: Sequence[int], pages: Sequence[int], positions: int) -> int:
    """Return how many pages a read of `tokens` ids may have to look at.

    It reads at least one id more than the size below it, behind at least one id of the last page.
    """
    least = 1 + max((size for size in chunks if size < tokens), default=0)
    return sum(sum(pages[:place]) + 1 + least <= positions for place in range(len(pages)))


def read_pages(most: int, pages: Sequence[int], chunk: int) -> tuple[int, ...]:
    """Return over how many pages reads look that may have to look at up to `most`.

    Each number has graphs of its own, which take memory, so there are few: none, and from each to
    the next at least as many as hold half of a longest read.

    Args:
        most: pages.
        pages: their sizes.
        chunk: ids of the longest read.
    """
    found, held = [0], 0
    for count in range(1, len(pages) + 1):
        if found[-1] < most and (sum(pages[:count]) >= held + chunk // 2 or count == len(pages)):
            found.append(count)
            held = sum(pages[:count])
    return tuple(found)


def write(network: Any, folder: Path, settings: EngineSettings, *, positions: int,
          progress: Callable[[str], None] = lambda line: None) -> StepEngineManifest:
    """Write `model.tflite` and `engine.json` of a decoder into `folder`, which is made.

    Args:
        network: a decoder of ours.
        folder: where to.
        settings: sizes and precision.
        positions: P where the settings do not say; at most the network's.
        progress: is told what happens next.

    Raises:
        ConfigError: a network that has no engine, or one too large for the file.
    """
    positions = min(settings.positions or positions, int(network.max_positions))
    arrays = arrays_of(network, positions)
    progress(f"building the engine in {settings.precision}")
    cache = settings.cache or cache_of(settings.precision, arrays.head_size)
    check(cache == "float32" or arrays.head_size % 2 == 0, "EngineSettings.cache",
          f"float32 for heads of {arrays.head_size} numbers", cache)
    decoder = DecoderFile(arrays, settings.precision, cache=cache)
    pages = page_sizes(positions, fine=decoder.one_piece)
    for rows in settings.rows:
        for count in range(1, len(pages) + 1):
            decoder.add_step(f"step_{rows}_{count}", rows, pages[:count])
    for tokens in settings.chunks:
        most = most_pages(tokens, settings.chunks, pages, positions)
        for count in read_pages(most, pages, settings.chunks[-1]):
            decoder.add_read(f"read_{tokens}_{count}", 1, tokens, pages[:count])
    joined = joined_shapes(settings.rows[-1], settings.chunks)
    for rows, tokens in joined:
        decoder.add_read(f"read_{rows}x{tokens}", rows, tokens, ())
    guesses = _add_guesses(decoder, settings.guesses, pages)
    if guesses < settings.guesses:
        progress("the file has no room for the graphs that check guesses")
    manifest = StepEngineManifest(
        kind="litert", precision=settings.precision, vocab_size=len(arrays.vocabulary),
        positions=positions, slots=settings.rows[-1], rows=settings.rows, chunks=settings.chunks,
        pages=pages, layers=len(arrays.layers), groups=arrays.groups, head_size=arrays.head_size,
        joined=joined, cache=cache, guesses=guesses, block_places=decoder.block_places,
        joined_pages=decoder.joined_pages, one_piece=decoder.one_piece)
    return write_engine(manifest, decoder.file.write(), folder)


def _add_guesses(decoder: DecoderFile, guesses: int, pages: Sequence[int]) -> int:
    """Add the graphs that check guesses, as the last ones; return how many guesses they take.

    0 where the file would become one that LiteRT does not read: what it can do without goes.
    """
    there = decoder.file.end
    for count in range(1, len(pages) + 1 if guesses else 1):
        decoder.add_several(f"extend_{guesses + 1}_{count}", guesses + 1, pages[:count])
    if decoder.file.tables <= litert_file.MOST_TABLES:
        return guesses
    decoder.file.cut(there)
    return 0
