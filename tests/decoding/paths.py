"""The ways a decoding function is run: eager, as a graph with a free row axis, under XLA."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import tensorflow as tf

Runner = Callable[..., Any]


def eager(function: Runner, *arguments: tf.Tensor) -> Any:
    return function(*arguments)


def graph(function: Runner, *arguments: tf.Tensor) -> Any:
    return _traced(function, _free(arguments), False)(*arguments)


def xla(function: Runner, *arguments: tf.Tensor) -> Any:
    return _traced(function, _free(arguments), True)(*arguments)


def _free(arguments: tuple[tf.Tensor, ...]) -> tuple[tf.TensorSpec, ...]:
    return tuple(tf.TensorSpec([None, *a.shape[1:]], a.dtype) for a in arguments)


@lru_cache(maxsize=None)
def _traced(function: Runner, free: tuple[tf.TensorSpec, ...], compiled: bool) -> Runner:
    return tf.function(function, input_signature=free, jit_compile=compiled,
                       autograph=False)


on_all_paths = pytest.mark.parametrize("run", [eager, graph, xla], ids=["eager", "graph", "xla"])
# where a compile under XLA takes long and another test of the same code has one
mostly_without_xla = pytest.mark.parametrize(
    "run", [eager, graph, pytest.param(xla, marks=pytest.mark.slow)], ids=["eager", "graph", "xla"])
