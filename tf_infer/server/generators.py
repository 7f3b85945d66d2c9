"""Which generator answers for a version of a model, lent for as long as a request runs.

A protocol asks `VersionGenerators.of`, submits its requests to the `generator` of what it got, and
gives it back behind the last piece. A version has one generator, made at its first request; it ends
before the version is closed. Needs no TensorFlow.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from tf_infer.config import ChatFormat
from tf_infer.errors import NotOffered, ServerUnavailable, ServingError
from tf_infer.manifest import ModelManifest, read_chat
from tf_infer.server.contracts import Servable
from tf_infer.server.generation import Generator
from tf_infer.server.versions import Lease, ModelRef, Versions

NEEDED = ("encode", "decode", "steps")  # signatures of a version that generates piece by piece
STOPPING = "The server is stopping."

# a lent version -> what generates for it; asked once a version
Make = Callable[[Lease], Generator]


def generates(manifest: ModelManifest | None) -> bool:
    """Whether a version generates piece by piece: it is a decoder that tf_infer exported."""
    names = {spec.name for spec in manifest.signatures} if manifest is not None else set()
    return names.issuperset(NEEDED)


@dataclass(slots=True)
class LentGenerator:
    """A generator that is lent; see `generation.Lent`."""

    name: str
    version: int
    generator: Generator
    chat: ChatFormat | None
    _returning: list[Callable[[], None]] = field(default_factory=list)  # popped: atomic

    def give_back(self) -> None:
        """Let the version go; a second call does nothing."""
        try:
            returning = self._returning.pop()
        except IndexError:
            return
        returning()


@dataclass(frozen=True, slots=True)
class _Made:
    name: str
    version: int
    generator: Generator
    chat: ChatFormat | None


class VersionGenerators:
    """The generators of one server; see `generation.Generators`.

    Args:
        versions: where loaded versions are lent from.
        make: builds the generator of a version.
        prepares: whether a version's is built and prepared before the version is available; the
            first request does it for the others. None for every version.
    """

    def __init__(self, versions: Versions, make: Make, *,
                 prepares: Callable[[Lease], bool] | None = None) -> None:
        self._versions, self._make, self._prepares = versions, make, prepares
        self._made: weakref.WeakKeyDictionary[Servable, _Made] = weakref.WeakKeyDictionary()
        self._making = threading.Lock()
        self._changed = threading.Condition()
        self._lent = 0
        self._stopping = False

    def of(self, model: str, version: int | None, label: str | None) -> LentGenerator:
        """Lend the generator of a version; see `generation.Generators.of`.

        Raises:
            ServingError: also UNAVAILABLE, the server is stopping.
        """
        with self._changed:
            if self._stopping:
                raise ServerUnavailable(STOPPING)
            self._lent += 1
        lease = None
        try:
            lease = self._versions.borrow(ModelRef(model, version, label))
            made = self._of(lease)
        except BaseException:
            self._returned(lease)
            raise
        return LentGenerator(lease.name, lease.version, made.generator, made.chat,
                             [lambda: self._returned(lease)])

    def prepare(self, lease: Lease) -> None:
        """Let a version that is about to be available do what its first request would wait for."""
        early = self._prepares is None or self._prepares(lease)
        if early and generates(lease.servable.manifest):
            self._of(lease).generator.prepare()

    def _of(self, lease: Lease) -> _Made:
        if not generates(lease.servable.manifest):
            raise NotOffered(
                f"model {lease.name} version {lease.version}: expected a decoder with the "
                f"signatures {', '.join(NEEDED)}, exported by tf_infer. Ask a decoder, or use "
                "Predict.")
        with self._making:  # which may take long; who only looks does not wait for it
            with self._changed:
                made = self._made.get(lease.servable)
            if made is None:
                made = _Made(lease.name, lease.version, self._make(lease),
                             read_chat(lease.entry.path))
                with self._changed:
                    self._made[lease.servable] = made
            return made

    def _returned(self, lease: Lease | None) -> None:
        if lease is not None:
            self._versions.give_back(lease)
        with self._changed:
            self._lent -= 1
            self._changed.notify_all()

    def names(self) -> tuple[str, ...]:
        """Return the models of which a version is available that generates."""
        found = []
        for name in self._versions.names():
            try:
                lease = self._versions.borrow(ModelRef(name))
            except ServingError:
                continue
            if generates(lease.servable.manifest):
                found.append(name)
            self._versions.give_back(lease)
        return tuple(found)

    def made(self) -> tuple[tuple[str, int, Generator], ...]:
        """Return name, version and generator of every version that has been asked."""
        with self._changed:
            return tuple((one.name, one.version, one.generator) for one in self._made.values())

    def lent(self) -> int:
        """Return how many are lent now."""
        return self._lent

    def unload(self, servable: Servable) -> None:
        """End the generator of a version that is about to be closed."""
        with self._making, self._changed:
            made = self._made.pop(servable, None)
        if made is not None:
            made.generator.close()

    def stop(self, drain_s: float) -> bool:
        """Lend nothing more, wait for what is lent, end what runs then with UNAVAILABLE.

        Returns:
            whether all was given back in time.
        """
        with self._changed:
            self._stopping = True
            ended = self._changed.wait_for(lambda: self._lent == 0, drain_s)
        with self._making, self._changed:
            made = list(self._made.values())
            self._made.clear()
        for one in made:
            one.generator.close()
        return ended
