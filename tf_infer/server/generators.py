"""Which generator answers for a version of a model; the version is lent while a request runs.

A protocol asks `Generators.of` for the generator of a model, then calls `submit` of what it got, as
often as it likes. `of` finds and lends nothing for long: between it and `submit` a version may go,
and then `submit` raises ModelNotFound. Needs no TensorFlow.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from tf_infer.errors import InvalidRequest, ModelNotFound, ServerUnavailable, ServingError
from tf_infer.manifest import ModelManifest
from tf_infer.server.contracts import Servable
from tf_infer.server.generation import GenerationRequest, Generator, Listener, Piece, Ticket
from tf_infer.server.versions import Lease, ModelRef, Versions

NEEDED = ("encode", "decode", "steps")  # signatures of a version that can generate piece by piece
STOPPING = "The server is stopping."

# a lent version -> what generates for it; asked once a version, at its first request
Make = Callable[[Lease], Generator]


def generates(manifest: ModelManifest | None) -> bool:
    """Whether a version can answer generation requests: it is a decoder that we exported."""
    names = {spec.name for spec in manifest.signatures} if manifest is not None else set()
    return names.issuperset(NEEDED)


class VersionGenerator:
    """The generator of one version; see `generation.Generator`.

    Attributes:
        name, version: what answers.
        path: its version directory.
        manifest: of the version.
    """

    def __init__(self, generators: Generators, lease: Lease, manifest: ModelManifest) -> None:
        self.name, self.version = lease.name, lease.version
        self.path: Path = lease.entry.path
        self.manifest = manifest
        self._generators = generators

    def submit(self, request: GenerationRequest, listener: Listener) -> Ticket:
        """Take a request; see `generation.Generator.submit`.

        Raises:
            ServingError: also ModelNotFound, the version has gone; UNAVAILABLE, the server stops.
        """
        return self._generators.submit(ModelRef(self.name, self.version), request, listener)

    def close(self) -> None:
        """Do nothing: the version's generator goes with the version."""


class Generators:
    """The generators of one server.

    Args:
        versions: where loaded versions are lent from.
        make: builds the generator of a version.
    """

    def __init__(self, versions: Versions, make: Make) -> None:
        self._versions, self._make = versions, make
        self._made: weakref.WeakKeyDictionary[Servable, Generator] = weakref.WeakKeyDictionary()
        self._making = threading.Lock()
        self._changed = threading.Condition()
        self._inside = 0
        self._stopping = False

    def of(self, ref: ModelRef) -> VersionGenerator:
        """Return the generator of the version that `ref` names, as any other request finds it.

        Raises:
            InvalidRequest: an unknown label, or a version that is no decoder of tf_infer's.
            ModelNotFound: not loaded.
        """
        lease = self._versions.borrow(ref)
        try:
            manifest = lease.servable.manifest
            if manifest is None or not generates(manifest):
                raise InvalidRequest(
                    f"model {lease.name} version {lease.version}: expected a decoder with the "
                    f"signatures {', '.join(NEEDED)}, exported by tf_infer. Ask a decoder, or use "
                    "Predict.")
            return VersionGenerator(self, lease, manifest)
        finally:
            self._versions.give_back(lease)

    def offered(self) -> tuple[tuple[str, int], ...]:
        """Return (name, version) of every configured model whose latest version generates."""
        found = []
        for name in self._versions.names():
            try:
                lease = self._versions.borrow(ModelRef(name))
            except ModelNotFound:
                continue
            if generates(lease.servable.manifest):
                found.append((lease.name, lease.version))
            self._versions.give_back(lease)
        return tuple(found)

    def submit(self, ref: ModelRef, request: GenerationRequest, listener: Listener) -> Ticket:
        """Lend the version, and hand the request to its generator; see `Generator.submit`."""
        with self._changed:
            if self._stopping:
                raise ServerUnavailable(STOPPING)
            self._inside += 1
        loan = _Loan(self, listener)
        try:
            loan.lease = lease = self._versions.borrow(ref)
            loan.ticket = self._generator(lease).submit(request, loan.hear)
        except BaseException:
            loan.give_back()
            raise
        return loan

    def _generator(self, lease: Lease) -> Generator:
        with self._making:
            generator = self._made.get(lease.servable)
            if generator is None:
                generator = self._made[lease.servable] = self._make(lease)
            return generator

    def returned(self, lease: Lease | None) -> None:
        """Take the lease of a request that has ended."""
        if lease is not None:
            self._versions.give_back(lease)
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()

    def running(self) -> int:
        """Return how many requests wait or are being answered."""
        return self._inside

    def unload(self, servable: Servable) -> None:
        """End the generator of a version that is about to be closed."""
        with self._making:
            generator = self._made.pop(servable, None)
        if generator is not None:
            generator.close()

    def stop(self, drain_s: float) -> bool:
        """Refuse new requests, wait for those that run, end the rest with UNAVAILABLE.

        Returns:
            whether all had ended by themselves.
        """
        with self._changed:
            self._stopping = True
            ended = self._changed.wait_for(lambda: self._inside == 0, drain_s)
        with self._making:
            generators = list(self._made.values())
            self._made.clear()
        for generator in generators:
            generator.close()
        return ended


class _Loan:
    """One request and the lease it holds; the ticket that its caller gets."""

    def __init__(self, generators: Generators, listener: Listener) -> None:
        self._generators, self._listener = generators, listener
        self._open = [True]  # popped by whoever ends it: a list's pop is atomic
        self.lease: Lease | None = None
        self.ticket: Ticket | None = None

    def hear(self, piece: Piece | ServingError) -> None:
        """Pass a piece on, and give the lease back behind the last one."""
        last = isinstance(piece, ServingError) or piece.finish_reason is not None
        try:
            self._listener(piece)
        finally:
            if last:
                self.give_back()

    def cancel(self) -> None:
        """See `Ticket.cancel`."""
        if self.ticket is not None:
            self.ticket.cancel()
        self.give_back()

    def give_back(self) -> None:
        """Return the lease, once."""
        try:
            self._open.pop()
        except IndexError:
            return
        self._generators.returned(self.lease)
