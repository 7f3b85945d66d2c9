"""The LiteRT engine of a classifier: an EncoderEngine over graphs of optimize/litert_encoder.py.

Texts of like length go through a graph together, short ones several in a row, each of which sees
only itself. What a text comes to depends on that text alone, bit for bit: where the rows of a
product and the tokens of a row stand changes no sum, since what does not count adds exactly 0.
Whether the kernels of this machine add so is seen at load; if not, no text shares a row.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_infer.engines import files
from tf_infer.engines.deadline import Deadline
from tf_infer.engines.litert_runtime import Call, Model, aligned
from tf_infer.engines.packing import Group, Sizes, lengths_of
from tf_infer.errors import ConfigError
from tf_infer.manifest import EncoderEngineManifest, row_texts

# Added to scores: for a token that does not count, and for one of another text, or of padding. A
# text without any token that counts looks at itself.
UNCOUNTED, FOREIGN = -1e30, -3e38
PROBED = (47, 46, 31, 30, 29, 17, 15, 13, 5, 3)  # lengths; most share rows


def load(folder: Path, *, threads: int = 2, warm_up: bool = True) -> LiteRTEncoder:
    """Load the engine that an export wrote.

    Args:
        folder: `<version>/assets.extra/engines/litert`.
        threads: that compute one call.
        warm_up: run every graph once, so that no later call is the first of its size.

    Raises:
        BackendMissing: LiteRT is not installed; names the extra that brings it.
        ConfigError: `engine.json` is missing or no such engine's description.
        ExportError: the model file is not the one that was exported, or cannot be run.
    """
    manifest, path = files.read(EncoderEngineManifest, folder)
    with files.made_ready(LiteRTEncoder(manifest, path, threads=threads)) as engine:
        if not engine.keeps_bits():
            engine.unpack()
        if warm_up:
            engine.warm_up()
        return engine


@dataclass(frozen=True, slots=True)
class _Graph:
    """A graph, and the arrays it reads and writes by name."""

    call: Call
    arrays: dict[str, np.ndarray]


class LiteRTEncoder:
    """An `EncoderEngine` (engines/contracts.py).

    Args:
        manifest: what the file holds.
        path: of the model file.
        threads: that compute one call.
    """

    as_proven = True

    def __init__(self, manifest: EncoderEngineManifest, path: Path, *, threads: int = 2) -> None:
        self.manifest = manifest
        self._model = Model(path, threads=threads)
        self._sizes = Sizes(manifest.shapes, packed=manifest.packed)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._lock = threading.Lock()  # arrays are bound to graphs: one call at a time

    def run(self, ids: np.ndarray, mask: np.ndarray, segments: np.ndarray, *,
            timeout_s: float | None = None) -> np.ndarray:
        """Compute the logits of rows; see `EncoderEngine`."""
        deadline = Deadline(timeout_s)
        if not (ids.ndim == 2 and ids.shape == mask.shape == segments.shape):
            raise ConfigError("ids: expected [B, T], and mask and segments of the same shape, got "
                              f"{ids.shape}, {mask.shape} and {segments.shape}.")
        if not ids.shape[1]:  # a graph needs a token
            ids, mask, segments = (np.zeros((len(ids), 1), one.dtype) for one in (
                ids, mask, segments))
        logits = np.empty((len(ids), self.manifest.classes), np.float32)
        lengths = lengths_of(mask)
        if lengths.max(initial=0) > self.manifest.positions:
            raise ConfigError(f"ids: expected at most {self.manifest.positions} tokens a row, got "
                              f"{lengths.max()}.")
        places = segments * self.manifest.positions if self.manifest.segments else 0 * segments
        places = places + np.arange(ids.shape[1], dtype=np.int32)
        deadline.acquire(self._lock)
        try:
            for group in self._sizes.groups(lengths.tolist()):
                deadline.check()
                self._compute(group, lengths, ids, mask, places, logits)
        finally:
            self._lock.release()
        return logits

    def keeps_bits(self) -> bool:
        """Whether texts give the same bits in one row as each alone, on this machine.

        They do with kernels that add as those of AVX-512 do (optimize/litert_encoder.py).
        """
        random = np.random.default_rng(0)
        counts = np.array([size for size in PROBED if size <= self.manifest.positions])
        mask = np.arange(counts.max(initial=1)) < counts[:, None]
        ids = random.integers(0, self.manifest.vocab_size, mask.shape).astype(np.int32)
        segments = np.zeros_like(ids)
        together = self.run(ids, mask, segments)
        return all(np.array_equal(self.run(ids[[row]], mask[[row]], segments[[row]])[0],
                                  together[row]) for row in range(len(counts)))

    def unpack(self) -> None:
        """Let every text have a row of its own from now on."""
        self._sizes = Sizes(self.manifest.shapes, packed=False)

    def warm_up(self) -> None:
        """Run every graph once, and give back what that took."""
        with self._lock:
            for rows, tokens in self.manifest.shapes:
                self._graph(rows, tokens).call()
            self._model.settle()

    def close(self) -> None:
        """Free the model; no call follows."""
        with self._lock:
            self._graphs = {}
            self._model.close()

    def _compute(self, group: Group, lengths: np.ndarray, ids: np.ndarray, mask: np.ndarray,
                 places: np.ndarray, logits: np.ndarray) -> None:
        """Fill the arrays of a graph, run it, and write what it says of each text."""
        graph = self._graph(group.rows, group.tokens)
        if group.rows == len(group.texts) == 1:
            text = group.texts[0].text
            length = int(lengths[text])
            self._place_one(graph.arrays, ids[text, :length], places[text, :length],
                            mask[text, :length])
            graph.call()
            logits[text] = graph.arrays["logits"][0]
            return
        arrays, tokens = graph.arrays, group.tokens
        texts = np.array([placed.text for placed in group.texts])
        begins = np.array([placed.row * tokens + placed.begin for placed in group.texts])
        slots = np.array([placed.row * self._texts(tokens) + placed.number
                          for placed in group.texts])
        counts = lengths[texts]
        # Of each token: which of the texts it belongs to, where it comes from, where it goes.
        owner = np.repeat(np.arange(len(texts)), counts)
        inside = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        source, target = (texts[owner], inside), begins[owner] + inside
        for name, values in (("ids", ids), ("places", places)):
            arrays[name].fill(0)
            arrays[name][target] = values[source]
        counted: np.ndarray = np.zeros(group.rows * tokens, bool)
        counted[target] = mask[source]
        self._fill_masks(group, arrays, owner, target, counted, slots, begins)
        real = np.zeros(len(arrays["logits"]), np.float32)
        if "pick" in arrays:
            pick: np.ndarray = arrays["pick"].reshape(-1, tokens)
            pick.fill(0.0)
            if "pick_mask" in arrays:  # only first tokens go through the last layer
                pick[slots, begins % tokens] = 1.0
                real[slots] = counted[begins]
            else:
                pick[slots[owner], target % tokens] = counted[target]
                real[slots] = 1.0 / np.maximum(pick.sum(axis=1)[slots], 1.0)
        else:
            arrays["counted"][...] = counted.reshape(group.rows, tokens, 1)
            arrays["uncounted"][...] = np.where(arrays["counted"] > 0, 0.0, FOREIGN)
            real[...] = arrays["counted"].max(axis=(1, 2))
        if "factors" in arrays:
            arrays["factors"][:, 0] = real
        graph.call()
        logits[texts] = arrays["logits"][slots]

    def _place_one(self, arrays: dict[str, np.ndarray], ids: np.ndarray, places: np.ndarray,
                   counted: np.ndarray) -> None:
        """Fill the arrays of a graph of one row with one text: what `_compute` does, sooner."""
        count = len(ids)
        for name, values in (("ids", ids), ("places", places)):
            arrays[name][:count] = values
            arrays[name][count:] = 0
        whole = bool(counted.all())
        seen = 0.0 if whole else np.where(counted, np.float32(0.0), np.float32(UNCOUNTED))
        masks = arrays["mask"][0, 0]                                         # [1 or T, T]
        masks[:count, :count], masks[:count, count:] = seen, FOREIGN
        masks[count:, :count], masks[count:, count:] = FOREIGN, UNCOUNTED
        if "pick" in arrays:
            pick: np.ndarray = arrays["pick"][0]                             # [texts, T]
            pick.fill(0.0)
            if "pick_mask" in arrays:  # only the first token goes through the last layer
                picked: np.ndarray = arrays["pick_mask"][0, 0]
                picked.fill(0.0)
                picked[0] = masks[0]
                pick[0, 0] = 1.0
                real = float(counted[0])
            else:
                pick[0, :count] = counted
                real = 1.0 / max(int(counted.sum()), 1)
        else:
            arrays["counted"][0, :count, 0], arrays["counted"][0, count:, 0] = counted, 0.0
            arrays["uncounted"][...] = np.where(arrays["counted"] > 0, 0.0, FOREIGN)
            real = float(counted.any())
        if "factors" in arrays:
            arrays["factors"].fill(0.0)
            arrays["factors"][0, 0] = real

    def _fill_masks(self, group: Group, arrays: dict[str, np.ndarray], owner: np.ndarray,
                    target: np.ndarray, counted: np.ndarray, slots: np.ndarray,
                    begins: np.ndarray) -> None:
        """Say which tokens see which."""
        rows, tokens = group.rows, group.tokens
        flat = np.full(rows * tokens, -1)
        flat[target] = owner
        of = flat.reshape(rows, tokens)
        seen = np.where(counted.reshape(rows, tokens), np.float32(0.0), np.float32(UNCOUNTED))
        if self._texts(tokens) == 1:
            arrays["mask"][:, 0, 0] = np.where(of >= 0, seen, np.float32(FOREIGN))
            if "pick_mask" in arrays:
                arrays["pick_mask"][...] = arrays["mask"]
            return
        same = of[:, :, None] == of[:, None, :]                              # [R, T, T]
        arrays["mask"][:, 0] = np.where(same, seen[:, None, :], np.float32(FOREIGN))
        if "pick_mask" in arrays:
            picked = arrays["pick_mask"].reshape(-1, tokens)
            picked.fill(0.0)
            picked[slots] = arrays["mask"].reshape(-1, tokens)[begins]

    def _texts(self, tokens: int) -> int:
        return row_texts(tokens) if self.manifest.packed else 1

    def _graph(self, rows: int, tokens: int) -> _Graph:
        if (rows, tokens) not in self._graphs:
            name, texts, whole = f"rows_{rows}_{tokens}", self._texts(tokens), rows * tokens
            seeing = tokens if texts > 1 else 1
            shapes = {"ids": (whole,), "places": (whole,), "mask": (rows, 1, seeing, tokens),
                      "pick": (rows, texts, tokens), "pick_mask": (rows, 1, texts, tokens),
                      "factors": (rows * texts, 1), "counted": (rows, tokens, 1),
                      "uncounted": (rows, tokens, 1)}
            arrays = {one: aligned(shapes[one], np.int32 if one in ("ids", "places")
                                   else np.float32) for one in self._model.inputs(name)}
            arrays["logits"] = aligned((rows * texts, self.manifest.classes))
            self._graphs[rows, tokens] = _Graph(self._model.bind(name, arrays), arrays)
        return self._graphs[rows, tokens]
