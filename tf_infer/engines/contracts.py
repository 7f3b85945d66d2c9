"""What an engine promises: StepEngine, a decoder with its caches; EncoderEngine, a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from tf_infer.manifest import EncoderEngineManifest


class Part(NamedTuple):
    """Ids of a prompt, to be read into a slot.

    Attributes:
        slot: 0 .. slots - 1.
        ids: [n] int32, n >= 1.
        start: positions that the slot holds already; start + n <= positions.
    """

    slot: int
    ids: np.ndarray
    start: int = 0


class StepEngine(Protocol):
    """A decoder outside the graph: a cache row a slot, written in place, each at its own position.

    What stands in a slot behind its position may be anything. One thread at a time may call it; a
    call lets other Python threads run while it computes. A slot's logits depend on that slot alone.

    Attributes:
        slots: S, rows of a step.
        positions: P, ids that a slot can hold.
        chunk: most ids of one `read`.
        vocab_size: V.
        guesses: ids that `extend` reads behind the first; 0 where it is not to be called.
    """

    slots: int
    positions: int
    chunk: int
    vocab_size: int
    guesses: int

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """Read part of a prompt into a slot.

        Args:
            slot: 0 .. slots - 1.
            ids: [n] int32, 1 <= n <= chunk, start + n <= positions.
            start: positions that the slot holds already.

        Returns:
            [V] float32, logits of the id after the last one; valid until the next call.
        """

    def read_many(self, parts: Sequence[Part]) -> np.ndarray:
        """Read parts of several prompts, joined into as few calls of the model as pays.

        Args:
            parts: at least one, of different slots; of any length that their slots have room for.

        Returns:
            [parts, V] float32, logits of the id after the last one of each; valid until the next
            call.
        """

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """Read one more token of each active slot.

        Args:
            tokens: [S] int32; those of other slots are not looked at.
            lengths: [S] int32, positions each slot holds before this token.
            active: the slots that read, at least one.

        Returns:
            [S, V] float32, logits; rows of other slots may hold anything; valid until the next
            call.
        """

    def extend(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """Read several ids of one slot, each with the logits of a step, bit for bit.

        Who guessed the ids and finds the first n right goes on at start + n: what stands behind
        that does not matter.

        Args:
            slot: 0 .. slots - 1.
            ids: [n] int32, 1 <= n <= 1 + guesses, start + n <= positions.
            start: positions that the slot holds already.

        Returns:
            [n, V] float32, logits of the id after each; valid until the next call.
        """

    def save(self, slot: int, length: int) -> Any:
        """Return what the first `length` positions of a slot hold, for `restore`.

        It has an attribute `nbytes`.
        """

    def restore(self, slot: int, saved: Any) -> None:
        """Make a slot begin with what was saved, from any slot of the same engine."""

    def close(self) -> None:
        """Free what the engine holds; no call follows."""


class EncoderEngine(Protocol):
    """A classifier's encoder and head outside the graph: ids to logits.

    Any thread may call it, several at once too: it lets them wait for each other where it has to.
    While it computes, other Python threads run. The logits of a row depend on that row alone: not
    on its neighbours, its place among them, or the width it is padded to. On a CPU that holds bit
    for bit. On a GPU a row meets other kernels in other company, and its sums are added in another
    order: there it holds within what `verify.batch_effects` allows.

    Attributes:
        manifest: what it was made as; `positions`, `vocab_size`, `classes`.
        as_proven: it computes as the export computed that proved it, on a CPU. A GPU rounds
            otherwise, so that there only what the export allows says how far it may be off.
    """

    manifest: EncoderEngineManifest
    as_proven: bool

    def run(self, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray, *,
            timeout_s: float | None = None) -> np.ndarray:
        """Compute the logits of rows.

        Any B >= 0 and any T: the engine cuts and pads rows to sizes of its own.

        Args:
            ids: [B, T] int32, 0 <= id < vocab_size.
            mask: [B, T] bool, True where an id counts. No row has one behind `positions`.
            segments: [B, T] int32, 0 or 1; a network without segments does not look at them.
            timeout_s: the caller waits no longer; None for ever.

        Returns:
            [B, classes] float32, the caller's own.

        Raises:
            ConfigError: a row is longer than `positions`, or shapes do not fit each other.
            DeadlineExceeded: the time was up while the call waited for its turn, of which nothing
                is computed then, or between two groups of its rows.
        """

    def close(self) -> None:
        """Free what the engine holds; no call follows."""
