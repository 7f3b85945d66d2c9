"""The state of a run in one file; a kill at any moment leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_infer.errors import CheckpointError

FILE = "state.npz"
_ABOUT = "about"


class State(NamedTuple):
    """What a run needs to go on.

    Attributes:
        network: values of the trained variables, in their order.
        optimizer: values of the optimiser's.
        best: values of the trained variables after the best epoch.
        about: JSON: epochs done, what they gave, and what the run was started with.
    """

    network: list[np.ndarray]
    optimizer: list[np.ndarray]
    best: list[np.ndarray]
    about: dict[str, Any]


def values(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    """Copy the values of variables."""
    return [variable.numpy().copy() for variable in variables]


def assign(variables: Sequence[keras.Variable], arrays: Sequence[np.ndarray]) -> None:
    """Write values back."""
    for variable, array in zip(variables, arrays):
        variable.assign(array)


def write(state: State, directory: Path) -> None:
    """Write `state.npz` into a directory: beside it first, then one rename.

    Raises:
        CheckpointError: the disk is full, or the directory cannot be written.
    """
    parts: Mapping[str, Sequence[np.ndarray]] = {
        "network": state.network, "optimizer": state.optimizer, "best": state.best}
    arrays = {f"{part}/{i}": array for part, group in parts.items()
              for i, array in enumerate(group)}
    about = np.frombuffer(json.dumps(state.about).encode(), np.uint8)
    partial = Path(directory) / f".{FILE}.partial"
    try:
        with partial.open("wb") as file:
            np.savez(file, **{_ABOUT: about}, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        partial.replace(Path(directory) / FILE)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{directory}: the checkpoint cannot be written: {error.strerror}. "
                              "Make room, then go on with --resume.") from error


def read(directory: Path) -> State | None:
    """Read what `write` wrote; None when there is nothing.

    Raises:
        CheckpointError: the file is cut or no checkpoint.
    """
    path = Path(directory) / FILE
    if not path.exists():
        return None
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            about = json.loads(file[_ABOUT].tobytes())
            network, optimizer, best = ([file[f"{part}/{i}"] for i in range(len(file.files))
                                         if f"{part}/{i}" in file.files]
                                        for part in ("network", "optimizer", "best"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: expected a checkpoint of a training run, got a file that "
                              f"cannot be read ({type(error).__name__}). Delete it and train "
                              "again.") from error
    return State(network, optimizer, best, about)
