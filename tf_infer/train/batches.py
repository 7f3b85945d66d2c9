"""Encoded rows -> batches of like length, as a tf.data pipeline that a seed reproduces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_infer.errors import DataError


class Rows(NamedTuple):
    """Texts that were encoded once, without padding.

    Attributes:
        ids: [N, (T)] int32, special ids included.
        segments: [N, (T)] int32.
        targets: [N, ...], what the loss compares with.
    """

    ids: tf.RaggedTensor
    segments: tf.RaggedTensor
    targets: np.ndarray

    def lengths(self) -> np.ndarray:
        """Return [N] int64."""
        return np.asarray(self.ids.row_lengths())

    def take(self, index: np.ndarray) -> Rows:
        """Return the rows of these numbers, in this order."""
        return Rows(tf.gather(self.ids, index), tf.gather(self.segments, index),
                    self.targets[index])


class Vectors(NamedTuple):
    """Texts that a frozen backbone has read: `vectors` [N, D] float32, and `targets` [N, ...]."""

    vectors: np.ndarray
    targets: np.ndarray

    def lengths(self) -> np.ndarray:
        """Return zeros [N]: all rows are alike."""
        return np.zeros(len(self.targets), np.int64)

    def take(self, index: np.ndarray) -> Vectors:
        """Return the rows of these numbers, in this order."""
        return Vectors(self.vectors[index], self.targets[index])


class Plan(NamedTuple):
    """Which rows form which batch.

    Attributes:
        rows: of each batch, row numbers.
        widths: of each batch, its length bucket.
    """

    rows: list[np.ndarray]
    widths: list[int]


def plan(lengths: np.ndarray, buckets: Sequence[int], *, batch_rows: int, seed: int | None,
         epoch: int = 0) -> Plan:
    """Decide which rows form which batch: every row once, rows of one length bucket together.

    Args:
        lengths: [N], ids of each row.
        buckets: ascending lengths; a row goes into the first that holds it.
        batch_rows: most rows of a batch; the last of each bucket may have fewer.
        seed: of the order of rows and of batches; None keeps the order of length and row.
        epoch: gives another order from the same seed.

    The number of batches depends on lengths, buckets and batch_rows alone.
    """
    order = np.arange(len(lengths))
    draw = None if seed is None else np.random.default_rng([seed, epoch])
    if draw is not None:
        draw.shuffle(order)
    place = np.searchsorted(np.asarray(buckets), lengths[order])  # [N]
    batches, widths = [], []
    for number, width in enumerate(buckets):
        members = order[place == number]
        for begin in range(0, len(members), batch_rows):
            batches.append(members[begin:begin + batch_rows])
            widths.append(width)
    if draw is not None:
        sequence = draw.permutation(len(batches))
        batches = [batches[i] for i in sequence]
        widths = [widths[i] for i in sequence]
    return Plan(batches, widths)


def dataset(rows: Rows, batches: Plan, *, pad_id: int) -> tf.data.Dataset:
    """Return a dataset of (ids [B, T], mask [B, T], segments [B, T], targets [B, ...])."""
    targets = tf.constant(rows.targets)

    @tf.autograph.experimental.do_not_convert  # traced anew for each epoch
    def gather(batch: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ids = tf.gather(rows.ids, batch)
        mask = tf.sequence_mask(ids.row_lengths(), width)  # [B, T]

        def pad(ragged: tf.RaggedTensor, value: int) -> tf.Tensor:
            dense = ragged.to_tensor(value)
            return tf.pad(dense, [[0, 0], [0, width - tf.shape(dense)[1]]], constant_values=value)

        segments = tf.gather(rows.segments, batch)
        return pad(ids, pad_id), mask, pad(segments, 0), tf.gather(targets, batch)

    return _numbers(batches).map(gather).prefetch(2)


def vector_dataset(rows: Vectors, batches: Plan) -> tf.data.Dataset:
    """Return a dataset of (vectors [B, D], targets [B, ...])."""
    vectors, targets = tf.constant(rows.vectors), tf.constant(rows.targets)

    @tf.autograph.experimental.do_not_convert
    def gather(batch: tf.Tensor, width: tf.Tensor) -> tuple[tf.Tensor, ...]:
        del width
        return tf.gather(vectors, batch), tf.gather(targets, batch)

    return _numbers(batches).map(gather).prefetch(2)


def _numbers(batches: Plan) -> tf.data.Dataset:
    """Return a dataset of (row numbers [B], width []); its length is known."""
    numbers = tf.RaggedTensor.from_row_lengths(
        np.concatenate(batches.rows), [len(batch) for batch in batches.rows])
    return tf.data.Dataset.from_tensor_slices((numbers, tf.constant(batches.widths, tf.int32)))


def draw(lengths: np.ndarray, *, block_tokens: int, count: int, seed: int, epoch: int
         ) -> tuple[np.ndarray, np.ndarray]:
    """Decide where rows begin that are cut out of documents at random places.

    Args:
        lengths: [N], ids of each document.
        block_tokens: length of a row; a shorter document is a row as a whole.
        count: rows to draw.
        seed, epoch: the same two give the same rows.

    Returns:
        documents: [count] int64, which document each row is of; one that asks for twice the ids
            (all but its first) comes twice as often. One without any does not come.
        starts: [count] int64, its first id; every place that leaves a whole row is as likely.
    """
    random = np.random.default_rng([seed, epoch])
    asked = np.maximum(lengths - 1, 0)
    documents = random.choice(len(lengths), size=count, p=asked / asked.sum())
    return documents, random.integers(0, np.maximum(lengths[documents] - block_tokens, 0) + 1)


def split(count: int, *, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Part rows into (training, validation) numbers, each ascending and with at least one.

    Raises:
        DataError: fewer than two rows.
    """
    if count < 2:
        raise DataError(f"validation_fraction: expected at least two rows to hold some out, got "
                        f"{count}. Give more examples, validation rows of their own, or the "
                        "fraction 0.")
    order = np.random.default_rng([seed, 2**31]).permutation(count)
    held = min(max(1, round(count * fraction)), count - 1)
    return np.sort(order[held:]), np.sort(order[:held])
