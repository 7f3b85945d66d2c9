"""Our own forms of a decoder, in process: "saved_model", "saved_model-1", "engine" or "sweep".

saved_model: the signature `generate` of an exported version, texts in and texts out; with "-1" in
    one thread, as the embedded server runs it where there are two CPUs; with "-vnni-1", too, and
    with oneDNN kept from AMX (`ONEDNN_MAX_CPU_ISA`), a unit that CPUs of one core may share.
engine: a StepEngine and this file's greedy loop, ids in and ids out.
sweep: no decoder at all: reads the weights of the engine once a token, and answers ids of 0.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import decoder_common as common
import numpy as np


def saved_model(settings: dict[str, Any]) -> common.Generate:
    if "-vnni" in settings["form"]:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE_VNNI"  # read once, by the first product
    import tensorflow as tf
    import tensorflow_text  # noqa: F401  registers the ops of the tokenizer

    common.set_threads(settings["form"])
    model = tf.saved_model.load(settings["model"])
    signature = model.signatures["generate"]
    inputs = signature.structured_input_signature[1]

    def generate(asked: common.Asked) -> common.Ids:
        assert model is not None  # the signature alone does not keep its variables
        count = len(asked.texts)
        given = {"prompt": tf.constant(asked.texts),
                 "max_new_tokens": tf.constant(asked.lengths, tf.int32)}
        for name, spec in inputs.items():  # the other options at what leaves greedy search alone
            if name not in given:
                given[name] = tf.fill([count], _neutral(name, spec.dtype))
        found = signature(**given)
        assert found["length"].numpy().tolist() == asked.lengths
        return found["ids"].numpy()[:, :asked.new_tokens].tolist()

    return generate


def _neutral(name: str, dtype: Any) -> Any:
    import tensorflow as tf

    if dtype == tf.string:
        return ""
    ones = ("top_p", "typical_p", "repetition_penalty")
    return tf.cast(1 if name in ones else 0, dtype)


def engine(settings: dict[str, Any]) -> common.Generate:
    from tf_infer.engines import litert

    engine = litert.load(Path(settings["model"]), threads=common.THREADS)
    return lambda asked: greedy(engine, np.array(asked.ids, np.int32), asked.new_tokens)


def greedy(engine: Any, ids: np.ndarray, new_tokens: int) -> common.Ids:
    """Read [B, P] prompts, then step all of them, together."""
    from tf_infer.engines.contracts import Part

    rows, width = ids.shape
    tokens = np.zeros(engine.slots, np.int32)
    lengths = np.zeros(engine.slots, np.int32)
    active = list(range(rows))
    tokens[:rows] = engine.read_many([Part(row, ids[row]) for row in active]).argmax(1)
    lengths[:rows] = width
    found = [tokens[:rows].tolist()]
    while len(found) < new_tokens:
        tokens[:rows] = engine.step(tokens, lengths, active)[:rows].argmax(1)
        lengths[:rows] += 1
        found.append(tokens[:rows].tolist())
    return [list(row) for row in zip(*found)]


def sweep(settings: dict[str, Any]) -> common.Generate:
    from benchmarks import engine_parts

    count = engine_parts.weight_bytes(Path(settings["model"]) / "model.tflite")
    read = engine_parts.sweeper(count, common.THREADS)

    def generate(asked: common.Asked) -> common.Ids:
        for _ in range(asked.new_tokens):
            read()
        return [[0] * asked.new_tokens for _ in asked.ids]

    return generate


def load(settings: dict[str, Any]) -> common.Generate:
    return {"engine": engine, "sweep": sweep}.get(settings["form"], saved_model)(settings)


if __name__ == "__main__":
    common.run(load)
