"""What a process of a search builds from: a model directory, or a configuration, drawn weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.tasks import small
from tf_infer import config
from tf_infer.cli.candidate import task_of
from tf_infer.tasks import build
from tf_infer.tasks.base import Task
from tf_infer.tuning.build import BuildOrder
from tf_infer.tuning.candidates import REFERENCE_CANDIDATE


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
