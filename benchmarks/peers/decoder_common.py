"""What all contestants of benchmarks/decode.py share: a process that answers for one model.

Its settings are {"model": folder or file, "form": ..., "positions": n}; a request is {"ids":
[[...]], "texts": [...], "lengths": [...]}, the answer the seconds that this took and the ids. The
prompts of a request are equally long; `lengths` are the new tokens that each row wants.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pipe
from pipe import THREADS as THREADS

Ids = list[list[int]]


class Asked(NamedTuple):
    """Prompts as ids [B, P] and as texts that encode to them, and how many tokens each wants."""

    ids: Ids
    texts: list[str]
    lengths: list[int]

    @property
    def new_tokens(self) -> int:
        """What the longest row wants; who cannot let a row end gives this to all of them."""
        return max(self.lengths)


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
            ids = [row[:length] for row, length in zip(ids, asked.lengths)]
            if [len(row) for row in ids] != asked.lengths:
                raise RuntimeError(f"expected rows of {asked.lengths} new tokens, got "
                                   f"{[len(row) for row in ids]}")
            return {"seconds": spent, "ids": ids}

        return answer

    pipe.run(opened)
