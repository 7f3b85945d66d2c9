"""What training makes smaller; every loss is a row's sum in nats, so that batches add up."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, targets: tf.Tensor, *, label_smoothing: float = 0.0
                  ) -> tf.Tensor:
    """Compute the cross-entropy of one class of all.

    Args:
        logits: [B, C] float32.
        targets: [B] int32, 0 .. C - 1.
        label_smoothing: share of the target that is spread evenly over all C classes.

    Returns:
        [B] float32, nats.

    Source: Szegedy et al. 2016, arXiv:1512.00567, section 7.
    """
    classes = logits.shape[-1]
    wanted = tf.one_hot(targets, classes, dtype=logits.dtype)
    wanted = wanted * (1.0 - label_smoothing) + label_smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(wanted, logits)


def binary_cross_entropy(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Compute the cross-entropy where every class is decided for itself.

    Args:
        logits: [B, C] float32.
        targets: [B, C] float32, 0 or 1.

    Returns:
        [B] float32, nats, summed over the classes.
    """
    return tf.reduce_sum(
        tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits), axis=-1)


def next_id(logits: tf.Tensor, ids: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Compute a language model's loss: position t is asked for the id at t + 1.

    Args:
        logits: [B, T, V] float32, of whole rows.
        ids: [B, T] int32.
        mask: [B, T] bool, each row True first.

    Returns:
        sums: [B] float32, nats, over the real ids but the first.
        counts: [B] float32, how many those are.
    """
    # Labels are moved: a slice of the logits, the largest tensor by far, is copied, and of their
    # gradient too.
    real = tf.pad(tf.cast(mask[:, 1:], logits.dtype), [[0, 0], [0, 1]])      # [B, T]
    labels = tf.pad(tf.where(mask, ids, 0)[:, 1:], [[0, 0], [0, 1]])
    nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_sum(nats * real, axis=1), tf.reduce_sum(real, axis=1)


def teacher_divergence(logits: tf.Tensor, teacher: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """Compute how far a student is from its teacher, of one choice of all.

    Args:
        logits: [..., C] float32, of the student.
        teacher: [..., C] float32.
        temperature: divides both.

    Returns:
        [...] float32, nats: temperature^2 x KL(teacher || student), so that its gradient stays as
        large as that of the cross-entropy whatever the temperature; 0 where the two agree.

    Source: Hinton et al. 2015, arXiv:1503.02531.
    """
    wanted = tf.nn.log_softmax(teacher / temperature)
    got = tf.nn.log_softmax(logits / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - got), axis=-1)


def teacher_divergences(logits: tf.Tensor, teacher: tf.Tensor, *, temperature: float) -> tf.Tensor:
    """Compute the same where every class is decided for itself: [B, C] -> [B], summed."""
    def two(given: tf.Tensor) -> tf.Tensor:
        return tf.stack([given, tf.zeros_like(given)], axis=-1)              # [B, C, 2]

    return tf.reduce_sum(
        teacher_divergence(two(logits), two(teacher), temperature=temperature), axis=-1)
