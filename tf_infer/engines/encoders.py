"""The kinds of engines of classifiers, and how a folder that an export wrote becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tf_infer import config
from tf_infer.engines.contracts import EncoderEngine
from tf_infer.manifest import ENGINE_FILE, EncoderEngineManifest, EngineKind


def _litert(folder: Path, threads: int) -> EncoderEngine:
    from tf_infer.engines.litert_encoder import load

    return load(folder, threads=threads)


def _onnx(folder: Path, threads: int) -> EncoderEngine:
    from tf_infer.engines.onnx import load

    return load(folder, threads=threads)


# kind -> (its folder, threads) -> engine, warmed up; a version's first of these is taken
KINDS: Mapping[EngineKind, Callable[[Path, int], EncoderEngine]] = {
    "litert": _litert, "onnx": _onnx}


def load(folder: Path, *, threads: int = 2) -> EncoderEngine:
    """Load an engine of a classifier, and warm it up.

    Args:
        folder: `<version>/assets.extra/engines/<kind>`.
        threads: that compute one call.

    Raises:
        BackendMissing: its library is not installed; names the extra that brings it.
        ConfigError: `engine.json` is missing or no such engine's description.
        ExportError: the model file is not the one that was exported, or cannot be run.
    """
    described: EncoderEngineManifest = config.load(EncoderEngineManifest, folder / ENGINE_FILE)
    return KINDS[described.kind](folder, threads)
