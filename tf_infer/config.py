"""Frozen dataclasses for all that is written to JSON, and the strict reader for them.

An unknown key is an error that names the nearest known one; a missing key takes its default; every
rule is checked once, when the object is built. Dtypes and kinds are strings, so that reading a
configuration needs no TensorFlow. Standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from tf_infer.errors import ConfigError

T = TypeVar("T")

MAX_TEMPLATE_CHARS = 64 * 1024  # of a chat's; the longest known ones have 10,000


def check(rule: bool, where: str, expected: str, got: object, hint: str = "") -> None:
    """Raise ConfigError in the house form unless `rule` holds."""
    if not rule:
        tail = f" {hint}" if hint else ""
        raise ConfigError(f"{where}: expected {expected}, got {got!r}.{tail}")


# ---------------------------------------------------------------------------- text


@dataclass(frozen=True, kw_only=True, slots=True)
class AddedToken:
    """A token that is found in the text before anything else is split.

    Attributes:
        text: what stands in the text, never empty.
        id: its id.
        special: dropped by `decode`.
        left_strip, right_strip: swallow the white space before, after it.
        single_word: only where no letter, digit or underscore touches it.
        normalized: looked for after normalisation (lower-casing) instead of before.
    """

    text: str
    id: int
    special: bool = True
    left_strip: bool = False
    right_strip: bool = False
    single_word: bool = False
    normalized: bool = False

    def __post_init__(self) -> None:
        check(self.text != "", "AddedToken.text", "at least one character", self.text)
        check(self.id >= 0, "AddedToken.id", "an id >= 0", self.id)


@dataclass(frozen=True, kw_only=True, slots=True)
class WordPieceConfig:
    """BERT-style tokenizer: normalise, split on white space and punctuation, longest match first.

    File: `vocab.txt` in the tokenizer folder, one token a line, the line number is the id.
    """

    kind: Literal["wordpiece"] = "wordpiece"
    clean_text: bool = True
    lowercase: bool = True
    strip_accents: bool = True
    split_chinese: bool = True
    prefix: str = "##"
    max_word_chars: int = 100
    unknown_token: str = "[UNK]"
    pad_token: str = "[PAD]"
    start_token: str | None = "[CLS]"
    end_token: str | None = "[SEP]"
    added_tokens: tuple[AddedToken, ...] = ()

    def __post_init__(self) -> None:
        check(self.max_word_chars > 0, "WordPieceConfig.max_word_chars", "> 0", self.max_word_chars)


@dataclass(frozen=True, kw_only=True, slots=True)
class SentencePieceConfig:
    """Unigram or BPE model file of the sentencepiece library.

    File: `tokenizer.model` in the tokenizer folder. Normalisation, dummy prefix and byte fallback
    are what the model file says. Ids of None take what the model file says; -1 means none.
    """

    kind: Literal["sentencepiece"] = "sentencepiece"
    pad_id: int | None = None
    start_id: int | None = None
    end_id: int | None = None
    added_tokens: tuple[AddedToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BytePairConfig:
    """Byte-level BPE, GPT-2 style.

    Files: `vocab.json` (token -> id, in the byte alphabet) and `merges.txt` in the tokenizer
    folder.

    Attributes:
        split: the regular expression that cuts text into words: "gpt2", "llama3" (tiktoken's cl100k
            form), or "none" (no cut: the whole text between added tokens is one word).
        add_prefix_space: put a space before the text unless it starts with one.
        ignore_merges: a word that is itself in the vocabulary is taken whole.
    """

    kind: Literal["bytepair"] = "bytepair"
    split: Literal["gpt2", "llama3", "none"] = "gpt2"
    add_prefix_space: bool = False
    ignore_merges: bool = False
    pad_token: str | None = None
    start_token: str | None = None
    end_token: str | None = "<|endoftext|>"
    unknown_token: str | None = None
    added_tokens: tuple[AddedToken, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BytesConfig:
    """One id per byte: pad 0, start 1, end 2, byte b is id b + 3. Needs no file."""

    kind: Literal["bytes"] = "bytes"


CodecConfig = Union[WordPieceConfig, SentencePieceConfig, BytePairConfig, BytesConfig]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    """How ids become one row of the network.

    Attributes:
        max_tokens: longest row, special ids included.
        start, end: put the codec's start id before, its end id after a text.
        pair_separators: end ids between the two texts of a pair: 1 (BERT) or 2 (RoBERTa).
        truncation: "longest_first" takes ids from the end of the longer text of a pair;
            "left" keeps the end of the text instead of its beginning (prompts).
    """

    max_tokens: int = 128
    start: bool = True
    end: bool = True
    pair_separators: int = 1
    truncation: Literal["longest_first", "left"] = "longest_first"

    def __post_init__(self) -> None:
        check(self.max_tokens >= 4, "PackingConfig.max_tokens", ">= 4", self.max_tokens)
        check(self.pair_separators in (1, 2), "PackingConfig.pair_separators", "1 or 2",
              self.pair_separators)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeGrid:
    """All shapes that the dense part of a graph may see: rows x tokens.

    Attributes:
        rows: batch buckets, ascending.
        tokens: length buckets, ascending; the last one is the longest row.
    """

    rows: tuple[int, ...] = (1, 8, 32)
    tokens: tuple[int, ...] = (16, 32, 64, 128)

    def __post_init__(self) -> None:
        for name, sizes in (("rows", self.rows), ("tokens", self.tokens)):
            ascending = all(a < b for a, b in itertools.pairwise(sizes))
            check(bool(sizes) and sizes[0] > 0 and ascending, f"ShapeGrid.{name}",
                  "one or more ascending sizes > 0", sizes)


# ---------------------------------------------------------------------------- networks


@dataclass(frozen=True, kw_only=True, slots=True)
class HubConfig:
    """A backbone of KerasHub, built from its constructor's arguments.

    Attributes:
        backbone: class name in `keras_hub.models`, such as "BertBackbone".
        arguments: its constructor's arguments, JSON values only.
        activation: feed-forward activation where the checkpoint says another than KerasHub's
            ("gelu" is the exact one, "gelu_tanh" the approximation); None leaves it.
        epsilon: of the layer norms where the checkpoint says another than KerasHub's; None leaves
            it.
        max_positions: longest row; None takes the backbone's own position table. A backbone with
            rotary positions has none and needs it.
        pooler: whether the checkpoint brought weights for the backbone's pooled output.
        head_size: numbers of an attention head of an encoder that has lost some of its heads; None
            is the backbone's own, its width divided by the number of heads.
    """

    kind: Literal["hub"] = "hub"
    backbone: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    activation: str | None = None
    epsilon: float | None = None
    max_positions: int | None = None
    pooler: bool = True
    head_size: int | None = None

    def __post_init__(self) -> None:
        where = "HubConfig"
        check(self.head_size is None or self.head_size >= 1, f"{where}.head_size", "None or >= 1",
              self.head_size)
        check(self.epsilon is None or 0 < self.epsilon < 1, f"{where}.epsilon",
              "None or 0 < epsilon < 1", self.epsilon)
        check(self.max_positions is None or self.max_positions > 0, f"{where}.max_positions",
              "None or > 0", self.max_positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingBagConfig:
    """Mean of word vectors and of vectors of hashed n-grams of ids; trains in seconds."""

    kind: Literal["embedding_bag"] = "embedding_bag"
    width: int = 96
    ngrams: int = 2
    hash_buckets: int = 20_000
    dropout: float = 0.3

    def __post_init__(self) -> None:
        _check_network(self, "width", "ngrams", "hash_buckets")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvConfig:
    """Embeddings and parallel convolutions over them (Kim 2014, arXiv:1408.5882)."""

    kind: Literal["conv"] = "conv"
    width: int = 128
    filters: int = 128
    kernel_sizes: tuple[int, ...] = (2, 3, 4)
    dropout: float = 0.3

    def __post_init__(self) -> None:
        _check_network(self, "width", "filters")
        check(bool(self.kernel_sizes) and min(self.kernel_sizes) >= 1, "ConvConfig.kernel_sizes",
              "one or more sizes >= 1", self.kernel_sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallTransformerConfig:
    """Pre-norm transformer; as an encoder it looks both ways, as a decoder backwards only.

    Attributes:
        head_size: numbers of an attention head; None is width / heads, which pruned networks, that
            have lost some of their heads, do not keep to.
    """

    kind: Literal["small_transformer"] = "small_transformer"
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 512
    max_positions: int = 512
    dropout: float = 0.1
    head_size: int | None = None

    def __post_init__(self) -> None:
        _check_network(self, "width", "layers", "heads", "hidden", "max_positions")
        check(self.head_size is not None or self.width % self.heads == 0,
              "SmallTransformerConfig.heads", f"a divisor of width = {self.width}", self.heads)
        check(self.head_size is None or self.head_size >= 1, "SmallTransformerConfig.head_size",
              "None or >= 1", self.head_size)

    @property
    def size_of_heads(self) -> int:
        """Return the numbers of an attention head."""
        return self.head_size or self.width // self.heads


def _check_network(config: Any, *sizes: str) -> None:
    """Raise ConfigError unless all `sizes` are at least 1 and the dropout is a share."""
    where = type(config).__name__
    for name in sizes:
        check(getattr(config, name) >= 1, f"{where}.{name}", ">= 1", getattr(config, name))
    check(0.0 <= config.dropout < 1.0, f"{where}.dropout", "0 <= dropout < 1", config.dropout)


NetworkConfig = Union[HubConfig, EmbeddingBagConfig, ConvConfig, SmallTransformerConfig]


# ---------------------------------------------------------------------------- tasks


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierConfig:
    """Text, or a pair of texts, to one or several labels.

    Attributes:
        classes: names in the order of the logits, at least two, no name twice.
        multi_label: every class is decided for itself (sigmoid) instead of one of all (softmax).
        thresholds: score from which a label is given, one for all classes or one each; only with
            `multi_label`.
        pair: the signature takes `text` and `text_pair`.
        pooling: how [B, T, D] becomes [B, D]: "first" token, "mean" of real tokens, "max", or
            "pooler" (the backbone's own pooled output, tanh of a dense layer).
        normalize: scale the pooled vector to length 1.
        frozen: the backbone is not trained.
        hidden: widths of dense layers between the pooled vector and the logits, with `activation`.
        temperature: divides the logits before they become scores (calibration).
        explain: the signature `explain` is exported, too: it takes the network apart for its
            gradients, which costs size and time of an export.
    """

    kind: Literal["classifier"] = "classifier"
    name: str = "classifier"
    classes: tuple[str, ...]
    codec: CodecConfig = field(default_factory=BytesConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    network: NetworkConfig = field(default_factory=SmallTransformerConfig)
    grid: ShapeGrid = field(default_factory=ShapeGrid)
    multi_label: bool = False
    thresholds: tuple[float, ...] = (0.5,)
    pair: bool = False
    pooling: Literal["first", "mean", "max", "pooler"] = "mean"
    normalize: bool = False
    frozen: bool = False
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    dropout: float = 0.1
    temperature: float = 1.0
    explain: bool = False

    def __post_init__(self) -> None:
        where = "ClassifierConfig"
        check(len(self.classes) >= 2, f"{where}.classes", "two or more names", self.classes)
        check(len(set(self.classes)) == len(self.classes), f"{where}.classes", "no name twice",
              self.classes)
        check(len(self.thresholds) in (1, len(self.classes)), f"{where}.thresholds",
              f"1 or {len(self.classes)} numbers", self.thresholds)
        check(all(0.0 <= t <= 1.0 for t in self.thresholds), f"{where}.thresholds",
              "numbers from 0 to 1", self.thresholds)
        check(math.isfinite(self.temperature) and self.temperature > 0, f"{where}.temperature",
              "a number > 0", self.temperature)
        check(0.0 <= self.dropout < 1.0, f"{where}.dropout", "0 <= dropout < 1", self.dropout)
        check(all(width >= 1 for width in self.hidden), f"{where}.hidden", "widths >= 1",
              self.hidden)
        check_grid(self.grid, self.packing, where)


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatFormat:
    """How the messages of a chat become one prompt; `chat.json` beside a tokenizer and a manifest.

    Attributes:
        template: Jinja, as Hugging Face's tokenizer_config.json has it under `chat_template`.
        tokens: special tokens that the template may name ("bos_token" -> its text).
        start: the codec puts its start id before every prompt, so that a start token at the
            beginning of what the template writes is left out.
    """

    template: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    start: bool = False

    def __post_init__(self) -> None:
        check(0 < len(self.template) <= MAX_TEMPLATE_CHARS, "ChatFormat.template",
              f"1 to {MAX_TEMPLATE_CHARS} characters", len(self.template))


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """What `serving_default` of a decoder uses, and the client when an option is left out.

    Attributes:
        max_new_tokens: at most the task's capacity.
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        seed: of every row, so that a row's text does not depend on its place in a batch; the
            client derives one for each row from the one it is given.
        min_p: 0 is off.
        typical_p: 1 is off.
        repetition_penalty: 1 is off.
        presence_penalty, frequency_penalty: 0 is off.
        stop: strings that end a text, such as those of a chat's format.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = "GenerationDefaults"
        check(self.max_new_tokens >= 0, f"{where}.max_new_tokens", ">= 0", self.max_new_tokens)
        check(math.isfinite(self.temperature) and self.temperature >= 0, f"{where}.temperature",
              "a number >= 0", self.temperature)
        check(self.top_k >= 0, f"{where}.top_k", ">= 0", self.top_k)
        check(0.0 < self.top_p <= 1.0, f"{where}.top_p", "0 < top_p <= 1", self.top_p)
        check(0.0 <= self.min_p <= 1.0, f"{where}.min_p", "0 <= min_p <= 1", self.min_p)
        check(0.0 < self.typical_p <= 1.0, f"{where}.typical_p", "0 < typical_p <= 1",
              self.typical_p)
        check(0.0 < self.repetition_penalty <= 100.0, f"{where}.repetition_penalty",
              "0 < repetition_penalty <= 100", self.repetition_penalty)
        for name in ("presence_penalty", "frequency_penalty"):
            check(abs(getattr(self, name)) <= 100.0, f"{where}.{name}", "a number from -100 to 100",
                  getattr(self, name))
        check(len(self.stop) <= 8 and all(
            0 < len(text.encode()) <= 64 and "\x1f" not in text for text in self.stop),
            f"{where}.stop", "at most 8 strings of 1 to 64 bytes without U+001F", self.stop)

    @classmethod
    def within(cls, capacity: int) -> GenerationDefaults:
        """Return the usual ones, with no more new tokens than `capacity`."""
        return cls(max_new_tokens=max(0, min(cls().max_new_tokens, capacity)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RegexConfig:
    """A regular expression of Python's `re` that a text must match from end to end."""

    kind: Literal["regex"] = "regex"
    pattern: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JsonSchemaConfig:
    """A JSON Schema that a text must be valid against; what is honoured: docs/constraints.md."""

    kind: Literal["json_schema"] = "json_schema"
    schema: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoicesConfig:
    """Texts of which a text must be one."""

    kind: Literal["choices"] = "choices"
    choices: tuple[str, ...]


ConstraintConfig = Union[RegexConfig, JsonSchemaConfig, ChoicesConfig]


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalLMConfig:
    """Prompt to continuation.

    Attributes:
        packing: of the prompt; `end` must be False and `truncation` "left", since a prompt is
            continued at its end.
        grid: `tokens` are the buckets of the prompt's length.
        capacity: most new tokens of one call; size of the output buffer, fixed when traced.
        end_ids: ids that end a continuation; empty takes the codec's end id.
        defaults: of the options that a request leaves out.
        top_logprobs: most alternatives told for each token; each answer has room for so many.
        beams: hypotheses of the signature `beam`; 0 leaves it out of the export.
        beam_groups: they search in so many groups that avoid each other's tokens.
        beam_diversity: what a token costs a group for each hypothesis of an earlier one that took
            it in the same step.
        constraints: what a row's text must look like that names one of them in its option
            `constraint`; compiled into the graph.
        explain: the signature `explain` is exported, too; it makes the graph larger.
        guesses: tokens guessed in a round of the signature `speculate`; 0 leaves it out.
    """

    kind: Literal["causal_lm"] = "causal_lm"
    name: str = "causal_lm"
    codec: CodecConfig = field(default_factory=BytesConfig)
    packing: PackingConfig = field(
        default_factory=lambda: PackingConfig(end=False, truncation="left"))
    network: NetworkConfig = field(default_factory=SmallTransformerConfig)
    grid: ShapeGrid = field(default_factory=ShapeGrid)
    capacity: int = 128
    end_ids: tuple[int, ...] = ()
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    top_logprobs: int = 5
    beams: int = 0
    beam_groups: int = 1
    beam_diversity: float = 0.0
    constraints: Mapping[str, ConstraintConfig] = field(default_factory=dict)
    explain: bool = False
    guesses: int = 0

    def __post_init__(self) -> None:
        where = "CausalLMConfig"
        check(not self.packing.end, f"{where}.packing.end", "False: a prompt has no end",
              self.packing.end)
        check(self.packing.truncation == "left", f"{where}.packing.truncation",
              "'left': a prompt keeps its end", self.packing.truncation)
        check(self.capacity >= 1, f"{where}.capacity", ">= 1", self.capacity)
        check(self.defaults.max_new_tokens <= self.capacity, f"{where}.defaults.max_new_tokens",
              f"at most capacity = {self.capacity}", self.defaults.max_new_tokens)
        check(0 <= self.top_logprobs <= 100, f"{where}.top_logprobs", "0 to 100", self.top_logprobs)
        check(self.beams >= 0, f"{where}.beams", ">= 0", self.beams)
        check(0 <= self.guesses <= 64, f"{where}.guesses", "0 to 64", self.guesses)
        check(self.beam_groups >= 1 and self.beams % self.beam_groups == 0,
              f"{where}.beam_groups", f"a divisor of beams = {self.beams}", self.beam_groups)
        check(math.isfinite(self.beam_diversity) and self.beam_diversity >= 0,
              f"{where}.beam_diversity", "a number >= 0", self.beam_diversity)
        check(all(name and "\x1f" not in name for name in self.constraints),
              f"{where}.constraints", "names that are not empty, without U+001F",
              list(self.constraints))
        check_grid(self.grid, self.packing, where)


TaskConfig = Union[ClassifierConfig, CausalLMConfig]


def check_grid(grid: ShapeGrid, packing: PackingConfig, where: str) -> None:
    """Raise ConfigError unless the longest packed row has a bucket of its own size."""
    check(grid.tokens[-1] == packing.max_tokens, f"{where}.grid.tokens",
          f"a last bucket equal to packing.max_tokens = {packing.max_tokens}", grid.tokens)


# ---------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How weights are changed.

    Attributes:
        epochs: passes over the data.
        batch_rows: rows of one step.
        learning_rate: highest rate, reached after the warm-up.
        warmup_fraction: share of all steps in which the rate grows from 0.
        decay: "linear" to 0, "cosine" to 0, or "none".
        weight_decay: decoupled (AdamW, arXiv:1711.05101), not on biases and norms.
        epsilon: added to the root of the second moment. A large one (1e-3) leaves steps of seldom
            used rows of an embedding as small as their gradients, which bags of n-grams need.
        clip_norm: global norm of the gradient; None is off.
        label_smoothing: of single-label classifiers.
        token_dropout: share of a training row's ids that are replaced by the unknown id.
        average_decay: the weights kept and judged are a moving average over the steps, with this
            decay, such as 0.998; None keeps the last ones.
        patience: epochs without a better validation result before the end; None never ends early.
        seed: of weights, shuffling and dropout.
        validation_fraction: taken from the training rows when no validation rows are given; 0 takes
            none: every epoch is run and the last weights are kept.
        block_tokens: length of a training row of a decoder.
        epoch_steps: of a decoder: an epoch is this many steps over rows that begin at random
            places of the texts; None reads every text once, cut at the same places.
    """

    epochs: int = 10
    batch_rows: int = 32
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.1
    decay: Literal["linear", "cosine", "none"] = "linear"
    weight_decay: float = 0.01
    epsilon: float = 1e-7
    clip_norm: float | None = 1.0
    label_smoothing: float = 0.0
    token_dropout: float = 0.0
    average_decay: float | None = None
    patience: int | None = 3
    seed: int = 0
    validation_fraction: float = 0.1
    block_tokens: int = 128
    epoch_steps: int | None = None

    def __post_init__(self) -> None:
        where = "TrainConfig"
        check(self.epochs >= 1, f"{where}.epochs", ">= 1", self.epochs)
        check(self.batch_rows >= 1, f"{where}.batch_rows", ">= 1", self.batch_rows)
        check(math.isfinite(self.learning_rate) and self.learning_rate > 0,
              f"{where}.learning_rate", "a number > 0", self.learning_rate)
        check(0 <= self.warmup_fraction < 1, f"{where}.warmup_fraction", "0 <= share < 1",
              self.warmup_fraction)
        check(0 <= self.validation_fraction < 1, f"{where}.validation_fraction", "0 <= share < 1",
              self.validation_fraction)
        check(math.isfinite(self.epsilon) and self.epsilon > 0, f"{where}.epsilon", "a number > 0",
              self.epsilon)
        for name in ("label_smoothing", "token_dropout"):
            check(0 <= getattr(self, name) < 1, f"{where}.{name}", "0 <= share < 1",
                  getattr(self, name))
        check(self.average_decay is None or 0 < self.average_decay < 1, f"{where}.average_decay",
              "None or 0 < decay < 1", self.average_decay)
        check(self.clip_norm is None or self.clip_norm > 0, f"{where}.clip_norm", "None or > 0",
              self.clip_norm)
        check(math.isfinite(self.weight_decay) and self.weight_decay >= 0,
              f"{where}.weight_decay", "a number >= 0", self.weight_decay)
        check(self.patience is None or self.patience >= 1, f"{where}.patience", "None or >= 1",
              self.patience)
        check(self.block_tokens >= 2, f"{where}.block_tokens", ">= 2", self.block_tokens)
        check(self.epoch_steps is None or self.epoch_steps >= 1, f"{where}.epoch_steps",
              "None or >= 1", self.epoch_steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """How a student learns from the answers of a teacher.

    Attributes:
        temperature: divides the logits of both before they are compared; above 1 the classes that
            the teacher finds unlikely count more.
        labels: share of the loss that compares with the labels instead of the teacher; with 0 the
            texts of a classifier need no labels.
        hidden: weight of the mean squared difference of the pooled vectors, which is added to the
            loss of a classifier; the two networks must be of one width.
    """

    temperature: float = 2.0
    labels: float = 0.5
    hidden: float = 0.0

    def __post_init__(self) -> None:
        where = "DistillConfig"
        check(math.isfinite(self.temperature) and self.temperature > 0, f"{where}.temperature",
              "a number > 0", self.temperature)
        check(0 <= self.labels <= 1, f"{where}.labels", "a share from 0 to 1", self.labels)
        check(math.isfinite(self.hidden) and self.hidden >= 0, f"{where}.hidden", "a number >= 0",
              self.hidden)


# ---------------------------------------------------------------------------- JSON


def to_json(value: Any) -> Any:
    """Return `value` as what `json.dumps` takes; dataclasses become objects with every field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(kind: Any, data: Any, *, where: str = "config") -> Any:
    """Read JSON data as `kind`, strictly.

    Args:
        kind: a dataclass, a union of dataclasses told apart by their `kind` field, or a type that
            may stand in one of their fields.
        data: what `json.loads` gave.
        where: what the data is called in messages.

    Raises:
        ConfigError: wrong type, unknown key (names the nearest known one), missing key, or a rule
            of the dataclass itself.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, where)
    if origin is Literal:
        check(data in arguments, where, f"one of {list(arguments)}", data)
        return data
    if origin is tuple:
        check(isinstance(data, list), where, "a list", data)
        return tuple(from_json(arguments[0], item, where=f"{where}[{i}]")
                     for i, item in enumerate(data))
    if origin in (Mapping, dict):
        check(isinstance(data, dict), where, "an object", data)
        return {key: from_json(arguments[1], item, where=f"{where}.{key}")
                for key, item in data.items()}
    if _is_record(kind):
        return _read_dataclass(kind, data, where)
    return _read_plain(kind, data, where)


def _is_record(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _read_dataclass(kind: type[Any], data: Any, where: str) -> Any:
    check(isinstance(data, dict), where, "an object", data)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Remove it."
            check(False, f"{where}.{key}", f"one of {sorted(fields)}", key, hint)
    missing = [name for name, f in fields.items() if name not in data
               and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    check(not missing, where, f"the keys {missing}", sorted(data))
    hints = _hints(kind)
    return kind(**{key: from_json(hints[key], item, where=f"{where}.{key}")
                   for key, item in data.items()})


def _read_union(members: Sequence[Any], data: Any, where: str) -> Any:
    if data is None and type(None) in members:
        return None
    rest = [member for member in members if member is not type(None)]
    if len(rest) == 1:
        return from_json(rest[0], data, where=where)
    tagged = {_hints(member)["kind"]: member for member in rest
              if _is_record(member)}
    if not tagged:
        return from_json(rest[0], data, where=where)
    names = {typing.get_args(tag)[0]: member for tag, member in tagged.items()}
    check(isinstance(data, dict), where, "an object", data)
    found = data.get("kind")
    near = difflib.get_close_matches(str(found), names, n=1)
    check(isinstance(found, str) and found in names, f"{where}.kind", f"one of {sorted(names)}",
          found, f"Did you mean {near[0]!r}?" if near else "")
    return _read_dataclass(names[found], data, where)


def _read_plain(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        try:
            return float(data)
        except OverflowError as error:
            raise ConfigError(f"{where}: expected a number that a float can hold, got one of "
                              f"{data.bit_length()} bits.") from error
    exact = type(data) is kind if kind in (int, float, bool, str) else isinstance(data, kind)
    check(exact, where, f"a value of type {kind.__name__}", data)
    return data


def load(kind: Any, path: Path) -> Any:
    """Read the JSON file at `path` as `kind`.

    Raises:
        ConfigError: the file is missing, is not JSON (with line and column), or breaks a rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}.") from error
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}: expected JSON, got an error at line {error.lineno}, column {error.colno}: "
            f"{error.msg}.") from error
    except (ValueError, RecursionError) as error:  # thousands of digits, thousands of brackets
        raise ConfigError(f"{path}: expected JSON, got numbers too long or lists too deep to "
                          "read.") from error
    return from_json(kind, data, where=Path(path).name)


def dump(value: Any, path: Path) -> None:
    """Write a configuration as indented JSON with a final newline."""
    Path(path).write_bytes(_as_file(value))


def _as_file(value: Any) -> bytes:
    text = json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def dump_whole(value: Any, path: Path) -> None:
    """Write a configuration whole or not at all, over what may be there; forced to disk."""
    write_whole(_as_file(value), path)


def write_whole(data: bytes, path: Path) -> None:
    """Write a file whole or not at all, over what may be there; forced to disk."""
    staged = path.with_name(f".{path.name}.new")
    try:
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
