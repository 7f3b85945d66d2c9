"""Which of a version's engines computes a classifier, and how far its answers may be off."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tf_infer.config import ClassifierConfig
from tf_infer.engines import encoders
from tf_infer.engines.contracts import EncoderEngine
from tf_infer.equality import FLOAT32_ATOL, Tolerance
from tf_infer.errors import BackendMissing, NotOffered
from tf_infer.manifest import ENGINE_FILE, EngineKind, ModelManifest, engine_folder
from tf_infer.server import cpus
from tf_infer.server.config import ClassifierEngine
from tf_infer.server.logs import event

# How many times what an export found a golden sample's logits may be off when it is asked again:
# its numbers are the same, and of those that another CPU's kernels add in another order only the
# few that lie halfway are rounded otherwise.
ROOM = 2.0


def engine_of(path: Path, manifest: ModelManifest | None, wanted: ClassifierEngine,
              ) -> EncoderEngine | None:
    """Load the engine of a classifier.

    Args:
        path: version directory.
        manifest: of the version; None where it is not ours.
        wanted: as `ServerConfig.classifier_engine`.

    Returns:
        The engine; None where the SavedModel is to be run: it is no classifier, carries no engine,
        or its engine's library is missing, which is logged.

    Raises:
        NotOffered: an engine is asked for by name, which the version does not carry.
        BackendMissing: ... or whose library is missing.
        ConfigError, ExportError: the engine is not as it was exported.
    """
    if wanted == "saved_model" or manifest is None or not isinstance(
            manifest.task, ClassifierConfig):
        return None
    kinds = [kind for kind in kinds_in(path) if wanted in ("auto", kind)]
    if not kinds and wanted != "auto":
        raise NotOffered(f"--classifier_engine={wanted}: expected a version with an engine of this "
                         "kind, got one without. Export it with its engine, or leave the flag out.")
    for kind in kinds:
        try:
            engine = encoders.load(engine_folder(path, kind), threads=cpus.usable())
        except BackendMissing as error:
            if wanted != "auto":
                raise
            event("load", logging.WARNING, path=path, passed_over=kind, error=str(error))
            continue
        event("load", path=path, engine=kind, precision=engine.manifest.precision)
        return engine
    return None


def kinds_in(path: Path) -> list[EngineKind]:
    """Return the kinds of engines that a version of a classifier carries; the first is taken."""
    return [kind for kind in encoders.KINDS if (engine_folder(path, kind) / ENGINE_FILE).is_file()]


def replay_atol(engine: EncoderEngine) -> float:
    """Return how far logits of golden samples, which were proven at export, may be off at load.

    What was found at export says more of them than what was allowed there, which another network
    would pass, too. On a GPU, where nothing was proven, what was allowed is all that is known.
    """
    described = engine.manifest
    if not engine.as_proven:
        return described.atol
    return min(described.atol, ROOM * described.max_abs + FLOAT32_ATOL)


def bounds_of(atol: float, temperature: float) -> dict[str, tuple[float, float]]:
    """Return how far answers may be from the network's, as `Tolerance.outputs`.

    A score moves by no more than half of what a logit moves behind the temperature.

    Args:
        atol: of a logit.
        temperature: of the classifier.
    """
    scores = (min(1.0, atol / (2 * temperature)), 0.0)
    return {"logits": (atol, 0.0), "scores": scores, "score": scores}


def within(atol: float, temperature: float, tolerance: Tolerance) -> Tolerance:
    """Return what counts as equal where an engine computes the network.

    Which of several labels are given follows from the scores; near a threshold either is right.

    Args:
        atol, temperature: as of `bounds_of`.
        tolerance: what counts as equal for its SavedModel.
    """
    return replace(tolerance, ignored=frozenset({"labels"}),
                   outputs=bounds_of(atol, temperature))
