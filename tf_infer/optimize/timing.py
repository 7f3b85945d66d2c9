"""How long tasks take, in alternating rounds of one process: for ratios, not for a server's time"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tf_infer.config import CausalLMConfig
from tf_infer.errors import DataError
from tf_infer.optimize import importance
from tf_infer.optimize.texts import Text
from tf_infer.tasks.base import Task

CALLS = {1: 12, 32: 3}  # of one round, by the rows of a call


def timed(tasks: Sequence[Task], texts: Sequence[Text], rounds: int) -> list[dict[str, float]]:
    """Return the median milliseconds of a call of each task, with 1 row and with 32.

    Args:
        tasks: of one kind; each round asks all of them in turn.
        texts: from the first on, as often as there is need.
        rounds: at least one; another one before them traces and is not counted.

    Returns:
        For each task "ms_batch_1" and "ms_batch_32": of a classifier from text to label in a
        graph, of a decoder one reading of ids.
    """
    found: list[dict[str, float]] = [{} for _ in tasks]
    for rows, count in CALLS.items():
        some = [texts[i % len(texts)] for i in range(rows * count)]
        calls = [_call(task, some, rows) for task in tasks]
        seconds: list[list[float]] = [[] for _ in tasks]
        for _ in range(rounds + 1):
            for call, list_ in zip(calls, seconds):
                began = time.perf_counter()
                call()
                list_.append(time.perf_counter() - began)
        for told, list_ in zip(found, seconds):
            told[f"ms_batch_{rows}"] = 1000 * statistics.median(list_[1:]) / count
    return found


def _call(task: Task, texts: Sequence[Text], rows: int) -> Callable[[], None]:
    """Return what asks a task about all texts, so many at a time."""
    begins = range(0, len(texts), rows)
    inputs: list[dict[str, Any]]
    if isinstance(task.config, CausalLMConfig):
        # By place: Keras takes what is named `mask` for one of its own.
        read = tf.function(lambda ids, mask: task.network(ids, mask), autograph=False,
                           reduce_retracing=True)
        there = importance.read(task, texts, importance.silent)  # not those of one id
        if not there:
            raise DataError("texts: expected one of at least two ids to time a decoder with, got "
                            "none. Give other texts, or leave the timing out: --rounds 0.")
        batches = [importance.batch([there[(i + row) % len(there)] for row in range(rows)], 0)
                   for i in begins]
        inputs = [{"ids": ids, "mask": mask} for ids, mask, _ in batches]
    else:
        signature = task.signatures()["serving_default"]
        read = tf.function(signature.function, autograph=False)
        names = list(signature.input_specs())
        inputs = [{name: tf.constant([text[i] if isinstance(text, tuple) else text
                                      for text in texts[begin:begin + rows]])
                   for i, name in enumerate(names)} for begin in begins]

    def call() -> None:
        for one in inputs:
            read(**one)

    return call
