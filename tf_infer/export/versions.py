"""Version numbers of one model: which there are, which comes next, which may go.

A base directory holds the versions, one folder a number, and two kinds of entries that servers
ignore because their names are no numbers: `.last_version`, the highest number ever written, and
`.tmp-<number>` while an export is under way.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tf_infer.config import check
from tf_infer.errors import ExportError

RECORD_FILE = ".last_version"
STAGE_PREFIX = ".tmp-"
MAX_DIGITS = 19  # of a version number: it is an int64 in TensorFlow Serving


def list_versions(base_dir: Path) -> tuple[int, ...]:
    """Return the version numbers under `base_dir`, ascending; none when it does not exist.

    As TensorFlow Serving does, every folder whose name is a decimal number counts, complete or not.
    """
    return tuple(sorted({int(folder.name) for folder in _folders(base_dir)}))


def _folders(base_dir: Path) -> list[Path]:
    """Return the folders of versions; `007` is one of version 7."""
    try:
        entries = list(Path(base_dir).iterdir())
    except FileNotFoundError:
        return []
    return [entry for entry in entries
            if entry.name.isascii() and entry.name.isdecimal() and entry.is_dir()]


def plan_version(existing: tuple[int, ...], last: int, wanted: int | None) -> int:
    """Return the number of the next version.

    Args:
        existing: numbers that stand on disk.
        last: the highest number ever written, 0 for none; deleted versions count.
        wanted: by the caller; None takes the next one.

    Raises:
        ExportError: `wanted` is not above all that ever were: a number is never used twice.
    """
    highest = max((last, *existing))
    if wanted is None:
        return highest + 1
    if wanted <= highest:
        raise ExportError(
            f"version: expected a number above {highest}, got {wanted}. Versions are never written "
            "twice, not even after they were deleted; leave the number out to take the next.")
    return wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A folder that no server sees, which becomes a version by one rename.

    Attributes:
        base_dir: of the model.
        version: the number it will have.
        folder: `base_dir/.tmp-<version>/<version>`, so that `folder.parent` is itself a base
            directory, which a server can be pointed at before the rename.
    """

    base_dir: Path
    version: int
    folder: Path

    def publish(self) -> Path:
        """Write everything to disk, record the number, rename once; return the final folder.

        Raises:
            OSError: before the rename; nothing stands under the number.
            ExportError: after it; the version is there, its name perhaps not on disk yet.
        """
        sync_tree(self.folder)
        final = self.base_dir / str(self.version)
        write_record(self.base_dir, self.version)
        os.rename(self.folder, final)
        try:
            sync_folder(self.base_dir)
        except OSError as error:
            raise ExportError(
                f"{final}: expected to force the version's name to disk, got {error.strerror}. The "
                "version is complete and may be served already, but a power cut could take its "
                "name away; check the disk, and export again if the folder is gone.") from error
        return final


@contextlib.contextmanager
def staging(base_dir: Path, wanted: int | None = None) -> Iterator[Stage]:
    """Give an empty stage for the next version; whatever is left in it at the end is removed.

    One export at a time may write to a base directory; what an export left behind that was killed
    is removed here.

    Args:
        base_dir: of the model; made when it does not exist.
        wanted: version number; None takes the next one.

    Raises:
        ExportError: another export is under way, the number was used before, or the record of the
            highest number is damaged.
    """
    base_dir = Path(base_dir)
    base_dir.mkdir(parents=True, exist_ok=True)
    with _lock(base_dir) as last:
        _clear(base_dir)
        version = plan_version(list_versions(base_dir), last, wanted)
        area = base_dir / f"{STAGE_PREFIX}{version}"
        try:
            folder = area / str(version)
            folder.mkdir(parents=True)
            yield Stage(base_dir=base_dir, version=version, folder=folder)
        finally:
            shutil.rmtree(area, ignore_errors=True)


def clear(base_dir: Path) -> None:
    """Remove what an export left behind that was killed.

    Raises:
        ExportError: an export is under way.
    """
    base_dir = Path(base_dir)
    if base_dir.is_dir():
        with _lock(base_dir):
            _clear(base_dir)


def _clear(base_dir: Path) -> None:
    for left_behind in base_dir.glob(f"{STAGE_PREFIX}*"):
        shutil.rmtree(left_behind)


@contextlib.contextmanager
def _lock(base_dir: Path) -> Iterator[int]:
    """Hold the record file, which the system frees when the process ends; give its number."""
    with open(base_dir / RECORD_FILE, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExportError(f"{base_dir}: expected no other export under way. Wait until it has "
                              "ended, and export again.") from error
        file.seek(0)
        yield _recorded(file.read(), base_dir / RECORD_FILE)


def _recorded(content: bytes, path: Path) -> int:
    """Return the number that a record holds, 0 for an empty one."""
    digits = content.strip()
    if not digits:
        return 0
    if not digits.isdigit() or len(digits) > MAX_DIGITS:
        raise ExportError(
            f"{path}: expected the highest version number ever written, got {len(content)} bytes "
            "that are no such number. Write that number into the file, so that none is used twice.")
    return int(digits)


def write_record(base_dir: Path, version: int) -> None:
    """Record that `version` was used, on disk, before it appears."""
    with open(Path(base_dir) / RECORD_FILE, "r+", encoding="ascii") as file:
        file.write(f"{version}\n")
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def prune(base_dir: Path, *, keep: int) -> tuple[int, ...]:
    """Remove all versions but the newest `keep`; return the numbers that were removed.

    A version first loses its name by one rename, so no server sees half of it. A server that still
    has it loaded keeps answering from memory.
    """
    check(keep >= 1, "prune.keep", ">= 1", keep)
    base_dir = Path(base_dir)
    with _lock(base_dir) as last:
        existing = list_versions(base_dir)
        removed = existing[:-keep]
        if removed and last < removed[-1]:
            write_record(base_dir, existing[-1])
        for folder in sorted(_folders(base_dir), key=lambda folder: int(folder.name)):
            if int(folder.name) in removed:
                hidden = base_dir / f"{STAGE_PREFIX}removed-{folder.name}"
                os.rename(folder, hidden)
                shutil.rmtree(hidden)
    return removed


def sync_tree(folder: Path) -> None:
    """Force every file and folder under `folder` to disk."""
    for path in [*Path(folder).rglob("*"), Path(folder)]:
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """Force one file, or the list of names of one folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
