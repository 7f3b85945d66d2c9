"""Build the ONNX engine of a classifier: one file for every number of rows and tokens."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tf_infer.config import ShapeGrid, check
from tf_infer.errors import BackendMissing
from tf_infer.manifest import EncoderEngineManifest, EngineKind, write_engine
from tf_infer.networks.encoder_arrays import EncoderArrays, encoder_arrays_of

if TYPE_CHECKING:
    from tf_infer.optimize.onnx_encoder import Precision

KIND: EngineKind = "onnx"
FILE = "model.onnx"
# Share of the spread of logits by which the worst may be off.
TOLERANCE: Mapping[Precision, float] = {"float32": 5e-4, "float16": 0.02, "int8": 0.25}


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxSettings:
    """How an ONNX engine computes.

    Attributes:
        precision: of weights and of the products with them. float16 is for GPUs.
        ranges: of int8, what 127 stands for in what is multiplied with weights: "found" for each
            text as it is computed, on CPUs alone; or set once, from given texts, as TensorRT needs
            it: "largest", "percentile" or "entropy" (optimize/ranges.py).
        percentile: of "percentile", in percent.
        tolerance: how far logits may be from the network's, as a share of their spread; None takes
            that of the precision.
    """

    precision: Precision = "int8"
    ranges: Literal["found", "largest", "percentile", "entropy"] = "found"
    percentile: float = 99.99
    tolerance: float | None = None

    def __post_init__(self) -> None:
        check(self.precision in TOLERANCE, "OnnxSettings.precision", f"one of {list(TOLERANCE)}",
              self.precision)
        check(self.ranges == "found" or self.precision == "int8", "OnnxSettings.ranges",
              f"'found' with {self.precision}", self.ranges)
        check(0 < self.percentile <= 100, "OnnxSettings.percentile", "a number > 0 and <= 100",
              self.percentile)
        check(self.tolerance is None or (math.isfinite(self.tolerance) and self.tolerance >= 0),
              "OnnxSettings.tolerance", "None or a number >= 0", self.tolerance)

    @property
    def allowed(self) -> float:
        """Return `tolerance`, or that of the precision."""
        return TOLERANCE[self.precision] if self.tolerance is None else self.tolerance


def require_packages(*names: str) -> None:
    """Raise BackendMissing where one of the packages is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise BackendMissing(f"engine onnx: expected the package {name}, got none. Run pip "
                                 "install 'tf-infer[onnx]'.")


def write(network: Any, folder: Path, settings: OnnxSettings, *, grid: ShapeGrid,
          batches: Sequence[Mapping[str, np.ndarray]] = (),
          progress: Callable[[str], None] = lambda line: None) -> EncoderEngineManifest:
    """Write `model.onnx` and `engine.json` of a classifier into `folder`, which is made.

    Args:
        network: of a classifier.
        folder: where to.
        settings: precision.
        grid: rows and tokens that batches have.
        batches: `ids`, `mask`, `segments` [B, T] of the texts that set ranges.
        progress: is told what happens next.

    Raises:
        ConfigError: a network, or a part of one, that has no counterpart; the message names it.
            Or ranges are to be set, from no texts.
        ExportError: onnx's checker refuses the model.
        BackendMissing: the package onnx, or where ranges are set onnxruntime, is not installed.
    """
    require_packages("onnx")
    from tf_infer.optimize.onnx_encoder import model_of

    arrays = encoder_arrays_of(network)
    limits = None if settings.ranges == "found" else _limits(arrays, batches, settings, progress)
    progress(f"building the ONNX engine in {settings.precision}")
    positions = min(len(arrays.positions), grid.tokens[-1])
    tokens = sorted({min(size, positions) for size in grid.tokens})
    manifest = EncoderEngineManifest(
        kind=KIND, file=FILE, precision=settings.precision, vocab_size=len(arrays.words),
        positions=positions, classes=len(arrays.head.logits.kernel),
        shapes=tuple((rows, size) for rows in grid.rows for size in tokens),
        segments=arrays.segments is not None, fixed_ranges=limits is not None)
    return write_engine(manifest, model_of(arrays, settings.precision, limits=limits), folder)


def _limits(arrays: EncoderArrays, batches: Sequence[Mapping[str, np.ndarray]],
            settings: OnnxSettings, progress: Callable[[str], None]) -> dict[str, float]:
    check(any(batch["mask"].any() for batch in batches), "OnnxSettings.ranges",
          "'found' where there are no texts to set them from", settings.ranges, "Give texts.")
    require_packages("onnxruntime")
    from tf_infer.optimize.onnx_limits import limits_of

    assert settings.ranges != "found"
    progress(f"finding ranges on {sum(len(batch['mask']) for batch in batches)} texts")
    return limits_of(arrays, batches, settings.ranges, settings.percentile)
