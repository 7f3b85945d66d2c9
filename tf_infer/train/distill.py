"""Distillation: a student learns from a teacher's answers, and from labels as far as they count"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.config import CausalLMConfig, ClassifierConfig, DistillConfig, TrainConfig, check
from tf_infer.tasks.base import Task
from tf_infer.train import losses
from tf_infer.train.data import Example
from tf_infer.train.objectives import (
    Batch,
    Classifier,
    NextId,
    Objective,
    RowSet,
    Ticker,
    hide,
    read_all,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """Who is learned from, and how.

    Attributes:
        task: the teacher; it is not changed. Its tokenizer may be another one than the student's
            where both are classifiers.
        config: how much it counts.
    """

    task: Task
    config: DistillConfig = field(default_factory=DistillConfig)

    def told(self) -> dict[str, Any]:
        """Return what says whether a run goes on with the same teacher, as JSON."""
        found = hashlib.sha256()
        for weight in self.task.network.weights:
            found.update(np.ascontiguousarray(weight.numpy()).tobytes())
        return {"config": {"temperature": self.config.temperature, "labels": self.config.labels,
                           "hidden": self.config.hidden}, "weights": found.hexdigest()}


def distilled(task: Task, config: TrainConfig, teacher: Teacher) -> Objective:
    """Return the objective of a student.

    Raises:
        ConfigError: the teacher answers other questions than the student; names the field.
    """
    theirs, ours = teacher.task.config, task.config
    check(theirs.kind == ours.kind, "teacher", f"a {ours.kind} as the student is", theirs.kind)
    if isinstance(ours, CausalLMConfig):
        return DistilledNextId(task, config, teacher)
    return DistilledClassifier(task, config, teacher)


class DistilledClassifier(Classifier):
    """All weights of a classifier; training rows carry what the teacher says to them.

    The teacher reads every training text once, before the first epoch. A row's targets are its
    label [1] (several labels: [C]), the teacher's logits [C], and its pooled vector [D] where that
    counts. Validation rows have labels alone, and are judged as without a teacher.
    """

    def __init__(self, task: Task, config: TrainConfig, teacher: Teacher) -> None:
        super().__init__(task, config)
        self.teacher, self.distill = teacher.task, teacher.config
        assert isinstance(self.teacher.config, ClassifierConfig)
        check(not self.config.frozen, "ClassifierConfig.frozen", "False for a student, whose "
              "backbone learns, too", self.config.frozen)
        for name in ("multi_label", "pair"):
            check(getattr(self.teacher.config, name) == getattr(self.config, name),
                  f"teacher.{name}", f"{getattr(self.config, name)} as the student's",
                  getattr(self.teacher.config, name))
        check(set(self.teacher.config.classes) == set(self.config.classes), "teacher.classes",
              "the student's classes, in any order", self.teacher.config.classes)
        # Column of the teacher's logits for each class of the student.
        self.order = [self.teacher.config.classes.index(name) for name in self.config.classes]
        if self.distill.hidden:
            ours, theirs = task.network.encoder.width, self.teacher.network.encoder.width
            check(ours == theirs, "DistillConfig.hidden", "0 where teacher and student are not of "
                  f"one width, as here {theirs} and {ours}", self.distill.hidden)

    def rows(self, examples: Sequence[Example], *, training: bool, ticker: Ticker) -> RowSet:
        """Read the texts, and what the teacher says to them."""
        unlabelled = not any(e.labels for e in examples)
        if not training and not (unlabelled and self.distill.labels == 0):
            return self._encode(examples, training=training, ticker=ticker)
        said = self._said(examples, ticker)
        if unlabelled and self.distill.labels == 0:
            # Judged by what the teacher decides.
            decided = self._decided(said[:, :len(self.order)])
            examples = [e._replace(labels=tuple(self.config.classes[i] for i in np.nonzero(row)[0]))
                        for e, row in zip(examples, decided)]
        rows = self._encode(examples, training=training, ticker=ticker)
        if not training:
            return rows
        labels = rows.targets.reshape(len(examples), -1).astype(np.float32)
        return rows._replace(targets=np.concatenate([labels, said], axis=1))

    def _decided(self, logits: np.ndarray) -> np.ndarray:
        """[N, C] of the teacher, in the student's order -> [N, C] bool, the labels it gives."""
        if not self.config.multi_label:
            return np.asarray(np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)])
        theirs = self.teacher.config
        assert isinstance(theirs, ClassifierConfig)
        scores = 1.0 / (1.0 + np.exp(-logits.astype(np.float64) / theirs.temperature))
        bars = np.broadcast_to(theirs.thresholds, len(theirs.classes))[self.order]
        return np.asarray(scores >= bars)

    def _said(self, examples: Sequence[Example], ticker: Ticker) -> np.ndarray:
        """Return the teacher's logits [N, C], and its pooled vectors beside them if they count."""
        reader = Classifier(self.teacher, TrainConfig())
        network, hidden = self.teacher.network, bool(self.distill.hidden)

        def read(ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
            if not hidden:
                logits = network(ids, mask, segments, training=False)
                return tf.gather(tf.cast(logits, tf.float32), self.order, axis=1)
            vector = network.vector(network.encoder(ids, mask, segments, training=False), mask)
            return tf.concat([tf.gather(network.head(vector), self.order, axis=1), vector], axis=1)

        rows = reader.encode(examples, np.zeros(len(examples), np.int32), ticker)
        return read_all(rows, read, buckets=reader.buckets, pad_id=reader.pad_id, ticker=ticker,
                        what="teacher")

    def losses(self, batch: Batch, *, training: bool, seed: tf.Tensor | None = None
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Divergence from the teacher and cross-entropy of the labels, weighted; logits [B, C]."""
        if not training:
            return super().losses(batch, training=False, seed=seed)
        ids, mask, segments, targets = batch
        ids = hide(ids, mask, self.hidden_id, self.train.token_dropout, seed)
        hidden = self.network.encoder(ids, mask, segments, training=True)
        vector = self.network.vector(hidden, mask)
        logits = self.network.head(vector, training=True)
        classes = len(self.order)
        labels, said = targets[:, :-self._beside], targets[:, -self._beside:]
        if not self.config.multi_label:
            labels = tf.cast(labels[:, 0], tf.int32)
        nats, weights, _ = self._compare(logits, labels, training=True)
        apart = (losses.teacher_divergences if self.config.multi_label
                 else losses.teacher_divergence)(
            logits, said[:, :classes], temperature=self.distill.temperature)
        loss = self.distill.labels * nats + (1.0 - self.distill.labels) * apart
        if self.distill.hidden:
            square = tf.reduce_mean(tf.math.squared_difference(vector, said[:, classes:]), axis=-1)
            loss += self.distill.hidden * square
        return loss, weights, logits

    @property
    def _beside(self) -> int:
        """Columns of a training row's targets behind the labels."""
        width = self.teacher.network.encoder.width if self.distill.hidden else 0
        return len(self.order) + int(width)


class DistilledNextId(NextId):
    """All weights of a decoder; the teacher reads each batch beside it.

    Its logits of every place would not fit into memory, so it is asked anew in each epoch.
    """

    def __init__(self, task: Task, config: TrainConfig, teacher: Teacher) -> None:
        super().__init__(task, config)
        self.teacher, self.distill = teacher.task, teacher.config
        check(self.distill.hidden == 0, "DistillConfig.hidden", "0 for a decoder",
              self.distill.hidden)
        check(self.teacher.network.vocab_size == task.network.vocab_size, "teacher.vocab_size",
              f"the student's {task.network.vocab_size} ids", self.teacher.network.vocab_size)
        check(self.teacher.network.max_positions >= config.block_tokens, "teacher.max_positions",
              f"at least TrainConfig.block_tokens = {config.block_tokens}",
              self.teacher.network.max_positions)

    def losses(self, batch: Batch, *, training: bool, seed: tf.Tensor | None = None
               ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Divergence from the teacher and cross-entropy of the next ids, weighted."""
        if not training:
            return super().losses(batch, training=False, seed=seed)
        ids, mask, _, targets = batch
        seen = hide(ids, mask, self.hidden_id, self.train.token_dropout, seed)
        logits = self.network(seen, mask, training=True)
        nats, counts = losses.next_id(logits, ids, mask)
        said = tf.stop_gradient(self.teacher.network(ids, mask, training=False))
        apart = losses.teacher_divergence(logits[:, :-1], said[:, :-1],
                                          temperature=self.distill.temperature)
        apart = tf.reduce_sum(apart * tf.cast(mask[:, 1:], apart.dtype), axis=1)
        share = self.distill.labels
        return share * nats + (1.0 - share) * apart, counts, targets
