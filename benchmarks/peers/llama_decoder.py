"""llama.cpp through llama-cpp-python's own C API, greedy; form: "flash" or "plain" attention.

One context for each number of rows (its cache is split by it); the weights are shared.
"""

from __future__ import annotations

import ctypes
from typing import Any

import decoder_common as common
import llama_cpp
import numpy as np

MICRO_BATCH = 512
silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # must not be collected


class Rows:
    """A context for B rows of at most `positions` ids."""

    def __init__(self, model: Any, rows: int, positions: int, flash: bool) -> None:
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        params = llama_cpp.llama_context_default_params()
        each = -(-positions // 256) * 256  # it rounds up by itself
        params.n_ctx, params.n_seq_max = rows * each, rows
        params.n_batch, params.n_ubatch = max(MICRO_BATCH, rows * positions), MICRO_BATCH
        params.n_threads = params.n_threads_batch = common.THREADS
        params.flash_attn_type = int(flash)
        params.no_perf = True
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise RuntimeError("llama_init_from_model gave nothing")
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def read(self, ids: np.ndarray, start: int) -> list[int]:
        """Read [B, n] ids that stand at `start`; return the likeliest next id of each row."""
        rows, width = ids.shape
        batch, place = self.batch, 0
        for row in range(rows):
            for column in range(width):
                batch.token[place] = int(ids[row, column])
                batch.pos[place] = start + column
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, row
                batch.logits[place] = column == width - 1
                place += 1
        batch.n_tokens = place
        if code := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode gave {code}")
        logits = llama_cpp.llama_get_logits(self.context)  # of the wanted places, in order
        kept = ctypes.cast(logits, ctypes.POINTER(ctypes.c_float * (rows * self.vocab_size)))
        return np.frombuffer(kept.contents, np.float32).reshape(rows, -1).argmax(1).tolist()

    def forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)


def load(settings: dict[str, Any]) -> common.Generate:
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        settings["model"].encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError("llama_model_load_from_file gave nothing")
    contexts: dict[int, Rows] = {}

    def generate(asked: common.Asked) -> common.Ids:
        rows, width = len(asked.ids), len(asked.ids[0])
        if rows not in contexts:
            contexts[rows] = Rows(model, rows, settings["positions"], settings["form"] == "flash")
        one = contexts[rows]
        one.forget()
        found = [one.read(np.array(asked.ids), 0)]
        for step in range(asked.new_tokens - 1):
            found.append(one.read(np.array(found[-1])[:, None], width + step))
        return [list(row) for row in zip(*found)]

    return generate


if __name__ == "__main__":
    common.run(load)
