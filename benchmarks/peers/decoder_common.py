"""What all contestants of benchmarks/decode.py share: a process that answers for one model.

Its settings are {"model": folder or file, "form": ..., "positions": n}; a request is {"ids":
[[...]], "texts": [...], "new_tokens": n}, the answer the seconds that this took and the ids. Rows
of a request are equally long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pipe
from pipe import THREADS as THREADS

Ids = list[list[int]]


class Asked(NamedTuple):
    """Prompts as ids [B, P] and as texts that encode to them, and how many tokens to produce."""

    ids: Ids
    texts: list[str]
    new_tokens: int


Generate = Callable[[Asked], Ids]


def set_threads(form: str) -> None:
    """Let TensorFlow work in one thread where a form says so ("...-1"), else in all."""
    import tensorflow as tf

    alone = form.endswith("-1")
    tf.config.threading.set_intra_op_parallelism_threads(1 if alone else THREADS)
    if alone:
        tf.config.threading.set_inter_op_parallelism_threads(1)


def run(load: Callable[[dict[str, Any]], Generate]) -> None:
    """Load, then answer until standard input ends."""

    def opened(settings: dict[str, Any]) -> pipe.Answer:
        generate = load(settings)

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            asked = Asked(**request)
            started = time.perf_counter()
            ids = generate(asked)
            spent = time.perf_counter() - started
            if [len(row) for row in ids] != [asked.new_tokens] * len(asked.ids):
                raise RuntimeError(f"expected {len(asked.ids)} rows of {asked.new_tokens} new "
                                   f"tokens, got {[len(row) for row in ids]}")
            return {"seconds": spent, "ids": ids}

        return answer

    pipe.run(opened)
