"""Signature `beam`: the best continuations of a prompt by beam search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from tf_infer.decoding import beam
from tf_infer.decoding.processors import History
from tf_infer.manifest import SignatureSpec
from tf_infer.networks.axes import sizes
from tf_infer.stages import CORE, POSTPROCESS
from tf_infer.tasks import options
from tf_infer.tasks.base import in_stage, rows
from tf_infer.tasks.grid import in_slices, require
from tf_infer.tasks.loops import Dense

if TYPE_CHECKING:
    from tf_infer.tasks.causal_lm import CausalLM

# Options that say what may be said: these hold in a search, too. The others change how likely
# tokens are, which is what a search ranks by.
OPTIONS = ("max_new_tokens", "min_new_tokens", "banned", "forced_prefix")


class Every(NamedTuple):
    """Options of rows, [N] each, and the same of their hypotheses, [N K]."""

    rows: Dense
    hypotheses: Dense


class Beams:
    """Beam search with `config.beams` hypotheses for each row."""

    def __init__(self, task: CausalLM) -> None:
        self.task = task

    def signature(self) -> tuple[SignatureSpec, Callable[..., dict[str, tf.Tensor]]]:
        """Return the signature and its function."""
        config = self.task.config
        beams, capacity = config.beams, config.capacity
        penalty = rows("length_penalty", "float32", default=1.0, note="p: a hypothesis of n tokens "
                       "ranks by its score / n ** p; 0 ranks by scores")
        outputs = (
            rows("text", "string", beams, note="continuations alone, best first"),
            rows("ids", "int32", beams, capacity, note="their ids, padding behind them"),
            rows("length", "int32", beams, note="ids that count"),
            rows("score", "float32", beams, note="log-probability, nats; the least finite number "
                 "where a row has fewer continuations"),
            rows("finish_reason", "string", beams,
                 note="stop (an end id), length (the limit), or none (there is no such one)"))
        prompt = rows("prompt", "string", note="UTF-8 text")
        inputs = (prompt, *options.specs(config, OPTIONS), penalty)
        return SignatureSpec(name="beam", inputs=inputs, outputs=outputs), self._search

    def _search(self, *, length_penalty: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        task = self.task
        require(tf.math.is_finite(length_penalty) & (tf.abs(length_penalty) <= 10.0),
                "length_penalty: expected -10 <= length_penalty <= 10.", length_penalty)
        require(tf.equal(tf.shape(length_penalty)[0], tf.shape(inputs["prompt"])[0]),
                "length_penalty: expected as many rows as prompt.")
        neutral = options.defaults_for(tf.shape(inputs["prompt"])[0], task.config)
        unused = {name: tf.zeros_like(value) for name, value in neutral.items()
                  if name not in inputs and value.dtype == tf.string}
        numbers = {name: value for name, value in neutral.items()
                   if name not in inputs and value.dtype != tf.string}
        dense = task.preprocess(**inputs, **unused, **numbers)
        specs = {**task.core_specs(), "length_penalty": tf.TensorSpec([None], tf.float32)}
        with tf.name_scope(CORE):
            most = max(1, task.config.grid.rows[-1] // task.config.beams)
            found = in_slices(self._searched, {**dense, "length_penalty": length_penalty}, specs,
                              most)
        return self._written(dense, found)

    def _searched(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        loops, config = self.task.loops, self.task.config
        start = loops.read(dense["ids"], dense["lengths"])
        if loops.shapes_stay:
            limits, ranked, processors = self._rules(self._every(dense))
            found = beam.search(
                self.task.step, loops.with_room(start), limits, ranked, beams=config.beams,
                groups=config.beam_groups, processors=processors)
        else:
            found = beam.search_in_stages(
                loops.step, start, dense, self._rules, beams=config.beams,
                groups=config.beam_groups, width=sizes(dense["ids"])[1],
                grown=loops.roomy(start.cache), prepared=self._every)
        return {"ids": found.ids, "length": found.lengths, "score": found.scores,
                "finished": found.finished}

    def _every(self, dense: Dense) -> Every:
        """Return the options of some rows, and those of their hypotheses."""
        return Every(dense, {name: tf.repeat(value, self.task.config.beams, axis=0)
                             for name, value in dense.items()})

    def _rules(self, every: Every) -> beam.Rules:
        task, (dense, repeated) = self.task, every
        penalty = dense["length_penalty"]
        # A processor's options are those of the hypotheses, its state that of the rows.
        return beam.Rules(
            task.limits(dense["max_new_tokens"]),
            beam.BeamOptions(penalty, tf.zeros_like(penalty) + task.config.beam_diversity),
            task.processors(repeated, History(dense["ids"], dense["lengths"], dense["lengths"])))

    @in_stage(POSTPROCESS)
    def _written(self, dense: dict[str, tf.Tensor], found: dict[str, tf.Tensor]
                 ) -> dict[str, tf.Tensor]:
        beams, capacity = self.task.config.beams, self.task.config.capacity
        text = self.task.continuation(
            tf.repeat(dense["ids"], beams, axis=0), tf.repeat(dense["lengths"], beams, axis=0),
            tf.reshape(found["ids"], [-1, capacity]), tf.reshape(found["length"], [-1]))
        score = found["score"]
        real = tf.math.is_finite(score)
        ended = tf.where(found["finished"], "stop", "length")
        return {"text": tf.reshape(text, [-1, beams]), "ids": found["ids"],
                "length": found["length"], "score": tf.where(real, score, score.dtype.min),
                "finish_reason": tf.where(real, ended, "none")}
