"""What each row must produce, between the signature and the algorithms: names and choices -> dense.

Dense numbers are one more than what they stand for where 0 is nothing: a batch may be padded with
rows of zeros.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import tensorflow as tf

from tf_infer.config import CausalLMConfig, ChoicesConfig, ConstraintConfig, RegexConfig
from tf_infer.constraints.automaton import FORBIDDEN
from tf_infer.constraints.compiler import SEPARATOR, check, compiled
from tf_infer.constraints.compose import Vocabulary
from tf_infer.constraints.prefix_tree import PrefixTree, prefix_tree
from tf_infer.decoding import constraints
from tf_infer.decoding.constraints import LONGEST, Choices, Tables
from tf_infer.decoding.contracts import Processor
from tf_infer.decoding.loop import Progress
from tf_infer.decoding.shared import Shared
from tf_infer.stages import PREPROCESS
from tf_infer.tasks.grid import require
from tf_infer.text.contracts import TextCodec
from tf_infer.token_bytes import TokenBytes

Dense = Mapping[str, tf.Tensor]

# Bytes of a row's choices together, and how many there may be: few shapes, for XLA.
CHOICE_BYTES, CHOICE_COUNTS = (64, 512, 4_096), (8, 64, 512)


def check_named(named: Mapping[str, ConstraintConfig]) -> None:
    """Raise ConfigError where a constraint is none, with position or path; compiles nothing."""
    for name, constraint in named.items():
        check(*_value(constraint), where=f"constraints.{name}")


def _value(constraint: ConstraintConfig) -> tuple[str, str]:
    """Return a constraint as `constraints.compiler` takes it."""
    if isinstance(constraint, RegexConfig):
        return "regex", constraint.pattern
    if isinstance(constraint, ChoicesConfig):
        return "choices", SEPARATOR.join(constraint.choices)
    return "json_schema", json.dumps(constraint.schema)


class RowConstraints:
    """What the options `constraint` and `choices` mean for a codec and the named constraints.

    Args (of the constructor):
        config: holds the named constraints.
        codec: the tokenizer.
        end_ids: end every row; without any there are no constraints.
        size: gives V, ids of the network.
    """

    def __init__(self, config: CausalLMConfig, codec: TextCodec, end_ids: tuple[int, ...],
                 size: Callable[[], int]) -> None:
        self.names = tuple(config.constraints)
        self._config, self._codec, self._size, self._end_ids = config, codec, size, end_ids

    @cached_property
    def tokens(self) -> TokenBytes:
        """The bytes of every token."""
        with tf.init_scope():
            return self._codec.token_bytes()

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokens, self._size(), self._end_ids)

    @cached_property
    def tables(self) -> Tables:
        """The named automata, compiled; tensors that all signatures share."""
        found = [compiled(*_value(one), self._vocabulary, where=f"constraints.{name}")
                 for name, one in self._config.constraints.items()]
        with tf.init_scope():
            return constraints.tables(found, self._size())

    @cached_property
    def _tree(self) -> PrefixTree:
        tree = prefix_tree(self._vocabulary.levels, self._vocabulary.first_levels)
        with tf.init_scope():
            return tree._replace(**{name: tf.constant(part)
                                    for name, part in tree._asdict().items()
                                    if isinstance(part, np.ndarray)})

    @cached_property
    def _vanishing(self) -> tf.Tensor:
        found = np.zeros(max(self._size(), len(self.tokens.tokens)), bool)
        found[list(self.tokens.vanishing)] = True
        with tf.init_scope():
            return tf.constant(found)

    def dense_specs(self) -> dict[str, tf.TensorSpec]:
        """Return what `dense` gives, by name; rows are free."""
        return {"constraint": tf.TensorSpec([None], tf.int32),
                "at_start": tf.TensorSpec([None], tf.int32),
                "choice_tokens": tf.TensorSpec([None, None, LONGEST], tf.int32),
                "choice_ends": tf.TensorSpec([None, None], tf.int32)}

    # ------------------------------------------------------------------ strings -> dense

    def dense(self, inputs: Dense, prompt: tf.Tensor, lengths: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return `constraint` and `choices` of `inputs` without strings.

        Args:
            inputs: [B] string each, by name.
            prompt: [B, T] int32, of which the first `lengths` [B] int32 count.
        """
        at_start = self.at_start(prompt, lengths)
        number = self.number(inputs["constraint"])
        require((number == 0) | (inputs["choices"] == ""),
                "choices: expected none beside a constraint.")
        self._check_start(number, at_start)
        choices = self._choices(inputs["choices"], at_start)
        return {"constraint": number, "at_start": tf.cast(at_start, tf.int32),
                "choice_tokens": choices.tokens + 1, "choice_ends": choices.ends}

    def at_start(self, prompt: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """[B] bool: nothing of the prompt shows, so that the next token is the first of a text."""
        if not self.tokens.vanishing:
            return tf.zeros_like(lengths, tf.bool)
        real = tf.sequence_mask(lengths, tf.shape(prompt)[1])
        return tf.reduce_all(~real | tf.gather(self._vanishing, prompt), axis=-1)

    def number(self, names: tf.Tensor) -> tf.Tensor:
        """Return the number of each row's named constraint: [B] string -> [B] int32, 0 for none."""
        known = tf.constant(["", *self.names])
        same = names[:, None] == known
        words = ", ".join(self.names) or "none was exported"
        require(tf.reduce_any(same, axis=-1), f"constraint: expected a name, of these: {words}.")
        return tf.argmax(tf.cast(same, tf.int32), axis=-1, output_type=tf.int32)

    def _check_start(self, number: tf.Tensor, at_start: tf.Tensor) -> None:
        if self.names and not self._everywhere:
            fits = constraints.begin(self.tables, number, at_start) != FORBIDDEN
            require(fits, "constraint: expected a prompt that shows some text, since nothing of "
                    "this constraint can be the first of a text.")

    @cached_property
    def _everywhere(self) -> bool:
        """Whether every named constraint can also begin a text."""
        with tf.init_scope():
            return bool(tf.reduce_all(self.tables.firsts != FORBIDDEN))

    def _choices(self, values: tf.Tensor, at_start: tf.Tensor) -> Choices:
        rows = tf.shape(values)[0]

        def nothing() -> tuple[tf.Tensor, tf.Tensor]:
            return (tf.fill([rows, 0, LONGEST], FORBIDDEN), tf.zeros([rows, 0], tf.int32))

        if not self._end_ids:
            require(values == "", "choices: expected none, since this model has no id that ends a "
                    "text.")
            return Choices(*nothing())
        tokens, ends = tf.cond(tf.reduce_any(values != ""),
                               lambda: tuple(self._speller(values, at_start)), nothing)
        return Choices(tf.ensure_shape(tokens, [None, None, LONGEST]),
                       tf.ensure_shape(ends, [None, None]))

    @cached_property
    def _speller(self) -> Shared:
        return Shared(PREPROCESS, self._spelled, [tf.TensorSpec([None], tf.string),
                                                  tf.TensorSpec([None], tf.bool)])

    def _spelled(self, values: tf.Tensor, at_start: tf.Tensor) -> Choices:
        held = _items(values)                                                # [B, (K)]
        flat = held.flat_values
        counts = tf.cast(held.row_lengths(), tf.int32)
        sizes = held.with_values(tf.strings.length(flat)).to_tensor()        # [B, K]
        total = tf.reduce_sum(sizes, axis=-1)
        rules = [require(counts <= CHOICE_COUNTS[-1],
                         f"choices: expected at most {CHOICE_COUNTS[-1]}.", counts),
                 require(total <= CHOICE_BYTES[-1],
                         f"choices: expected at most {CHOICE_BYTES[-1]} bytes together.", total)]
        with tf.control_dependencies(rules):  # else what breaks by them may be told first
            counts, total = tf.identity(counts), tf.identity(total)
        good = tf.strings.unicode_transcode(flat, "UTF-8", "UTF-8", errors="ignore") == flat
        require(tf.reduce_all(held.with_values(good & (flat != "")), axis=1),
                "choices: expected UTF-8 texts that are not empty, joined by U+001F.")
        place = tf.maximum(
            _size_class(tf.reduce_max(total), CHOICE_BYTES),
            _size_class(tf.reduce_max(counts), CHOICE_COUNTS))
        width = tf.gather(tf.constant(CHOICE_BYTES), place)
        most = tf.gather(tf.constant(CHOICE_COUNTS), place)
        text = tf.io.decode_raw(tf.strings.reduce_join(held, axis=1), tf.uint8, fixed_length=width)
        _, widest = tf.unstack(tf.shape(sizes))
        ends = tf.where(tf.sequence_mask(counts, widest), tf.cumsum(sizes, axis=-1), 0)
        ends = tf.pad(ends, [[0, 0], [0, most - widest]])
        found = constraints.spelling(self._tree, text, ends, at_start)
        starts = tf.concat([tf.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
        first = tf.gather(found.tokens, starts, batch_dims=1)                # [B, K, M]
        require(tf.reduce_all((ends == 0) | tf.reduce_any(first >= 0, axis=-1), axis=-1),
                "choices: expected texts that this vocabulary can spell here.")
        missing = LONGEST - tf.shape(found.tokens)[2]
        return Choices(tf.pad(found.tokens, [[0, 0], [0, 0], [0, missing]],
                              constant_values=FORBIDDEN), ends)

    # ------------------------------------------------------------------ dense -> what loops take

    def processors(self, dense: Dense) -> tuple[Processor, ...]:
        """Return what holds the rows of a loop to their constraints; last of all processors.

        `state` [N] int32 of `dense` is that of `Tables` before the first token.
        """
        said = constraints.chosen(_held(dense), self._end_ids)
        return (constraints.named(self.tables, dense["state"]), said) if self.names else (said,)

    def begun(self, dense: Dense) -> tf.Tensor:
        """Return the state of `Tables` that each row begins in: [B] int32, 0 without constraints.
        """
        if not self.names:
            return tf.zeros_like(dense["constraint"])
        return constraints.begin(self.tables, dense["constraint"], dense["at_start"] > 0)

    def state_of(self, progress: Progress) -> tf.Tensor:
        """Return the state of `Tables` at the end of a loop whose last processors are these."""
        return progress.states[-2] if self.names else tf.zeros_like(progress.lengths)

    def asked(self, dense: Dense) -> tf.Tensor:
        """Return whether any row must look like something, or go on with it: [] bool.

        Args:
            dense: their options, and `state` [B] int32, of the named constraint.
        """
        named = tf.maximum(dense["constraint"], dense["state"])
        return tf.reduce_any(named > 0) | tf.reduce_any(dense["choice_ends"] > 0)

    def incomplete(self, dense: Dense, progress: Progress) -> tf.Tensor:
        """Return which rows have not produced what they must: [B] bool.

        A row that ended neither by its limit nor by an end id was ended by something else (a stop
        string, a stop id), which may have cut the text, and counts as incomplete.

        Args:
            dense: their options.
            progress: at the end of a loop whose last processors are `processors`.
        """
        choices, finished = _held(dense), progress.finished
        saying = progress.states[-1]
        said = constraints.complete(choices, saying.places) & (saying.ended | ~finished)
        incomplete = constraints.asks(choices) & ~said
        if not self.names:
            return incomplete
        table, state = self.tables, progress.states[-2]
        ended = state == tf.gather(table.ended, dense["constraint"])
        whole = tf.gather(table.accepting, state) & (ended | ~finished)
        return incomplete | ((dense["constraint"] > 0) & ~whole)

    # ------------------------------------------------------------------ for loops of the host

    def followed(self, state: tf.Tensor) -> Processor:
        """Return what holds rows to their named constraints from a state of `Tables` on."""
        return constraints.named(self.tables, state)

    def entered(self, number: tf.Tensor, state: tf.Tensor, at_start: tf.Tensor) -> tf.Tensor:
        """Return the state of `Tables` of a row's own state, 0 being the one to begin in; [B] each.

        `at_start` [B] is True only where nothing has been produced and the prompt shows nothing.
        """
        table = self.tables
        sizes = tf.concat([table.starts[1:], [tf.size(table.row_of)]], axis=0) - table.starts
        require((state >= 0) & (state < tf.gather(sizes, number)),
                "state: expected 0, or what the call before gave.", state)
        self._check_start(number, at_start)
        return tf.where(at_start, constraints.begin(table, number, at_start),
                        tf.gather(table.starts, number) + state)

    def left(self, number: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """Return a row's own state of a state of `Tables`; [B] each."""
        return state - tf.gather(self.tables.starts, number)


def _items(values: tf.Tensor) -> tf.RaggedTensor:
    """[B] string -> [B, (K)] string; an empty string holds none."""
    found = tf.strings.split(values, sep=SEPARATOR)
    sizes, some = found.row_lengths(), values != ""
    # Written out: masking it takes four times the operations.
    kept = tf.boolean_mask(found.flat_values, tf.repeat(some, sizes))
    return tf.RaggedTensor.from_row_lengths(
        kept, tf.where(some, sizes, tf.zeros_like(sizes)), validate=False)


def _held(dense: Dense) -> Choices:
    return Choices(dense["choice_tokens"] - 1, dense["choice_ends"])


def _size_class(count: tf.Tensor, sizes: tuple[int, ...]) -> tf.Tensor:
    """Return which of the sizes is the smallest that holds `count` []; the last if none does."""
    return tf.reduce_sum(tf.cast(tf.constant(sizes[:-1]) < count, tf.int32))
