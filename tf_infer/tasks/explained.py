"""Signature `explain` of a decoder: which tokens made the log-probability of one token."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from tf_infer.decoding.attribution import attribute
from tf_infer.decoding.score import token_log_probs
from tf_infer.errors import ConfigError
from tf_infer.manifest import SignatureSpec
from tf_infer.networks.attention import causal
from tf_infer.stages import CORE, PREPROCESS
from tf_infer.tasks.base import in_stage, rows
from tf_infer.tasks.grid import in_slices, require, same_rows

if TYPE_CHECKING:
    from tf_infer.tasks.causal_lm import CausalLM

NODES = 48  # points of the path: a log-probability bends more than a logit


class Explained:
    """Attributions of one token of a continuation to all tokens before it."""

    def __init__(self, task: CausalLM) -> None:
        if getattr(task.network, "packed", False):
            raise ConfigError("CausalLMConfig.explain: expected False in a plan with packed "
                              "weights, whose products have no gradient, got True. Export it in "
                              "float32, or without a plan.")
        self.task = task

    def signature(self) -> tuple[SignatureSpec, Callable[..., dict[str, tf.Tensor]]]:
        """Return the signature and its function.

        The token explained is the one at `place` among those that reach into the continuation, as
        `score` counts them; of an empty continuation it is the likeliest token behind the prompt.
        """
        inputs = (
            rows("prompt", "string", note="UTF-8 text"),
            rows("continuation", "string", note="UTF-8 text; \"\" for the likeliest next token"),
            rows("place", "int32", default=0, note="which token of the continuation, from 0"))
        outputs = (
            rows("id", "int32", note="the token that is explained"),
            rows("token", "string", note="what it spells"),
            rows("score", "float32", note="its log-probability, nats"),
            rows("baseline", "float32", note="its log-probability without any token before it"),
            rows("attributions", "float32", None, note="of each id to score - baseline"),
            rows("left_out", "float32", None, note="what the score loses without that id alone"),
            rows("completeness_error", "float32",
                 note="sum of attributions against score - baseline"),
            rows("mask", "int32", None, note="1 on the ids before the token"),
            rows("starts", "int32", None, note="first byte in prompt + continuation"),
            rows("ends", "int32", None, note="one past its last byte"))
        return SignatureSpec(name="explain", inputs=inputs, outputs=outputs), self._explained

    def _explained(self, *, prompt: tf.Tensor, continuation: tf.Tensor, place: tf.Tensor
                   ) -> dict[str, tf.Tensor]:
        dense = self._chosen(prompt, continuation, place)
        specs = {name: tf.TensorSpec([None] * tensor.shape.rank, tensor.dtype)
                 for name, tensor in dense.items()}
        with tf.name_scope(CORE):
            found = in_slices(self._attributed, dense, specs, self.task.config.grid.rows[-1])
        before = tf.range(tf.shape(dense["ids"])[1]) < dense["target"][:, None]
        return {**found, "token": tf.gather(self.task.codec.spellings(), found["id"]),
                "mask": tf.cast(before, tf.int32), "starts": dense["starts"],
                "ends": dense["ends"]}

    @in_stage(PREPROCESS)
    def _chosen(self, prompt: tf.Tensor, continuation: tf.Tensor, place: tf.Tensor
                ) -> dict[str, tf.Tensor]:
        """Return rows of ids with their offsets, [B, T], and `target` [B], the place explained.

        It is the number of ids where there is no continuation.
        """
        same_rows({"prompt": prompt, "continuation": continuation, "place": place})
        batch, counted, length = self.task.joined(prompt, continuation)
        require((place >= 0) & (place < tf.maximum(length, 1)),
                "place: expected one of the tokens that reach into the continuation.", place)
        real = tf.reduce_sum(tf.cast(batch.mask, tf.int32), axis=-1)         # [B]
        first = tf.argmax(counted, axis=-1, output_type=tf.int32)
        target = tf.where(length > 0, first + place, real)
        return {"ids": batch.ids, "starts": batch.starts, "ends": batch.ends, "target": target,
                "given": length > 0}

    def _attributed(self, *, ids: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor,
                    target: tf.Tensor, given: tf.Tensor) -> dict[str, tf.Tensor]:
        network = self.task.network
        width = tf.shape(ids)[1]
        allowed = causal(width)  # what stands at the target and behind it is never looked at

        def logits(vectors: tf.Tensor) -> tf.Tensor:
            hidden, _ = network.read_vectors(vectors, allowed)
            last = tf.gather(hidden, tf.maximum(target, 1) - 1, axis=1, batch_dims=1)
            return tf.cast(network.to_logits(last), tf.float32)              # [B, V]

        vectors = network.look_up(ids)
        named = tf.gather(ids, tf.minimum(target, width - 1), axis=1, batch_dims=1)
        best = tf.argmax(logits(vectors), axis=-1, output_type=tf.int32)
        chosen = tf.where(given, named, best)                                # [B]
        counted = (tf.range(width) < target[:, None]) & (ends > starts)
        found = attribute(lambda some: token_log_probs(logits(some), chosen), vectors, counted,
                          nodes=NODES)
        return {"id": chosen, "score": found.score, "baseline": found.baseline,
                "attributions": found.gradients, "left_out": found.left_out,
                "completeness_error": found.error}
