"""What slots held of prompts that many begin with, found by their ids, within a bound of memory.

A prompt's ids are cut into blocks; what was saved of one prompt serves every other that begins with
the same blocks. The least recently used goes first. Not for several threads at once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np


class Sized(Protocol):
    """Something that knows how many bytes it holds."""

    @property
    def nbytes(self) -> int:
        """Return how many."""


S = TypeVar("S", bound=Sized)


class Found(NamedTuple, Generic[S]):
    """What was saved of a prompt that begins alike, and how many of its ids are the same."""

    saved: S
    length: int


@dataclass(frozen=True, slots=True)
class _Entry(Generic[S]):
    keys: tuple[bytes, ...]  # of its first block, its first two, ...
    saved: S


class Prefixes(Generic[S]):
    """See the module.

    Args:
        most_bytes: of all that is saved; 0 saves nothing.
        block: ids, so that beginnings are shared in multiples of it.

    Attributes:
        nbytes: of what is saved now.
    """

    def __init__(self, most_bytes: int, block: int) -> None:
        self._most_bytes, self._block = most_bytes, block
        self._entries: OrderedDict[bytes, _Entry[S]] = OrderedDict()  # by the last of their keys
        self._owners: dict[bytes, dict[bytes, None]] = {}  # key -> entries that begin with it
        self.nbytes = 0

    def find(self, ids: np.ndarray) -> Found[S] | None:
        """Return the longest beginning of `ids` that is saved.

        Args:
            ids: [n] int32.
        """
        best, length = None, 0
        for place, key in enumerate(self._keys(ids), 1):
            if key not in self._owners:
                break
            best, length = key, place * self._block
        if best is None:
            return None
        # Of several, the one used last: the others may go.
        used = set(self._owners[best])
        owner = next(name for name in reversed(self._entries) if name in used)
        self._entries.move_to_end(owner)
        return Found(self._entries[owner].saved, length)

    def beginning(self, ids: np.ndarray) -> bytes | None:
        """Return a key of a prompt's first block; None where nothing of it can be shared."""
        return next(self._keys(ids[:self._block]), None) if self._most_bytes else None

    def to_save(self, ids: np.ndarray) -> int:
        """Return how many of a prompt's first ids are worth saving; 0 for none, or all saved."""
        keys = list(self._keys(ids)) if self._most_bytes else []
        return len(keys) * self._block if keys and keys[-1] not in self._owners else 0

    def add(self, ids: np.ndarray, saved: S) -> None:
        """Keep what a slot holds of `ids`, [n] int32, n a multiple of the block.

        What it covers, and what has not been used for longest, goes; one too large is not kept.
        """
        keys = tuple(self._keys(ids))
        if not keys or saved.nbytes > self._most_bytes:
            return
        for key in keys:
            if key in self._entries:
                self._drop(key)
        while self.nbytes + saved.nbytes > self._most_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[keys[-1]] = _Entry(keys, saved)
        self.nbytes += saved.nbytes
        for key in keys:
            self._owners.setdefault(key, {})[keys[-1]] = None

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._owners.clear()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def _drop(self, name: bytes) -> None:
        entry = self._entries.pop(name)
        self.nbytes -= entry.saved.nbytes
        for key in entry.keys:
            owners = self._owners[key]
            del owners[name]
            if not owners:
                del self._owners[key]

    def _keys(self, ids: np.ndarray) -> Iterator[bytes]:
        """Yield a key of each multiple of the block; the next is made of the one before."""
        key = b""
        for start in range(0, len(ids) - self._block + 1, self._block):
            block = np.ascontiguousarray(ids[start:start + self._block], np.int32)
            key = hashlib.blake2b(key + block.tobytes(), digest_size=16).digest()
            yield key
