"""Signature `speculate`: the answer of plain options, several tokens of it read at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import tensorflow as tf

from tf_infer.decoding import sampling, speculative
from tf_infer.decoding.contracts import SamplingOptions
from tf_infer.errors import ConfigError
from tf_infer.manifest import SignatureSpec
from tf_infer.networks.axes import sizes
from tf_infer.networks.contracts import Cache, Decoder
from tf_infer.stages import CORE
from tf_infer.tasks import options
from tf_infer.tasks.base import rows
from tf_infer.tasks.grid import in_slices
from tf_infer.tasks.loops import Dense

if TYPE_CHECKING:
    from tf_infer.tasks.causal_lm import CausalLM

LOOKED_FOR = 3  # last tokens that prompt look-up looks for, at most


class Speculation:
    """Speculative decoding with `config.guesses` guesses in a round.

    A task with a draft network lets that guess; any other looks the last tokens up in what stands
    before them (prompt look-up). Tokens, scores and reasons are those of `generate` with the same
    options: see decoding/speculative.py.
    """

    def __init__(self, task: CausalLM) -> None:
        self.task = task

    def signature(self) -> tuple[SignatureSpec, Callable[..., dict[str, tf.Tensor]]]:
        """Return the signature and its function."""
        task = self.task
        count = "of the row: "
        outputs = (
            *task.answer_specs(),
            rows("rounds", "int32", note=count + "times that the model has read"),
            rows("proposed", "int32", note=count + "guesses that it read"),
            rows("accepted", "int32", note=count + "guesses that were what it chose"))
        prompt = rows("prompt", "string", note="UTF-8 text")
        inputs = (prompt, *options.specs(task.config, options.PLAIN))
        return SignatureSpec(name="speculate", inputs=inputs, outputs=outputs), self._answer

    def _answer(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        task = self.task
        dense = task.preprocess(**inputs)
        specs = {name: task.core_specs()[name] for name in dense}
        with tf.name_scope(CORE):
            found = in_slices(self._decoded, dense, specs, task.config.grid.rows[-1])
        counts = {name: found.pop(name) for name in speculative.Guessing._fields}
        return {**task.postprocess(**found, prompt_ids=dense["ids"],
                                   prompt_lengths=dense["lengths"]), **counts}

    def _decoded(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        task, loops = self.task, self.task.loops
        start, target = loops.read(dense["ids"], dense["lengths"]), _target(task.network)
        width = sizes(dense["ids"])[1]
        # A draft reads each of its own guesses, so it needs room for those of the last round, too.
        beyond = task.config.guesses
        if loops.shapes_stay:
            state = self._read_by_draft(dense, width + task.config.capacity + beyond)
            found, guessing = speculative.decode(
                target, loops.with_room(start), *self._rules(dense)[:2],
                self._proposer(dense)._replace(state=state))
        else:
            grow, grow_draft = loops.roomy(start.cache), loops.roomy(start.cache, beyond)
            found, guessing = speculative.decode_in_stages(
                target, start, self._read_by_draft(dense, width), dense, self._rules,
                self._proposer, width=width, grown=lambda cache, state, room: (
                    grow(cache, room), grow_draft(state, room) if task.draft else state))
        return {"ids": found.ids[:, 0], "length": found.lengths[:, 0],
                "score": found.scores[:, 0], "finished": found.finished[:, 0],
                **guessing._asdict()}

    def _rules(self, dense: Dense) -> speculative.Rules:
        return speculative.Rules(self.task.limits(dense["max_new_tokens"]), _choose(dense))

    def _proposer(self, dense: Dense) -> speculative.Proposer:
        """Return who guesses for some rows, without what a draft has read."""
        draft, owned = self.task.draft, not self.task.loops.shapes_stay
        width = self.task.config.guesses
        if draft is None:
            return speculative.from_prompt(dense["ids"], dense["lengths"], width=width,
                                           ngram=LOOKED_FOR)

        def step(tokens: tf.Tensor, live: tf.Tensor, cache: Cache) -> tuple[tf.Tensor, Cache]:
            logits, cache = draft.extend(tokens[:, None], tf.cast(live, tf.int32), cache,
                                         owned=owned)
            return tf.cast(logits[:, 0], tf.float32), cache

        return speculative.from_draft(step, _target(draft).drop, (), _choose(dense), width=width)

    def _read_by_draft(self, dense: Dense, room: tf.Tensor | int) -> speculative.State:
        """Return what a draft remembers of the prompts."""
        if self.task.draft is None:
            return ()
        _, cache = self.task.draft.prefill(dense["ids"], tf.maximum(dense["lengths"], 1),
                                           capacity=room)
        return cache


def _choose(dense: Dense) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    chosen = SamplingOptions(**{name: dense[name] for name in options.SAMPLING})
    return lambda logits, produced: sampling.choose(logits, chosen, produced)


def check_draft(task: CausalLM, draft: CausalLM) -> None:
    """Raise ConfigError unless a decoder can guess for another."""
    if draft.config.codec != task.config.codec or (
            draft.network.vocab_size != task.network.vocab_size):
        raise ConfigError("draft: expected a decoder with the same tokenizer, got one with "
                          f"{draft.network.vocab_size} ids beside {task.network.vocab_size}, or "
                          "other files or settings. Train it with this model's tokenizer.")
    widest = task.config.grid.tokens[-1]
    if draft.network.max_positions < widest:
        raise ConfigError(f"draft: expected a network that reads at least {widest} positions, got "
                          f"{draft.network.max_positions}.")


def _target(network: Decoder) -> speculative.Target:
    def extend(ids: tf.Tensor, counts: tf.Tensor, cache: Cache) -> tuple[tf.Tensor, Cache]:
        logits, cache = network.extend(ids, counts, cache)
        return tf.cast(logits, tf.float32), cache

    return speculative.Target(
        extend, lambda cache, counts: network.rollback(cache, cache.lengths - counts))
