"""`tf-infer verify`: every path of a model gives the same answers, or says where it does not."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import PathReport, Report, Sample

EPILOG = """DIR is one of
  a model directory (task.json)   graph and XLA against op by op; rows alone against rows in a crowd
  a version directory, or the     its golden samples, hostile texts and made-up ones of every size
  folder of a model's versions    through both loaders, our server over gRPC and REST (or those at
                                  --address and --rest-address), each engine that lies in it, and
                                  tensorflow_model_server where that is on PATH; rows alone
                                  against rows in a crowd
  anybody's SavedModel            the requests of --samples through all of these

examples:
  tf-infer verify runs/intents
  tf-infer verify saved_models/intents
  tf-infer verify saved_models/intents --quick
  tf-infer verify saved_models/intents/3 --address localhost:8500 --model intents
  tf-infer verify saved_models/intents/3 --rest-address localhost:8501 --junit verify.xml
  tf-infer verify saved_models/intents/4 --against saved_models/intents/3 --atol 1e-3
  tf-infer verify /models/theirs/1 --samples requests.jsonl --json
"""
TASK_FILE = "task.json"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tf-infer verify`."""
    from tf_infer.cli.proof import add_tolerance

    parser.epilog = EPILOG
    parser.add_argument("folder", type=Path, metavar="DIR",
                        help="model directory, version directory, or folder of versions")
    parser.add_argument("--samples", type=Path, metavar="FILE",
                        help="requests in the form of golden.jsonl; those without outputs are "
                             "compared with what tf.saved_model.load gives")
    parser.add_argument("--texts", type=Path, metavar="FILE",
                        help="of a model directory: texts to choose samples from")
    parser.add_argument("--max-rows", type=int, metavar="N",
                        help="largest batch that is made (default: that of the grid)")
    parser.add_argument("--hostile", type=Path, metavar="FILE",
                        help="more hostile texts: a JSON array of strings, or one a line")
    parser.add_argument("--seed", type=int, default=0, metavar="N",
                        help="of the made-up texts (default 0)")
    parser.add_argument("--quick", action="store_true",
                        help="the golden samples alone, through both loaders and what is named")
    parser.add_argument("--no-server", action="store_true",
                        help="start no server, neither ours nor tensorflow_model_server")
    parser.add_argument("--no-xla", action="store_true", help="do not compare with XLA")
    parser.add_argument("--address", metavar="HOST:PORT",
                        help="of a server that has this version: compare its answers too")
    parser.add_argument("--rest-address", metavar="HOST:PORT",
                        help="of its HTTP port: compare what REST answers, too")
    parser.add_argument("--against", type=Path, metavar="DIR",
                        help="another version directory: its answers are the reference")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML for a CI")
    parser.add_argument("--model", metavar="NAME",
                        help="its name there (default: as in the manifest)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    add_tolerance(parser)


def run(arguments: argparse.Namespace) -> int:
    """Compare and print; return 0 when all paths agree, else 1."""
    from tf_infer.cli.proof import Progress, tolerance_of
    from tf_infer.config import to_json
    from tf_infer.errors import VerificationError
    from tf_infer.verify.table import format_report

    progress = Progress(quiet=arguments.json)
    tolerance = tolerance_of(arguments)
    verify = verify_task if (arguments.folder / TASK_FILE).is_file() else verify_version
    try:
        report = verify(arguments, tolerance, progress)
    except VerificationError as error:
        report = error.report
    if arguments.junit:
        _write_junit(report, arguments)
    if arguments.json:
        print(json_text({"passed": report.passed, "report": to_json(report)}, indent=2))
    else:
        print(format_report(report))
    return 0 if report.passed else 1


def _write_junit(report: Report, arguments: argparse.Namespace) -> None:
    from tf_infer.verify.junit import to_junit

    try:
        arguments.junit.write_text(to_junit(report, name=f"tf-infer verify {arguments.folder}"),
                                   encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--junit: {arguments.junit} cannot be written: {error.strerror}."
                          ) from error


def verify_task(arguments: argparse.Namespace, tolerance: Tolerance | None,
                progress: Callable[[str], None]) -> Report:
    """Compare the paths of a model directory, and rows alone with rows in a crowd."""
    from tf_infer.cli.paths import made_up
    from tf_infer.cli.proof import make_golden, read_texts
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import Report
    from tf_infer.tasks.build import load
    from tf_infer.verify.batch_effects import batch_effects
    from tf_infer.verify.parity import not_numbers, replay_sets, require
    from tf_infer.verify.predictors import EagerPredictor, GraphPredictor

    progress(f"reading {arguments.folder}")
    task = load(arguments.folder)
    texts = read_texts(arguments.texts) if arguments.texts else ()
    tolerance = tolerance or Tolerance()
    progress("running samples op by op")
    samples = make_golden(task, texts, max_rows=arguments.max_rows)
    graph = GraphPredictor(task.signatures())
    sets = {"": samples}
    if not arguments.quick:
        progress("running hostile texts op by op")
        signatures = task.signatures()
        sets |= made_up([one.spec for one in signatures.values()], task.config.grid,
                        EagerPredictor(signatures), more=arguments.hostile,
                        max_rows=arguments.max_rows, seed=arguments.seed)
    progress("comparing graph")
    paths: list[PathReport] = [*replay_sets(lambda: graph, sets, tolerance, path="graph")[0]]
    if not arguments.no_xla:
        progress("comparing xla")
        compiled = GraphPredictor(task.recompiled("xla").signatures())
        paths += replay_sets(lambda: compiled, sets, tolerance, path="xla")[0]
    progress("comparing rows alone with rows in a crowd")
    paths += batch_effects(graph, samples, tolerance)
    report = Report(reference="eager", paths=(*paths, *not_numbers(sets)))
    require(report)
    return report


def verify_version(arguments: argparse.Namespace, tolerance: Tolerance | None,
                   progress: Callable[[str], None]) -> Report:
    """Run samples through every path of a version directory that this machine has.

    Without a tolerance it is that of the precision that the version was exported in.
    """
    from tf_infer.cli.paths import Comparison

    folder, name = find_version(arguments.folder)
    progress(f"reading {folder}")
    samples = _samples(folder, arguments.samples)
    against = find_version(arguments.against)[0] if arguments.against else None
    comparison = Comparison(folder, arguments.model or name, samples, tolerance=(
        tolerance or _tolerance_in(folder)), against=against, progress=progress)
    if not arguments.quick:
        comparison.make_up(more=arguments.hostile, max_rows=arguments.max_rows,
                           seed=arguments.seed)
    comparison.load(mix=not arguments.quick)
    comparison.ask(arguments.address, arguments.rest_address)
    if not (arguments.quick or arguments.no_server):
        comparison.serve(grpc=not arguments.address, rest=not arguments.rest_address)
        comparison.serve_for_real()
    if not arguments.quick:
        comparison.run_engines()
    return comparison.report()


def _tolerance_in(folder: Path) -> Tolerance:
    from tf_infer.equality import Tolerance
    from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, read_manifest
    from tf_infer.optimize.plan import PATHS_ATOL

    if not (folder / EXTRA_FOLDER / MANIFEST_FILE).is_file():
        return Tolerance()
    precision = read_manifest(folder).plan.get("precision", "float32")
    return Tolerance(atol=PATHS_ATOL[precision])


def find_version(folder: Path) -> tuple[Path, str]:
    """Return a version directory and its model's name; of a folder of versions, the highest.

    Raises:
        ConfigError: there is no SavedModel, or its manifest is broken.
        ExportError: its files are not those of its manifest.
    """
    from tf_infer.export.versions import list_versions
    from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FILE, check_files, read_manifest

    folder = Path(folder)
    versions = list_versions(folder)
    if versions and not (folder / "saved_model.pb").is_file():
        folder = next(path for path in folder.iterdir()
                      if path.name.isdecimal() and int(path.name) == versions[-1])
    if (folder / EXTRA_FOLDER / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        check_files(folder, manifest)
        return folder, manifest.name
    if not (folder / "saved_model.pb").is_file():
        raise ConfigError(
            f"{folder}: expected a model directory with {TASK_FILE}, or a version directory with "
            "saved_model.pb, got neither. If an export or a copy was interrupted, repeat it.")
    return folder, folder.resolve().parent.name


def _samples(folder: Path, given: Path | None) -> Sequence[Sample]:
    from tf_infer.manifest import EXTRA_FOLDER, GOLDEN_FILE, read_samples

    path = given or folder / EXTRA_FOLDER / GOLDEN_FILE
    if given is None and not path.is_file():
        raise ConfigError(f"{folder}: expected golden samples in {EXTRA_FOLDER}/{GOLDEN_FILE}, got "
                          "none. Give requests of your own with --samples.")
    return read_samples(path)
