"""The LiteRT engine of a decoder: a StepEngine over graphs that optimize/litert_decoder.py makes.

The cache of a slot lies in pages. A step sees the first pages only, as many as its longest row
fills, and the first rows only, as many as are active: both are views of one memory, so nothing is
copied when a text grows or another begins; a row that is alone is looked at in a copy of its first
pages (line.py). What the graphs hand out, keys and values of the ids
they read, is written where it belongs by NumPy.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tf_infer.engines import files
from tf_infer.engines.contracts import Part
from tf_infer.engines.line import Line
from tf_infer.engines.litert_runtime import ALIGNMENT, Call, Model, aligned
from tf_infer.engines.reading import cuts, groups
from tf_infer.engines.several import fill_mask, fill_places
from tf_infer.errors import ConfigError
from tf_infer.manifest import StepEngineManifest, head_blocks, row_blocks

MASKED = -1e30
BOUND_READS = 8  # for each slot, reads that stay bound to its pages
KINDS = {"float32": ("keys", "values"),
         "int8": ("keys", "values", "key_scales", "value_scales")}


def load(folder: Path, *, threads: int = 2, warm_up: bool = True, guesses: int | None = None,
         ) -> LiteRTEngine:
    """Load the engine that an export wrote.

    Args:
        folder: `<version>/assets.extra/engines/litert`.
        threads: that compute one call.
        warm_up: run every graph once, so that no later call is the first of its size.
        guesses: that will be asked for, at most; None for all that the file can check. Graphs that
            check guesses are left alone where there are none.

    Raises:
        BackendMissing: LiteRT is not installed; names the extra that brings it.
        ConfigError: `engine.json` is missing or no engine's description.
        ExportError: the model file is not the one that was exported, or cannot be run.
    """
    described, path = files.read(StepEngineManifest, folder)
    with files.made_ready(LiteRTEngine(described, path, threads=threads)) as engine:
        if guesses is not None:
            engine.guesses = min(guesses, described.guesses)
        if engine.guesses and not engine.keeps_bits():
            engine.leave_guesses()
        if warm_up:
            engine.warm_up()
        return engine


@dataclass(frozen=True, slots=True)
class Saved:
    """What a slot held of each page: by KINDS, [layers, groups, positions, head size or 1]."""

    pages: tuple[tuple[np.ndarray, ...], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(array.nbytes for page in self.pages for array in page)


class _Sight(NamedTuple):
    """An input of a graph that shows some rows and heads of the cache; `place` among KINDS."""

    name: str
    place: int
    layer: int
    page: int
    rows: tuple[int, int]
    heads: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of N rows over some pages, and the arrays it reads and writes."""

    call: Call
    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    new: tuple[np.ndarray, ...]  # what is kept of them, [layers, N, G, 1, d or 1] each


@dataclass(frozen=True, slots=True)
class _Read:
    """A read of N rows of T ids, of one over some pages, and the arrays it reads and writes."""

    call: Call
    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray | None
    last: np.ndarray             # [N, 1, T]
    new: tuple[np.ndarray, ...]  # what is kept of them, [layers, N, G, T, d or 1] each


@dataclass(frozen=True, slots=True)
class _Several:
    """A read of K ids of the first row over some pages, and the arrays it reads and writes."""

    call: Call
    ids: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    put: dict[int, np.ndarray]
    stay: dict[int, np.ndarray]
    new: tuple[np.ndarray, ...]  # what is kept of them, [layers, K, G, 1, d or 1] each


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
        self.guesses = manifest.guesses
        self._model = Model(path, threads=threads)
        self._kinds = KINDS[manifest.cache]
        self._pages = tuple(tuple(self._room(self.slots, page)) for page in manifest.pages)
        # First position of each page, and the end.
        self._begins = (0, *itertools.accumulate(manifest.pages))
        self._line = None if not (manifest.joined_pages or manifest.one_piece) else Line(
            self._pages, tuple(self._room(1, self._begins[-1])))
        self._places = np.arange(self._begins[-1], dtype=np.int32)
        self._row_of = list(range(self.slots))  # row of each slot
        self._filled = [0] * self.slots  # positions of each row ever written to
        self._logits = aligned((max(self.slots, 1 + self.guesses), self.vocab_size))
        self._out = np.zeros((self.slots, self.vocab_size), np.float32)
        self._steps: dict[tuple[int, int], _Step] = {}
        self._sights: dict[str, tuple[_Sight, ...]] = {}
        # Each is bound to the pages of a row; the last one used is the last.
        self._reads: OrderedDict[tuple[int, int, int], _Read] = OrderedDict()
        self._most_reads = len(self._model.signatures) + BOUND_READS * self.slots
        self._joined: dict[tuple[int, int], _Read] = {}
        self._several: dict[int, _Several] = {}  # by pages
        self._shapes = (*((1, tokens) for tokens in manifest.chunks), *manifest.joined)
        # One memory for what any call hands out: it is kept before the next.
        self._new = tuple(self._room(1, max(self.slots, 1 + self.guesses, *(
            rows * tokens for rows, tokens in self._shapes))))

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache; memory is taken as positions are filled for the first time."""
        return sum(array.nbytes for page in self._pages for array in page)

    # ------------------------------------------------------------------ StepEngine

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """Read part of a prompt into a slot; see `StepEngine`."""
        if not (1 <= len(ids) <= self.chunk and start >= 0 and start + len(ids) <= self.positions):
            raise ConfigError(
                f"ids: expected 1 to {self.chunk} of them, with start >= 0 and start + ids <= "
                f"{self.positions}, got {len(ids)} at {start}.")
        size = next(size for size in self.manifest.chunks if size >= len(ids))
        self._read(self._reading(self._row_of[slot], size, self._read_pages(size, start)),
                   [Part(slot, ids, start)])
        logits: np.ndarray = self._logits[0]
        return logits

    def read_many(self, parts: Sequence[Part]) -> np.ndarray:
        """Read parts of several prompts; see `StepEngine`.

        A part is cut as it would be if it were alone. Of all parts the first cuts are read, then
        the second ones, and so on: together those that begin a slot, the others one by one.
        """
        self._check(parts)
        left = {place: (part, cuts(len(part.ids), self.manifest.chunks))
                for place, part in enumerate(parts)}
        while left:
            now = {place: Part(part.slot, part.ids[:sizes[0]], part.start)
                   for place, (part, sizes) in left.items()}
            fresh = [place for place, part in now.items() if not part.start]
            counts = tuple(len(now[place].ids) for place in fresh)
            for shape, places in groups(counts, self._shapes):
                if shape[0] > 1:
                    some = [fresh[place] for place in places]
                    self._read(self._joining(shape), [now.pop(place) for place in some])
                    self._out[some] = self._logits[:len(some)]
            for place, part in now.items():
                self._out[place] = self.read(*part)
            left = {place: (Part(part.slot, part.ids[sizes[0]:], part.start + sizes[0]), sizes[1:])
                    for place, (part, sizes) in left.items() if len(sizes) > 1}
        return self._out[:len(parts)]

    def _check(self, parts: Sequence[Part]) -> None:
        slots = [part.slot for part in parts]
        if not slots or len(set(slots)) < len(slots):
            raise ConfigError(f"parts: expected one or more of different slots, got {slots}.")
        for part in parts:
            if not (len(part.ids) and 0 <= part.start <= self.positions - len(part.ids)):
                raise ConfigError(
                    f"ids: expected one or more of them, with start >= 0 and start + ids <= "
                    f"{self.positions}, got {len(part.ids)} at {part.start}.")

    def _read(self, read: _Read, parts: Sequence[Part]) -> None:
        """Read the ids of parts, one a row, and write down what comes of them."""
        rows, _, size = read.last.shape
        ids, positions = read.ids.reshape(rows, size), read.positions.reshape(rows, size)
        ids.fill(0)  # those behind the last one that counts are computed and thrown away
        read.last.fill(0.0)
        for place, part in enumerate(parts):
            ids[place, :len(part.ids)] = part.ids
            np.minimum(np.arange(part.start, part.start + size), self.positions - 1,
                       out=positions[place], casting="unsafe")
            read.last[place, 0, len(part.ids) - 1] = 1.0
        if read.mask is not None:
            read.mask[...] = np.where(self._places[:read.mask.shape[-1]] < parts[0].start, 0.0,
                                      MASKED)
        read.call()
        for place, part in enumerate(parts):
            row = self._row_of[part.slot]
            self._keep_chunk(row, part, [new[:, place] for new in read.new])

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        """Read one more token of each active slot; see `StepEngine`."""
        # The weights have just passed through the core's cache, so each operation of NumPy is slow.
        slots, every = list(active), lengths.tolist()
        held = [every[slot] for slot in slots]
        if not slots or min(held) < 0 or max(held) >= self.positions:
            raise ConfigError(f"lengths: expected at least one active slot, each of 0 to "
                              f"{self.positions - 1} positions, got {held}.")
        if len(slots) == 1 and self.manifest.rows[0] == 1:
            return self._step_alone(slots[0], int(tokens[slots[0]]), held[0])
        size = next(size for size in self.manifest.rows if size >= len(slots))
        self._bring_together(slots, size)
        rows = [self._row_of[slot] for slot in slots]
        step = self._stepping(size, max(self._pages_for(max(held)), 1))
        step.ids[rows], step.positions[rows] = tokens[slots], held
        for row, place in zip(rows, held):
            mask = step.mask[row, 0, 0]
            mask[:place], mask[place:-1] = 0.0, MASKED
        step.call()
        for row, place in zip(rows, held):
            self._keep_token(row, place, step.new)
        if rows == slots:
            return self._logits[:self.slots]
        self._out[slots] = self._logits[rows]
        return self._out

    def _step_alone(self, slot: int, token: int, held: int) -> np.ndarray:
        """Read one more token of one slot, as `step` does, in fewer operations of NumPy."""
        self._bring_together([slot], 1)
        pages = max(self._pages_for(held), 1)
        step = self._stepping(1, pages)
        if self._line is not None:
            self._line.follow(pages, held)
        step.ids[0], step.positions[0] = token, held
        mask = step.mask.reshape(-1)
        mask[:held], mask[held:-1] = 0.0, MASKED
        step.call()
        self._keep_token(0, held, step.new)
        if slot == 0:
            return self._logits[:self.slots]
        self._out[slot] = self._logits[0]
        return self._out

    def extend(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        """Read a token and guesses of what follows it; see `StepEngine`."""
        count = len(ids)
        if not (1 <= count <= 1 + self.guesses and 0 <= start <= self.positions - count):
            raise ConfigError(
                f"ids: expected 1 to {1 + self.guesses} of them, with start >= 0 and start + ids "
                f"<= {self.positions}, got {count} at {start}.")
        self._bring_together([slot], 1)
        row = self._row_of[slot]
        several = self._extending(max(self._pages_for(start + count - 1), 1))
        several.ids.fill(0)  # those behind the last one that counts are computed and thrown away
        several.ids[:count] = ids
        several.positions[:] = np.minimum(start + np.arange(len(several.ids)), self.positions - 1)
        fill_mask(several.mask, start, MASKED)
        fill_places(several.put, several.stay, start, self._begins)
        several.call()
        self._keep_chunk(row, Part(slot, ids, start),
                         [new[:, :, :, 0].swapaxes(1, 2) for new in several.new])
        return self._logits[:count]

    def keeps_bits(self) -> bool:
        """Whether ids read in one go give the same bits as step by step, on this machine.

        They do with kernels that add up the rows of a product alike however many there are. It is
        tried over all pages; what the first slot held is gone.
        """
        random = np.random.default_rng(0)
        row = self._row_of[0]
        for kind, array in ((kind, array) for page in self._pages
                            for kind, array in zip(self._kinds, page)):
            shape = array[:, row].shape
            array[:, row] = (random.uniform(0.001, 0.02, shape) if kind.endswith("scales")
                             else random.normal(0.0, 40.0 if array.dtype == np.int8 else 1.0,
                                                shape).clip(-127, 127))
        self._changed(row, 0)
        same = True
        for begin in self._begins[:-1]:
            count = min(1 + self.guesses, self.positions - begin)
            start = min(max(begin - 1, 1), self.positions - count)  # over a border, if there is one
            ids = random.integers(0, self.vocab_size, count).astype(np.int32)
            together = self.extend(0, ids, start).copy()
            for place in range(count):
                alone = self.step(np.full(self.slots, ids[place]),
                                  np.full(self.slots, start + place, np.int32), [0])[0]
                same = same and np.array_equal(together[place], alone)
        self._filled[row] = 0
        self._changed(row, 0)
        return same

    def leave_guesses(self) -> None:
        """Check no guesses any more, and free what was bound for it."""
        self.guesses = 0
        while self._several:
            self._model.unbind(self._several.popitem()[1].call)

    def save(self, slot: int, length: int) -> Saved:
        """Return what the first `length` positions of a slot hold; see `StepEngine`."""
        row = self._row_of[slot]
        kept = []
        for page, begin in zip(self._pages, self._begins):
            count = min(length - begin, page[0].shape[3])
            if count > 0:
                kept.append(tuple(array[:, row, :, :count].copy() for array in page))
        return Saved(tuple(kept))

    def restore(self, slot: int, saved: Saved) -> None:
        """Make a slot begin with what was saved; see `StepEngine`."""
        row = self._row_of[slot]
        length = sum(page[0].shape[2] for page in saved.pages)
        self._written(row, 0, length)
        for page, kept in zip(self._pages, saved.pages):
            for array, values in zip(page, kept):
                array[:, row, :, :values.shape[2]] = values

    def warm_up(self) -> None:
        """Run every graph once, and give back what that took; no slot changes."""
        for count in range(len(self.manifest.pages) + 1):
            for rows in self.manifest.rows:
                self._stepping(rows, max(count, 1)).call()
            if self.guesses:
                self._extending(max(count, 1)).call()
            for tokens in self.manifest.chunks:
                # Only where so much stands in front of so many ids at most.
                if _read_name(tokens, count) in self._model.signatures:
                    self._reading(0, tokens, count).call()
        for shape in self.manifest.joined:
            self._joining(shape).call()
        self._model.settle()

    def close(self) -> None:
        """Free the model; no call follows."""
        self._model.close()
        self._steps, self._reads, self._joined, self._several = {}, OrderedDict(), {}, {}

    # ------------------------------------------------------------------ graphs and their arrays

    def _pages_for(self, length: int) -> int:
        """Return how many pages hold `length` positions."""
        return bisect.bisect_left(self._begins, length)

    def _read_pages(self, tokens: int, start: int) -> int:
        """Return over how many pages so many ids are read behind `start` positions.

        There is no graph for every number of them.
        """
        return next(count for count in range(self._pages_for(start), len(self.manifest.pages) + 1)
                    if _read_name(tokens, count) in self._model.signatures)

    def _stepping(self, rows: int, pages: int) -> _Step:
        if (rows, pages) not in self._steps:
            name = f"step_{rows}_{pages}"
            new = self._new_arrays(rows, 1)
            ids, positions = aligned((rows,), np.int32), aligned((rows,), np.int32)
            mask = aligned((rows, 1, 1, self._begins[pages] + 1))
            arrays = {"ids": ids, "positions": positions, "mask": mask,
                      "logits": self._logits[:rows], **self._named(new)}
            line = None if self._line is None or rows > 1 else self._line.arrays(pages)
            arrays |= self._cached(name, 0, rows, line)
            call = self._model.bind(name, arrays)
            self._steps[rows, pages] = _Step(call, ids, positions, mask, new)
        return self._steps[rows, pages]

    def _extending(self, pages: int) -> _Several:
        if pages not in self._several:
            rows, groups = 1 + self.manifest.guesses, self.manifest.groups
            name = f"extend_{rows}_{pages}"
            new = self._new_arrays(rows, 1)
            ids, positions = aligned((rows,), np.int32), aligned((rows,), np.int32)
            mask = aligned((rows, 1, 1, self._begins[pages] + 1))
            sizes = {page: self.manifest.pages[page] for page in range(pages)
                     if f"put_{page}" in self._model.inputs(name)}
            put = {page: aligned((1, groups, size, rows)) for page, size in sizes.items()}
            stay = {page: aligned((1, 1, size, 1)) for page, size in sizes.items()}
            arrays = {"ids": ids, "positions": positions, "mask": mask,
                      "logits": self._logits[:rows], **self._named(new), **self._cached(name, 0, 1),
                      **{f"put_{page}": array for page, array in put.items()},
                      **{f"stay_{page}": array for page, array in stay.items()}}
            self._several[pages] = _Several(self._model.bind(name, arrays), ids, positions, mask,
                                            put, stay, new)
        return self._several[pages]

    def _reading(self, row: int, tokens: int, pages: int) -> _Read:
        if not pages:
            row = 0  # it looks at no slot: one for all
        if (row, tokens, pages) in self._reads:
            self._reads.move_to_end((row, tokens, pages))
        else:
            if len(self._reads) >= self._most_reads:
                self._model.unbind(self._reads.popitem(last=False)[1].call)
            name = _read_name(tokens, pages)
            arrays: dict[str, np.ndarray] = {}
            if pages:
                arrays = {"mask": aligned((1, 1, 1, self._begins[pages])),
                          **self._cached(name, row, 1)}
            self._reads[row, tokens, pages] = self._reader(name, 1, tokens, arrays)
        return self._reads[row, tokens, pages]

    def _joining(self, shape: tuple[int, int]) -> _Read:
        if shape not in self._joined:
            rows, tokens = shape
            self._joined[shape] = self._reader(f"read_{rows}x{tokens}", rows, tokens, {})
        return self._joined[shape]

    def _reader(self, name: str, rows: int, tokens: int, cached: dict[str, np.ndarray]) -> _Read:
        """Bind a read to arrays of its own and to what it sees of the cache."""
        new = self._new_arrays(rows, tokens)
        ids, positions = (aligned((rows * tokens,), np.int32) for _ in range(2))
        last = aligned((rows, 1, tokens))
        call = self._model.bind(name, {
            "ids": ids, "positions": positions, "last": last, "logits": self._logits[:rows],
            **self._named(new), **cached})
        return _Read(call, ids, positions, cached.get("mask"), last, new)

    def _room(self, rows: int, places: int) -> Iterator[np.ndarray]:
        """Yield room for each kind, [layers, rows, G, places, d or 1]."""
        for kind in self._kinds:
            scale = kind.endswith("scales")
            shape = (rows, self.manifest.groups, places, 1 if scale else self.manifest.head_size)
            dtype = np.dtype(np.float32 if scale else self.manifest.cache)
            # Of each layer there is a little more, so that the next begins where it can be bound.
            room = ALIGNMENT // dtype.itemsize
            layer = -(-math.prod(shape) // room) * room
            yield aligned((self.manifest.layers, layer), dtype)[
                :, :math.prod(shape)].reshape(-1, *shape)

    def _new_arrays(self, rows: int, tokens: int) -> tuple[np.ndarray, ...]:
        """Return where graphs of this size put what is kept: [layers, rows, G, tokens, d or 1]."""
        layers, groups = self.manifest.layers, self.manifest.groups
        flat = (array.reshape(layers, -1) for array in self._new)
        return tuple(array[:, :rows * groups * tokens * size].reshape(
            layers, rows, groups, tokens, size)
            for array, size in zip(flat, (one.shape[-1] for one in self._new)))

    def _named(self, new: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return {f"{kind}_{layer}": array[layer] for kind, array in zip(self._kinds, new)
                for layer in range(self.manifest.layers)}

    def _cached(self, graph: str, first: int, rows: int,
                line: tuple[np.ndarray, ...] | None = None) -> dict[str, np.ndarray]:
        """Return what a graph sees of the cache, by input: `rows` rows from `first` on, in pages
        or, of one row, in a `line`.
        """
        if graph not in self._sights:
            self._sights[graph] = tuple(self._seen(self._model.inputs(graph), rows, line))
        pages = self._pages if line is None else (line,)
        return {name: pages[page][place][layer, first + begin:first + end, slice(*heads)]
                for name, place, layer, page, (begin, end), heads in self._sights[graph]}

    def _seen(self, inputs: Sequence[str], rows: int, line: tuple[np.ndarray, ...] | None
              ) -> Iterator[_Sight]:
        """Yield what of the inputs of a graph is of the cache: <kind>_<layer>_<page>[_<block>]."""
        found: list[tuple[str, int, list[int]]] = []
        for name in inputs:
            kind, *places = name.rsplit("_", name.count("_") - (1 if "scales" in name else 0))
            if kind in self._kinds:
                found.append((name, self._kinds.index(kind), [int(place) for place in places]))
        manifest, most = self.manifest, self.manifest.block_places
        whole = sum(manifest.pages[:1 + max((numbers[1] for _, _, numbers in found), default=-1)])
        for name, place, (layer, page, *block) in found:
            some, heads = (0, rows), (0, manifest.groups)
            if block and line is None:
                joined = manifest.joined_pages and self._kinds[place] == "values"
                some = row_blocks(rows, whole if joined else manifest.pages[page], most)[block[0]]
            elif block and line is not None and manifest.one_piece:
                heads = head_blocks(manifest.groups, line[0].shape[3], most)[block[0]]
            yield _Sight(name, place, layer, page, some, heads)

    # ------------------------------------------------------------------ the cache

    def _keep_token(self, row: int, held: int, new: Sequence[np.ndarray]) -> None:
        """Write what a step handed out of a row behind the `held` positions that it has."""
        self._written(row, held, held + 1)
        page = bisect.bisect_right(self._begins, held) - 1
        place = held - self._begins[page]
        for array, read in zip(self._pages[page], new):
            array[:, row, :, place] = read[:, row, :, 0]

    def _keep_chunk(self, row: int, part: Part, read: Sequence[np.ndarray]) -> None:
        """Write what a read handed out, [layers, G, T, d] each, into the pages that it reaches."""
        start, stop = part.start, part.start + len(part.ids)
        self._written(row, start, stop)
        for page, begin in enumerate(self._begins[:-1]):
            first, end = max(start, begin), min(stop, self._begins[page + 1])
            if first < end:
                for array, new in zip(self._pages[page], read):
                    array[:, row, :, first - begin:end - begin] = new[
                        :, :, first - start:end - start]

    def _written(self, row: int, begin: int, end: int) -> None:
        """Know that positions `begin` to `end` of a row were written to."""
        self._filled[row] = max(self._filled[row], end)
        self._changed(row, begin)

    def _changed(self, row: int, begin: int) -> None:
        """Know that something came into a row from position `begin` on."""
        if self._line is not None and row == 0:
            self._line.changed(begin)

    def _bring_together(self, slots: Sequence[int], size: int) -> None:
        """Make the rows of `slots` lie among the first `size`."""
        row_of, filled = self._row_of, self._filled
        outside = [slot for slot in slots if row_of[slot] >= size]
        if not outside:
            return
        free = [slot for slot in range(self.slots) if row_of[slot] < size and slot not in slots]
        for slot, other in zip(outside, free):
            rows = [row_of[slot], row_of[other]]
            swapped = rows[::-1]
            most = max(filled[row] for row in rows)
            for page, begin in zip(self._pages, self._begins):
                for array in page:
                    live = array[:, :, :, :max(most - begin, 0)]
                    live[:, rows] = live[:, swapped]
            for row in rows:
                self._changed(row, 0)
            filled[rows[0]], filled[rows[1]] = filled[rows[1]], filled[rows[0]]
            row_of[slot], row_of[other] = swapped


def _read_name(tokens: int, pages: int) -> str:
    """Return the graph that reads so many ids of one slot, of which it sees so many pages."""
    return f"read_{tokens}_{pages}"
