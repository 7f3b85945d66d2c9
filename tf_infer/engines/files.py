"""The folder of an engine: what it is, and its model file, byte for byte as it was exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from tf_infer import config
from tf_infer.errors import ExportError
from tf_infer.manifest import ENGINE_FILE, EngineManifest, hash_file

M = TypeVar("M", bound=EngineManifest)


class Closes(Protocol):
    """An engine, as far as it can be freed."""

    def close(self) -> None:
        """Free what the engine holds."""


E = TypeVar("E", bound=Closes)


@contextmanager
def made_ready(engine: E) -> Iterator[E]:
    """Free an engine where what makes it ready fails: its model is not Python's to collect."""
    try:
        yield engine
    except BaseException:
        engine.close()
        raise


def read(kind: type[M], folder: Path) -> tuple[M, Path]:
    """Return the description of an engine, and the path of its model file, which is read once.

    Args:
        kind: what is expected: StepEngineManifest or EncoderEngineManifest.
        folder: `<version>/assets.extra/engines/<kind>`.

    Raises:
        ConfigError: `engine.json` is missing or describes no such engine.
        ExportError: the model file is missing, or not the one that was exported.
    """
    described: M = config.load(kind, Path(folder) / ENGINE_FILE)
    path = Path(folder) / described.file
    try:
        digest = hash_file(path)
    except OSError as error:
        raise ExportError(f"{path}: expected the engine's model, got {error}. Copy the version "
                          "again, or export it again.") from error
    if digest != described.sha256:
        raise ExportError(f"{path}: expected the file of its {ENGINE_FILE}, got another one. Copy "
                          "the version again, or export it again.")
    return described, path
