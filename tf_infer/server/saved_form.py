"""SavedForm: the portable way to run a decoder for the slot engine, through its signature `steps`.

Caches go into a call and come out of it, so a call produces several tokens (`tokens_a_call`). Rows
that produce stand in one batch, which goes back in as it came out; one that joins is copied into
it, one that leaves gives its place to the last. Needs no TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_infer.engines.contracts import Part
from tf_infer.errors import NotOffered
from tf_infer.manifest import ModelManifest
from tf_infer.server.contracts import Arrays, Servable
from tf_infer.server.forms import (
    POSITIONS,
    STEPS,
    Choice,
    Row,
    best,
    option_inputs,
    positions_of,
    stacked,
    tokens_a_call,
)
from tf_infer.server.pace import Pace


class SavedForm:
    """See the module, and `forms.Form`.

    Args:
        servable: runs `steps`.
        manifest: of the version.
        slots: rows at once.
    """

    KNOWN = frozenset({"ids", "id_count", "cache", "lengths", "count", "produced", "history",
                       "history_length", "allowed", "state"})

    def __init__(self, servable: Servable, manifest: ModelManifest, slots: int) -> None:
        self._servable = servable
        self.slots, self.chunk = slots, manifest.grid.tokens[-1]
        self.positions = positions_of(manifest)
        spec = manifest.signature(STEPS)
        self._options = option_inputs(spec, self.KNOWN)
        self._names = frozenset(one.name for one in spec.inputs) & self.KNOWN
        self._outputs = tuple(one.name for one in spec.outputs)
        self._nothing = np.zeros(*row_of(manifest))        # [2 layers, heads, P, d]
        self._most = _width(manifest, "tokens")
        self._apart: dict[int, np.ndarray] = {}            # caches of rows that do not produce yet
        self._order: list[int] = []                        # slots of the rows of the batch
        self._batch = self._nothing[None][:0]              # [>= B, 2 layers, heads, P, d]
        self._pace, self._lately = Pace(), (0, 0.0)

    # ------------------------------------------------------------------ reading, producing

    def check(self, rows: Sequence[Row]) -> None:
        """See `Form.check`: rows that read nothing and produce nothing.

        Raises:
            NotOffered: a row needs a mask, which `steps` of this version does not take.
        """
        if "allowed" not in self._names and any(row.step_by_step for row in rows):
            raise NotOffered("constraint: this version keeps one only in its engine. Serve it "
                             "with --decode_engine=litert, or export it again.")
        nothing = [0] * len(rows)
        cache = np.broadcast_to(self._nothing, (len(rows), *self._nothing.shape))
        self._run(rows, cache, np.zeros((len(rows), 1), np.int32), nothing, nothing, nothing)

    def read(self, parts: Sequence[Part]) -> None:
        """See `Form.read`: one by one."""
        for slot, ids, start in parts:
            row = Row(slot, ids, len(ids), len(ids), {})
            out = self._run([row], self._apart.get(slot, self._nothing)[None], ids[None],
                            [len(ids)], [start], [0])
            self._apart[slot] = out["cache"][0]

    def produce(self, rows: Sequence[Row], *, hurry: bool) -> list[list[Choice]]:
        """See `Form.produce`."""
        self._arrange([row.slot for row in rows])
        by_slot = {row.slot: row for row in rows}
        batch = [by_slot[slot] for slot in self._order]
        least = 1 if any(row.step_by_step for row in rows) else self._most
        count = tokens_a_call(self._pace, lately=self._lately, hurry=hurry,
                              most=min(least, max(row.most for row in rows)))
        started = time.monotonic()
        out = self._run(batch, self._batch[:len(batch)],
                        np.asarray([[row.last()] for row in batch], np.int32), [1] * len(batch),
                        [row.length - 1 for row in batch], [min(count, row.most) for row in batch])
        self._batch = out["cache"]
        self._seen(int((out["token_count"] + out["finished"]).max()), time.monotonic() - started)
        found = {row.slot: _choices(row, out, place) for place, row in enumerate(batch)}
        return [found[row.slot] for row in rows]

    def _run(self, rows: Sequence[Row], cache: np.ndarray, ids: np.ndarray,
             id_counts: Sequence[int], lengths: Sequence[int], counts: Sequence[int]) -> Arrays:
        inputs = {**stacked(rows, self._options, self._names), "cache": cache, "ids": ids,
                  "id_count": np.asarray(id_counts, np.int32),
                  "lengths": np.asarray(lengths, np.int32), "count": np.asarray(counts, np.int32)}
        return self._servable.run(STEPS, inputs, outputs=self._outputs, timeout_s=None)

    def _seen(self, tokens: int, seconds: float) -> None:
        tokens = max(1, tokens)
        self._pace = self._pace.seen(tokens, seconds)
        self._lately = (tokens, seconds)

    # ------------------------------------------------------------------ caches

    def _arrange(self, slots: Sequence[int]) -> None:
        """Make the batch hold these slots, in any order; those that leave have left."""
        new = [slot for slot in slots if slot not in self._order]
        size = len(self._order) + len(new)
        if new and (len(self._batch) < size or not self._batch.flags.writeable):
            grown = np.empty((size, *self._nothing.shape), self._nothing.dtype)
            grown[:len(self._order)] = self._batch[:len(self._order)]
            self._batch = grown
        for slot in new:
            self._batch[len(self._order)] = self._apart.pop(slot, self._nothing)
            self._order.append(slot)

    def save(self, slot: int, length: int) -> np.ndarray:
        """See `Form.save`."""
        held = self._apart[slot] if slot in self._apart else self._batch[self._order.index(slot)]
        return held[..., :length, :].copy()

    def restore(self, slot: int, saved: Any) -> None:
        """See `Form.restore`."""
        held = np.zeros_like(self._nothing)
        held[..., :saved.shape[POSITIONS], :] = saved
        self._apart[slot] = held

    def leave(self, slot: int) -> None:
        """See `Form.leave`."""
        self._apart.pop(slot, None)
        if slot not in self._order:
            return
        place, last = self._order.index(slot), self._order.pop()
        if last != slot:
            if not self._batch.flags.writeable:
                self._batch = self._batch.copy()
            self._batch[place] = self._batch[len(self._order)]
            self._order[place] = last
        if not self._order:
            self._batch = self._nothing[None][:0]  # nothing is held of a server at rest

    def close(self) -> None:
        """See `Form.close`."""
        self._apart, self._order, self._batch = {}, [], self._nothing[None][:0]


def row_of(manifest: ModelManifest) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of the cache of one row of `steps`."""
    spec = next(one for one in manifest.signature(STEPS).inputs if one.name == "cache")
    return tuple(int(size or 0) for size in spec.shape[1:]), np.dtype(spec.dtype)


def row_bytes(manifest: ModelManifest) -> int:
    """Return how many bytes the cache of one row of `steps` takes."""
    shape, dtype = row_of(manifest)
    return int(np.prod(shape)) * dtype.itemsize


def _width(manifest: ModelManifest, output: str) -> int:
    spec = next(one for one in manifest.signature(STEPS).outputs if one.name == output)
    return int(spec.shape[1] or 1)


def _choices(row: Row, out: Arrays, place: int) -> list[Choice]:
    """Return what a row of the batch has produced, its end among it."""
    count, ended = int(out["token_count"][place]), bool(out["finished"][place])
    tokens = [int(token) for token in out["tokens"][place, :count]]
    if "state" in out:
        row.state = int(out["state"][place])
    logprobs = [0.0] * count  # of an older version the sum alone is known
    if "token_logprobs" in out:
        logprobs = [float(value) for value in out["token_logprobs"][place, :count]]
    tops: list[tuple[tuple[int, float], ...]] = [()] * count
    if row.logprobs and "top_ids" in out:
        tops = [best(out["top_ids"][place, which], out["top_logprobs"][place, which], row.logprobs)
                for which in range(count)]
    found = [Choice(token, logprob, False, top)
             for token, logprob, top in zip(tokens, logprobs, tops)]
    rest = float(out["score"][place]) - sum(logprobs)
    if ended:
        found.append(Choice(-1, rest, True))
    elif found and "token_logprobs" not in out:
        found[-1] = found[-1]._replace(logprob=rest)
    return found
