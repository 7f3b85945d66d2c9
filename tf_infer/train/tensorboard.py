"""A run for TensorBoard: scalars, the graph of a step, pictures of validation, samples of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_infer.config import TrainConfig, to_json
from tf_infer.tasks.base import Task
from tf_infer.train import watch


class Scalars:
    """The numbers of a run alone; each epoch's at once, so that none is written twice."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def started(self, task: Task, config: TrainConfig, step: Callable[[], tf.Graph]) -> None:
        """Open the file."""
        del task, config, step
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def epoch(self, told: watch.Epoch) -> None:
        """Write its numbers."""
        with self._writer.as_default():
            for name, value, number in watch.scalars(told):
                tf.summary.scalar(name, value, step=number)
        self._writer.flush()

    def ended(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class TensorBoard(Scalars):
    """All that TensorBoard shows of a run.

    Args:
        folder: of the event files.
        texts: what to ask after each epoch; the files then hold these texts and the answers.
    """

    def __init__(self, folder: Path, *, texts: Sequence[tuple[bytes, bytes | None]] = ()) -> None:
        super().__init__(folder)
        self._texts = texts
        self._task: Task | None = None
        self._samples: watch.Samples | None = None

    def started(self, task: Task, config: TrainConfig, step: Callable[[], tf.Graph]) -> None:
        """Write settings and the graph of one step."""
        super().started(task, config, step)
        self._task = task
        self._samples = watch.Samples(task, self._texts) if self._texts else None
        with self._writer.as_default():
            tf.summary.graph(step())
            tf.summary.text("settings/train", _table(to_json(config)), step=0)
            tf.summary.text("settings/network", _table(to_json(task.config.network)), step=0)

    def epoch(self, told: watch.Epoch) -> None:
        """Write numbers, pictures, samples."""
        assert self._task is not None
        with self._writer.as_default():
            for name, png in watch.pictures(told, self._task.config).items():
                tf.summary.image(f"validation/{name}", tf.io.decode_png(png, channels=3)[None],
                                 step=told.steps)
            if self._samples is not None:
                tf.summary.text("samples", self._samples.table(), step=told.steps)
        super().epoch(told)


def _table(settings: dict[str, Any]) -> str:
    return "\n".join(["| setting | value |", "| --- | --- |",
                      *(f"| {name} | {value} |" for name, value in settings.items())])
