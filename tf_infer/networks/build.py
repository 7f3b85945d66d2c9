"""NetworkConfig -> a layer with all its variables, and its weights to and from a directory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tf_infer.config import (
    ClassifierConfig,
    ConvConfig,
    EmbeddingBagConfig,
    HubConfig,
    NetworkConfig,
    SmallTransformerConfig,
)
from tf_infer.errors import CheckpointError, ConfigError
from tf_infer.networks import hub
from tf_infer.networks.heads import ClassifierNetwork
from tf_infer.networks.small import Conv, EmbeddingBag, SmallDecoder, SmallTransformer

WEIGHTS_FILE = "weights.safetensors"


def encoder(config: NetworkConfig, *, vocab_size: int, pad_id: int | None = None, seed: int = 0
            ) -> keras.layers.Layer:
    """Build an encoder (contract Encoder) with all its variables.

    Args:
        config: any network that looks at a whole text at once.
        vocab_size: V, ids are 0 .. V - 1.
        pad_id: the codec's padding id; presence comes from the mask, so no network here needs it.
        seed: of the initial weights; the same seed gives the same weights.
    """
    del pad_id
    with seeded(seed):
        if isinstance(config, EmbeddingBagConfig):
            layer: keras.layers.Layer = EmbeddingBag(config, vocab_size=vocab_size)
        elif isinstance(config, ConvConfig):
            layer = Conv(config, vocab_size=vocab_size)
        elif isinstance(config, SmallTransformerConfig):
            layer = SmallTransformer(config, vocab_size=vocab_size)
        else:
            check_vocabulary(config, vocab_size)
            layer = hub.HubEncoder(config)
        layer.build()
    return layer


def decoder(config: NetworkConfig, *, vocab_size: int, seed: int = 0) -> keras.layers.Layer:
    """Build a decoder (contract Decoder) with all its variables; arguments as for `encoder`."""
    with seeded(seed):
        if isinstance(config, SmallTransformerConfig):
            layer: keras.layers.Layer = SmallDecoder(config, vocab_size=vocab_size)
        elif isinstance(config, HubConfig):
            check_vocabulary(config, vocab_size)
            layer = hub.decoder(config)
        else:
            raise ConfigError("network: expected a small_transformer or a decoder of KerasHub, got "
                              f"{type(config).__name__}.")
        layer.build()
    return layer


def check_vocabulary(config: HubConfig, vocab_size: int) -> None:
    """Raise ConfigError where the tokenizer has ids that the backbone has no vector for."""
    rows = config.arguments.get("vocabulary_size")
    if isinstance(rows, int) and vocab_size > rows:
        raise ConfigError(f"HubConfig.arguments.vocabulary_size: expected at least the codec's "
                          f"{vocab_size} ids, got {rows}. Use the tokenizer of the checkpoint.")


def classifier(config: ClassifierConfig, *, vocab_size: int, pad_id: int | None = None,
               seed: int = 0) -> ClassifierNetwork:
    """Build the whole network of a classifier: its encoder and its head."""
    backbone = encoder(config.network, vocab_size=vocab_size, pad_id=pad_id, seed=seed)
    with seeded(seed + 1):
        network = ClassifierNetwork(backbone, config)
        network.build()
    return network


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Make Keras draw the initial weights from `seed`, and leave Python's generator as it was.

    Keras takes the seed of every initialiser without one from Python's `random` (3.15).
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def save_weights(layer: keras.layers.Layer, directory: Path) -> None:
    """Write all weights as `weights.safetensors`, named by their path inside the layer."""
    tensors = {name: np.ascontiguousarray(variable.numpy())
               for name, variable in _named(layer).items()}
    Path(directory).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(directory) / WEIGHTS_FILE)


def load_weights(layer: keras.layers.Layer, directory: Path) -> None:
    """Read what `save_weights` wrote.

    Raises:
        CheckpointError: the file is missing, cut or no safetensors file; or its tensors are not
            exactly those of `layer` (every missing, unexpected and mis-shaped one is named).
    """
    path = Path(directory) / WEIGHTS_FILE
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read as safetensors: {error}. Copy the file again.") from error
    variables = _named(layer)
    faults = [f"{name} is missing" for name in variables if name not in tensors]
    faults += [f"{name} is unexpected" for name in tensors if name not in variables]
    faults += [f"{name} has shape {tensors[name].shape} instead of {tuple(variable.shape)}"
               for name, variable in variables.items()
               if name in tensors and tensors[name].shape != tuple(variable.shape)]
    if faults:
        raise CheckpointError(f"{path}: expected the weights of this network, got: "
                              f"{'; '.join(sorted(faults))}. Is the configuration the one it was "
                              "trained with?")
    for name, variable in variables.items():
        variable.assign(tensors[name])


def _named(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the weights by path, without the random states of dropout."""
    named = {variable.path: variable for variable in layer.weights}
    if len(named) != len(layer.weights):
        raise CheckpointError(f"{type(layer).__name__}: weights must have unique paths.")
    return named
