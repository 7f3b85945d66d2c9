"""Engines that lie in a version are paths of `tf-infer verify`: equal, or named as different."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tasks import small
from tf_infer import config
from tf_infer.cli import engine as cli_engine
from tf_infer.cli.engine_paths import engines, served_within
from tf_infer.cli.proof import make_golden
from tf_infer.engines import encoders
from tf_infer.equality import Tolerance
from tf_infer.manifest import (
    ENGINE_FILE,
    EncoderEngineManifest,
    ModelManifest,
    PathReport,
    Sample,
)
from tf_infer.optimize.litert import EngineSettings
from tf_infer.tasks.base import Task
from tf_infer.tasks.build import build
from tf_infer.verify.parity import fill
from tf_infer.verify.predictors import GraphPredictor, Outputs, Predictor

pytestmark = pytest.mark.whole

pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")


def manifest_of(task: Task) -> ModelManifest:
    return ModelManifest(name="m", version=1, task=task.config, grid=task.config.grid,
                         signatures=tuple(one.spec for one in task.signatures().values()))


class Moved:
    """A reference whose outputs of one name are moved by a number."""

    def __init__(self, predictor: Predictor, name: str, by: float) -> None:
        self._predictor, self._name, self._by = predictor, name, by

    def __call__(self, signature: str, inputs: Mapping[str, np.ndarray]) -> Outputs:
        found = dict(self._predictor(signature, inputs))
        if self._name in found:
            found[self._name] = found[self._name] + np.float32(self._by)
        return found


def compared(folder: Path, task: Task, samples: Sequence[Sample], reference: Predictor
             ) -> dict[str, PathReport]:
    told = engines(folder, manifest_of(task), {"": fill(reference, samples)}, reference,
                   lambda line: None)
    return {report.path: report for report in told}


def texts(*rows: str) -> dict[str, np.ndarray]:
    return {"text": np.array([row.encode() for row in rows], object)}


@pytest.mark.slow  # builds a decoder's engine and traces `steps`
def test_a_decoders_engine_is_held_to_the_likeliest_tokens_of_the_version(tmp_path: Path) -> None:
    task = build(small.SHALLOW_DECODER)
    (tmp_path / "assets.extra").mkdir()
    cli_engine.write_engine(task, tmp_path / "assets.extra", EngineSettings(rows=(1, 4)), (b"a",))
    graph = GraphPredictor(task.signatures())
    samples = [Sample("encode", texts("some words to read", "and others 中文"))]
    right = compared(tmp_path, task, samples, graph)["litert"]
    assert right.passed
    assert 0 < right.differences[0].max_abs < right.atol
    most = task.config.top_logprobs  # type: ignore[union-attr]
    assert right.samples == 4 and right.differences[0].elements % most == 0
    wrong = compared(tmp_path, task, samples, Moved(graph, "cache", 1.0))["litert"]
    assert not wrong.passed


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Task]:
    folder, task = tmp_path_factory.mktemp("version"), build(small.CLASSIFIER, seed=1)
    (folder / "assets.extra").mkdir()
    kind = cli_engine.ENCODERS["litert"]
    choice = cli_engine.EncoderChoice(kind, kind.settings("float32", "found"))
    cli_engine.write_encoder_engine(task, folder / "assets.extra", choice, make_golden(task))
    return folder, task


def test_a_classifiers_engine_is_held_to_the_logits_and_to_a_row_alone(
        classifier: tuple[Path, Task]) -> None:
    folder, task = classifier
    graph = GraphPredictor(task.signatures())
    samples = [Sample("serving_default", texts("a", "a longer text", "中文", ""))]
    found = compared(folder, task, samples, graph)
    assert set(found) == {"litert", "litert alone", "litert shuffled"}
    assert all(report.passed for report in found.values())
    assert found["litert"].differences[0].elements == 4 * 3
    wrong = compared(folder, task, samples, Moved(graph, "logits", 0.5))
    assert not wrong["litert"].passed
    assert wrong["litert alone"].passed  # the engine is its own reference there


@pytest.mark.parametrize("as_proven", [True, False])
def test_company_may_move_a_row_on_a_gpu_as_far_as_the_export_allows_and_on_a_cpu_not(
        as_proven: bool, classifier: tuple[Path, Task], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, task = classifier
    inner = encoders.load(folder / "assets.extra" / "engines" / "litert")

    class InCompany:
        """An engine whose rows move with how many there are."""

        manifest = replace(inner.manifest, atol=0.01)
        close = inner.close

        def run(self, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray, *,
                timeout_s: float | None = None) -> np.ndarray:
            return inner.run(ids, mask, segments, timeout_s=timeout_s) + np.float32(
                1e-3 * len(ids))

    engine = InCompany()
    engine.as_proven = as_proven  # type: ignore[attr-defined]
    monkeypatch.setattr(encoders, "KINDS", {"litert": lambda *_: engine})
    samples = [Sample("serving_default", texts("a", "a longer text", "中文", ""))]
    found = compared(folder, task, samples, GraphPredictor(task.signatures()))
    assert found["litert"].passed
    assert found["litert alone"].passed is not as_proven


def test_our_server_may_answer_as_its_engine_does(classifier: tuple[Path, Task]) -> None:
    folder, task = classifier
    file = folder / "assets.extra" / "engines" / "litert" / ENGINE_FILE
    atol = config.load(EncoderEngineManifest, file).atol
    wider = served_within(folder, manifest_of(task), Tolerance(atol=1e-9, rtol=0.0))
    assert atol > 1e-9 and wider.of("logits") == (atol, 0.0)
    assert wider.of("ids") == (1e-9, 0.0)
    assert served_within(folder.parent, manifest_of(task), Tolerance()) == Tolerance()


def test_a_damaged_engine_is_a_path_that_fails(
        classifier: tuple[Path, Task], tmp_path: Path) -> None:
    folder, task = classifier
    place = tmp_path / "assets.extra" / "engines" / "litert"
    place.mkdir(parents=True)
    own = folder / "assets.extra" / "engines" / "litert"
    for path in own.iterdir():
        (place / path.name).write_bytes(path.read_bytes() + (
            b"x" if path.name != ENGINE_FILE else b""))
    samples = [Sample("serving_default", texts("a"))]
    found = compared(tmp_path, task, samples, GraphPredictor(task.signatures()))
    assert not found["litert"].passed
    assert "expected the file of its engine.json" in found["litert"].differences[0].reason
