"""The options of a decoder's signatures: names, dtypes, defaults, rules; one value for each row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tf_infer.config import GenerationDefaults
from tf_infer.manifest import TensorSpec
from tf_infer.tasks.base import rows
from tf_infer.tasks.grid import require


class Option(NamedTuple):
    """One option: what it is called, what it may be, and in words."""

    name: str
    dtype: tf.DType
    rule: Callable[[tf.Tensor], tf.Tensor]
    words: str
    note: str


def options(capacity: int) -> tuple[Option, ...]:
    """Return the options of `generate` in the order of its signature."""
    return (
        Option("max_new_tokens", tf.int32, lambda v: (v >= 0) & (v <= capacity),
               f"0 <= max_new_tokens <= {capacity}", f"most new tokens, 0 to {capacity}"),
        Option("temperature", tf.float32, lambda v: (v >= 0.0) & tf.math.is_finite(v),
               "a finite number >= 0", "divides the logits; 0 takes the best token"),
        Option("top_k", tf.int32, lambda v: v >= 0, "top_k >= 0",
               "keep the k best tokens; 0 keeps all"),
        Option("top_p", tf.float32, lambda v: (v > 0.0) & (v <= 1.0), "0 < top_p <= 1",
               "keep the smallest set with this mass; 1 keeps all"),
        Option("seed", tf.int64, lambda v: tf.ones_like(v, tf.bool), "any integer",
               "of the row; the same seed gives the same text"),
    )


def specs(capacity: int, defaults: GenerationDefaults) -> tuple[TensorSpec, ...]:
    """Return the options as inputs of a signature, with their defaults."""
    return tuple(rows(option.name, option.dtype.name, note=option.note,
                      default=getattr(defaults, option.name)) for option in options(capacity))


def defaults_for(count: tf.Tensor, capacity: int, defaults: GenerationDefaults
                 ) -> dict[str, tf.Tensor]:
    """Return the defaults, the same in each of `count` rows."""
    return {option.name: tf.fill([count], tf.constant(getattr(defaults, option.name), option.dtype))
            for option in options(capacity)}


def check(values: Mapping[str, tf.Tensor], capacity: int) -> None:
    """Fail with INVALID_ARGUMENT, naming option, rule, row and value, where a rule is broken."""
    for option in options(capacity):
        if option.name in values:
            value = values[option.name]
            require(option.rule(value), f"{option.name}: expected {option.words}.", value)
