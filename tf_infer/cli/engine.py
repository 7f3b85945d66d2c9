"""What `tf-infer export --engine` adds: the engine of a decoder, built, and proven on given tokens.

Stages do not import each other; here they are put in a row.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.manifest import PathReport
    from tf_infer.optimize.litert import EngineSettings
    from tf_infer.tasks.base import Task

KIND = "litert"
TEXTS = 200  # to take ids from


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add --engine and --engine-precision."""
    parser.add_argument("--engine", choices=[KIND],
                        help="beside the SavedModel, write an engine of the decoder for our own "
                             "server (docs/engines.md); tensorflow_model_server ignores it")
    parser.add_argument("--engine-precision", choices=["int8", "float32"], default="int8",
                        help="of the engine's weights (default: int8)")


def settings_of(arguments: Any, task: Task) -> EngineSettings | None:
    """Return what the arguments ask for; None without --engine.

    Raises:
        ConfigError: the task is no decoder.
    """
    from tf_infer.config import CausalLMConfig
    from tf_infer.optimize.litert import EngineSettings, row_sizes

    if arguments.engine is None:
        return None
    if not isinstance(task.config, CausalLMConfig):
        raise ConfigError(f"--engine: expected a decoder (causal_lm), got a {task.config.kind}. "
                          "Leave the option out.")
    return EngineSettings(precision=arguments.engine_precision,
                          rows=row_sizes(task.config.grid.rows[-1]))


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

    from tf_infer import config
    from tf_infer.engines import litert, litert_runtime
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import ENGINE_FILE, ENGINES_FOLDER, Report
    from tf_infer.optimize.litert import write
    from tf_infer.tasks.causal_lm import CausalLM
    from tf_infer.verify.engine import EnginePredictor, samples, spread
    from tf_infer.verify.parity import replay, require

    assert isinstance(task, CausalLM)
    release = litert_runtime.release()  # before a minute's work
    folder = extra / ENGINES_FOLDER / KIND
    manifest = write(task.network, folder, settings, positions=task.positions, progress=progress)
    progress(f"comparing the engine under given tokens, up to {manifest.positions} positions")
    engine = litert.load(folder)
    try:
        def logits(ids: np.ndarray) -> np.ndarray:
            return np.asarray(task.network(ids, np.ones(ids.shape, bool)), np.float32)

        wanted = samples(_ids(task, texts), engine, logits)
        report = replay(EnginePredictor(engine), wanted,
                        Tolerance(atol=settings.allowed * spread(wanted), rtol=0.0), path=KIND)
    finally:
        engine.close()
    require(Report(reference="eager", paths=(report,)))
    config.dump(replace(
        manifest, atol=report.atol, library=f"{litert_runtime.PACKAGE} {release}",
        max_abs=max(one.max_abs for one in report.differences)), folder / ENGINE_FILE)
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
