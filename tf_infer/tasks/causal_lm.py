"""Prompt to continuation: greedy or sampled, with options and seed for each row."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from tf_infer.config import CausalLMConfig
from tf_infer.decoding import sampling
from tf_infer.decoding.contracts import Limits, SamplingOptions, Start
from tf_infer.decoding.loop import run
from tf_infer.decoding.score import sequence_scores
from tf_infer.manifest import SignatureSpec, TensorSpec
from tf_infer.networks.contracts import Cache
from tf_infer.stages import CORE, POSTPROCESS, PREPROCESS
from tf_infer.tasks import options
from tf_infer.tasks.base import Signature, Task, by_name, in_stage, rows, tensor_spec
from tf_infer.tasks.grid import in_slices, require, same_rows
from tf_infer.text.contracts import TokenBatch, Tokens
from tf_infer.text.packing import pack, pad_id

LOGITS = 2**25  # most logits at once where those of every place are made: 128 MiB
SAMPLING = ("temperature", "top_k", "top_p", "seed")  # in the order of SamplingOptions


class CausalLM(Task):
    """Text -> continuation, its ids, its log-probability, and why it ended.

    Signatures, B rows, L = `config.capacity`, P = `positions`:
        serving_default: `prompt` -> `text`, `ids`, `length`, `score`, `finish_reason`, with every
            option at its default (the seed too: the same in each row, so that a row's text does
            not depend on its place in a batch).
        generate: `prompt` and every option -> the same.
        score: `prompt`, `continuation` -> `score` in nats and `length`, over those ids of prompt +
            continuation, encoded as one text, that reach into the continuation.
        encode: `text` -> `ids`, `mask`, `starts`, `ends`, as a prompt is read.
        decode: `ids`, `length` -> `text`.
        steps: read ids, then produce `count` tokens, for loops of the host; see `_steps`.

    A prompt is cut on the left to `packing.max_tokens`. Where no start id is put before it, an
    empty prompt is read as the codec's start id, else its end id (GPT-2's habit), else id 0.
    Prompt and continuation together never exceed the network's `max_positions`: such a row ends
    early, with reason "length".
    `text` is what the continuation adds to the decoded prompt, spaces included.
    """

    config: CausalLMConfig

    @property
    def positions(self) -> int:
        """P, positions of the cache that `steps` hands around."""
        return int(min(self.network.max_positions,
                       self.config.grid.tokens[-1] + self.config.capacity))

    # ------------------------------------------------------------------ strings -> dense -> strings

    @in_stage(PREPROCESS)
    def preprocess(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """`prompt` [B] string and every option [B] -> what `core` takes."""
        same_rows(inputs)
        options.check(inputs, self.config.capacity)
        tokens = self.codec.encode(inputs["prompt"])
        batch = self._pack(tokens, tokens.ids.row_lengths() == 0)
        lengths = _lengths(batch)
        room = self.network.max_positions - lengths
        return {"ids": batch.ids, "lengths": lengths,
                "max_new_tokens": tf.minimum(inputs["max_new_tokens"], room),
                **{name: inputs[name] for name in SAMPLING}}

    def core_specs(self) -> dict[str, tf.TensorSpec]:
        """Prompt ids [B, T], their lengths [B], and every option [B]."""
        given = {option.name: tf.TensorSpec([None], option.dtype)
                 for option in options.options(self.config.capacity)}
        return {"ids": tf.TensorSpec([None, None], tf.int32),
                "lengths": tf.TensorSpec([None], tf.int32), **given}

    def core(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """Prefill and the whole loop: -> `ids` [B, L], `length`, `score`, `finished` [B]."""
        width = tf.shape(dense["ids"])[1]
        capacity = tf.minimum(width + self.config.capacity, self.network.max_positions)
        logits, cache = self.network.prefill(
            dense["ids"], tf.maximum(dense["lengths"], 1), capacity=capacity)
        found = sampling.sample(
            self._step, Start(tf.cast(logits, tf.float32), cache),
            self._limits(dense["max_new_tokens"]),
            SamplingOptions(*(dense[name] for name in SAMPLING)))
        return {"ids": found.ids[:, 0], "length": found.lengths[:, 0],
                "score": found.scores[:, 0], "finished": found.finished[:, 0]}

    @in_stage(POSTPROCESS)
    def postprocess(self, **dense: tf.Tensor) -> dict[str, tf.Tensor]:
        """What `core` gave, and the prompt's `prompt_ids`, `prompt_lengths` -> the outputs."""
        text = self._continuation(dense["prompt_ids"], dense["prompt_lengths"], dense["ids"],
                                  dense["length"])
        return {"text": text, "ids": dense["ids"], "length": dense["length"],
                "score": dense["score"],
                "finish_reason": tf.where(dense["finished"], "stop", "length")}

    def _step(self, tokens: tf.Tensor, live: tf.Tensor, cache: Cache) -> tuple[tf.Tensor, Cache]:
        logits, cache = self.network.extend(tokens[:, None], tf.cast(live, tf.int32), cache)
        return tf.cast(logits[:, 0], tf.float32), cache

    def _limits(self, max_new_tokens: tf.Tensor) -> Limits:
        end_ids = self.config.end_ids
        if not end_ids and self.codec.end_id is not None:
            end_ids = (self.codec.end_id,)
        return Limits(self.config.capacity, max_new_tokens, end_ids, pad_id(self.codec))

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

    def _continuation(self, prompt_ids: tf.Tensor, prompt_lengths: tf.Tensor, ids: tf.Tensor,
                      lengths: tf.Tensor) -> tf.Tensor:
        """Decode prompt and continuation as one, and cut off what the prompt alone gives.

        Decoded alone, a continuation would lose the space before its first word (SentencePiece).
        Where the whole does not begin with the prompt (a character was cut in two, and is whole
        only now) the continuation is decoded alone.
        """
        prompt = tf.RaggedTensor.from_tensor(prompt_ids, prompt_lengths)
        whole = tf.concat([prompt, tf.RaggedTensor.from_tensor(ids, lengths)], axis=1).to_tensor()
        before = self.codec.decode(prompt_ids, prompt_lengths)               # [B] string
        after = self.codec.decode(whole, prompt_lengths + lengths)
        alone = self.codec.decode(ids, lengths)
        size = tf.minimum(tf.strings.length(before), tf.strings.length(after))
        added = tf.strings.substr(after, size, tf.strings.length(after) - size)
        begins = tf.strings.substr(after, tf.zeros_like(size), size) == before
        return tf.where(begins, added, alone)

    # ------------------------------------------------------------------ signatures

    def signatures(self) -> Mapping[str, Signature]:
        """Return serving_default, generate, score, encode, decode, steps."""
        capacity = self.config.capacity
        prompt = rows("prompt", "string", note="UTF-8 text")
        text = rows("text", "string", note="UTF-8 text")
        ids = rows("ids", "int32", None, note="token ids")
        length = rows("length", "int32", note="ids that count")
        score = rows("score", "float32", note="log-probability, nats")
        answer = (
            rows("text", "string", note="the continuation alone"),
            rows("ids", "int32", capacity, note="its ids, padding behind them"), length, score,
            rows("finish_reason", "string", note="stop (an end id) or length (the limit)"))
        packed = (
            ids, rows("mask", "int32", None, note="1 on ids that count, first in each row"),
            rows("starts", "int32", None, note="first byte in the text"),
            rows("ends", "int32", None, note="one past its last byte"))
        given = options.specs(capacity, self.config.defaults)
        steps_in, steps_out = self._steps_specs()
        return by_name(
            (SignatureSpec(name="serving_default", inputs=(prompt,), outputs=answer),
             self._with_defaults),
            (SignatureSpec(name="generate", inputs=(prompt, *given), outputs=answer),
             self._generate),
            (SignatureSpec(name="score", outputs=(score, length), inputs=(
                prompt, rows("continuation", "string", note="UTF-8 text"))), self._score),
            (SignatureSpec(name="encode", inputs=(text,), outputs=packed), self._encoded),
            (SignatureSpec(name="decode", inputs=(ids, length), outputs=(text,)), self._decoded),
            (SignatureSpec(name="steps", inputs=steps_in, outputs=steps_out), self._steps))

    def _with_defaults(self, *, prompt: tf.Tensor) -> dict[str, tf.Tensor]:
        return self._generate(prompt=prompt, **options.defaults_for(
            tf.shape(prompt)[0], self.config.capacity, self.config.defaults))

    def _generate(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        dense = self.preprocess(**inputs)
        return self.postprocess(**self.run_core(**dense), prompt_ids=dense["ids"],
                                prompt_lengths=dense["lengths"])

    def _score(self, *, prompt: tf.Tensor, continuation: tf.Tensor) -> dict[str, tf.Tensor]:
        """Read prompt and continuation as one row; count what ends behind the prompt.

        Rows are read a few at a time, so that their logits are no more than LOGITS numbers.
        """
        dense, length = self._joined(prompt, continuation)
        specs = {name: tf.TensorSpec([None, None], tensor.dtype) for name, tensor in dense.items()}
        scores = in_stage(CORE)(in_slices)(self._scored, dense, specs, self._rows_for(dense["ids"]))
        return {**scores, "length": length}

    @in_stage(PREPROCESS)
    def _joined(self, prompt: tf.Tensor, continuation: tf.Tensor
                ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Return rows of prompt and continuation, [B, T] each, and how many ids count [B]."""
        same_rows({"prompt": prompt, "continuation": continuation})
        whole = tf.strings.join([prompt, continuation])
        tokens = self.codec.encode(whole, offsets=True)
        prompt_bytes = tf.strings.length(prompt)[:, None]                    # [B, 1]
        wanted = tf.reduce_sum(tf.cast(tokens.ends > prompt_bytes, tf.int32), axis=1)
        batch = self._pack(tokens, tf.equal(wanted, tf.cast(tokens.ids.row_lengths(), tf.int32)))
        counted = batch.mask & (batch.ends > prompt_bytes)
        counted &= tf.range(tf.shape(counted)[1]) > 0  # cut so that nothing stands before it
        length = tf.reduce_sum(tf.cast(counted, tf.int32), axis=-1)
        require(tf.equal(length, wanted),
                f"prompt + continuation: expected at most {self.config.grid.tokens[-1] - 1} ids "
                "that reach into the continuation.", wanted)
        return {"ids": batch.ids, "mask": batch.mask, "counted": counted}, length

    def _scored(self, *, ids: tf.Tensor, mask: tf.Tensor, counted: tf.Tensor
                ) -> dict[str, tf.Tensor]:
        logits = tf.cast(self.network(ids, mask, training=False), tf.float32)
        return {"score": sequence_scores(logits, ids, counted)}                # [B]

    def _rows_for(self, ids: tf.Tensor) -> tf.Tensor:
        """Return how many rows as wide as `ids` [B, T] give no more than LOGITS logits, or 1."""
        places = tf.maximum(tf.shape(ids, tf.int64)[1], 1)
        most = tf.maximum(LOGITS // (places * self.network.vocab_size), 1)
        return tf.cast(tf.minimum(most, self.config.grid.rows[-1]), tf.int32)

    @in_stage(PREPROCESS)
    def _encoded(self, *, text: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = self.codec.encode(text, offsets=True)
        batch = self._pack(tokens, tokens.ids.row_lengths() == 0)
        return {"ids": batch.ids, "mask": tf.cast(batch.mask, tf.int32),
                "starts": batch.starts, "ends": batch.ends}

    @in_stage(POSTPROCESS)
    def _decoded(self, *, ids: tf.Tensor, length: tf.Tensor) -> dict[str, tf.Tensor]:
        same_rows({"ids": ids, "length": length})
        require((length >= 0) & (length <= tf.shape(ids)[1]),
                "length: expected 0 <= length <= ids in the row.", length)
        return {"text": self.codec.decode(ids, length)}

    # ------------------------------------------------------------------ steps

    def _steps_specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        with tf.init_scope():
            _, cache = self.network.prefill(tf.zeros([1, 1], tf.int32), tf.ones([1], tf.int32),
                                            capacity=1)
        _, heads, _, size = cache.layers[0][0].shape
        state = (rows("cache", "float32", 2 * len(cache.layers), heads, self.positions, size,
                      note="keys of layer i at 2i, its values at 2i + 1; zeros to begin"),
                 rows("lengths", "int32", note="positions in use; 0 to begin"))
        given = options.specs(self.config.capacity, self.config.defaults)[1:]
        inputs = (
            rows("ids", "int32", None, note="to read first: the prompt, or the last token"),
            rows("id_count", "int32", note="how many of them; 0 leaves the row as it is"),
            *state, rows("count", "int32", note="tokens to produce"), *given,
            rows("produced", "int32", note="tokens produced by earlier calls: number of the draw"))
        outputs = (
            rows("tokens", "int32", self.config.capacity, note="produced, padding behind them"),
            rows("token_count", "int32", note="how many; the end id does not count"),
            rows("finished", "bool", note="an end id came"),
            rows("score", "float32", note="log-probability of tokens and end id, nats"), *state)
        return inputs, outputs

    @in_stage(CORE)
    def _steps(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Read `ids`, then produce `count` tokens in each row; all state goes in and comes out.

        The last token of a call has not been read: the next call takes it as its `ids`. A row with
        `id_count` 0 neither reads nor produces, so rows may join and leave between calls.
        """
        same_rows(inputs)
        options.check(inputs, self.config.capacity)
        ids, id_count, count = inputs["ids"], inputs["id_count"], inputs["count"]
        require((id_count >= 0) & (id_count <= tf.shape(ids)[1]),
                "id_count: expected 0 <= id_count <= ids in the row.", id_count)
        require((count >= 0) & (count <= self.config.capacity),
                f"count: expected 0 <= count <= {self.config.capacity}.", count)
        require((count == 0) | (id_count > 0), "id_count: expected >= 1 where count is.", id_count)
        require((inputs["lengths"] >= 0) & (
            inputs["lengths"] + id_count + count <= self.positions),
            f"lengths: expected lengths + id_count + count <= {self.positions}.",
            inputs["lengths"])
        specs = {spec.name: tensor_spec(spec) for spec in self._steps_specs()[0]}
        return in_slices(self._stepped, inputs, specs, self._rows_for(ids))

    def _stepped(self, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        ids, id_count, count = inputs["ids"], inputs["id_count"], inputs["count"]
        logits, cache = self.network.extend(
            ids, id_count, _unstacked(inputs["cache"], inputs["lengths"]))
        last = tf.gather(logits, tf.maximum(id_count, 1) - 1, batch_dims=1)  # [B, V]
        chosen = SamplingOptions(*(inputs[name] for name in SAMPLING))
        progress, cache = run(
            self._step, Start(tf.cast(last, tf.float32), cache), self._limits(count),
            lambda values, lengths: sampling.choose(values, chosen, inputs["produced"] + lengths))
        flat = [tensor for layer in cache.layers for tensor in layer]
        return {"tokens": progress.ids, "token_count": progress.lengths,
                "finished": progress.finished, "score": progress.scores,
                "cache": tf.stack(flat, axis=1), "lengths": cache.lengths}


def _lengths(batch: TokenBatch) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(batch.mask, tf.int32), axis=-1)             # [B]


def _unstacked(stacked: tf.Tensor, lengths: tf.Tensor) -> Cache:
    """[B, 2 layers, heads, P, size] -> a Cache."""
    flat = tf.unstack(stacked, axis=1)
    return Cache(tuple(zip(flat[::2], flat[1::2])), lengths)
