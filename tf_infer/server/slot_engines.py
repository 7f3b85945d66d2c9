"""What generates for a version: its engine or its SavedModel, in how many slots; its metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tf_infer import token_bytes
from tf_infer.engines import files
from tf_infer.errors import BackendMissing, NotOffered
from tf_infer.manifest import EXTRA_FOLDER, ModelManifest, engine_folder
from tf_infer.server import cpus
from tf_infer.server.config import DecodeConfig
from tf_infer.server.contracts import Servable
from tf_infer.server.forms import CHOOSE, EngineForm, Form
from tf_infer.server.generation import Generator
from tf_infer.server.generators import Make, VersionGenerators
from tf_infer.server.logs import event
from tf_infer.server.metrics import Metrics
from tf_infer.server.saved_form import SavedForm, row_bytes
from tf_infer.server.slot_engine import EngineLimits, SlotEngine, Watch
from tf_infer.server.slots import slots_for
from tf_infer.server.versions import Lease
from tf_infer.token_bytes import TokenBytes

MIB = 2**20
LITERT = "litert"


class Told(Watch):
    """Tells a server's metrics what the engine of one version does."""

    def __init__(self, metrics: Metrics, name: str, version: int) -> None:
        self._metrics, self._labels = metrics, (name, str(version))

    def first_token(self, seconds: float) -> None:
        """See `Watch`."""
        self._metrics.first_token(self._labels, seconds)

    def tokens(self, count: int, seconds: float) -> None:
        """See `Watch`."""
        self._metrics.tokens(self._labels, count, seconds)

    def guessed(self, proposed: int, accepted: int) -> None:
        """See `Watch`."""
        self._metrics.guesses(self._labels, proposed, accepted)

    def ended(self, reason: str, prompt: int, cached: int, new: int) -> None:
        """See `Watch`."""
        self._metrics.generation(self._labels, reason, prompt, cached, new)


def slot_engines(config: DecodeConfig, metrics: Metrics) -> Make:
    """Return what makes the slot engine of a version."""

    def make(lease: Lease) -> Generator:
        servable, path = lease.servable, lease.entry.path
        manifest = servable.manifest
        assert manifest is not None
        return SlotEngine(
            servable, manifest, lambda: _form(config, servable, manifest, path),
            EngineLimits(slots=config.slots or manifest.grid.rows[-1], queue=config.queue,
                         chunk=config.chunk, prefix_bytes=config.prefix_cache_mb * MIB),
            tokens=tokens_of(path), watch=Told(metrics, lease.name, lease.version),
            name=f"tf-infer-decode-{lease.name}")

    return make


def prepares(config: DecodeConfig) -> Callable[[Lease], bool]:
    """Return what says whether a version's form is made before it is available.

    An engine is: it takes seconds to load. A version without one is left alone until its first
    request, which finds all it needs in the SavedModel.
    """
    return lambda lease: _may_have_engine(config, lease.entry.path)


def _may_have_engine(config: DecodeConfig, path: Path) -> bool:
    return config.engine != "saved_model" and engine_folder(path, LITERT).is_dir()


def tokens_of(path: Path) -> TokenBytes | None:
    """Return the bytes of a version's tokens; None where it carries none."""
    file = path / EXTRA_FOLDER / token_bytes.TOKENS_FILE
    return token_bytes.read(file) if file.is_file() else None


def _form(config: DecodeConfig, servable: Servable, manifest: ModelManifest, path: Path) -> Form:
    """Make the form that a version is served in.

    Raises:
        NotOffered: --decode_engine asks for an engine that the version does not carry.
        TfInferError: the engine cannot be loaded.
    """
    form = None if config.engine == "saved_model" else _engine(config, servable, manifest, path)
    if form is not None:
        event("decode", path=path, form=LITERT, slots=form.slots, guesses=form.guesses)
        return form
    slots = slots_for(config.slots, manifest.grid.rows[-1], row_bytes(manifest),
                      config.cache_mb * MIB)
    event("decode", path=path, form="saved_model", slots=slots)
    return SavedForm(servable, manifest, slots)


def _engine(config: DecodeConfig, servable: Servable, manifest: ModelManifest, path: Path,
            ) -> EngineForm | None:
    """Return the engine of a version; None where it has none, or its library is missing."""
    folder = engine_folder(path, LITERT)
    there = folder.is_dir() and any(spec.name == CHOOSE for spec in manifest.signatures)
    if not there:
        if config.engine == LITERT:
            raise NotOffered(f"--decode_engine={LITERT}: expected a version with an engine of this "
                             "kind, got one without. Export it with its engine, or leave the flag "
                             "out.")
        return None
    try:
        from tf_infer.engines.litert import load
        engine = load(folder, threads=cpus.usable(), guesses=config.guesses)
    except BackendMissing as error:
        if config.engine == LITERT:
            raise
        event("decode", logging.WARNING, path=path, passed_over=LITERT, error=str(error))
        return None
    with files.made_ready(engine):
        return EngineForm(engine, servable, manifest, config.slots, guesses=config.guesses)


def register(metrics: Metrics, generators: VersionGenerators) -> None:
    """Add the gauges of the slot engines to a server's metrics."""
    labels = ("model", "version")

    def read(of: str) -> dict[tuple[str, ...], int]:
        return {(name, str(version)): int(getattr(engine, of))
                for name, version, engine in generators.made() if isinstance(engine, SlotEngine)}

    for name, help, of in (
            ("tf_infer_decode_slots", "Rows that may be generated at once.", "slots"),
            ("tf_infer_decode_slots_in_use", "Rows that are being generated.", "running"),
            ("tf_infer_decode_waiting", "Generation requests that wait for a slot.", "waiting"),
            ("tf_infer_prefix_cache_bytes", "Saved beginnings of prompts.", "prefix_bytes")):
        metrics.gauge(name, help, labels, lambda of=of: read(of))  # type: ignore[misc]
