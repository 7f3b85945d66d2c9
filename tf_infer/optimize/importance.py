"""What a network's heads, neurons and layers are worth, by the answers to given texts"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

from tf_infer.config import CausalLMConfig, TaskConfig
from tf_infer.networks import cuts
from tf_infer.networks.cuts import Kept, Unit
from tf_infer.optimize.texts import Text, encoded
from tf_infer.tasks.base import Task
from tf_infer.text.packing import pad_id

Ticker: TypeAlias = Callable[[Iterable[Any], str], Iterable[Any]]
BATCH_ROWS = 16
ENCODE_ROWS = 256
DECODER_TOKENS = 128  # of a document that are read


def silent(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Show nothing."""
    del what
    return items


class Row(NamedTuple):
    """One text as the network reads it, without padding: ids, segments [T] int32."""

    ids: np.ndarray
    segments: np.ndarray


def read(task: Task, texts: Sequence[Text], ticker: Ticker) -> list[Row]:
    """Encode texts as a request's are; of a decoder each is a document from its beginning on."""
    if isinstance(task.config, CausalLMConfig):
        return [row for row in (_document(task, text) for text in ticker(texts, "encode"))
                if len(row.ids) > 1]
    found = []
    for begin in ticker(range(0, len(texts), ENCODE_ROWS), "encode"):
        dense = encoded(task, texts[begin:begin + ENCODE_ROWS])
        ids, mask, segments = (dense[name].numpy() for name in ("ids", "mask", "segments"))
        found += [Row(row[real], segment[real]) for row, real, segment in zip(ids, mask, segments)]
    return found


def _document(task: Task, text: Text) -> Row:
    assert isinstance(text, bytes)
    start = [task.codec.start_id] if task.config.packing.start else []
    ids = task.codec.encode(tf.constant([text])).ids.values.numpy()
    most = min(DECODER_TOKENS, task.network.max_positions)
    row = np.concatenate([start, ids]).astype(np.int32)[:most]
    return Row(row, np.zeros_like(row))


# ---------------------------------------------------------------------------- heads and neurons


def units(task: Task, network: Any, rows: Sequence[Row], ticker: Ticker
          ) -> dict[Unit, list[np.ndarray]]:
    """Estimate how much each head and neuron moves the answers.

    Args:
        task: of whose kind the answers are.
        network: that is asked; any that answers like the task's own.
        rows: the texts.
        ticker: shows how far it is.

    Returns:
        "heads" and "neurons" -> one array for each layer, [units] float64: the mean over the texts
        of the answer's first-order change, were the unit's output multiplied by nothing. That is
        |sum of weight x gradient| over the weights that read the unit. The answer of a classifier
        is the log-odds of what it decides (without labels, and large where the loss of a certain
        answer is flat), of a decoder the log-likelihood of the text.

    Source: Michel et al. 2019, arXiv:1905.10650; Molchanov et al. 2019, arXiv:1906.10771.
    """
    layers = cuts.layers(network)
    readers = [(unit, layer.counts[unit], layer.weights[path])
               for layer in layers for unit, path in layer.readers.items()]
    kernels = [kernel.value for _, _, kernel in readers]

    @tf.function(input_signature=_signature(), autograph=False)
    def change(ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(kernels)
            answer = _answer(task.config, network, ids, mask, segments)
        gradients = tape.gradient(answer, kernels,
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.abs(tf.reduce_sum(tf.reshape(kernel * gradient, [count, -1]), axis=1))
                for (_, count, _), kernel, gradient in zip(readers, kernels, gradients)]

    totals = [np.zeros(count) for _, count, _ in readers]
    for row in ticker(rows, "heads and neurons"):
        for total, found in zip(totals, change(*batch([row], 0))):
            total += found.numpy() / len(rows)
    result: dict[Unit, list[np.ndarray]] = {"heads": [], "neurons": []}
    for (unit, _, _), total in zip(readers, totals):
        result[unit].append(total)
    return result


def _answer(config: TaskConfig, network: Any, ids: tf.Tensor, mask: tf.Tensor,
            segments: tf.Tensor) -> tf.Tensor:
    """Return the sum of the answers of a batch, one number []."""
    if isinstance(config, CausalLMConfig):
        every = tf.nn.log_softmax(tf.cast(network(ids, mask), tf.float32))
        said = tf.gather(every[:, :-1], ids[:, 1:], batch_dims=2)            # [B, T - 1]
        return tf.reduce_sum(said * tf.cast(mask[:, 1:], tf.float32))
    logits = tf.cast(network(ids, mask, segments), tf.float32)               # [B, C]
    if config.multi_label:
        return tf.reduce_sum(tf.abs(logits))  # the log-odds of each decision
    best = tf.one_hot(tf.argmax(logits, axis=-1), logits.shape[-1], on_value=True, off_value=False)
    others = tf.reduce_logsumexp(tf.where(best, logits.dtype.min, logits), axis=-1)
    return tf.reduce_sum(tf.reduce_max(logits, axis=-1) - others)


# ---------------------------------------------------------------------------- layers


def lasting_layers(task: Task, count: int, rows: Sequence[Row], *, blank: Callable[[Kept], Any],
                   ticker: Ticker) -> tuple[int, ...]:
    """Choose which layers stay: one after the other goes, without which the answers move least.

    Args:
        task: its network is the reference.
        count: how many stay.
        rows: the texts; each layer that is left is tried without, on all of them, each time.
        blank: makes a network with the layers that are kept; its weights do not matter.
        ticker: shows how far it is.

    Returns:
        Their numbers, ascending. Ties go to the layer nearer to the output.
    """
    whole = cuts.everything(task.network)
    left = list(whole.layers)
    rows = sorted(rows, key=lambda row: len(row.ids))
    batches = [batch(rows[i:i + BATCH_ROWS], pad_id(task.codec))
               for i in range(0, len(rows), BATCH_ROWS)]
    look = _looker(task.config, task.network)
    reference = [look(*given) for given in batches]
    while len(left) > count:
        # All layers are alike, so that one network stands for every choice of as many.
        network = blank(cuts.only(whole, left[1:]))
        look = _looker(task.config, network)
        moved = {}
        for layer in ticker(left[::-1], f"layer {len(left)} of {len(whole.layers)}"):
            others = [other for other in left if other != layer]
            cuts.fill(network, task.network, cuts.only(whole, others))
            moved[layer] = sum(_divergence(task.config, wanted, look(*given), given[1])
                               for wanted, given in zip(reference, batches))
        left.remove(min(moved, key=lambda layer: moved[layer]))
    return tuple(left)


def _looker(config: TaskConfig, network: Any) -> Callable[..., tf.Tensor]:
    """Return a function of rows that gives log-probabilities: [B, C], [B, C, 2] or [B, T, V]."""
    @tf.function(input_signature=_signature(), autograph=False)
    def look(ids: tf.Tensor, mask: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
        if isinstance(config, CausalLMConfig):
            return tf.nn.log_softmax(tf.cast(network(ids, mask), tf.float32))
        logits = tf.cast(network(ids, mask, segments), tf.float32)
        if config.multi_label:
            return tf.math.log_sigmoid(tf.stack([logits, -logits], axis=-1))
        return tf.nn.log_softmax(logits)

    result: Callable[..., tf.Tensor] = look
    return result


def _divergence(config: TaskConfig, wanted: tf.Tensor, got: tf.Tensor, mask: tf.Tensor) -> float:
    """Return the sum of Kullback-Leibler divergences, of a decoder's rows at real positions."""
    nats = tf.reduce_sum(tf.exp(wanted) * (wanted - got), axis=-1)
    if isinstance(config, CausalLMConfig):
        nats *= tf.cast(mask, nats.dtype)
    return float(tf.reduce_sum(nats))


def _signature() -> list[tf.TensorSpec]:
    return [tf.TensorSpec([None, None], dtype) for dtype in (tf.int32, tf.bool, tf.int32)]


def batch(rows: Sequence[Row], pad: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return ids, mask, segments [B, T], T being the longest row's length."""
    lengths = [len(row.ids) for row in rows]
    ids, segments = (tf.RaggedTensor.from_row_lengths(np.concatenate(parts), lengths)
                     for parts in zip(*rows))
    return ids.to_tensor(pad), tf.sequence_mask(lengths), segments.to_tensor(0)
