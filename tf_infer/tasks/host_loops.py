"""Signatures for loops of the host: `steps` (read, then produce a few tokens) and `choose`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import tensorflow as tf

from tf_infer.decoding import controls, record, sampling
from tf_infer.decoding.contracts import Start
from tf_infer.decoding.loop import is_end
from tf_infer.decoding.processors import History, only
from tf_infer.decoding.score import token_log_probs
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.networks.contracts import Cache
from tf_infer.stages import CORE, PREPROCESS
from tf_infer.tasks import options
from tf_infer.tasks.base import in_stage, rows, tensor_spec
from tf_infer.tasks.grid import in_slices, require, same_rows

if TYPE_CHECKING:
    from tf_infer.tasks.causal_lm import CausalLM

Described: TypeAlias = tuple[SignatureSpec, Callable[..., dict[str, tf.Tensor]]]


class HostLoops:
    """What a decoder offers to loops that are not in its graph.

    `steps` holds the network; `choose` only decides, for an engine that has the network elsewhere.
    Both decide as `generate` does, by the same functions. Nothing is remembered between calls: rows
    may join and leave. Stop strings are left to the loop, which makes the text.
    """

    def __init__(self, task: CausalLM) -> None:
        self.task = task

    def signatures(self) -> tuple[Described, Described]:
        """Return `steps` and `choose`."""
        steps_in, steps_out = self._steps_specs()
        choose_in, choose_out = self._choose_specs()
        return ((SignatureSpec(name="steps", inputs=steps_in, outputs=steps_out), self._steps),
                (SignatureSpec(name="choose", inputs=choose_in, outputs=choose_out), self._choose))

    def _told(self, *axes: int) -> tuple[TensorSpec, ...]:
        most = self.task.config.top_logprobs
        return (rows("top_ids", "int32", *axes, most,
                     note="likeliest ids, as many as `logprobs` says; -1 behind them"),
                rows("top_logprobs", "float32", *axes, most, note="theirs, nats; 0 behind them"))

    # ------------------------------------------------------------------ steps

    def _steps_specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        task, config = self.task, self.task.config
        cache = task.loops.cache_spec
        _, heads, _, size = cache.layers[0][0].shape
        state = (rows("cache", "float32", 2 * len(cache.layers), heads, task.positions, size,
                      note="keys of layer i at 2i, its values at 2i + 1; zeros to begin"),
                 rows("lengths", "int32", note="positions in use; 0 to begin"))
        inputs = (
            rows("ids", "int32", None, note="to read first: the prompt, or the last token"),
            rows("id_count", "int32", note="how many of them; 0 leaves the row as it is"),
            *state, rows("count", "int32", note="tokens to produce"),
            *options.specs(config, options.SAMPLING),
            rows("produced", "int32", note="tokens produced by earlier calls: number of the draw"),
            *options.specs(config, options.LOGITS),
            rows("history", "int32", None, note="prompt and what was produced, `ids` with them; "
                 "penalties and banned words look at it, without them it may be of width 0"),
            rows("history_length", "int32", note="how many of them count"), *_held())
        outputs = (
            rows("tokens", "int32", config.capacity, note="produced, padding behind them"),
            rows("token_count", "int32", note="how many; the end id does not count"),
            rows("finished", "bool", note="an end id came"),
            rows("score", "float32", note="log-probability of tokens and end id, nats"), *state,
            rows("token_logprobs", "float32", config.capacity, note="of each token, nats"),
            *self._told(config.capacity), _held()[1])
        return inputs, outputs

    def _steps(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Read `ids`, then produce `count` tokens in each row; all state goes in and comes out.

        The last token of a call has not been read: the next call takes it as its `ids`. A row with
        `id_count` 0 neither reads nor produces, so rows may join and leave between calls.
        """
        dense = self._checked_steps(**inputs)
        with tf.name_scope(CORE):
            free = {spec.name: tensor_spec(spec) for spec in self._steps_specs()[0]
                    if spec.dtype != "string"}
            free["constraint"] = tf.TensorSpec([None], tf.int32)
            specs = {**free, **{name: spec for name, spec in self.task.row_options.dense_specs(
                ).items() if name in dense}}
            return in_slices(self._stepped, dense, specs, self.task.rows_for(inputs["ids"]))

    @in_stage(PREPROCESS)
    def _checked_steps(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        config, positions = self.task.config, self.task.positions
        same_rows(inputs)
        options.check(inputs, config)
        ids, id_count, count = inputs["ids"], inputs["id_count"], inputs["count"]
        require((id_count >= 0) & (id_count <= tf.shape(ids)[1]),
                "id_count: expected 0 <= id_count <= ids in the row.", id_count)
        require((count >= 0) & (count <= config.capacity),
                f"count: expected 0 <= count <= {config.capacity}.", count)
        require((count == 0) | (id_count > 0), "id_count: expected >= 1 where count is.", id_count)
        require((inputs["lengths"] >= 0) & (
            inputs["lengths"] + id_count + count <= positions),
            f"lengths: expected lengths + id_count + count <= {positions}.", inputs["lengths"])
        held = inputs["history_length"]
        require((held >= 0) & (held <= tf.shape(inputs["history"])[1]),
                "history_length: expected 0 <= history_length <= ids in the row.", held)
        self._check_width(inputs["allowed"])
        begins = (inputs["produced"] == 0) & (count > 0)
        return self._with_constraint(inputs, begins, inputs["history"], held)

    def _check_width(self, allowed: tf.Tensor) -> None:
        words = -(-self.task.codec.vocab_size // 32)
        given = tf.shape(allowed)[1]
        require((given == 0) | (given == words), f"allowed: expected a width of 0 or {words}.")

    def _with_constraint(self, inputs: dict[str, tf.Tensor], begins: tf.Tensor, prompt: tf.Tensor,
                         lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return all options without strings, and `state` as the graph numbers states.

        `begins` [B] bool says where nothing has been produced; there `prompt` holds the prompt.
        """
        held = self.task.row_constraints
        number = held.number(inputs["constraint"])
        # Of an empty history nothing is known: as behind a text.
        at_start = begins & (lengths > 0) & held.at_start(prompt, lengths)
        return {**self.task.row_options.without_prompt(inputs), "constraint": number,
                "state": held.entered(number, inputs["state"], at_start)}

    def _stepped(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        task, id_count = self.task, inputs["id_count"]
        logits, cache = task.network.extend(
            inputs["ids"], id_count, _unstacked(inputs["cache"], inputs["lengths"]))
        last = tf.gather(logits, tf.maximum(id_count, 1) - 1, batch_dims=1)  # [B, V]
        made, cache = task.loops.as_asked(
            Start(tf.cast(last, tf.float32), cache),
            {**inputs, "max_new_tokens": inputs["count"]}, together=True)
        flat = [tensor for layer in cache.layers for tensor in layer]
        return {"tokens": made.ids, "token_count": made.lengths,
                "finished": made.finished, "score": made.scores,
                "cache": tf.ensure_shape(tf.stack(flat, axis=1), inputs["cache"].shape),
                "lengths": cache.lengths, "token_logprobs": made.log_probs,
                "top_ids": made.top_ids, "top_logprobs": made.top_log_probs,
                "state": task.row_constraints.left(inputs["constraint"], made.state)}

    # ------------------------------------------------------------------ choose

    def _choose_specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        config, size = self.task.config, self.task.codec.vocab_size
        inputs = (
            rows("logits", "float32", size, note="of each row's next token"),
            rows("ids", "int32", None, note="prompt and what was produced"),
            rows("prompt_length", "int32", note="how many of them are the prompt"),
            rows("length", "int32", note="how many of them count"),
            *options.specs(config, {*options.SAMPLING, *options.LOGITS}),
            *_held())
        outputs = (
            rows("token", "int32", note="chosen"),
            rows("logprob", "float32", note="under the model, nats"),
            rows("is_end", "bool", note="an end id, or one of the row's stop ids"),
            _held()[1], *self._told())
        return inputs, outputs

    def _choose(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Choose the next token of each row; what is not allowed is never chosen."""
        return self._chosen(self._checked_choice(**inputs))

    @in_stage(PREPROCESS)
    def _checked_choice(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        same_rows(inputs)
        options.check(inputs, self.task.config)
        width = tf.shape(inputs["ids"])[1]
        length, prompt = inputs["length"], inputs["prompt_length"]
        require((prompt >= 0) & (prompt <= length),
                "prompt_length: expected 0 <= prompt_length <= length.", prompt)
        require(length <= width, "length: expected length <= ids in the row.", length)
        self._check_width(inputs["allowed"])
        return self._with_constraint(inputs, length == prompt, inputs["ids"], length)

    @in_stage(CORE)
    def _chosen(self, dense: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        task, logits = self.task, dense["logits"]
        produced = dense["length"] - dense["prompt_length"]
        history = History(tf.pad(dense["ids"], [[0, 0], [0, 1]]), dense["prompt_length"],
                          dense["length"])
        chosen = task.row_options
        changed = controls.control(logits, chosen.controls(dense), chosen.ends(dense), history,
                                   produced)
        changed = only(changed, dense["allowed"])
        held = task.row_constraints.followed(dense["state"])
        changed = held.change(changed, produced, held.state)
        token = sampling.choose(changed, chosen.sampling(dense), produced)
        told = {"top_ids": tf.fill([tf.shape(token)[0], task.config.top_logprobs], -1)}
        told["top_logprobs"] = tf.zeros_like(told["top_ids"], tf.float32)
        if task.config.top_logprobs:
            told["top_ids"], told["top_logprobs"] = tf.cond(
                tf.reduce_any(dense["logprobs"] > 0),
                lambda: record.top(logits, task.config.top_logprobs, dense["logprobs"]),
                lambda: (told["top_ids"], told["top_logprobs"]))
        return {"token": token, "logprob": token_log_probs(logits, token),
                "is_end": is_end(token, task.limits(produced, dense["stop_ids"])),
                "state": task.row_constraints.left(dense["constraint"], held.accept(
                    held.state, token, tf.ones_like(token, tf.bool))), **told}


def _held() -> tuple[TensorSpec, TensorSpec]:
    """Return what says, beside the options, which tokens may come."""
    return (rows("allowed", "int32", None, note="bit i % 32 of word i // 32: token i may come "
                 "first; of width 0: every token may"),
            rows("state", "int32", note="of the constraint; 0 to begin, then what came out"))


def _unstacked(stacked: tf.Tensor, lengths: tf.Tensor) -> Cache:
    """[B, 2 layers, heads, P, size] -> a Cache."""
    flat = tf.unstack(stacked, axis=1)
    return Cache(tuple(zip(flat[::2], flat[1::2])), lengths)
