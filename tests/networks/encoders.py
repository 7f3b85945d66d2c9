"""Small classifiers of every family with a transformer for an encoder, and rows to ask them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_infer.config import ClassifierConfig, HubConfig, SmallTransformerConfig
from tf_infer.networks import build

VOCABULARY, POSITIONS = 50, 40
SIZES = {"vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 2, "hidden_dim": 16,
         "intermediate_dim": 24, "max_sequence_length": POSITIONS}
NETWORKS: dict[str, Any] = {
    "bert": HubConfig(backbone="BertBackbone", arguments=SIZES, activation="gelu"),
    "distilbert": HubConfig(backbone="DistilBertBackbone", arguments=SIZES),
    "roberta": HubConfig(backbone="RobertaBackbone", arguments=SIZES, activation="gelu_tanh"),
    "small": SmallTransformerConfig(width=16, layers=2, heads=4, hidden=24,
                                    max_positions=POSITIONS)}
HEADS: dict[str, dict[str, Any]] = {
    "mean": {}, "first": {"pooling": "first", "hidden": (12, 10), "activation": "tanh"},
    "max": {"pooling": "max", "normalize": True, "hidden": (7,)}, "pooler": {"pooling": "pooler"}}


def classifier(network: Any = "bert", head: str = "mean", *, classes: int = 3) -> Any:
    """Build a classifier with drawn weights, large enough that every part is seen in logits."""
    config = ClassifierConfig(
        classes=tuple(f"class_{number}" for number in range(classes)),
        network=NETWORKS[network] if isinstance(network, str) else network, **HEADS[head])
    made = build.classifier(config, vocab_size=VOCABULARY, seed=3)
    random = np.random.default_rng(7)
    for variable in made.trainable_variables:
        spread = 0.05 if len(variable.shape) == 1 else 0.2
        variable.assign_add(random.normal(0, spread, variable.shape).astype(np.float32))
    return made


def rows(lengths: Any, width: int, *, seed: int = 5) -> dict[str, np.ndarray]:
    """Return ids, mask, segments [B, T] of rows with these lengths."""
    random = np.random.default_rng(seed)
    shape = (len(lengths), width)
    mask = np.arange(width)[None] < np.asarray(lengths)[:, None]
    return {"ids": (random.integers(0, VOCABULARY, shape) * mask).astype(np.int32), "mask": mask,
            "segments": (random.integers(0, 2, shape) * mask).astype(np.int32)}


def logits(network: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return [B, C] of a classifier's network, run op by op."""
    ids, mask, segments = (tf.constant(batch[name]) for name in ("ids", "mask", "segments"))
    return np.array(network(ids, mask, segments))
