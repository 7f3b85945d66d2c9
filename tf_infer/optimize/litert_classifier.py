"""Build the LiteRT engine of a classifier: one file with a graph for each number of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tf_infer.config import ShapeGrid, check
from tf_infer.manifest import EncoderEngineManifest, row_texts, write_engine
from tf_infer.networks.encoder_arrays import EncoderArrays, encoder_arrays_of
from tf_infer.optimize.litert_encoder import EncoderFile, Precision
from tf_infer.optimize.litert_ranges import ranges_of
from tf_infer.optimize.litert_static import LayerRanges

# Share of the spread of logits by which the worst may be off.
TOLERANCE: Mapping[Precision, float] = {"float32": 5e-4, "int8": 0.25}
CALL_TOKENS = 512  # of the largest graphs; what more of them write leaves the caches of cores
ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
FEW_ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSettings:
    """How the LiteRT engine of a classifier computes.

    Attributes:
        precision: of the weights.
        ranges: of int8, what 8 bits reach to in what is multiplied with weights and in what comes
            of it: "found" for each token as it is computed; or set once, from given texts:
            "largest", "percentile" or "entropy" (optimize/ranges.py). Then all that goes through a
            layer's products is 8 bits wide.
        percentile: of "percentile", in percent.
        tolerance: how far logits may be from the network's, as a share of their spread; None takes
            that of the precision.
    """

    precision: Precision = "int8"
    ranges: Literal["found", "largest", "percentile", "entropy"] = "found"
    percentile: float = 99.99
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check(self.precision in TOLERANCE, "EncoderSettings.precision", f"one of {list(TOLERANCE)}",
              self.precision)
        check(self.ranges == "found" or self.precision == "int8", "EncoderSettings.ranges",
              f"'found' with {self.precision}", self.ranges)
        check(0 < self.percentile <= 100, "EncoderSettings.percentile", "a number > 0 and <= 100",
              self.percentile)
        check(self.tolerance is None or self.tolerance >= 0, "EncoderSettings.tolerance",
              "None or a number >= 0", self.tolerance)

    @property
    def allowed(self) -> float:
        """Return `tolerance`, or that of the precision."""
        return TOLERANCE[self.precision] if self.tolerance is None else self.tolerance


def graph_shapes(positions: int, *, packed: bool) -> tuple[tuple[int, int], ...]:
    """Return (rows, tokens) of the graphs for texts of up to `positions` tokens, ascending."""
    widths: list[int] = []
    while not widths or widths[-1] < positions:
        last = widths[-1] if widths else 0
        widths.append(last + (16 if last < 128 else last // 4 // 16 * 16))
    shared = max((width for width in widths if row_texts(width) > 1), default=0) if packed else 0
    # Narrower rows than the shared ones are for a call of one.
    found = [(1, width) for width in range(8, shared, 8)]
    for width in widths:
        if width >= shared:
            sizes = ROWS if width in (shared, widths[-1]) else FEW_ROWS
            found += [(rows, width) for rows in sizes if rows == 1 or rows * width <= CALL_TOKENS]
    return tuple(sorted(found))


def write(network: Any, folder: Path, settings: EncoderSettings, *, grid: ShapeGrid,
          batches: Sequence[Mapping[str, Any]] = (),
          progress: Callable[[str], None] = lambda line: None) -> EncoderEngineManifest:
    """Write `model.tflite` and `engine.json` of a classifier into `folder`, which is made.

    Args:
        network: of a classifier.
        folder: where to.
        settings: precision.
        grid: its last number of tokens is the longest row.
        batches: `ids`, `mask`, `segments` [B, T] of the texts that set ranges.
        progress: is told what happens next.

    Raises:
        ConfigError: a network that has no engine, or one too large for the file. Or ranges are to
            be set, from no texts.
        DataError: texts come to what is no number.
    """
    arrays = encoder_arrays_of(network)
    ranges = None if settings.ranges == "found" else _ranges(arrays, settings, batches, progress)
    positions = min(len(arrays.positions), grid.tokens[-1])
    arrays = replace(arrays, positions=arrays.positions[:positions])
    progress(f"building the engine in {settings.precision}")
    encoder = EncoderFile(arrays, settings.precision, ranges=ranges)
    shapes = graph_shapes(positions, packed=encoder.packed)
    for rows, tokens in shapes:
        encoder.add(f"rows_{rows}_{tokens}", rows, tokens)
    manifest = EncoderEngineManifest(
        kind="litert", precision=settings.precision, vocab_size=len(arrays.words),
        positions=positions, classes=len(arrays.head.logits.kernel), shapes=shapes,
        segments=arrays.segments is not None, packed=encoder.packed,
        fixed_ranges=ranges is not None)
    return write_engine(manifest, encoder.file.write(), folder)


def _ranges(arrays: EncoderArrays, settings: EncoderSettings,
            batches: Sequence[Mapping[str, Any]], progress: Callable[[str], None],
            ) -> tuple[LayerRanges, ...]:
    check(bool(batches), "EncoderSettings.ranges", "'found' where there are no texts to set them "
          "from", settings.ranges, "Give texts.")
    assert settings.ranges != "found"
    progress(f"finding ranges on {sum(len(batch['mask']) for batch in batches)} texts")
    return ranges_of(arrays, batches, settings.ranges, settings.percentile)
