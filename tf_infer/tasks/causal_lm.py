"""Prompt to continuation: greedy or sampled, with options and seed for each row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import tensorflow as tf

from tf_infer.config import CausalLMConfig, ConstraintConfig
from tf_infer.decoding import controls
from tf_infer.decoding.contracts import Limits, Processor
from tf_infer.decoding.processors import History
from tf_infer.decoding.score import place_scores
from tf_infer.decoding.shared import Shared
from tf_infer.decoding.speculative import joined
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.networks.contracts import Cache, Decoder
from tf_infer.stages import CORE, POSTPROCESS, PREPROCESS
from tf_infer.tasks import options
from tf_infer.tasks.base import Signature, Task, by_name, in_stage, rows
from tf_infer.tasks.beams import Beams
from tf_infer.tasks.explained import Explained
from tf_infer.tasks.grid import in_slices, require, same_rows
from tf_infer.tasks.host_loops import HostLoops
from tf_infer.tasks.lists import some_rows
from tf_infer.tasks.loops import Loops
from tf_infer.tasks.row_constraints import RowConstraints, check_named
from tf_infer.tasks.row_options import RowOptions
from tf_infer.tasks.shared_codec import SharedCodec
from tf_infer.tasks.speculation import Speculation, check_draft
from tf_infer.text.contracts import TextCodec, TokenBatch, Tokens
from tf_infer.text.packing import Reached, pack, pad_id, within_reach
from tf_infer.text.rows import row_ids

# the first outputs of both loops
PLAINLY = ("ids", "length", "score", "finished", "token_logprobs")
LOGITS = 2**25  # most logits at once where those of every place are made: 128 MiB


class CausalLM(Task):
    """Text -> continuation, its ids, its log-probability, and why it ended.

    Signatures, B rows, L = `config.capacity`, P = `positions`:
        serving_default: `prompt` -> `text`, `ids`, `length`, `score`, `finish_reason`, with every
            option at its default (the seed too: the same in each row, so that a row's text does
            not depend on its place in a batch).
        generate: `prompt` and every option (docs/generation.md) -> the same, and
            `token_logprobs`, `top_ids`, `top_logprobs` of each new token.
        beam: the best continuations by beam search, where `config.beams` > 0; see beams.py.
        score: `prompt`, `continuation` -> `score` in nats, `length`, `token_logprobs` and
            `perplexity`, over those ids of prompt + continuation, encoded as one text, that reach
            into the continuation.
        encode: `text` -> `ids`, `mask`, `starts`, `ends`, as a prompt is read.
        decode: `ids`, `length` -> `text`.
        speculate (with `config.guesses`): the answer of `generate` to plain options, by guessing;
            see speculation.py.
        explain (with `config.explain`): `prompt`, `continuation`, `place` -> which tokens made the
            log-probability of one token; see explained.py.
        steps: read ids, then produce `count` tokens, for loops of the host; see host_loops.py.
        choose: the next token from logits, for loops of the host around an engine; likewise.

    A prompt is cut on the left to `packing.max_tokens`. Where no start id is put before it, an
    empty prompt is read as the codec's start id, else its end id (GPT-2's habit), else id 0.
    Prompt and continuation together never exceed the network's `max_positions`: such a row ends
    early, with reason "length".
    `text` is what the continuation adds to the decoded prompt, spaces included.
    """

    config: CausalLMConfig

    def __init__(self, config: CausalLMConfig, codec: TextCodec, network: Any, *,
                 draft: Decoder | None = None, **keywords: Any) -> None:
        self.texts = SharedCodec(codec)
        self.row_options = RowOptions(config, codec, self.texts)
        self.row_constraints = RowConstraints(config, codec, self.row_options.end_ids,
                                              lambda: int(self.network.vocab_size))
        self.loops = Loops(self)
        self.draft = draft  # guesses for `speculate`; None for prompt look-up
        super().__init__(config, codec, network, **keywords)

    @property
    def positions(self) -> int:
        """P, positions of the cache that `steps` hands around."""
        return int(min(self.network.max_positions,
                       self.config.grid.tokens[-1] + self.config.capacity))

    def tracked(self) -> tuple[Any, ...]:
        """See `Task.tracked`."""
        return super().tracked() if self.draft is None else (*super().tracked(), self.draft)

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "draft": self.draft}

    def explaining(self) -> CausalLM:
        """Return the same decoder with the signature `explain`."""
        return self.replaced(config=replace(self.config, explain=True))

    def constrained(self, named: Mapping[str, ConstraintConfig]) -> CausalLM:
        """Return a task of the same codec and weights with other named constraints.

        Raises:
            ConfigError: one of them is none, with position or path.
        """
        check_named(named)
        return self.replaced(config=replace(self.config, constraints=dict(named)))

    def speculating(self, guesses: int, draft: CausalLM | None = None) -> CausalLM:
        """Return the same decoder with the signature `speculate`; 0 guesses leave it out.

        Args:
            guesses: of a round, at most.
            draft: a smaller decoder whose network guesses; None looks tokens up in the prompt.

        Raises:
            ConfigError: the draft has other ids, or cannot read every prompt.
        """
        if draft is not None:
            check_draft(self, draft)
        return self.replaced(config=replace(self.config, guesses=guesses),
                             draft=None if draft is None else draft.network)

    def searching(self, beams: int, groups: int = 1, diversity: float = 0.0) -> CausalLM:
        """Return the same decoder with the signature `beam`; 0 beams leave it out.

        Args:
            beams: hypotheses of a row.
            groups: a divisor of `beams`; they search in so many groups.
            diversity: what a token costs a group for each hypothesis of an earlier one that took
                it.

        Raises:
            ConfigError: numbers that do not fit each other.
        """
        return self.replaced(config=replace(self.config, beams=beams, beam_groups=groups,
                                            beam_diversity=diversity))

    # ------------------------------------------------------------------ strings -> dense -> strings

    @in_stage(PREPROCESS)
    def preprocess(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """`prompt` [B] string and every option [B] -> what `core` takes.

        Without `forced_prefix` among them the options are those of `options.PLAIN` alone.
        """
        same_rows(inputs)
        options.check(inputs, self.config)
        prompts = self._reached(inputs["prompt"]).texts
        if "forced_prefix" not in inputs:
            given = {name: inputs[name] for name in options.PLAIN}
            return self._with_prompts(self.texts.encode(prompts), given)
        texts = self.row_options.texts(inputs)
        # The texts of options are encoded with the prompts: an encoder is a large part of a graph.
        encoded = self.texts.encode(tf.concat([prompts, texts.flat], axis=0)).ids
        count = tf.size(prompts)
        given = self.row_options.dense(
            {name: value for name, value in inputs.items() if name != "prompt"}, texts,
            some_rows(encoded, count))
        dense = self._with_prompts(Tokens(some_rows(encoded, 0, count), None, None), given)
        return dense | self.row_constraints.dense(inputs, dense["ids"], dense["lengths"])

    def _with_prompts(self, tokens: Tokens, given: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Lay prompts into rows beside their options; a row has no more tokens than fit."""
        batch = self._pack(tokens, tokens.ids.row_lengths() == 0)
        lengths = _lengths(batch)
        room = self.network.max_positions - lengths
        return {"ids": batch.ids, "lengths": lengths, **given,
                "max_new_tokens": tf.minimum(given["max_new_tokens"], room)}

    def core_specs(self) -> dict[str, tf.TensorSpec]:
        """Prompt ids [B, T], their lengths [B], and every option."""
        return {"ids": tf.TensorSpec([None, None], tf.int32),
                "lengths": tf.TensorSpec([None], tf.int32), **self.row_options.dense_specs(),
                **self.row_constraints.dense_specs()}

    def core(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """Prefill and the whole loop; takes what `preprocess` gives.

        Returns:
            `ids` [B, L], `length`, `score`, `finished` [B], `token_logprobs` [B, L], `top_ids` and
            `top_logprobs` [B, L, A], `cut` [B] int32: bytes from the end of the text back to a
            stop string, 0 where there is none, and `incomplete` [B] bool: the row's constraint asks
            for more. Of plain options the first five alone.
        """
        start = self.loops.read(dense["ids"], dense["lengths"])
        if "prefix" not in dense:
            return dict(zip(PLAINLY, self.loops.plainly(start, dense)))
        made, _ = self.loops.as_asked(start, {
            **dense, "history": dense["ids"], "history_length": dense["lengths"],
            "state": self.row_constraints.begun(dense)})
        return {**dict(zip(PLAINLY, made)), "top_ids": made.top_ids,
                "top_logprobs": made.top_log_probs, "cut": made.cut, "incomplete": made.incomplete}

    def processors(self, dense: Mapping[str, tf.Tensor], history: History, *,
                   before: tf.Tensor | None = None) -> tuple[Processor, ...]:
        """Return what changes the logits of a loop; `before` [B] tokens came in earlier calls."""
        chosen = self.row_options
        return (controls.processor(chosen.controls(dense), chosen.ends(dense), history,
                                   self.config.capacity, before=before),)

    @in_stage(POSTPROCESS)
    def postprocess(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `core` gave, and the prompt's `prompt_ids`, `prompt_lengths` -> the outputs."""
        text = self.continuation(dense["prompt_ids"], dense["prompt_lengths"], dense["ids"],
                                 dense["length"])
        if "cut" in dense:
            text = self._cut(text, dense["ids"], dense["length"], dense["cut"])
        reason = tf.where(dense["finished"], "stop", "length")
        if "incomplete" in dense:
            reason = tf.where(dense["incomplete"], "incomplete", reason)
        told = ("token_logprobs", "top_ids", "top_logprobs")
        return {"text": text, "ids": dense["ids"], "length": dense["length"],
                "score": dense["score"], "finish_reason": reason,
                **{name: dense[name] for name in told if name in dense}}

    def _cut(self, texts: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor, back: tf.Tensor
             ) -> tf.Tensor:
        """Cut off so many bytes at the end of what the ids spell, 0 for none: [B] string.

        A codec may have put U+FFFD for some of these bytes: the text then ends with their repair.
        """
        return tf.cond(tf.reduce_any(back > 0),
                       lambda: self._cutter(texts, ids, lengths, back), lambda: texts)

    @cached_property
    def _cutter(self) -> Shared:
        def cut(texts: tf.Tensor, ids: tf.Tensor, lengths: tf.Tensor, back: tf.Tensor
                ) -> tf.Tensor:
            real = tf.sequence_mask(lengths, tf.shape(ids)[1])
            spelled = tf.strings.reduce_join(
                tf.where(real, tf.gather(self.codec.spellings(), ids), ""), axis=-1)
            size = tf.minimum(back, tf.strings.length(spelled))
            end = tf.strings.substr(spelled, tf.strings.length(spelled) - size, size)
            repaired = tf.strings.unicode_transcode(end, "UTF-8", "UTF-8")
            kept = tf.strings.length(texts) - tf.where(
                _ends_with(texts, end), size, tf.strings.length(repaired))
            return tf.where(back > 0, tf.strings.substr(
                texts, tf.zeros_like(kept), tf.maximum(kept, 0)), texts)

        one = tf.TensorSpec([None], tf.int32)
        return Shared(POSTPROCESS, cut, [tf.TensorSpec([None], tf.string),
                                         tf.TensorSpec([None, None], tf.int32), one, one])

    def step(self, tokens: tf.Tensor, live: tf.Tensor, cache: Cache, *, owned: bool = False
             ) -> tuple[tf.Tensor, Cache]:
        """Read one token of each live row; see `StepFn`, and `Decoder.extend` for `owned`."""
        logits, cache = self.network.extend(
            tf.expand_dims(tokens, 1), tf.cast(live, tf.int32), cache, owned=owned)
        return tf.cast(tf.squeeze(logits, 1), tf.float32), cache

    def limits(self, max_new_tokens: tf.Tensor, stop_ids: tf.Tensor | None = None) -> Limits:
        """Return the limits of a loop; `stop_ids` [B, E] are one more than the ids, 0 for none."""
        return Limits(self.config.capacity, max_new_tokens, self.row_options.end_ids,
                      pad_id(self.codec), None if stop_ids is None else stop_ids - 1)

    def _reached(self, texts: tf.Tensor) -> Reached:
        return within_reach(texts, self.config.packing, self.config.grid)

    def _with_places(self, texts: tf.Tensor) -> Tokens:
        """Encode [B] texts with offsets into them."""
        reached = self._reached(texts)
        return reached.moved(self.texts.encode(reached.texts, offsets=True))

    def _pack(self, tokens: Tokens, bare: tf.Tensor) -> TokenBatch:
        """Lay encoded texts into rows, with one id before those of `bare` [B] if none would be."""
        if not self.config.packing.start:
            tokens = self._with_first_id(tokens, tf.cast(bare, tf.int64))
        return pack(tokens, self.codec, self.config.packing, self.config.grid)

    def _with_first_id(self, tokens: Tokens, counts: tf.Tensor) -> Tokens:
        candidates = (self.codec.start_id, self.codec.end_id, 0)
        first = next(candidate for candidate in candidates if candidate is not None)

        def led(ragged: tf.RaggedTensor | None, value: int) -> tf.RaggedTensor | None:
            if ragged is None:
                return None
            values = tf.fill([tf.reduce_sum(counts)], value)
            return tf.concat([tf.RaggedTensor.from_row_lengths(values, counts), ragged], axis=1)

        return Tokens(led(tokens.ids, first), led(tokens.starts, 0), led(tokens.ends, 0))

    def continuation(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, ids: tf.Tensor,
                     lengths: tf.Tensor) -> tf.Tensor:
        """Decode prompt and continuation as one, and cut off what the prompt alone gives.

        Decoded alone, a continuation would lose the space before its first word (SentencePiece).
        Where the whole does not begin with the prompt (a character was cut in two, and is whole
        only now) the continuation is decoded alone.
        """
        whole, total = joined(prompt_ids, prompt_lengths, ids, lengths)
        width = tf.shape(whole)[1]
        texts = self.texts.decode(                                           # [3 B] string
            tf.concat([whole, whole, tf.pad(ids, [[0, 0], [0, width - tf.shape(ids)[1]]])], axis=0),
            tf.concat([prompt_lengths, total, lengths], axis=0))
        before, after, alone = tf.split(texts, 3)
        size = tf.minimum(tf.strings.length(before), tf.strings.length(after))
        added = tf.strings.substr(after, size, tf.strings.length(after) - size)
        begins = tf.strings.substr(after, tf.zeros_like(size), size) == before
        return tf.where(begins, added, alone)

    # ------------------------------------------------------------------ signatures

    def signatures(self) -> Mapping[str, Signature]:
        """Return serving_default, generate, score, encode, decode, steps, choose, and the asked."""
        capacity = self.config.capacity
        prompt = rows("prompt", "string", note="UTF-8 text")
        text = rows("text", "string", note="UTF-8 text")
        ids = rows("ids", "int32", None, note="token ids")
        length = rows("length", "int32", note="ids that count")
        score = rows("score", "float32", note="log-probability, nats")
        answer = self.answer_specs()
        most = self.config.top_logprobs
        told = (
            rows("token_logprobs", "float32", capacity, note="of each id, nats; 0 behind them"),
            rows("top_ids", "int32", capacity, most,
                 note="likeliest ids at each place, as many as `logprobs` says; -1 behind them"),
            rows("top_logprobs", "float32", capacity, most, note="theirs, nats; 0 behind them"))
        packed = (
            ids, rows("mask", "int32", None, note="1 on ids that count, first in each row"),
            rows("starts", "int32", None, note="first byte in the text"),
            rows("ends", "int32", None, note="one past its last byte"))
        given = options.specs(self.config)
        found = by_name(
            (SignatureSpec(name="serving_default", inputs=(prompt,), outputs=answer),
             self._with_defaults),
            (SignatureSpec(name="generate", inputs=(prompt, *given), outputs=(*answer, *told)),
             self._generate),
            (SignatureSpec(name="score", inputs=(
                prompt, rows("continuation", "string", note="UTF-8 text")), outputs=(
                score, length, rows("token_logprobs", "float32", None,
                                    note="of each id that counts, nats; 0 behind them"),
                rows("perplexity", "float32", note="exp(-score / length); 1 without ids"))),
             self._score),
            (SignatureSpec(name="encode", inputs=(text,), outputs=packed), self._encoded),
            (SignatureSpec(name="decode", inputs=(ids, length), outputs=(text,)), self._decoded),
            *HostLoops(self).signatures())
        found |= by_name(Explained(self).signature()) if self.config.explain else {}
        found |= by_name(Speculation(self).signature()) if self.config.guesses else {}
        return found | (by_name(Beams(self).signature()) if self.config.beams else {})

    def answer_specs(self) -> tuple[TensorSpec, ...]:
        """Return the outputs of `serving_default`, with which all answers begin."""
        return (
            rows("text", "string", note="the continuation alone"),
            rows("ids", "int32", self.config.capacity, note="its ids, padding behind them"),
            rows("length", "int32", note="ids that count"),
            rows("score", "float32", note="log-probability, nats"),
            rows("finish_reason", "string",
                 note="stop (an end id, a stop id, a stop string), length (the limit), or "
                 "incomplete (the constraint asks for more)"))

    def _with_defaults(self, *, prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        given = options.defaults_for(tf.shape(prompt)[0], self.config)
        if options.are_plain(self.config.defaults) and self.compiled == "none":
            # What nobody can ask for here need not be in the graph, which is half the size then.
            given = {name: given[name] for name in options.PLAIN}
        found = self._generate(prompt=prompt, **given)
        return {name: found[name] for name in ("text", "ids", "length", "score", "finish_reason")}

    def _generate(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        dense = self.preprocess(**inputs)
        return self.postprocess(**self._run(dense), prompt_ids=dense["ids"],
                                prompt_lengths=dense["lengths"])

    def _run(self, dense: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        if "prefix" in dense:
            return self.run_core(**dense)
        with tf.name_scope(CORE):
            specs = {name: self.core_specs()[name] for name in dense}
            return in_slices(self.core, dense, specs, self.config.grid.rows[-1])

    def _score(self, *, prompt: tf.Tensor, continuation: tf.Tensor) -> dict[str, tf.Tensor]:
        """Read prompt and continuation as one row; count what ends behind the prompt.

        Rows are read a few at a time, so that their logits are no more than LOGITS numbers.
        """
        batch, counted, length = self.joined(prompt, continuation)
        dense = {"ids": batch.ids, "mask": batch.mask, "counted": counted}
        specs = {name: tf.TensorSpec([None, None], tensor.dtype) for name, tensor in dense.items()}
        scores = in_stage(CORE)(in_slices)(self._scored, dense, specs, self.rows_for(dense["ids"]))
        with tf.name_scope(POSTPROCESS):
            share = tf.cast(tf.maximum(length, 1), tf.float32)
            return {**scores, "length": length, "perplexity": tf.exp(-scores["score"] / share)}

    @in_stage(PREPROCESS)
    def joined(self, prompt: tf.Tensor, continuation: tf.Tensor
               ) -> tuple[TokenBatch, tf.Tensor, tf.Tensor]:
        """Encode prompt and continuation as one text each, with offsets into both as one.

        Returns:
            batch: [B, T].
            counted: [B, T] bool, the ids that reach into the continuation.
            length: [B] int32, how many.
        """
        same_rows({"prompt": prompt, "continuation": continuation})
        whole = tf.strings.join([prompt, continuation])
        tokens = self._with_places(whole)
        prompt_bytes = tf.strings.length(prompt)                             # [B]
        ends = tokens.ends
        assert ends is not None  # they were asked for
        row = row_ids(ends.row_splits)
        reach = tf.cast(ends.values > tf.gather(prompt_bytes, row), tf.int32)
        wanted = tf.math.unsorted_segment_sum(reach, row, tf.size(prompt))
        batch = self._pack(tokens, tf.equal(wanted, tf.cast(tokens.ids.row_lengths(), tf.int32)))
        counted = batch.mask & (batch.ends > prompt_bytes[:, None])
        counted &= tf.range(tf.shape(counted)[1]) > 0  # cut so that nothing stands before it
        length = tf.reduce_sum(tf.cast(counted, tf.int32), axis=-1)
        require(tf.equal(length, wanted),
                f"prompt + continuation: expected at most {self.config.grid.tokens[-1] - 1} ids "
                "that reach into the continuation.", wanted)
        return batch, counted, length

    def _scored(self, *, ids: tf.Tensor, mask: tf.Tensor, counted: tf.Tensor
                ) -> dict[str, tf.Tensor]:
        logits = tf.cast(self.network(ids, mask, training=False), tf.float32)
        log_probs = place_scores(logits, ids, counted)                       # [B, T]
        # Those that count stand together, first in the row.
        order = tf.argsort(tf.cast(~counted, tf.int32), axis=-1, stable=True)
        return {"score": tf.reduce_sum(log_probs, axis=-1),
                "token_logprobs": tf.gather(log_probs, order, batch_dims=1)}

    def rows_for(self, ids: tf.Tensor) -> tf.Tensor:
        """Return how many rows as wide as `ids` [B, T] give no more than LOGITS logits, or 1."""
        places = tf.maximum(tf.shape(ids, tf.int64)[1], 1)
        most = tf.maximum(LOGITS // (places * self.network.vocab_size), 1)
        return tf.cast(tf.minimum(most, self.config.grid.rows[-1]), tf.int32)

    @in_stage(PREPROCESS)
    def _encoded(self, *, text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = self._with_places(text)
        batch = self._pack(tokens, tokens.ids.row_lengths() == 0)
        return {"ids": batch.ids, "mask": tf.cast(batch.mask, tf.int32),
                "starts": batch.starts, "ends": batch.ends}

    @in_stage(POSTPROCESS)
    def _decoded(self, *, ids: tf.Tensor, length: tf.Tensor) -> dict[str, tf.Tensor]:
        same_rows({"ids": ids, "length": length})
        require((length >= 0) & (length <= tf.shape(ids)[1]),
                "length: expected 0 <= length <= ids in the row.", length)
        return {"text": self.texts.decode(ids, length)}


def _lengths(batch: TokenBatch) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(batch.mask, tf.int32), axis=-1)             # [B]


def _ends_with(texts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """[B] bool."""
    size = tf.minimum(tf.strings.length(ends), tf.strings.length(texts))
    return tf.strings.substr(texts, tf.strings.length(texts) - size, size) == ends
