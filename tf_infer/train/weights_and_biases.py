"""A run for Weights & Biases: scalars, settings, pictures; its own environment says where to."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_infer.config import TrainConfig, to_json
from tf_infer.errors import BackendMissing
from tf_infer.tasks.base import Task
from tf_infer.train import watch


class WeightsAndBiases:
    """A run of a project; no text of the data goes there.

    Args:
        project: its name.
        folder: where wandb puts its files.

    WANDB_MODE=offline writes files alone, which `wandb sync` sends later.

    Raises:
        BackendMissing: wandb is not installed.
    """

    def __init__(self, project: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise BackendMissing("--wandb needs wandb: pip install 'tf_infer[wandb]'") from error
        self._wandb: Any = wandb
        self._project, self._folder = project, folder
        self._run: Any = None
        self._task: Task | None = None

    def started(self, task: Task, config: TrainConfig, step: Callable[[], tf.Graph]) -> None:
        """Begin a run with its settings."""
        del step
        self._task = task
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=self._project, name=task.config.name, dir=str(self._folder),
            config={"train": to_json(config), "network": to_json(task.config.network)})

    def epoch(self, told: watch.Epoch) -> None:
        """Log its numbers and pictures; each number at its own step."""
        from PIL import Image

        assert self._task is not None
        by_step: dict[int, dict[str, Any]] = {}
        for name, value, number in watch.scalars(told):
            by_step.setdefault(number, {})[name] = value
        for name, png in watch.pictures(told, self._task.config).items():
            by_step.setdefault(told.steps, {})[f"validation/{name}"] = self._wandb.Image(
                Image.open(io.BytesIO(png)))
        for number, values in sorted(by_step.items()):
            self._run.log(values, step=number)

    def ended(self) -> None:
        """End the run."""
        if self._run is not None:
            self._run.finish()
