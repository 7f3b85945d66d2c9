"""A version as the server has it, asked in this process: texts in, answers out, and nothing timed.

What is behind a version is what the server would run: the SavedModel in a session, or the engine
that travels with it. TensorFlow is imported when a version is opened.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np

from tf_infer.config import CausalLMConfig, ClassifierConfig
from tf_infer.errors import ServingError
from tf_infer.manifest import ModelManifest, SignatureSpec, engine_folder, read_manifest
from tf_infer.server import cpus
from tf_infer.server.config import DecodeConfig, ModelConfig, ServerConfig
from tf_infer.server.contracts import Servable
from tf_infer.server.generation import GenerationRequest, Generator, Piece
from tf_infer.server.metrics import Metrics
from tf_infer.server.slot_engines import LITERT, slot_engines
from tf_infer.server.versions import Lease
from tf_infer.tuning.judge import COUNTS, LABELS, LOG_PROBS, LOGITS, Answers, joined
from tf_infer.verify.engine import log_probs

ROWS = 32        # texts of a call when answers are collected
STEP_ROWS = 8    # slots in which an engine is given tokens at once
KEPT = 0.75      # share of the longest row that is kept of a text that is longer

Row = Sequence[str]  # a text, or the two of a pair


class Opened(Protocol):
    """A version that is ready to answer."""

    def ask(self, rows: Sequence[Row]) -> int:
        """Answer in one call; return how many texts, or new tokens of a decoder, it gave."""

    def answers(self, rows: Sequence[Row]) -> Answers:
        """Return what is compared with the reference's answers (`judge.py`)."""

    def close(self) -> None:
        """Free what it holds."""


def open_version(path: Path, *, new_tokens: int) -> Opened:
    """Load a version as the server does, without a replay of its golden samples.

    A decoder's warm-up runs many signatures that are not asked here; the first calls, which are not
    timed, do what is needed of it, unless XLA has to compile every size.

    Args:
        path: version directory.
        new_tokens: that a decoder is asked for in each row, at most its capacity.

    Raises:
        TfInferError: it cannot be loaded.
    """
    from tf_infer.server.servable import load_version

    name, manifest = path.resolve().parent.name, read_manifest(path)
    config = ServerConfig(
        models=(ModelConfig(name=name, base_path=str(path.resolve().parent)),),
        warmup=isinstance(manifest.task, ClassifierConfig) or manifest.compiled == "xla",
        golden_replay=False, decode=DecodeConfig(prefix_cache_mb=0))
    servable = load_version(path, config)[0]
    if isinstance(manifest.task, ClassifierConfig):
        return OpenedClassifier(servable, manifest.task)
    asked = min(new_tokens, manifest.task.capacity)
    if not engine_folder(path, LITERT).is_dir():
        return OpenedDecoder(servable, manifest, asked)
    lease = Lease(name, manifest.version, servable, cast(Any, SimpleNamespace(path=path)))
    generator = slot_engines(config.decode, Metrics(page=False))(lease)
    generator.prepare()
    return OpenedEngine(servable, manifest, asked, generator, path)


class OpenedClassifier:
    """A classifier: signature `serving_default`."""

    def __init__(self, servable: Servable, config: ClassifierConfig) -> None:
        self._servable, self._config = servable, config
        self._label = "labels" if config.multi_label else "label"

    def ask(self, rows: Sequence[Row]) -> int:
        """See `Opened.ask`: labels and scores, as a client gets them."""
        self._run(rows, (self._label, "scores"))
        return len(rows)

    def answers(self, rows: Sequence[Row]) -> Answers:
        """See `Opened.answers`."""
        logits, labels = [], []
        for start in range(0, len(rows), ROWS):
            found = self._run(rows[start:start + ROWS], (self._label, "logits"))
            logits.append(found["logits"])
            labels += [joined([name.decode() for name in np.atleast_1d(one) if name])
                       for one in found[self._label]]
        return {LOGITS: np.concatenate(logits), LABELS: np.array(labels)}

    def _run(self, rows: Sequence[Row], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        names = ("text", "text_pair") if self._config.pair else ("text",)
        inputs = {name: texts([row[place] for row in rows]) for place, name in enumerate(names)}
        return self._servable.run("serving_default", inputs, outputs=outputs, timeout_s=None)

    def close(self) -> None:
        """See `Opened.close`."""
        self._servable.close()


class OpenedDecoder:
    """A decoder through its SavedModel: signatures `generate` and `score`."""

    def __init__(self, servable: Servable, manifest: ModelManifest, new_tokens: int) -> None:
        self._servable, self._manifest = servable, manifest
        self._options = defaults(manifest.signature("generate")) | {
            "max_new_tokens": np.array([new_tokens], np.int32),
            "temperature": np.zeros(1, np.float32)}

    def ask(self, rows: Sequence[Row]) -> int:
        """See `Opened.ask`: whole continuations, the best token at each place."""
        prompts = texts([row[0] for row in rows])
        found = self._servable.run("generate", {"prompt": prompts, **self._options},
                                   outputs=("text", "length"), timeout_s=None)
        return max(1, int(found["length"].sum()))

    def answers(self, rows: Sequence[Row]) -> Answers:
        """See `Opened.answers`."""
        log_probs, counts = [], []
        for start in range(0, len(rows), ROWS):
            asked = [row[0].encode("utf-8", "surrogatepass") for row in rows[start:start + ROWS]]
            for one, count in self.scored(self.fitting(asked)):
                log_probs.append(one[:count])
                counts.append(count)
        return {LOG_PROBS: np.concatenate(log_probs), COUNTS: np.array(counts, np.int64)}

    def scored(self, asked: Sequence[bytes]) -> list[tuple[np.ndarray, int]]:
        """Return for each text the log-probabilities of its ids, and how many there are."""
        found = self._servable.run(
            "score", {"prompt": texts([b""] * len(asked)), "continuation": texts(asked)},
            outputs=("token_logprobs", "length"), timeout_s=None)
        return [(row, int(count)) for row, count in zip(found["token_logprobs"], found["length"])]

    def fitting(self, asked: Sequence[bytes]) -> list[bytes]:
        """Return texts, of those longer than a row the end that fits."""
        found = self.encoded(asked)
        longest = self._manifest.grid.tokens[-1]
        cut = int(longest * (1.0 - KEPT))
        return [text[int(starts[cut]):] if mask.sum() >= longest - 1 else text
                for text, starts, mask in zip(asked, found["starts"], found["mask"])]

    def encoded(self, asked: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Return what the signature `encode` says of texts."""
        return self._servable.run("encode", {"text": texts(asked)},
                                  outputs=("ids", "mask", "starts", "ends"), timeout_s=None)

    def close(self) -> None:
        """See `Opened.close`."""
        self._servable.close()


class OpenedEngine(OpenedDecoder):
    """A decoder through its engine: prompts in slots, as the server's streams run them."""

    def __init__(self, servable: Servable, manifest: ModelManifest, new_tokens: int,
                 generator: Generator, path: Path) -> None:
        super().__init__(servable, manifest, new_tokens)
        self._generator, self._path, self._new_tokens = generator, path, new_tokens

    def ask(self, rows: Sequence[Row]) -> int:
        """See `Opened.ask`: all prompts are handed in at once; the last one's end is the call's."""
        waiting = _Waiting(len(rows))
        for row in rows:
            self._generator.submit(GenerationRequest(
                prompt=row[0].encode("utf-8", "surrogatepass"),
                options={"max_new_tokens": self._new_tokens, "temperature": 0.0}), waiting.hear)
        return max(1, waiting.tokens())

    def scored(self, asked: Sequence[bytes]) -> list[tuple[np.ndarray, int]]:
        """See `OpenedDecoder.scored`: the given ids pass through the engine one by one."""
        from tf_infer.engines.litert import load

        rows = self._rows(asked)
        engine = load(engine_folder(self._path, LITERT), threads=cpus.usable(), warm_up=False)
        try:
            size = min(STEP_ROWS, engine.slots)
            return [one for start in range(0, len(rows), size)
                    for one in stepped(engine, rows[start:start + size])]
        finally:
            engine.close()

    def _rows(self, asked: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return ids and which of them count, of each text, as the signature `score` reads it."""
        assert isinstance(self._manifest.task, CausalLMConfig)
        before = np.zeros(0, np.int32)
        if not self._manifest.task.packing.start:  # what stands where nothing else would
            found = self.encoded([b""])
            before = found["ids"][0][found["mask"][0] > 0]
        found = self.encoded(asked)
        rows = []
        for ids, mask, ends in zip(found["ids"], found["mask"], found["ends"]):
            real = mask > 0
            counted = np.concatenate([np.zeros(len(before), bool), ends[real] > 0])
            counted[0] = False
            rows.append((np.concatenate([before, ids[real]]).astype(np.int32), counted))
        return rows

    def close(self) -> None:
        """See `Opened.close`."""
        self._generator.close()
        super().close()


class _Waiting:
    """Hears of some requests until all have ended."""

    def __init__(self, requests: int) -> None:
        self._left, self._tokens = requests, 0
        self._error: ServingError | None = None
        self._changed = threading.Condition()

    def hear(self, piece: Piece | ServingError) -> None:
        """Take a piece, on the generator's thread."""
        if not isinstance(piece, ServingError) and piece.finish_reason is None:
            return
        with self._changed:
            if isinstance(piece, ServingError):
                self._error = piece
            else:
                self._tokens += piece.new_tokens
            self._left -= 1
            self._changed.notify_all()

    def tokens(self) -> int:
        """Wait; return how many tokens were produced."""
        with self._changed:
            self._changed.wait_for(lambda: self._left <= 0)
            if self._error is not None:
                raise self._error
            return self._tokens


def stepped(engine: Any, rows: Sequence[tuple[np.ndarray, np.ndarray]]
            ) -> list[tuple[np.ndarray, int]]:
    """Return the log-probabilities of given ids, read by steps of a `StepEngine`.

    Args:
        engine: with a slot for each row.
        rows: ids [n] and which of them count [n], each.
    """
    found: list[list[float]] = [[] for _ in rows]
    tokens, lengths = np.zeros(engine.slots, np.int32), np.zeros(engine.slots, np.int32)
    for place in range(max(len(ids) for ids, _ in rows) - 1):
        active = [slot for slot, (ids, _) in enumerate(rows) if place + 1 < len(ids)]
        lengths[:] = place
        for slot in active:
            tokens[slot] = rows[slot][0][place]
        logits = engine.step(tokens, lengths, active)                        # [S, V]
        for slot in active:
            ids, counted = rows[slot]
            if counted[place + 1]:
                found[slot].append(float(log_probs(logits[slot])[ids[place + 1]]))
    return [(np.array(one, np.float32), len(one)) for one in found]


def defaults(signature: SignatureSpec) -> dict[str, np.ndarray]:
    """Return every option of a signature at its default, one value for all rows."""
    return {one.name: texts([one.default]) if one.dtype == "string"
            else np.array([one.default], one.dtype)
            for one in signature.inputs if one.default is not None}


def texts(values: Sequence[str | bytes]) -> np.ndarray:
    """Return strings as a signature takes them: [B] of bytes."""
    array = np.empty(len(values), dtype=object)
    array[:] = [value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
                for value in values]
    return array
