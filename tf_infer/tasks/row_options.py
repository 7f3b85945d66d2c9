"""Options of rows between the signature and the algorithms: strings -> dense -> what loops take."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import NamedTuple

import tensorflow as tf

from tf_infer.config import CausalLMConfig
from tf_infer.decoding import stops
from tf_infer.decoding.contracts import SamplingOptions
from tf_infer.decoding.controls import Controls, Ends, asks
from tf_infer.decoding.processors import Penalties
from tf_infer.decoding.shared import Shared
from tf_infer.stages import PREPROCESS
from tf_infer.tasks import lists, options
from tf_infer.tasks.grid import require
from tf_infer.tasks.shared_codec import SharedCodec
from tf_infer.text.continuing import Continuing
from tf_infer.text.contracts import TextCodec
from tf_infer.text.packing import reach

Dense = Mapping[str, tf.Tensor]


class Texts(NamedTuple):
    """Texts of options that have to be encoded, and all else that their lists hold.

    Attributes:
        flat: [B + 2 * total] string: the forced prefix of each row, then the banned words.
        lists: of each row.
    """

    flat: tf.Tensor
    lists: lists.Lists


class RowOptions:
    """What a decoder's options mean for its codec."""

    def __init__(self, config: CausalLMConfig, codec: TextCodec, shared: SharedCodec) -> None:
        self.config, self.codec, self._shared = config, codec, shared

    @cached_property
    def continuing(self) -> Continuing:
        """How texts are encoded that go on from others."""
        with tf.init_scope():
            return Continuing(self.codec)

    @cached_property
    def spellings(self) -> stops.Spellings:
        """The bytes of every token."""
        with tf.init_scope():
            return stops.spellings(self.codec.spellings().numpy().tolist())

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end every row."""
        if not self.config.end_ids and self.codec.end_id is not None:
            return (self.codec.end_id,)
        return self.config.end_ids

    def dense_specs(self) -> dict[str, tf.TensorSpec]:
        """Return what `numbers` and `lists` give, by name; rows are free."""
        found = {option.name: tf.TensorSpec([None], option.dtype)
                 for option in options.options(self.config) if option.dtype != tf.string}
        return {**found, **lists.specs(),
                "banned": tf.TensorSpec([None, 2 * lists.WORDS, lists.WORD_IDS], tf.int32),
                "prefix": tf.TensorSpec([None, self.config.capacity], tf.int32)}

    # ------------------------------------------------------------------ strings -> dense

    def texts(self, inputs: Dense) -> Texts:
        """Read the lists of rows, and return the texts as they are to be encoded."""
        found = lists.read(inputs, self.codec.vocab_size)
        words = tf.reshape(found.words.texts, [-1])
        flat = tf.concat([inputs["forced_prefix"], words], axis=0)
        # What is longer has too many ids as far as it is read, too, and is refused for them.
        flat = tf.strings.substr(flat, 0, reach(self.config.capacity))
        return Texts(self.continuing.written(flat), found)

    def dense(self, inputs: Dense, texts: Texts, encoded: tf.RaggedTensor) -> dict[str, tf.Tensor]:
        """Return all options without strings.

        Args:
            inputs: [B] each, by name.
            texts: those of these inputs.
            encoded: [total, (T)] int32, ids of `texts.flat`.
        """
        count, capacity = tf.shape(inputs["forced_prefix"])[0], self.config.capacity
        places = texts.lists.words.places

        def nothing() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return (tf.zeros([count], tf.int32), tf.zeros([count, capacity], tf.int32),
                    tf.zeros([count, 2 * lists.WORDS, lists.WORD_IDS], tf.int32))

        sizes, prefix, banned = tf.cond(
            tf.size(encoded.flat_values) > 0,
            lambda: self._laid(encoded.flat_values, encoded.row_splits, places, count), nothing)
        most = inputs.get("max_new_tokens", tf.fill([count], capacity))
        words = "max_new_tokens" if "max_new_tokens" in inputs else f"{capacity}"
        require(sizes <= most, f"forced_prefix: expected at most {words} ids.", sizes)
        found = {name: value for name, value in inputs.items() if value.dtype != tf.string}
        found |= {name: getattr(texts.lists, name) for name in lists.specs()}
        found["banned"] = tf.ensure_shape(banned, [None, 2 * lists.WORDS, lists.WORD_IDS])
        found["prefix"] = tf.ensure_shape(prefix, [None, capacity])
        return found

    @cached_property
    def _laid(self) -> Shared:
        """What lays ids of texts into rows: sizes of prefixes [B], prefixes, banned words.

        It takes values and row splits of the ids, places of the words, and B.
        """
        def laid(values: tf.Tensor, splits: tf.Tensor, places: tf.Tensor, count: tf.Tensor
                 ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            ids = self.continuing.read(
                tf.RaggedTensor.from_row_splits(values, splits, validate=False))
            prefixes = lists.some_rows(ids, 0, count)
            return (tf.cast(prefixes.row_lengths(), tf.int32),
                    lists.in_width(prefixes, self.config.capacity),
                    lists.word_ids(places, lists.some_rows(ids, count), count))

        return Shared(PREPROCESS, laid, [
            tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.int64),
            tf.TensorSpec([None, 2], tf.int32), tf.TensorSpec([], tf.int32)])

    def without_prompt(self, inputs: Dense) -> dict[str, tf.Tensor]:
        """Return all options without strings where no prompt is encoded beside them."""
        texts = self.texts(inputs)
        splits = tf.zeros([tf.size(texts.flat) + 1], tf.int64)
        nothing = tf.RaggedTensor.from_row_splits(tf.zeros([0], tf.int32), splits, validate=False)
        encoded = tf.cond(tf.reduce_any(texts.flat != ""),
                          lambda: self._shared.encode(texts.flat).ids, lambda: nothing)
        return self.dense(inputs, texts, encoded)

    # ------------------------------------------------------------------ dense -> what loops take

    def sampling(self, dense: Dense) -> SamplingOptions:
        """Return how tokens are drawn."""
        return SamplingOptions(**{name: dense[name] for name in SamplingOptions._fields
                                  if name in dense})

    def controls(self, dense: Dense) -> Controls:
        """Return what acts on logits."""
        return Controls(
            bias_ids=dense["bias_ids"] - 1, bias_values=dense["bias_values"],
            penalties=Penalties(dense["repetition_penalty"], dense["presence_penalty"],
                                dense["frequency_penalty"]),
            banned=dense["banned"] - 1, min_new_tokens=dense["min_new_tokens"],
            prefix=dense["prefix"] - 1)

    def asked(self, dense: Dense) -> tf.Tensor:
        """Return whether any row asks for more than `options.PLAIN` and `draw`: [] bool."""
        return tf.reduce_any(tf.stack([
            asks(self.controls(dense)),
            *(tf.reduce_any(dense[name] > 0) for name in ("stops", "stop_ids", "logprobs")),
            tf.reduce_any(dense["min_p"] > 0.0), tf.reduce_any(dense["typical_p"] < 1.0)]))

    def ends(self, dense: Dense) -> Ends:
        """Return what ends a row."""
        return Ends(self.end_ids, dense["stop_ids"] - 1)
