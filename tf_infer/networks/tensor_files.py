"""The tensors of a safetensors checkpoint, in one file or several, read one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from tf_infer.errors import CheckpointError

ONE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
FOREIGN = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")


class Tensors:
    """Named tensors of a directory; only what is asked for is read into memory.

    Attributes:
        directory: where the files lie.
    """

    def __init__(self, directory: Path) -> None:
        """Open every file and read its table of contents.

        Raises:
            CheckpointError: no safetensors file, a shard of the index that is missing or does not
                hold what the index says, or a file that is cut or no safetensors file.
        """
        self.directory = directory
        self._files: dict[str, Any] = {}
        shards = _shards(directory)
        for file_name in sorted(set(shards.values()) or {ONE_FILE}):
            path = directory / file_name
            try:
                opened = safe_open(path, framework="np")
                names = list(opened.keys())
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: cannot be read as safetensors: {error}. Copy the "
                                      "file again.") from error
            self._files.update(dict.fromkeys(names, opened))
        lost = sorted(name for name in shards if name not in self._files)
        if lost:
            raise CheckpointError(f"{directory / INDEX_FILE}: expected every tensor in its shard, "
                                  f"not found: {lost}.")

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype as safetensors spells it, such as "BF16"."""
        return str(self._files[name].get_slice(name).get_dtype())

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32."""
        return np.asarray(self._files[name].get_tensor(name)).astype(np.float32)


def _shards(directory: Path) -> Mapping[str, str]:
    """Return tensor -> file of the index; empty where one file holds everything."""
    if (directory / ONE_FILE).exists():
        return {}
    index = directory / INDEX_FILE
    if not index.exists():
        found = [name for name in FOREIGN if (directory / name).exists()]
        fix = ("Load it with transformers and call save_pretrained, which writes safetensors."
               if found else "Copy the file beside config.json.")
        raise CheckpointError(f"{directory}: expected {ONE_FILE} or {INDEX_FILE}, got "
                              f"{found or 'neither'}. {fix}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(
            isinstance(name, str) and Path(name).name == name for name in shards.values()):
        raise CheckpointError(f"{index}: expected weight_map, an object of tensor names and file "
                              "names without folders.")
    return shards


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, is not UTF-8, not JSON, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: expected JSON: {error}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(data).__name__}.")
    return data
