"""One candidate of `tf-infer optimize`, proven and exported: what a process of the search does.

Stages do not import each other; here they are put in a row.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from tf_infer import config as configs
from tf_infer.cli import texts
from tf_infer.config import TaskConfig

if TYPE_CHECKING:
    from tf_infer.tasks.base import Task
    from tf_infer.tuning.build import BuildOrder

ONLY_MEASURED = "a version that is only measured: by the path that serves it"


def build_version(order: BuildOrder) -> Path:
    """Prove and export one candidate; what a process of a search is told to do.

    Raises:
        TfInferError: it cannot be built; VerificationError where its answers differ.
    """
    from tf_infer.cli.backend import collect_seldom, load_tensorflow

    load_tensorflow()
    collect_seldom()
    from tf_infer.cli.engine import settings_of
    from tf_infer.cli.proof import Progress, export_task, read_texts

    candidate = order.candidate
    task, asked = task_of(order), SimpleNamespace(engine=None, engine_precision="int8")
    if candidate.prune is not None:
        from tf_infer.optimize.prune import PruneSettings, prune
        from tf_infer.train import data

        settings = configs.from_json(PruneSettings, candidate.prune, where="--prune")
        task = prune(task, settings, [
            data.to_bytes(one.text) if one.text_pair is None
            else (data.to_bytes(one.text), data.to_bytes(one.text_pair))
            for one in texts.examples(Path(order.texts))])
    if candidate.engine is not None:
        asked = SimpleNamespace(engine=candidate.engine.kind,
                                engine_precision=candidate.engine.precision,
                                engine_ranges=candidate.engine.ranges)
    folder, _ = export_task(
        task, Path(order.base_dir), name=order.name, texts=read_texts(Path(order.texts)),
        plan=candidate.plan, engine=settings_of(asked, task),
        calibration=read_texts(Path(order.calibrate)) if order.calibrate else (),
        xla=order.whole and order.xla, server=order.whole,
        max_rows=order.max_rows, search=order.search,
        skipped={} if order.whole else dict.fromkeys(("graph", "saved_model"), ONLY_MEASURED),
        progress=Progress())
    return folder


def task_of(order: BuildOrder) -> Task:
    """Return the task of a model directory, or of a configuration with drawn weights."""
    from tf_infer.tasks import build

    model = Path(order.model)
    if model.suffix != ".json":
        return build.load(model)
    config: TaskConfig = configs.load(TaskConfig, model)
    return build.build(config, tokenizer_dir=Path(order.tokenizer) if order.tokenizer else None)
