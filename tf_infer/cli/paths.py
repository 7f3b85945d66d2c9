"""Comparison: what `tf-infer verify` runs a version directory through: loaders, servers, engines

Stages do not import each other; here they are put in a row.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.errors import BackendMissing

if TYPE_CHECKING:
    from tf_infer.config import ShapeGrid
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import ModelManifest, PathReport, Report, Sample, SignatureSpec
    from tf_infer.verify.predictors import Outputs, Predictor

Sets = Mapping[str, "Sequence[Sample]"]
HOSTILE, CELLS = "hostile", "cells"  # names of the sets beside golden samples
# Signatures that texts are made for: those that take little beside one.
ASKED = ("serving_default", "ids", "classify", "encode", "score")
MIXED_ROWS = 96  # of each signature, that run alone and in a crowd
COSTLY = ("explain",)
NO_CROWD = "no sample has several rows"


class Comparison:
    """One run of `tf-infer verify` over a version directory.

    Args:
        folder: the version directory.
        model: its name on servers.
        samples: requests; those without outputs are answered by `tf.saved_model.load`.
        tolerance: what counts as equal.
        against: version directory whose answers are the reference; None for the samples' own.
        progress: is told what happens next.
    """

    def __init__(self, folder: Path, model: str, samples: Sequence[Sample], *,
                 tolerance: Tolerance, against: Path | None,
                 progress: Callable[[str], None]) -> None:
        from tf_infer.verify import parity
        from tf_infer.verify.predictors import SavedModelPredictor

        self.folder, self.model, self.tolerance = folder, model, tolerance
        self.progress, self.manifest = progress, _manifest(folder)
        number = folder.resolve().name
        self.version = int(number) if number.isdecimal() else None
        self.paths: list[PathReport] = []
        self.fault: Exception | None = None
        self.saved_model = functools.cache(lambda: SavedModelPredictor(folder))
        self.reference, self.name = self.saved_model, "golden"
        if against is not None:
            progress(f"running samples through {against}")
            self.reference = functools.cache(lambda: SavedModelPredictor(against))
            samples, self.name = parity.fill(self.reference(), samples), str(against)
        elif any(not sample.outputs for sample in samples):
            progress(f"running samples through {folder}")
            samples, self.name = parity.fill(self.saved_model(), samples), "saved_model"
        self.sets: dict[str, Sequence[Sample]] = {"": samples}

    def make_up(self, *, more: Path | None, max_rows: int | None, seed: int) -> None:
        """Add requests of hostile texts and of made-up ones; of our own versions alone."""
        if self.manifest is None:
            return
        self.progress("running hostile and made-up texts")
        self.sets |= made_up(self.manifest.signatures, self.manifest.grid, self.reference(),
                             more=more, max_rows=max_rows, seed=seed)
        if self.name == "golden":
            self.name = "golden, and saved_model"

    def load(self, *, mix: bool) -> None:
        """Compare both loaders; with `mix` rows alone with rows in a crowd, too."""
        from tf_infer.verify.batch_effects import batch_effects
        from tf_infer.verify.parity import not_compared
        from tf_infer.verify.predictors import SessionPredictor

        own = self.reference is not self.saved_model  # else it made the other sets' answers
        self._compare("saved_model", lambda: _Kept(self.saved_model()), {
            name: samples for name, samples in self.sets.items() if own or not name})
        self._compare("session", lambda: SessionPredictor(self.folder))
        mixed = self._mixed()
        if mix and mixed:
            self.progress("comparing rows alone with rows in a crowd")
            self.paths += batch_effects(self.saved_model(), mixed, self.tolerance)
        elif mix:
            self.paths += [not_compared(path, NO_CROWD) for path in ("alone", "shuffled")]

    def ask(self, address: str | None, rest_address: str | None) -> None:
        """Compare servers that run already."""
        from tf_infer.verify.predictors import GrpcPredictor

        if address:
            self._compare("grpc", lambda: GrpcPredictor(address, self.model, version=self.version))
        if rest_address:
            self._rest(rest_address)

    def serve(self, *, grpc: bool, rest: bool) -> None:
        """Compare our own server, started here, over one protocol or both."""
        from tf_infer.cli.engine_paths import served_within
        from tf_infer.cli.proof import ServedPredictor
        from tf_infer.verify.batch_effects import in_a_crowd
        from tf_infer.verify.parity import not_compared

        if not grpc and not rest:
            return
        self.progress("starting a server")
        tolerance = served_within(self.folder, self.manifest, self.tolerance)
        try:
            served = ServedPredictor(self.folder, self.model, rest=rest)
        except BackendMissing as error:
            self.paths.append(not_compared("grpc, rest", str(error)))
            return
        except Exception as error:
            self._failed("grpc" if grpc else "rest", error)
            return
        with contextlib.closing(served):
            if grpc:
                self._compare("grpc", lambda: _Kept(served), tolerance=tolerance)
                self.progress("asking for many rows at once")
                texts = [one for one in self._mixed() if one.signature == "serving_default"]
                self.paths.append(
                    in_a_crowd(served, texts, tolerance, path="grpc") if texts
                    else not_compared("grpc crowd", NO_CROWD))
            if rest:
                self._rest(served.rest_address, tolerance=tolerance)

    def serve_for_real(self) -> None:
        """Compare tensorflow_model_server, where it is on PATH."""
        from tf_infer.cli.real_server import RealServer, missing
        from tf_infer.server.launcher import BINARY
        from tf_infer.verify.parity import not_compared

        why = missing()
        if why:
            self.paths.append(not_compared(BINARY, why))
        else:
            self._compare(BINARY, lambda: RealServer(self.folder, self.model))

    def run_engines(self) -> None:
        """Compare each engine that lies in the version with the SavedModel, under the same ids."""
        from tf_infer.cli.engine_paths import engines

        if self.manifest is not None:
            self.paths += engines(self.folder, self.manifest, self.sets, self.saved_model(),
                                  self.progress)

    def report(self) -> Report:
        """Return the report, when no path differs.

        Raises:
            VerificationError: a path differs; carries the report.
        """
        from tf_infer.manifest import Report
        from tf_infer.verify import parity

        found = Report(reference=self.name,
                       paths=(*self.paths, *parity.not_numbers(self.sets)))
        parity.require(found, cause=self.fault)
        return found

    def _rest(self, address: str, *, tolerance: Tolerance | None = None) -> None:
        from tf_infer.verify.rest_predictor import RestPredictor, can_travel

        told = {name: [sample for sample in samples if can_travel(sample.outputs)]
                for name, samples in self.sets.items()}
        self._compare("rest", lambda: RestPredictor(address, self.model, version=self.version),
                      told, tolerance=tolerance)

    def _compare(self, path: str, opener: Callable[[], Predictor], sets: Sets | None = None, *,
                 tolerance: Tolerance | None = None) -> None:
        from tf_infer.verify import parity

        self.progress(f"comparing {path}")
        found, error = parity.replay_sets(opener, sets or self.sets, tolerance or self.tolerance,
                                          path=path)
        self.paths += found
        self.fault = self.fault or error

    def _failed(self, path: str, error: Exception) -> None:
        from tf_infer.verify import parity

        self.paths.append(parity.failed(path, error))
        self.fault = self.fault or error

    def _mixed(self) -> list[Sample]:
        """Return samples of several rows, some of each set and signature, with answers."""
        found: list[Sample] = []
        for samples in self.sets.values():
            room = dict.fromkeys({sample.signature for sample in samples},
                                 MIXED_ROWS // len(self.sets))
            for sample in samples:
                rows = len(next(iter(sample.inputs.values())))
                if 1 < rows <= room[sample.signature] and sample.signature not in COSTLY:
                    room[sample.signature] -= rows
                    found.append(sample)
        return found


class _Kept:
    """A predictor that another owns: it is not closed with a comparison."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> Outputs:
        return self._predictor(signature, inputs)


def _manifest(folder: Path) -> ModelManifest | None:
    from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, read_manifest

    there = (folder / EXTRA_FOLDER / MANIFEST_FILE).is_file()
    return read_manifest(folder) if there else None


def made_up(signatures: Sequence[SignatureSpec], grid: ShapeGrid, reference: Predictor, *,
            more: Path | None = None, max_rows: int | None = None, seed: int = 0
            ) -> dict[str, tuple[Sample, ...]]:
    """Make requests of hostile texts, and of made-up ones for each cell of the grid.

    Args:
        signatures: of the model; `encode` is one of them.
        grid: its rows and tokens.
        reference: answers them.
        more: file of more hostile texts.
        max_rows: leave out larger row buckets.
        seed: of the made-up texts.
    """
    from tf_infer.export.warmup import texts_of_lengths
    from tf_infer.verify import golden, hostile, parity
    from tf_infer.wire.examples import to_example

    encode = next(spec for spec in signatures if spec.name == "encode")

    def count(texts: Sequence[bytes]) -> Sequence[int]:
        told = reference("encode", golden.make_inputs(encode, tuple(texts), {}, example))
        return [int(number) for number in (told["mask"] != 0).sum(axis=1)]

    def example(features: Mapping[str, bytes]) -> bytes:
        return bytes(to_example(features).SerializeToString())

    sizes = golden.row_sizes(grid, max_rows)
    cut = texts_of_lengths(count, hostile.made_up_text(seed=seed), grid.tokens)
    batches = {HOSTILE: golden.chunks(hostile.hostile_texts(more), sizes),
               CELLS: golden.cells(cut, count(cut), grid, max_rows=max_rows)}
    asked = [spec for spec in signatures if spec.name in ASKED]
    return {name: parity.fill(reference, golden.make_requests(
        asked, [tuple(batch) for batch in some], encode=reference, example=example))
        for name, some in batches.items()}
