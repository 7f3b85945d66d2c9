"""What a process of a search builds from: a model directory, or a configuration, drawn weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks import small
from tf_infer import config
from tf_infer.cli import backend, proof
from tf_infer.cli.candidate import build_version, task_of
from tf_infer.tasks import build
from tf_infer.tasks.base import Task
from tf_infer.tuning.build import BuildOrder
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE, Candidate, EngineChoice


def made(model: Path, tokenizer: Path | None = None) -> Task:
    return task_of(BuildOrder(model=str(model), tokenizer=str(tokenizer or ""), base_dir="",
                              candidate=REFERENCE_CANDIDATE, name="m", texts=""))


def weights(task: Task) -> list[np.ndarray]:
    return [weight.numpy() for weight in task.network.weights]


def test_every_process_draws_the_same_weights_for_a_configuration(tmp_path: Path) -> None:
    config.dump(small.BAG, tmp_path / "task.json")
    first, again = (made(tmp_path / "task.json") for _ in range(2))
    assert first.config == small.BAG
    for one, other in zip(weights(first), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_directory_brings_its_own_weights(tmp_path: Path) -> None:
    task = build.build(small.BAG, seed=5)
    build.save(task, tmp_path / "model")
    for one, other in zip(weights(made(tmp_path / "model")), weights(task), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("whole", [False, True], ids=["measured", "chosen"])
def test_ranges_of_an_engine_are_set_by_the_texts_of_calibrate_or_by_those_that_are_asked(
        whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.dump(small.BAG, tmp_path / "task.json")
    for name in ("asked", "other"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    given: list[dict[str, Any]] = []

    def export_task(task: Task, base_dir: Path, **how: Any) -> tuple[Path, None]:
        given.append(how)
        return base_dir, None

    monkeypatch.setattr(proof, "export_task", export_task)
    for name in ("load_tensorflow", "collect_seldom"):
        monkeypatch.setattr(backend, name, lambda: None)
    for ranges in ("percentile", "found"):
        for calibrate in ("", str(tmp_path / "other.txt")):
            build_version(BuildOrder(
                model=str(tmp_path / "task.json"), base_dir=str(tmp_path), name="m", whole=whole,
                texts=str(tmp_path / "asked.txt"), calibrate=calibrate, candidate=Candidate(
                    engine=EngineChoice(kind="litert", precision="int8", ranges=ranges))))
    assert [(how["engine"].kind.kind, how["engine"].settings.ranges) for how in given] == [
        ("litert", "percentile"), ("litert", "percentile"), ("litert", "found"),
        ("litert", "found")]
    assert [how["calibration"] or how["texts"] for how in given] == [(b"asked",), (b"other",)] * 2
