"""The options of a decoder's signatures: names, dtypes, defaults, rules; one value for each row.

Every option is [B], so that requests with different ones share a batch. One that holds a list is a
string whose items are joined by U+001F (lists.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import tensorflow as tf

from tf_infer.config import CausalLMConfig, GenerationDefaults
from tf_infer.manifest import TensorSpec
from tf_infer.tasks.base import rows
from tf_infer.tasks.grid import require_all
from tf_infer.tasks.lists import BIASES, SEPARATOR, STOP_BYTES, STOP_IDS, STOPS, WORDS

Value = int | float | str
# Of these the value that changes nothing is the default; GenerationDefaults has the others.
NEUTRAL: dict[str, Value] = {"min_new_tokens": 0, "draw": 0, "logprobs": 0, "stop_ids": "",
                             "banned": "", "logit_bias": "", "forced_prefix": "",
                             "constraint": "", "choices": ""}
LARGEST_PENALTY = 100.0
PLAIN = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")  # of serving_default, mostly
SAMPLING = ("temperature", "top_k", "top_p", "seed")
# what `choose` and `steps` take, beside SAMPLING
LOGITS = ("min_new_tokens", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
          "frequency_penalty", "draw", "logprobs", "stop_ids", "banned", "logit_bias",
          "forced_prefix", "constraint")


class Option(NamedTuple):
    """One option: what it is called, what it may be, and in words ("" for anything)."""

    name: str
    dtype: tf.DType
    rule: Callable[[tf.Tensor], tf.Tensor]
    words: str
    note: str


def options(config: CausalLMConfig) -> tuple[Option, ...]:
    """Return the options of `generate` in the order of its signature."""
    capacity, told = config.capacity, config.top_logprobs
    most = LARGEST_PENALTY
    return (
        _whole("max_new_tokens", 0, capacity, f"most new tokens, 0 to {capacity}"),
        Option("temperature", tf.float32, lambda v: (v >= 0.0) & tf.math.is_finite(v),
               "a finite number >= 0", "divides the logits; 0 takes the best token"),
        _whole("top_k", 0, None, "keep the k best tokens; 0 keeps all"),
        Option("top_p", tf.float32, lambda v: (v > 0.0) & (v <= 1.0), "0 < top_p <= 1",
               "keep the smallest set with this mass; 1 keeps all"),
        Option("seed", tf.int64, _anything, "",
               "of the row; the same seed gives the same text"),
        _whole("min_new_tokens", 0, capacity, "no end before these"),
        Option("min_p", tf.float32, lambda v: (v >= 0.0) & (v <= 1.0), "0 <= min_p <= 1",
               "keep tokens with this share of the best one's probability; 0 keeps all"),
        Option("typical_p", tf.float32, lambda v: (v > 0.0) & (v <= 1.0), "0 < typical_p <= 1",
               "keep the most typical tokens with this mass; 1 keeps all"),
        Option("repetition_penalty", tf.float32, lambda v: (v > 0.0) & (v <= most),
               f"0 < repetition_penalty <= {most:g}",
               "divides logits of tokens in prompt or output; 1 is off"),
        Option("presence_penalty", tf.float32, lambda v: tf.abs(v) <= most,
               f"{-most:g} <= presence_penalty <= {most:g}",
               "taken off the logits of tokens in the output; 0 is off"),
        Option("frequency_penalty", tf.float32, lambda v: tf.abs(v) <= most,
               f"{-most:g} <= frequency_penalty <= {most:g}",
               "taken off once for each time a token is in the output; 0 is off"),
        _whole("draw", 0, None, "which of several draws with one seed"),
        _whole("logprobs", 0, told, f"alternatives told for each token, 0 to {told}"),
        Option("stop", tf.string, _anything, "",
               f"end before one of these: at most {STOPS} of {STOP_BYTES} bytes, joined by U+001F"),
        Option("stop_ids", tf.string, _anything, "",
               f"ids that end the row as well: at most {STOP_IDS}, joined by U+001F"),
        Option("banned", tf.string, _anything, "",
               f"words that are not said: at most {WORDS}, joined by U+001F"),
        Option("logit_bias", tf.string, _anything, "",
               f"id:value, added to logits: at most {BIASES}, joined by U+001F"),
        Option("forced_prefix", tf.string, _anything, "", "what the continuation begins with"),
        Option("constraint", tf.string, _anything, "",
               f"name of what the text must look like: {_named(config)}; '' for nothing"),
        Option("choices", tf.string, _anything, "",
               "the text is one of these, joined by U+001F; a leading space is part of one"),
    )


def _named(config: CausalLMConfig) -> str:
    return ", ".join(config.constraints) or "none was exported"


def _whole(name: str, least: int, most: int | None, note: str) -> Option:
    if most is None:
        return Option(name, tf.int32, lambda v: v >= least, f"{name} >= {least}", note)
    return Option(name, tf.int32, lambda v: (v >= least) & (v <= most),
                  f"{least} <= {name} <= {most}", note)


def _anything(values: tf.Tensor) -> tf.Tensor:
    return tf.ones_like(values, tf.bool)


def default(name: str, defaults: GenerationDefaults) -> Value:
    """Return the value of an option that is left out."""
    if name in NEUTRAL:
        return NEUTRAL[name]
    value = getattr(defaults, name)
    return SEPARATOR.join(value) if isinstance(value, tuple) else value


def are_plain(defaults: GenerationDefaults) -> bool:
    """Return whether only the options of PLAIN do anything where all have these defaults."""
    usual = GenerationDefaults()
    return all(getattr(defaults, field.name) == getattr(usual, field.name)
               for field in dataclasses.fields(defaults) if field.name not in PLAIN)


def specs(config: CausalLMConfig, names: Collection[str] | None = None) -> tuple[TensorSpec, ...]:
    """Return options as inputs of a signature, with their defaults; all, or those of some names."""
    return tuple(rows(option.name, option.dtype.name, note=option.note,
                      default=default(option.name, config.defaults))
                 for option in options(config) if names is None or option.name in names)


def defaults_for(count: tf.Tensor, config: CausalLMConfig) -> dict[str, tf.Tensor]:
    """Return the defaults, the same in each of `count` rows."""
    return {option.name: tf.fill([count], tf.constant(default(option.name, config.defaults),
                                                      option.dtype))
            for option in options(config)}


def check(values: Mapping[str, tf.Tensor], config: CausalLMConfig) -> None:
    """Fail with INVALID_ARGUMENT, naming option, rule, row and value, where a rule is broken.

    The items of lists are checked where they are read (lists.py).
    """
    rules = [(f"{option.name}: expected {option.words}.", option.rule(values[option.name]),
              values[option.name])
             for option in options(config) if option.name in values and option.words]
    if {"min_new_tokens", "max_new_tokens"} <= values.keys():
        least = values["min_new_tokens"]
        rules.append(("min_new_tokens: expected at most max_new_tokens.",
                      least <= values["max_new_tokens"], least))
    require_all(rules)
