"""The LiteRT engine of a decoder: a StepEngine over graphs that optimize/litert_decoder.py makes.

The cache of a slot lies in pages. A step sees the first pages only, as many as its longest row
fills, and the first rows only, as many as are active: both are views of one memory, so nothing is
copied when a text grows or another begins. What the graphs hand out, keys and values of the ids
they read, is written where it belongs by NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_infer.engines import files
from tf_infer.engines.litert_runtime import Call, Model, aligned
from tf_infer.errors import ConfigError
from tf_infer.manifest import StepEngineManifest, row_blocks

MASKED = -1e30
KINDS = ("keys", "values")


def load(folder: Path, *, threads: int = 2, warm_up: bool = True) -> LiteRTEngine:
    """Load the engine that an export wrote.

    Args:
        folder: `<version>/assets.extra/engines/litert`.
        threads: that compute one call.
        warm_up: run every graph once, so that no later call is the first of its size.

    Raises:
        BackendMissing: LiteRT is not installed; names the extra that brings it.
        ConfigError: `engine.json` is missing or no engine's description.
        ExportError: the model file is not the one that was exported, or cannot be run.
    """
    described, path = files.read(StepEngineManifest, folder)
    with files.made_ready(LiteRTEngine(described, path, threads=threads)) as engine:
        if warm_up:
            engine.warm_up()
        return engine


@dataclass(frozen=True, slots=True)
class Saved:
    """What a slot held: keys and values of each page, [layers, groups, positions, head size]."""

    pages: tuple[tuple[np.ndarray, np.ndarray], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(array.nbytes for page in self.pages for array in page)


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of N rows over some pages, and the arrays it reads and writes."""

    call: Call
    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    new: tuple[np.ndarray, np.ndarray]  # keys and values [layers, N, G, 1, d]


@dataclass(frozen=True, slots=True)
class _Read:
    """A read of T ids over some pages of one row, and the arrays it reads and writes."""

    call: Call
    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray | None
    last: np.ndarray
    new: tuple[np.ndarray, np.ndarray]  # keys and values [layers, 1, G, T, d]


class LiteRTEngine:
    """A `StepEngine` (engines/contracts.py).

    Args:
        manifest: what the file holds.
        path: of the model file.
        threads: that compute one call.

    A slot is a row of the cache. Where a step would need a larger size only because of where its
    rows lie, rows change places first: that costs one copy of what two slots hold.
    """

    def __init__(self, manifest: StepEngineManifest, path: Path, *, threads: int = 2) -> None:
        self.manifest = manifest
        self.slots, self.positions = manifest.slots, manifest.positions
        self.chunk, self.vocab_size = manifest.chunks[-1], manifest.vocab_size
        self._model = Model(path, threads=threads)
        shape = (manifest.layers, self.slots, manifest.groups)
        self._pages = tuple(
            (aligned((*shape, page, manifest.head_size)),
             aligned((*shape, page, manifest.head_size))) for page in manifest.pages)
        self._begins = np.cumsum((0, *manifest.pages))  # first position of each page, and the end
        self._places = np.arange(self._begins[-1], dtype=np.int32)
        self._row_of = np.arange(self.slots)  # row of each slot
        self._filled = np.zeros(self.slots, np.int32)  # positions of each row ever written to
        self._logits = aligned((self.slots, self.vocab_size))
        self._out = np.zeros((self.slots, self.vocab_size), np.float32)
        self._steps: dict[tuple[int, int], _Step] = {}
        self._reads: dict[tuple[int, int, int], _Read] = {}
        self._new: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache; memory is taken as positions are filled for the first time."""
        return sum(array.nbytes for page in self._pages for array in page)

    # ------------------------------------------------------------------ StepEngine

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """Read part of a prompt into a slot; see `StepEngine`."""
        count = len(ids)
        if not (1 <= count <= self.chunk and start >= 0 and start + count <= self.positions):
            raise ConfigError(
                f"ids: expected 1 to {self.chunk} of them, with start >= 0 and start + ids <= "
                f"{self.positions}, got {count} at {start}.")
        row = int(self._row_of[slot])
        size = next(size for size in self.manifest.chunks if size >= count)
        read = self._reading(row, size, self._pages_for(start))
        read.ids[:count], read.ids[count:] = ids, 0
        # Ids behind the last one that counts are computed and thrown away.
        np.minimum(np.arange(start, start + size), self.positions - 1, out=read.positions,
                   casting="unsafe")
        read.last.fill(0.0)
        read.last[0, count - 1] = 1.0
        if read.mask is not None:
            read.mask[...] = np.where(self._places[:read.mask.shape[-1]] < start, 0.0, MASKED)
        read.call()
        self._filled[row] = max(self._filled[row], start + count)
        self._keep_chunk(row, start, count, read)
        logits: np.ndarray = self._logits[0]
        return logits

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """Read one more token of each active slot; see `StepEngine`."""
        slots = np.asarray(active)
        held = lengths[slots]
        if not len(slots) or held.min() < 0 or held.max() >= self.positions:
            raise ConfigError(f"lengths: expected at least one active slot, each of 0 to "
                              f"{self.positions - 1} positions, got {held.tolist()}.")
        size = next(size for size in self.manifest.rows if size >= len(slots))
        self._bring_together(slots, size)
        rows = self._row_of[slots]
        step = self._stepping(size, max(self._pages_for(int(held.max())), 1))
        step.ids[rows], step.positions[rows] = tokens[slots], held
        width = step.mask.shape[-1] - 1
        step.mask[rows, 0, 0, :width] = np.where(
            self._places[None, :width] < held[:, None], np.float32(0.0), np.float32(MASKED))
        step.call()
        self._filled[rows] = np.maximum(self._filled[rows], held + 1)
        self._keep_tokens(rows, held, step)
        if np.array_equal(rows, slots):
            return self._logits
        self._out[slots] = self._logits[rows]
        return self._out

    def save(self, slot: int, length: int) -> Saved:
        """Return what the first `length` positions of a slot hold; see `StepEngine`."""
        row = self._row_of[slot]
        kept = []
        for page, begin in zip(self._pages, self._begins):
            count = min(length - begin, page[0].shape[3])
            if count > 0:
                keys, values = (array[:, row, :, :count].copy() for array in page)
                kept.append((keys, values))
        return Saved(tuple(kept))

    def restore(self, slot: int, saved: Saved) -> None:
        """Make a slot begin with what was saved; see `StepEngine`."""
        row = self._row_of[slot]
        length = sum(keys.shape[2] for keys, _ in saved.pages)
        self._filled[row] = max(self._filled[row], length)
        for page, kept in zip(self._pages, saved.pages):
            for array, values in zip(page, kept):
                array[:, row, :, :values.shape[2]] = values

    def warm_up(self) -> None:
        """Run every graph once; no slot changes."""
        for count in range(len(self.manifest.pages) + 1):
            for rows in self.manifest.rows:
                self._stepping(rows, max(count, 1)).call()
            for tokens in self.manifest.chunks:
                self._reading(0, tokens, count).call()

    def close(self) -> None:
        """Free the model; no call follows."""
        self._model.close()
        self._steps, self._reads = {}, {}

    # ------------------------------------------------------------------ graphs and their arrays

    def _pages_for(self, length: int) -> int:
        """Return how many pages hold `length` positions."""
        return int(np.searchsorted(self._begins, length))

    def _stepping(self, rows: int, pages: int) -> _Step:
        if (rows, pages) not in self._steps:
            new = self._new_arrays(rows, 1)
            ids, positions = aligned((rows,), np.int32), aligned((rows,), np.int32)
            mask = aligned((rows, 1, 1, int(self._begins[pages]) + 1))
            arrays = {"ids": ids, "positions": positions, "mask": mask,
                      "logits": self._logits[:rows], **self._named(new)}
            arrays |= self._cached(0, rows, pages)
            call = self._model.bind(f"step_{rows}_{pages}", arrays)
            self._steps[rows, pages] = _Step(call, ids, positions, mask, new)
        return self._steps[rows, pages]

    def _reading(self, row: int, tokens: int, pages: int) -> _Read:
        if not pages:
            row = 0  # it looks at no slot: one for all
        if (row, tokens, pages) not in self._reads:
            new = self._new_arrays(1, tokens)
            ids, positions = aligned((tokens,), np.int32), aligned((tokens,), np.int32)
            last = aligned((1, tokens))
            arrays = {"ids": ids, "positions": positions, "last": last,
                      "logits": self._logits[:1], **self._named(new)}
            mask = None
            if pages:
                mask = arrays["mask"] = aligned((1, 1, 1, int(self._begins[pages])))
                arrays |= self._cached(row, 1, pages)
            call = self._model.bind(f"read_{tokens}_{pages}", arrays)
            self._reads[row, tokens, pages] = _Read(call, ids, positions, mask, last, new)
        return self._reads[row, tokens, pages]

    def _new_arrays(self, rows: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where graphs of this size put keys and values: [layers, rows, G, tokens, d]."""
        if (rows, tokens) not in self._new:
            shape = (self.manifest.layers, rows, self.manifest.groups, tokens,
                     self.manifest.head_size)
            self._new[rows, tokens] = aligned(shape), aligned(shape)
        return self._new[rows, tokens]

    def _named(self, new: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        return {f"{kind}_{layer}": array[layer] for kind, array in zip(KINDS, new)
                for layer in range(self.manifest.layers)}

    def _cached(self, first: int, rows: int, pages: int) -> dict[str, np.ndarray]:
        """Return the parts of the first pages that hold `rows` rows from `first` on, by input."""
        return {f"{kind}_{layer}_{page}_{number}":
                self._pages[page][place][layer, first + begin:first + end]
                for page in range(pages)
                for number, (begin, end) in enumerate(row_blocks(rows, self.manifest.pages[page]))
                for place, kind in enumerate(KINDS) for layer in range(self.manifest.layers)}

    # ------------------------------------------------------------------ the cache

    def _keep_tokens(self, rows: np.ndarray, held: np.ndarray, step: _Step) -> None:
        """Write what a step handed out behind the `held` positions of each of its rows."""
        for page, begin in enumerate(self._begins[:-1]):
            here = (held >= begin) & (held < self._begins[page + 1])
            if here.any():
                some, places = rows[here], held[here] - begin
                for array, new in zip(self._pages[page], step.new):
                    # Two index arrays with a slice between: [rows, layers, G, d] on both sides.
                    array[:, some, :, places] = new[:, some, :, 0]

    def _keep_chunk(self, row: int, start: int, count: int, read: _Read) -> None:
        """Write what a read handed out into the pages that it reaches."""
        for page, begin in enumerate(self._begins[:-1]):
            first = max(start, int(begin))
            end = min(start + count, int(self._begins[page + 1]))
            if first < end:
                for array, new in zip(self._pages[page], read.new):
                    array[:, row, :, first - begin:end - begin] = new[
                        :, 0, :, first - start:end - start]

    def _bring_together(self, slots: np.ndarray, size: int) -> None:
        """Make the rows of `slots` lie among the first `size`."""
        outside = [slot for slot in slots if self._row_of[slot] >= size]
        if not outside:
            return
        wanted = set(slots.tolist())
        free = [slot for slot in range(self.slots)
                if self._row_of[slot] < size and slot not in wanted]
        for slot, other in zip(outside, free):
            rows = self._row_of[[slot, other]]
            filled = int(self._filled[rows].max())
            for page, begin in zip(self._pages, self._begins):
                for array in page:
                    live = array[:, :, :, :max(filled - begin, 0)]
                    live[:, rows] = live[:, rows[::-1]]
            self._filled[rows] = self._filled[rows[::-1]]
            self._row_of[[slot, other]] = rows[::-1]
