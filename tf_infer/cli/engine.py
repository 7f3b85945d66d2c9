"""What `tf-infer export --engine` adds: an engine, built, and proven beside its network.

Stages do not import each other; here they are put in a row.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tf_infer.cli.engine_onnx import OnnxKind
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.engines.contracts import EncoderEngine
    from tf_infer.manifest import (
        EncoderEngineManifest,
        EngineKind,
        EngineManifest,
        PathReport,
        Sample,
    )
    from tf_infer.optimize.litert import EngineSettings
    from tf_infer.tasks.base import Task
    from tf_infer.verify.predictors import Predictor

KIND = "litert"
TEXTS = 200  # to take ids from


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --engine-precision, --engine-guesses and --engine-ranges."""
    parser.add_argument("--engine", choices=list(ENCODERS),
                        help="beside the SavedModel, write an engine of the network for our own "
                             "server (docs/engines.md); tensorflow_model_server ignores it")
    parser.add_argument("--engine-precision", choices=["int8", "float16", "float32"],
                        default="int8", help="of the engine's weights (default: int8); float16 is "
                                             "onnx's, for GPUs")
    parser.add_argument("--engine-guesses", type=int, metavar="N",
                        help="of a decoder's engine: tokens that may be guessed from what stands "
                             "in a text already and checked at once (default: 3; 0: none, and a "
                             "little less memory)")
    parser.add_argument("--engine-ranges", choices=["found", "largest", "percentile", "entropy"],
                        default="found",
                        help="of a classifier's engine in int8: what 8 bits reach to is found for "
                             "each text (default; of onnx on CPUs alone), or set once by what the "
                             "texts of --calibrate, else --texts, come to, as TensorRT needs it; "
                             "litert is faster with it, and rounds more")


class EncoderSettings(Protocol):
    """How an engine of a classifier computes, of any kind (optimize/litert_classifier.py).

    Attributes:
        precision: of its weights.
        allowed: how far logits may be from the network's, as a share of their spread.
    """

    @property
    def precision(self) -> str:
        """See the class."""

    @property
    def allowed(self) -> float:
        """See the class."""


class EncoderKind(Protocol):
    """One kind of engines of classifiers: how it is asked for, what it needs, how it is written."""

    kind: EngineKind

    def settings(self, precision: str, ranges: str) -> EncoderSettings:
        """Return settings of a precision, and of how int8 finds ranges.

        Raises:
            ConfigError: there is no such engine.
        """

    def library(self) -> str:
        """Return what computes it, such as "ai-edge-litert 2.3.0".

        Raises:
            BackendMissing: it is not installed.
        """

    def lacking(self, settings: Any) -> str:
        """Return what this machine lacks to serve it, such as a GPU; "" for nothing."""

    def write(self, task: Task, folder: Path, settings: Any, texts: Sequence[bytes],
              progress: Callable[[str], None]) -> EncoderEngineManifest:
        """Write model and description into a folder, which is made; texts may set ranges."""

    def open(self, folder: Path) -> EncoderEngine:
        """Load what was written, to be proven."""


class _LiteRT:
    kind: EngineKind = "litert"

    def settings(self, precision: str, ranges: str) -> EncoderSettings:
        from tf_infer.optimize.litert_classifier import EncoderSettings as Settings

        return Settings(precision=precision, ranges=ranges)  # type: ignore[arg-type]  # it checks

    def library(self) -> str:
        from tf_infer.engines import litert_runtime

        return f"{litert_runtime.PACKAGE} {litert_runtime.release()}"

    def lacking(self, settings: Any) -> str:
        return ""

    def write(self, task: Task, folder: Path, settings: Any, texts: Sequence[bytes],
              progress: Callable[[str], None]) -> EncoderEngineManifest:
        from tf_infer.optimize.litert_classifier import write
        from tf_infer.optimize.texts import in_batches

        batches = [] if settings.ranges == "found" else list(in_batches(task, texts))
        return write(task.network, folder, settings, grid=task.config.grid, batches=batches,
                     progress=progress)

    def open(self, folder: Path) -> EncoderEngine:
        from tf_infer.engines import encoders

        return encoders.load(folder)


ENCODERS: dict[str, EncoderKind] = {one.kind: one for one in (_LiteRT(), OnnxKind())}


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """An engine of a classifier that is to be written."""

    kind: EncoderKind
    settings: EncoderSettings


def settings_of(arguments: Any, task: Task) -> EngineSettings | EncoderChoice | None:
    """Return what the arguments ask for; None without --engine.

    Raises:
        ConfigError: there is no such engine for the task.
    """
    from tf_infer.config import CausalLMConfig, ClassifierConfig
    from tf_infer.optimize.litert import GUESSES, EngineSettings, row_sizes

    if arguments.engine is None:
        return None
    guesses = getattr(arguments, "engine_guesses", None)
    ranges = getattr(arguments, "engine_ranges", "found")
    if isinstance(task.config, ClassifierConfig):
        if guesses is not None:
            raise ConfigError("--engine-guesses: expected it with a decoder (causal_lm), got a "
                              f"{task.config.kind}. Leave the option out.")
        kind = ENCODERS[arguments.engine]
        return EncoderChoice(kind, kind.settings(arguments.engine_precision, ranges))
    if not isinstance(task.config, CausalLMConfig):
        raise ConfigError("--engine: expected a decoder (causal_lm) or a classifier, got a "
                          f"{task.config.kind}. Leave the option out.")
    if arguments.engine != KIND:
        raise ConfigError(f"--engine: expected {KIND} with a decoder, got {arguments.engine}.")
    if arguments.engine_precision == "float16":
        raise ConfigError("--engine-precision: expected int8 or float32 with a decoder, got "
                          "float16.")
    if ranges != "found":
        raise ConfigError(f"--engine-ranges: expected found with a decoder, got {ranges}. Leave "
                          "the option out.")
    return EngineSettings(precision=arguments.engine_precision,
                          rows=row_sizes(task.config.grid.rows[-1]),
                          guesses=GUESSES if guesses is None else guesses)


def write_engine(task: Task, extra: Path, settings: EngineSettings, texts: Sequence[bytes],
                 progress: Callable[[str], None] = lambda line: None) -> PathReport:
    """Write the engine of a decoder into `extra` (a version's assets.extra), and prove it.

    Args:
        task: whose network it computes; run op by op it is the reference.
        extra: folder that exists; `engines/litert` is made in it.
        settings: sizes and precision.
        texts: to take ids from.
        progress: is told what happens next.

    Returns:
        How far the engine's log-probabilities are from the network's, in rows up to a full slot.

    Raises:
        VerificationError: further than the settings allow; carries the report.
        BackendMissing: LiteRT is not installed, so nothing can be proven.
    """
    import numpy as np

    from tf_infer.engines import litert, litert_runtime
    from tf_infer.manifest import ENGINES_FOLDER
    from tf_infer.optimize.litert import write
    from tf_infer.tasks.causal_lm import CausalLM
    from tf_infer.verify.engine import EnginePredictor, samples, spread

    assert isinstance(task, CausalLM)
    release = litert_runtime.release()  # before a minute's work
    folder = extra / ENGINES_FOLDER / KIND
    manifest = write(task.network, folder, settings, positions=task.positions, progress=progress)
    progress(f"comparing the engine under given tokens, up to {manifest.positions} positions")

    def logits(ids: np.ndarray) -> np.ndarray:
        return np.asarray(task.network(ids, np.ones(ids.shape, bool)), np.float32)

    with contextlib.closing(litert.load(folder)) as engine:
        wanted = samples(_ids(task, texts), engine, logits)
        return _proven(EnginePredictor(engine), wanted, settings.allowed * spread(wanted), folder,
                       replace(manifest, library=f"{litert_runtime.PACKAGE} {release}"))


def write_encoder_engine(task: Task, extra: Path, choice: EncoderChoice, golden: Sequence[Sample],
                         texts: Sequence[bytes] = (), *,
                         progress: Callable[[str], None] = lambda line: None) -> PathReport:
    """Write the engine of a classifier into `extra` (a version's assets.extra), and prove it.

    Args:
        task: whose network it computes.
        extra: folder that exists; `engines/<kind>` is made in it.
        choice: kind and settings.
        golden: samples with outputs, among them such of the signature `ids`, in every length.
        texts: that set ranges, where the settings leave them to texts.
        progress: is told what happens next.

    Returns:
        How far the engine's logits are from those of the samples.

    Raises:
        VerificationError: further than the settings allow; carries the report.
        BackendMissing: its library is not installed, so nothing can be proven.
        ConfigError: the network has no engine.
    """
    import numpy as np

    from tf_infer.manifest import ENGINES_FOLDER
    from tf_infer.verify.engine import EncoderPredictor
    from tf_infer.verify.rounding import spread

    library = choice.kind.library()  # before a minute's work
    folder = extra / ENGINES_FOLDER / choice.kind.kind
    manifest = choice.kind.write(task, folder, choice.settings, texts, progress)
    # A network may have rows for more ids than its tokenizer gives; `ids` refuses those.
    manifest = replace(manifest, library=library, vocab_size=task.codec.vocab_size)
    progress(f"comparing the engine on texts of up to {manifest.positions} tokens")
    wanted = [sample for sample in golden if sample.signature == "ids" and len(
        sample.inputs["ids"])]
    apart = np.mean([spread(sample.outputs["logits"]) for sample in wanted])
    with contextlib.closing(choice.kind.open(folder)) as engine:
        return _proven(EncoderPredictor(engine), wanted, choice.settings.allowed * float(apart),
                       folder, manifest)


def _proven(predictor: Predictor, wanted: Sequence[Sample], atol: float, folder: Path,
            manifest: EngineManifest) -> PathReport:
    """Compare an engine with the network's answers, and write what was found beside its model.

    Raises:
        VerificationError: a difference is above `atol`; carries the report.
    """
    from tf_infer import config
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import ENGINE_FILE, Report
    from tf_infer.verify.parity import replay, require

    report = replay(predictor, wanted, Tolerance(atol=atol, rtol=0.0), path=manifest.kind)
    require(Report(reference="eager", paths=(report,)))
    config.dump(replace(manifest, atol=report.atol,
                        max_abs=max(one.max_abs for one in report.differences)),
                folder / ENGINE_FILE)
    return report


def _ids(task: Task, texts: Sequence[bytes]) -> Any:
    """Return the ids of some texts, one after the other."""
    import numpy as np

    from tf_infer.cli.proof import sample_text
    from tf_infer.export.warmup import texts_of_lengths, token_counter
    from tf_infer.verify.predictors import EagerPredictor

    signatures = task.signatures()
    cut = texts_of_lengths(token_counter(signatures), sample_text(texts), task.config.grid.tokens)
    words = np.array([*texts[:TEXTS], *cut], dtype=object)
    encoded = EagerPredictor(signatures)("encode", {"text": words})
    return encoded["ids"][encoded["mask"] > 0]
