"""The ONNX engine of a classifier: an EncoderEngine over the file that optimize/onnx.py writes.

On the CPU every row is computed for itself at its own length: no padding is computed, and no row
sees another one's numbers, of which an int8 product takes the range. On a GPU rows are joined and
padded to the shapes that its engine was built for, or that were recorded (onnx_recorded.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from tf_infer.engines import files, gpus, onnx_runtime
from tf_infer.engines.deadline import Deadline
from tf_infer.engines.onnx_recorded import Recorded, alone, by_its_thread
from tf_infer.engines.onnx_runtime import Provider, Shapes
from tf_infer.engines.packing import Group, Placed, Sizes, lengths_of
from tf_infer.errors import ConfigError
from tf_infer.manifest import EncoderEngineManifest

LOG = logging.getLogger(__name__)
INPUTS, LOGITS = ("ids", "mask", "segments"), "logits"


def load(folder: Path, *, threads: int = 2, warm_up: bool = True,
         provider: Provider | None = None, cache: Path | None = None) -> OnnxEngine:
    """Load the engine that an export wrote.

    Args:
        folder: `<version>/assets.extra/engines/onnx`.
        threads: that compute one call, on the CPU.
        warm_up: run every shape once, so that no later call is the first of its size.
        provider: of ONNX Runtime; None takes TensorRT, CUDA or the CPU, the first of them that is
            there and can be loaded; what was passed over is logged. int8 whose ranges are found as
            it runs is computed on the CPU alone, and float16 on a GPU, unless the CPU is asked for.
        cache: where engines of TensorRT are kept; None takes the user's own cache.

    Raises:
        BackendMissing: ONNX Runtime is not installed, or has not what was asked for, or there is
            no GPU; names what to install.
        ConfigError: `engine.json` is missing or no engine's description.
        ExportError: the model file is not the one that was exported, or cannot be run.
    """
    described, path = files.read(EncoderEngineManifest, folder)
    engine = onnx_runtime.first_that_loads(
        providers_of(described.precision, fixed_ranges=described.fixed_ranges, wanted=provider),
        lambda one: OnnxEngine(described, path, one, threads=threads, cache=cache),
        passed_over=lambda error: LOG.warning("passed over: %s", error))
    if engine.records and warm_up:
        try:
            engine.warm_up()
            return engine
        except Exception as error:  # something else uses the GPU; ONNX Runtime's have no base
            LOG.warning("calls are not recorded: %s", error)
            engine.close()
        engine = OnnxEngine(described, path, engine.provider, threads=threads, cache=cache,
                            recorded=False)
    with files.made_ready(engine):
        if warm_up:
            engine.warm_up()
        return engine


def providers_of(precision: str, *, fixed_ranges: bool, wanted: Provider | None = None
                 ) -> tuple[Provider, ...]:
    """Return what may compute an engine on this machine, the fastest first.

    Args:
        precision, fixed_ranges: of the engine.
        wanted: as of `load`.

    Raises:
        BackendMissing, ConfigError: see `load`.
    """
    runtime = onnx_runtime.library()
    if precision == "int8" and not fixed_ranges:
        if wanted not in (None, "cpu"):
            raise ConfigError("provider: expected cpu with an engine in int8 whose ranges are "
                              f"found as it runs, got {wanted!r}. Export it in float16, or with "
                              "ranges that are set from texts.")
        wanted = "cpu"
    return onnx_runtime.choose(wanted, runtime.get_available_providers(), gpus.found(),
                               on_cpu=precision != "float16")


class OnnxEngine:
    """An `EncoderEngine` (engines/contracts.py).

    Args:
        manifest: what the file holds.
        path: of the model file.
        provider: that computes.
        threads: that compute one call, on the CPU.
        cache: where engines of TensorRT are kept.
        recorded: record calls on CUDA, where that can be (onnx_recorded.py).
    """

    def __init__(self, manifest: EncoderEngineManifest, path: Path, provider: Provider, *,
                 threads: int = 2, cache: Path | None = None, recorded: bool = True) -> None:
        self.manifest, self.provider = manifest, provider
        self.as_proven = provider == "cpu"
        self._sizes = Sizes(manifest.shapes, packed=False)
        self._inputs = INPUTS if manifest.segments else INPUTS[:2]
        opened = partial(
            onnx_runtime.open_session, path, provider, profile(manifest.shapes), self._inputs,
            sha256=manifest.sha256, threads=threads, cache=cache,
            recorded=recorded and provider != "cpu" and alone())
        self._session = opened() if provider == "cpu" else by_its_thread(opened)
        self._recorded = Recorded(self._session, LOGITS, manifest.classes) if (
            onnx_runtime.records(self._session)) else None

    def run(self, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray, *,
            timeout_s: float | None = None) -> np.ndarray:
        """Compute the logits of rows; see `EncoderEngine`."""
        deadline = Deadline(timeout_s)
        rows = {"ids": np.asarray(ids, np.int32), "mask": np.asarray(mask, bool),
                "segments": np.asarray(segments, np.int32)}
        shapes = {name: array.shape for name, array in rows.items()}
        if len(set(shapes.values())) > 1 or rows["ids"].ndim != 2:
            raise ConfigError(f"ids, mask, segments: expected the same [B, T], got {shapes}.")
        widths = np.maximum(lengths_of(rows["mask"]), 1)
        if len(widths) and widths.max() > self.manifest.positions:
            raise ConfigError(f"mask: expected rows of at most {self.manifest.positions} ids, got "
                              f"{widths.max()} in row {int(widths.argmax())}.")
        logits = np.empty((len(widths), self.manifest.classes), np.float32)
        for group in self._groups(widths):
            deadline.check()
            places = [placed.text for placed in group.texts]
            given = {name: _cut(rows[name], places, group.rows, group.tokens)
                     for name in self._inputs}
            logits[places] = self._compute(given, deadline)[:len(places)]
        return logits

    def _compute(self, given: dict[str, np.ndarray], deadline: Deadline) -> np.ndarray:
        if self.provider == "cpu":
            return self._plain(given)
        compute = self._plain if self._recorded is None else self._recorded.run
        return by_its_thread(partial(compute, given), deadline)

    def _plain(self, given: dict[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = self._session.run(None, given)[0]
        return found

    def warm_up(self) -> None:
        """Run every shape once."""
        for rows, tokens in self.manifest.shapes:
            if self.provider != "cpu" or rows == self.manifest.shapes[0][0]:
                shape = (rows, min(tokens, self.manifest.positions))
                zeros = np.zeros(shape, np.int32)
                self.run(zeros, np.ones(shape, bool), zeros)

    @property
    def records(self) -> bool:
        """Whether its calls are recorded."""
        return self._recorded is not None

    def close(self) -> None:
        """Free the model; no call follows."""
        recorded, held = self._recorded, [self._session]
        del self._session, self._recorded
        if self.provider == "cpu":
            return
        if recorded is not None:
            by_its_thread(recorded.close)
        by_its_thread(held.clear)  # what frees memory of the GPU, too, does so on that thread

    def _groups(self, widths: np.ndarray) -> list[Group]:
        """Decide which rows are computed together, and in which shape."""
        if self.provider == "cpu":
            return [Group(1, int(width), (Placed(row, 0, 0, 0),))
                    for row, width in enumerate(widths)]
        return self._sizes.groups(widths.tolist())


def profile(shapes: Sequence[tuple[int, int]]) -> Shapes:
    """Return the shapes that TensorRT has to know, from all that there are."""
    rows, tokens = (sorted({shape[axis] for shape in shapes}) for axis in (0, 1))
    return Shapes((rows[0], tokens[0]), (rows[len(rows) // 2], tokens[len(tokens) // 2]),
                  (rows[-1], tokens[-1]))


def _cut(array: np.ndarray, places: Sequence[int], rows: int, tokens: int) -> np.ndarray:
    """Return some rows of an array, cut or filled up with 0 to [rows, tokens]."""
    part = array[places, :tokens]
    if part.shape == (rows, tokens):
        return np.ascontiguousarray(part)
    made = np.zeros((rows, tokens), array.dtype)
    made[:part.shape[0], :part.shape[1]] = part
    return made
