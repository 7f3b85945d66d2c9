"""What a checkpoint says, whoever wrote it: Checkpoint and Head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import keras

from tf_infer.config import NetworkConfig
from tf_infer.networks.heads import ClassifierNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """A classifier's head that came with the backbone, in the terms of ClassifierConfig.

    Attributes:
        classes: names in the order of the logits.
        multi_label: every class was trained for itself.
        pooling, hidden, activation: the fields of ClassifierConfig that give this head.
        assign: fills the head of a network that was built with them; raises CheckpointError where
            it was not.
    """

    classes: tuple[str, ...]
    multi_label: bool
    pooling: Literal["first", "mean", "max", "pooler"]
    hidden: tuple[int, ...]
    activation: str
    assign: Callable[[ClassifierNetwork], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Configuration, weights and what else the files say.

    Attributes:
        source: the directory or file.
        kind: what the network is; None for our own directory, whose task.json says it.
        network: builds the layer with `networks.build`; None for our own directory.
        assign: fills a layer built from `network` (of our own directory: the whole network);
            raises CheckpointError with every tensor that is missing, unknown or of another shape.
        vocab_size: rows of the embedding table; None for our own directory.
        tokenizer_dir: where tokenizer files would lie.
        max_tokens: longest row.
        pair_separators: end ids between the texts of a pair.
        pad_id, end_ids: what config.json and generation_config.json say.
        head: a classifier's head, if the files hold one.
        unused: tensors of other heads that stand in the files and are not used.
    """

    source: Path
    assign: Callable[[keras.layers.Layer], None]
    kind: Literal["encoder", "decoder"] | None = None
    network: NetworkConfig | None = None
    vocab_size: int | None = None
    tokenizer_dir: Path | None = None
    max_tokens: int | None = None
    pair_separators: int = 1
    pad_id: int | None = None
    end_ids: tuple[int, ...] = ()
    head: Head | None = None
    unused: tuple[str, ...] = ()
