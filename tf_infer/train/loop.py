"""fit and evaluate: a reproducible loop that goes on where it was interrupted."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tf_infer.config import TrainConfig, to_json
from tf_infer.errors import ConfigError, DataError
from tf_infer.tasks.base import Task
from tf_infer.train import checkpoint
from tf_infer.train.batches import Plan, plan, split
from tf_infer.train.checkpoint import State, assign, values
from tf_infer.train.data import Example
from tf_infer.train.distill import Teacher, distilled
from tf_infer.train.objectives import NextId, Objective, digest, objective_for
from tf_infer.train.schedule import optimizer, rate
from tf_infer.train.tensorboard import Scalars
from tf_infer.train.watch import Epoch, Watcher

LOG = logging.getLogger(__name__)
EVALUATION_ROWS = 64
# The average starts as the weights themselves and slows down over its first steps.
AVERAGE_RAMP_STEPS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What a run gave.

    Attributes:
        epochs: of each epoch what was measured: "loss" (training, nats, with dropout and
            smoothing), "learning_rate", "seconds", and with validation rows "validation", which
            holds what `evaluate` returns, without its classes.
        best_epoch: whose weights the task has now, counted from 1.
        stopped_early: whether `patience` ended the run.
    """

    epochs: tuple[dict[str, Any], ...]
    best_epoch: int
    stopped_early: bool


def fit(task: Task, examples: Sequence[Example], config: TrainConfig, *,
        validation: Sequence[Example] | None = None, run_dir: Path | None = None,
        resume: bool = False, progress: bool | None = None,
        teacher: Teacher | None = None, watchers: Sequence[Watcher] = ()) -> History:
    """Change a task's weights so that it answers like the examples, or like a teacher.

    Args:
        task: its network is trained in place; a classifier with `frozen` trains its head alone.
        examples: training rows.
        config: how.
        validation: rows that choose the best epoch; None takes `config.validation_fraction` of the
            examples, of a decoder's documents that share of the rows they are cut into.
        run_dir: where TensorBoard scalars and, after every epoch, a checkpoint go; None keeps
            nothing.
        resume: go on with the run in `run_dir`; starts one where there is none.
        progress: show bars; None shows them on a terminal only.
        teacher: a trained task whose answers to the examples are learned beside their labels, or
            instead of them; validation is by the labels all the same.
        watchers: are told of each epoch, beside the scalars that `run_dir` gets.

    Returns:
        What was measured; the task then has the weights of the best epoch.

    Raises:
        DataError: no examples, labels the task does not know, one label only, too few rows to hold
            some out.
        ConfigError: `run_dir` holds another run; the teacher answers other questions; the loss is
            no number any more (the task then has the weights of the best epoch so far).
        CheckpointError: a checkpoint cannot be written or read.

    The same task, examples and configuration give the same weights on the same machine, whether or
    not the run was interrupted. Interrupted within an epoch, the run goes on at its beginning.
    """
    ticker = functools.partial(bar, progress=progress)
    objective = distilled(task, config, teacher) if teacher else objective_for(task, config)
    if not examples:
        raise DataError("examples: expected at least one, got none.")
    if validation is None and config.validation_fraction:
        if config.epoch_steps is not None:
            raise ConfigError("TrainConfig.validation_fraction: expected 0 or validation rows of "
                              "their own with epoch_steps, whose rows begin anywhere, got "
                              f"{config.validation_fraction!r}.")
        rows, held_rows = _held_out(objective, examples, config, ticker)
    else:
        rows = objective.rows(examples, training=True, ticker=ticker)
        held_rows = (objective.rows(validation, training=False, ticker=ticker) if validation
                     else None)
    run = _Run(task, objective, config, rows, held_rows, run_dir, ticker)
    if teacher:
        run.started_with["teacher"] = teacher.told()
    run.start(resume=resume, watchers=watchers)
    return run.finish()


def _held_out(objective: Objective, examples: Sequence[Example], config: TrainConfig, ticker: Any
              ) -> tuple[Any, Any]:
    """Return the rows to train on and those held out; one document of a decoder gives both."""
    part = functools.partial(split, fraction=config.validation_fraction, seed=config.seed)
    if isinstance(objective, NextId):
        rows = objective.rows(examples, training=True, ticker=ticker)
        training, held = part(len(rows.targets))
        return rows.take(training), rows.take(held)
    training, held = part(len(examples))
    return (objective.rows([examples[i] for i in training], training=True, ticker=ticker),
            objective.rows([examples[i] for i in held], training=False, ticker=ticker))


def evaluate(task: Task, examples: Sequence[Example], *, block_tokens: int = 128,
             progress: bool | None = None) -> dict[str, Any]:
    """Measure a task on examples.

    Args:
        task: as it would be served, weights included.
        examples: rows with labels; documents for a decoder.
        block_tokens: length of a decoder's rows, as in `TrainConfig`.
        progress: show bars; None shows them on a terminal only.

    Returns:
        "rows" and "loss" (nats a row, or an id of a decoder). Classifiers: "accuracy" (of several
        labels: share of rows right as a whole), "macro_f1", "calibration_error" or "micro_f1", and
        "classes": name -> precision, recall, f1, rows. Decoders: "perplexity" of an id.

    Raises:
        DataError: no examples, or labels the task does not know.
    """
    ticker = functools.partial(bar, progress=progress)
    if not examples:
        raise DataError("examples: expected at least one, got none.")
    objective = objective_for(task, TrainConfig(block_tokens=block_tokens))
    rows = objective.rows(examples, training=False, ticker=ticker)
    return _Judge(objective, rows)(ticker).found


class _Judged(NamedTuple):
    """What was found, of which answers [N, ...] and targets."""

    found: dict[str, Any]
    answers: np.ndarray
    targets: np.ndarray


class _Judge:
    """Evaluates rows again and again, with one traced function."""

    def __init__(self, objective: Objective, rows: Any) -> None:
        self.objective = objective
        self.rows = rows
        self.plan = plan(rows.lengths(), objective.buckets, batch_rows=EVALUATION_ROWS, seed=None)
        self.data = objective.dataset(rows, self.plan)
        self.read = tf.function(functools.partial(objective.losses, training=False),
                                input_signature=[self.data.element_spec], autograph=False)

    def __call__(self, ticker: Any) -> _Judged:
        total = weight = 0.0
        answers: list[np.ndarray] = []
        for batch in ticker(self.data, "evaluate"):
            nats, weights, answer = self.read(batch)
            total += float(np.sum(nats, dtype=np.float64))
            weight += float(np.sum(weights, dtype=np.float64))
            answers.append(answer.numpy())
        targets = self.rows.targets[np.concatenate(self.plan.rows)]
        every = np.concatenate(answers)
        return _Judged(self.objective.judge(every, targets, total / weight), every, targets)


class _Run:
    """One call of `fit`."""

    def __init__(self, task: Task, objective: Objective, config: TrainConfig, rows: Any,
                 held_rows: Any, run_dir: Path | None, ticker: Any) -> None:
        self.objective, self.config, self.rows = objective, config, rows
        self.task, self.run_dir, self.ticker = task, run_dir, ticker
        self.variables = objective.variables
        self.random_states = random_states(task.network)
        self.judge = _Judge(objective, held_rows) if held_rows is not None else None
        first = objective.epoch_rows(rows, 0)
        self.epoch_steps = len(self._plan(first, 0).rows)
        self.steps = self.epoch_steps * config.epochs
        self.optimizer = optimizer(config, self.variables, self.steps)
        self.average = ([keras.Variable(variable, trainable=False) for variable in self.variables]
                        if config.average_decay else [])
        # A batch is divided by the mean weight of all batches, so that every row of an epoch
        # counts the same, in a batch that is not full too.
        self.scale = float(objective.weights(first).sum()) / self.epoch_steps
        self.started_with = {"config": to_json(config), "task": to_json(task.config),
                             "data": digest(rows, held_rows)}
        self.epochs: list[dict[str, Any]] = []
        self.best = values(self.variables)
        data = objective.dataset(first, self._plan(first, 0))
        self.step = tf.function(self._step, input_signature=[data.element_spec],
                                autograph=False)

    def start(self, *, resume: bool, watchers: Sequence[Watcher] = ()) -> None:
        """Read the checkpoint if there is one, and run the epochs that are left."""
        self._restore(resume=resume)
        told = [*watchers, *([Scalars(self.run_dir)] if self.run_dir else [])]
        with contextlib.ExitStack() as stack:
            for watcher in told:
                stack.callback(watcher.ended)
                watcher.started(self.task, self.config,
                                lambda: self.step.get_concrete_function().graph)
            while len(self.epochs) < self.config.epochs and not self._stopped():
                self._run_epoch(told)

    def _run_epoch(self, watchers: Sequence[Watcher]) -> None:
        began = time.perf_counter()
        step_losses = self._epoch(len(self.epochs))
        last = values(self.variables)
        assign(self.variables, values(self.average))  # nothing without an average
        told = self._close_epoch(step_losses, began)
        for watcher in watchers:
            watcher.epoch(told)
        assign(self.variables, last)
        if self.run_dir:
            self._save()

    def finish(self) -> History:
        """Give the task its best weights."""
        assign(self.variables, self.best)
        return History(epochs=tuple(self.epochs), best_epoch=best_epoch(self._ranks()) + 1,
                       stopped_early=self._stopped())

    # ------------------------------------------------------------------ one epoch

    def _plan(self, rows: Any, epoch: int) -> Plan:
        return plan(rows.lengths(), self.objective.buckets, seed=self.config.seed,
                    batch_rows=self.config.batch_rows, epoch=epoch)

    def _epoch(self, epoch: int) -> list[float]:
        """Run the steps of an epoch; return the loss of each."""
        seed_states(self.random_states, self.config.seed, epoch)
        step_losses: list[float] = []
        rows = self.objective.epoch_rows(self.rows, epoch)
        batches = self.objective.dataset(rows, self._plan(rows, epoch))
        for batch in self.ticker(batches, f"epoch {epoch + 1}/{self.config.epochs}"):
            loss = float(self.step(batch))
            if not math.isfinite(loss):
                assign(self.variables, self.best)
                raise ConfigError(
                    f"TrainConfig.learning_rate: expected one at which the loss stays a number, "
                    f"got {self.config.learning_rate!r} and a loss of {loss} in epoch {epoch + 1}, "
                    f"step {len(step_losses) + 1}. Lower it, or set clip_norm.")
            step_losses.append(loss)
        return step_losses

    def _step(self, batch: tuple[tf.Tensor, ...]) -> tf.Tensor:
        now = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        with tf.GradientTape() as tape:
            nats, weights, _ = self.objective.losses(
                batch, training=True, seed=tf.stack([self.config.seed % 2**31, now]))
            loss = tf.reduce_sum(nats) / self.scale
        gradients = tape.gradient(loss, [variable.value for variable in self.variables],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        self.optimizer.apply(gradients, self.variables)
        if self.average:
            steps = tf.cast(now, tf.float32)
            kept = tf.minimum(self.config.average_decay, steps / (steps + AVERAGE_RAMP_STEPS))
            for mean, variable in zip(self.average, self.variables):
                mean.assign(mean * kept + variable * (1.0 - kept))
        return tf.reduce_sum(nats) / tf.reduce_sum(weights)

    def _close_epoch(self, step_losses: Sequence[float], began: float) -> Epoch:
        """Judge the weights, note what was found, and keep them if they are the best."""
        done = self.epoch_steps * (len(self.epochs) + 1)
        found: dict[str, Any] = {"loss": float(np.mean(step_losses)),
                                 "learning_rate": rate(self.config, done - 1, self.steps)}
        judged = self.judge(self.ticker) if self.judge else None
        if judged:
            found["validation"] = {name: value for name, value in judged.found.items()
                                   if name != "classes"}
        self.epochs.append({**found, "seconds": round(time.perf_counter() - began, 3)})
        if best_epoch(self._ranks()) == len(self.epochs) - 1:
            self.best = values(self.variables)
        LOG.info("%s", line(self.epochs, self.config.epochs))
        return Epoch(number=len(self.epochs), steps=done, losses=step_losses,
                     found=self.epochs[-1], answers=judged.answers if judged else None,
                     targets=judged.targets if judged else None)

    def _ranks(self) -> list[tuple[float, ...]]:
        """Return what must grow, of each epoch; without validation the last epoch is the best."""
        return [self.objective.rank(epoch["validation"]) if "validation" in epoch else (number,)
                for number, epoch in enumerate(self.epochs)]

    def _stopped(self) -> bool:
        return ran_out(self._ranks(), self.config.patience)

    # ------------------------------------------------------------------ run directory

    def _save(self) -> None:
        assert self.run_dir is not None
        checkpoint.write(State(
            network=values(self.variables) + values(self.average),
            optimizer=values(self.optimizer.variables), best=self.best,
            about={"epochs": self.epochs, "started_with": self.started_with}), self.run_dir)

    def _restore(self, *, resume: bool) -> None:
        if self.run_dir is None:
            if resume:
                raise ConfigError("resume: expected a run_dir to go on with, got None.")
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        state = checkpoint.read(self.run_dir)
        if state is None:
            return
        if not resume:
            raise ConfigError(f"run_dir: expected a directory without a run, got "
                              f"{str(self.run_dir)!r}. Go on with it by --resume, or name another.")
        changed = differences(state.about["started_with"], self.started_with)
        if changed:
            raise ConfigError(f"resume: expected the settings and data that the run in "
                              f"{str(self.run_dir)!r} was started with, got others: "
                              f"{', '.join(changed)}. Start a new run in another run_dir.")
        assign(self.variables + self.average, state.network)
        assign(self.optimizer.variables, state.optimizer)
        self.best, self.epochs = state.best, state.about["epochs"]


# ---------------------------------------------------------------------------- decisions


def best_epoch(ranks: Sequence[tuple[float, ...]]) -> int:
    """Return the first of the highest ranks."""
    return max(range(len(ranks)), key=lambda number: (ranks[number], -number))


def ran_out(ranks: Sequence[tuple[float, ...]], patience: int | None) -> bool:
    """Return whether the best rank is `patience` epochs old or older."""
    return bool(ranks) and patience is not None and (
        len(ranks) - 1 - best_epoch(ranks) >= patience)


def line(epochs: Sequence[dict[str, Any]], count: int) -> str:
    """Return what the last epoch gave, for people."""
    last = epochs[-1]
    held = ", ".join(f"{name} {value:.4g}" for name, value in last.get("validation", {}).items()
                     if name != "rows")
    return (f"epoch {len(epochs)}/{count}: loss {last['loss']:.4g}"
            f"{'; validation ' + held if held else ''} ({last['seconds']:.1f} s)")


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """Return the paths of all values that differ between two JSON objects."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [path for key in sorted({*before, *after}) for path in differences(
            before.get(key), after.get(key), f"{where}.{key}".strip("."))]
    return [] if before == after else [where]


# ---------------------------------------------------------------------------- randomness, bars


def random_states(network: keras.layers.Layer) -> list[keras.Variable]:
    """Return the states of all dropout layers, which Keras keeps as variables."""
    weights = {id(variable) for variable in network.weights}
    return [variable for variable in network.variables if id(variable) not in weights]


def seed_states(states: Sequence[keras.Variable], seed: int, epoch: int) -> None:
    """Give every dropout layer a state that follows from seed and epoch alone."""
    for number, state in enumerate(states):
        drawn = np.random.SeedSequence([seed, epoch, number]).generate_state(2)
        state.assign(drawn.astype(state.dtype))


def bar(items: Iterable[Any], what: str, *, progress: bool | None) -> Iterable[Any]:
    """Show how far `items` have been gone through; with `progress` None on a terminal only."""
    # None makes tqdm look whether standard error is a terminal.
    hidden = None if progress is None else not progress
    shown: Iterable[Any] = tqdm(items, desc=what, disable=hidden, leave=False, dynamic_ncols=True)
    return shown
