"""Small decoders of every family, and their LiteRT engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.config import HubConfig, SmallTransformerConfig
from tf_infer.engines import litert
from tf_infer.engines.contracts import Part
from tf_infer.engines.reading import cuts
from tf_infer.networks import build
from tf_infer.optimize.litert import EngineSettings, write

VOCABULARY, POSITIONS = 100, 100  # pages of 64, 32 and 32, of the Llama 64 and 64
ROWS, CHUNKS = (1, 2, 4), (4, 16, 96)  # a read of 96 is looked at in two blocks
SIZES = {"vocabulary_size": VOCABULARY, "num_layers": 2, "hidden_dim": 32, "intermediate_dim": 64}
FAMILIES: dict[str, Any] = {
    "small": SmallTransformerConfig(width=32, layers=2, heads=2, hidden=64,
                                    max_positions=POSITIONS),
    "gpt2": HubConfig(backbone="GPT2Backbone", arguments={
        **SIZES, "num_heads": 4, "max_sequence_length": POSITIONS}),
    "llama": HubConfig(backbone="LlamaBackbone", max_positions=POSITIONS, arguments={
        **SIZES, "num_query_heads": 4, "num_key_value_heads": 2}),
}


def network(family: str, positions: int = POSITIONS) -> Any:
    """Build a decoder with drawn weights, large enough that every part of it is seen in logits."""
    config = FAMILIES[family]
    if family == "gpt2":
        config = replace(config, arguments={**config.arguments, "max_sequence_length": positions})
    else:
        config = replace(config, max_positions=positions)
    built = build.decoder(config, vocab_size=VOCABULARY, seed=3)
    random = np.random.default_rng(7)
    for variable in built.trainable_variables:
        spread = 0.02 if len(variable.shape) == 1 else 0.15
        variable.assign_add(random.normal(0, spread, variable.shape).astype(np.float32))
    return built


def engine(decoder: Any, folder: Path, precision: Any = "float32", *, cache: Any = None,
           threads: int = 1, guesses: int = 0) -> litert.LiteRTEngine:
    """Build and load the engine of a decoder."""
    settings = EngineSettings(precision=precision, cache=cache, rows=ROWS, chunks=CHUNKS,
                              guesses=guesses)
    write(decoder, folder, settings, positions=10_000)
    return litert.load(folder, threads=threads)


def texts(count: int = 4) -> np.ndarray:
    """Return ids [count, POSITIONS] int32."""
    return np.random.default_rng(5).integers(0, VOCABULARY, (count, POSITIONS)).astype(np.int32)


def whole(decoder: Any, ids: np.ndarray) -> np.ndarray:
    """Return the network's logits [B, T, V] of whole rows."""
    return np.array(decoder(tf.constant(ids), tf.ones(ids.shape, bool)))


def pieces(read: litert.LiteRTEngine, part: Part) -> list[Part]:
    """Return the parts that a part is read in, by sizes that its length alone decides."""
    found = []
    for size in cuts(len(part.ids), read.manifest.chunks):
        found.append(Part(part.slot, part.ids[:size], part.start))
        part = Part(part.slot, part.ids[size:], part.start + size)
    return found
