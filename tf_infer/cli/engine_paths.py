"""Each engine of a version directory beside its SavedModel, under the same ids, for `verify`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.errors import BackendMissing, TfInferError

if TYPE_CHECKING:
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import ModelManifest, PathReport, Sample
    from tf_infer.verify.predictors import Predictor

Sets = Mapping[str, "Sequence[Sample]"]


def engines(folder: Path, manifest: ModelManifest, sets: Sets, reference: Predictor,
            progress: Callable[[str], None]) -> tuple[PathReport, ...]:
    """Compare each engine of a version with its SavedModel, under the same ids.

    Args:
        folder: the version directory.
        manifest: its own.
        sets: requests with outputs; those of serving_default say which texts a classifier reads.
        reference: the SavedModel.
        progress: is told which one is next.
    """
    from tf_infer.manifest import ENGINE_FILE, ENGINES_FOLDER, EXTRA_FOLDER
    from tf_infer.verify.parity import failed, not_compared

    found: list[PathReport] = []
    for place in sorted((folder / EXTRA_FOLDER / ENGINES_FOLDER).glob(f"*/{ENGINE_FILE}")):
        progress(f"comparing the engine {place.parent.name}")
        compare = _decoder if manifest.task.kind == "causal_lm" else _classifier
        try:
            found += compare(place.parent, manifest, sets, reference)
        except BackendMissing as error:
            found.append(not_compared(place.parent.name, str(error)))
        except TfInferError as error:
            found.append(failed(place.parent.name, error))
    return tuple(found)


def _decoder(folder: Path, manifest: ModelManifest, sets: Sets, reference: Predictor
             ) -> list[PathReport]:
    from tf_infer.engines import litert
    from tf_infer.verify import parity
    from tf_infer.verify.engine import EnginePredictor, served_samples

    if not getattr(manifest.task, "top_logprobs", 0):
        return [parity.not_compared(folder.name, "the version tells no alternatives of a token "
                                    "(top_logprobs is 0)")]
    engine = litert.load(folder)
    try:
        ids = [sample.outputs["ids"][sample.outputs["mask"] != 0]
               for samples in sets.values() for sample in samples if sample.signature == "encode"]
        wanted = served_samples(_joined(ids), engine, manifest.signature("steps"), reference)
        return [parity.replay(EnginePredictor(engine), wanted, _within(engine.manifest.atol),
                              path=folder.name)]
    finally:
        engine.close()


def _classifier(folder: Path, manifest: ModelManifest, sets: Sets, reference: Predictor
                ) -> list[PathReport]:
    from tf_infer.engines import encoders
    from tf_infer.equality import Tolerance
    from tf_infer.verify import parity
    from tf_infer.verify.batch_effects import batch_effects
    from tf_infer.verify.engine import EncoderPredictor, encoder_samples

    engine = encoders.load(folder)
    try:
        predictor = EncoderPredictor(engine)
        wanted = {name: encoder_samples(samples, reference) for name, samples in sets.items()}
        found, _ = parity.replay_sets(lambda: predictor, wanted, _within(engine.manifest.atol),
                                      path=folder.name)
        every = [sample for samples in wanted.values() for sample in samples]
        # A GPU adds in another order in other company (engines/contracts.py).
        alike = Tolerance() if engine.as_proven else _within(engine.manifest.atol)
        return [*found, *batch_effects(predictor, every, alike, path=folder.name)]
    finally:
        engine.close()


def served_within(folder: Path, manifest: ModelManifest | None, tolerance: Tolerance) -> Tolerance:
    """Return how far answers of our own server may be: an engine answers for a classifier there."""
    from dataclasses import replace

    from tf_infer import config
    from tf_infer.manifest import ENGINE_FILE, EncoderEngineManifest, engine_folder
    from tf_infer.server.encoder_engines import bounds_of, kinds_in

    if manifest is None or not isinstance(manifest.task, config.ClassifierConfig):
        return tolerance
    kinds = kinds_in(folder)
    if not kinds:
        return tolerance
    described: EncoderEngineManifest = config.load(
        EncoderEngineManifest, engine_folder(folder, kinds[0]) / ENGINE_FILE)
    wider = {name: (max(atol, tolerance.atol), tolerance.rtol)
             for name, (atol, _) in bounds_of(described.atol, manifest.task.temperature).items()}
    return replace(tolerance, ignored=tolerance.ignored | {"labels"},  # which follow from scores
                   outputs={**tolerance.outputs, **wider})


def _within(atol: float) -> Tolerance:
    from tf_infer.equality import Tolerance

    return Tolerance(atol=atol, rtol=0.0)


def _joined(ids: Sequence[Any]) -> Any:
    import numpy as np

    return np.concatenate(ids)
