"""Read a checkpoint: a Hugging Face directory, a KerasHub preset, a `.keras` file, or our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from tf_infer.config import HubConfig
from tf_infer.errors import CheckpointError
from tf_infer.networks import build, hub, hugging_face
from tf_infer.networks.checkpoint import Checkpoint
from tf_infer.networks.tensor_files import read_json

# KerasHub's files do not say how long a row of a rotary model may be.
ROTARY_POSITIONS = 4_096


def read(path: Path) -> Checkpoint:
    """Find out what `path` is, and read it.

    Args:
        path: a directory with config.json (Hugging Face, or a preset that KerasHub saved), our own
            directory with weights.safetensors, or a file that ends in `.keras`.

    Raises:
        CheckpointError: it is none of them, or cannot be read as what it claims to be.
    """
    path = Path(path)
    if path.suffix == ".keras" and path.is_file():
        return _from_model(path, _open_model(path), tokenizer_dir=None)
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a directory or a .keras file, found neither.")
    if (path / build.WEIGHTS_FILE).exists():
        return Checkpoint(source=path, assign=lambda layer: build.load_weights(layer, path),
                          tokenizer_dir=path / "tokenizer")
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path}: expected config.json (Hugging Face, KerasHub) or "
                              f"{build.WEIGHTS_FILE} (tf-infer), found neither.")
    if "registered_name" in read_json(path / "config.json"):
        return _from_model(path, _open_preset(path), tokenizer_dir=path / "assets" / "tokenizer")
    return hugging_face.read(path)


def _open_preset(path: Path) -> Any:
    import keras_hub  # takes seconds; not every checkpoint needs it

    try:
        return keras_hub.models.Backbone.from_preset(str(path.resolve()))
    except Exception as error:  # KerasHub raises whatever its readers raise
        raise CheckpointError(f"{path}: KerasHub cannot read this preset: {error}.") from error


def _open_model(path: Path) -> Any:
    import keras_hub  # noqa: F401  registers the classes that a saved model may hold

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever the file's parts raise
        raise CheckpointError(f"{path}: Keras cannot read this file: {error}.") from error


def _from_model(path: Path, model: Any, *, tokenizer_dir: Path | None) -> Checkpoint:
    """Make a checkpoint of a backbone of KerasHub, or of a task around one."""
    found = getattr(model, "backbone", model)
    name = type(found).__name__
    if name not in hub.ENCODERS + hub.DECODERS:
        raise CheckpointError(f"{path}: expected one of {list(hub.ENCODERS + hub.DECODERS)}, or a "
                              f"KerasHub task around one, got {name}.")
    arguments = {key: value for key, value in found.get_config().items()
                 if key not in ("name", "trainable", "dtype")}
    positions = getattr(found, "max_sequence_length", ROTARY_POSITIONS)
    network = HubConfig(backbone=name, arguments=arguments, max_positions=positions)

    def assign(layer: keras.layers.Layer) -> None:
        built: Any = getattr(layer, "backbone", None)
        shapes = [tuple(weight.shape) for weight in found.weights]
        if type(built) is not type(found) or shapes != [tuple(w.shape) for w in built.weights]:
            raise CheckpointError(f"{path}: expected a layer built from this checkpoint's network "
                                  f"({name}), got {type(layer).__name__}.")
        for target, source in zip(built.weights, found.weights):
            target.assign(source)

    inside = {id(weight) for weight in found.weights}
    return Checkpoint(
        source=path, assign=assign, network=network, tokenizer_dir=tokenizer_dir,
        kind="encoder" if name in hub.ENCODERS else "decoder",
        vocab_size=int(found.vocabulary_size), max_tokens=network.max_positions,
        pair_separators=2 if name == "RobertaBackbone" else 1,
        unused=tuple(sorted(w.path for w in model.weights if id(w) not in inside)))
