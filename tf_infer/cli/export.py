"""`tf-infer export`: a model directory becomes a version directory that a server can load."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tf_infer.cli.json_text import json_text

EPILOG = """what is checked before anything stands under the version's number: graph, XLA, the
reloaded SavedModel, the session loader that TensorFlow Serving uses, and a server asked over gRPC
give what the model gives op by op, on golden samples of every length and class.

examples:
  tf-infer export runs/intents --base-dir saved_models/intents
  tf-infer export runs/intents --base-dir saved_models/intents --texts messages.jsonl --keep 3
  tf-infer export runs/writer --base-dir saved_models/writer --no-xla
  tf-infer export runs/writer --base-dir saved_models/writer --plan bfloat16
  tf-infer export runs/writer --base-dir saved_models/writer --engine litert
  tf-infer export runs/writer --base-dir saved_models/writer --constraints constraints.json
  tf-infer export runs/writer --base-dir saved_models/writer --guesses 4 --draft runs/small
  tf-infer export runs/writer --base-dir saved_models/writer --beams 4
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tf-infer export`."""
    from tf_infer.cli.engine import add_engine
    from tf_infer.cli.proof import add_tolerance

    parser.epilog = EPILOG
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR",
                        help="what `tf-infer build` or `tf-infer train` wrote")
    parser.add_argument("--base-dir", type=Path, required=True, metavar="DIR",
                        help="folder of the model's versions, such as saved_models/NAME")
    parser.add_argument("--name", help="of the model (default: the last part of --base-dir)")
    parser.add_argument("--version", type=int, metavar="N",
                        help="number (default: the next; a number is never used twice)")
    parser.add_argument("--texts", type=Path, metavar="FILE",
                        help="texts to choose golden samples from: .txt (one a line), .jsonl or "
                             ".csv, or one of them and .gz")
    parser.add_argument("--max-rows", type=int, metavar="N",
                        help="largest batch of a golden sample (default: that of the grid)")
    parser.add_argument("--plan", metavar="PLAN",
                        help="export it in a form made for speed: float32, bfloat16, int8, "
                             "or the JSON file of a plan (docs/optimisation.md). It is proven "
                             "against the model as it is")
    parser.add_argument("--calibrate", type=Path, metavar="FILE",
                        help="of a classifier: texts for a plan that sets ranges, smooths, or "
                             "looks for sensitive layers, and for --engine-ranges (default: "
                             "--texts)")
    add_engine(parser)
    parser.add_argument("--constraints", type=Path, metavar="FILE",
                        help="of a decoder: what texts must look like that name one of these; JSON,"
                             " name -> constraint, in place of those of the model directory "
                             "(docs/constraints.md)")
    parser.add_argument("--guesses", type=int, metavar="N",
                        help="of a decoder: the signature `speculate`, too: answers of `generate` "
                             "by guessing N tokens at once (docs/generation.md); 0 leaves it out")
    parser.add_argument("--draft", type=Path, metavar="MODEL_DIR",
                        help="beside --guesses: a smaller decoder with the same tokenizer that "
                             "guesses (default: the last tokens are looked up in the prompt)")
    parser.add_argument("--beams", type=int, metavar="N",
                        help="of a decoder: the signature `beam`, too: the best N continuations by "
                             "beam search (docs/generation.md); 0 leaves it out")
    parser.add_argument("--beam-groups", type=int, metavar="N",
                        help="beside --beams: N groups search, each avoiding what those before it "
                             "took (default: 1)")
    parser.add_argument("--beam-diversity", type=float, metavar="NATS",
                        help="beside --beam-groups: what a token costs a group for each hypothesis "
                             "of an earlier one that took it (default: 0)")
    parser.add_argument("--report", type=Path, metavar="FILE",
                        help="where the report goes when a path differs, as JSON (default: "
                             "runs/export-NAME.json); what is exported holds its own")
    parser.add_argument("--explain", action="store_true",
                        help="the signature `explain`, too: which tokens made an answer (tf-infer "
                             "explain)")
    parser.add_argument("--no-xla", action="store_true", help="do not compare with XLA")
    parser.add_argument("--no-server", action="store_true", help="do not start a server to compare")
    parser.add_argument("--keep", type=int, metavar="N",
                        help="afterwards remove all versions but the newest N")
    parser.add_argument("--json", action="store_true",
                        help="print path, version and report as JSON")
    add_tolerance(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export; return 0, or 1 when a path differs (nothing is exported; its report is kept)."""
    from tf_infer.cli.engine import settings_of
    from tf_infer.cli.proof import Progress, export_task, read_texts, tolerance_of
    from tf_infer.config import ConstraintConfig
    from tf_infer.config import load as load_config
    from tf_infer.errors import ConfigError, VerificationError
    from tf_infer.export.versions import prune
    from tf_infer.optimize.plan import read_plan
    from tf_infer.tasks.build import load
    from tf_infer.tasks.causal_lm import CausalLM
    from tf_infer.tasks.classifier import Classifier
    from tf_infer.verify.table import format_report

    progress = Progress(quiet=arguments.json)
    name = arguments.name or arguments.base_dir.resolve().name
    plan = read_plan(arguments.plan) if arguments.plan else None
    texts = read_texts(arguments.texts) if arguments.texts else ()
    calibration = read_texts(arguments.calibrate) if arguments.calibrate else ()
    progress(f"reading {arguments.model_dir}")
    task = load(arguments.model_dir)
    if arguments.explain:
        assert isinstance(task, (CausalLM, Classifier))
        task = task.explaining()
    if arguments.draft and not arguments.guesses:
        raise ConfigError("--draft: expected --guesses N beside it. Try --guesses 4.")
    if arguments.guesses is not None:
        draft = load(arguments.draft) if arguments.draft else None
        if not isinstance(task, CausalLM) or not isinstance(draft, (CausalLM, type(None))):
            raise ConfigError("--guesses, --draft: expected decoders, got a model of kind "
                              f"{task.config.kind!r}"
                              f"{f' and one of kind {draft.config.kind!r}' if draft else ''}.")
        task = task.speculating(arguments.guesses, draft)
    if arguments.beams is None and not (
            arguments.beam_groups is None and arguments.beam_diversity is None):
        raise ConfigError("--beam-groups, --beam-diversity: expected --beams N beside them. Try "
                          "--beams 4.")
    if arguments.beams is not None:
        if not isinstance(task, CausalLM):
            raise ConfigError("--beams: expected a decoder, got a model of kind "
                              f"{task.config.kind!r}.")
        task = task.searching(arguments.beams, 1 if arguments.beam_groups is None else
                              arguments.beam_groups, arguments.beam_diversity or 0.0)
    if arguments.constraints:
        if not isinstance(task, CausalLM):
            raise ConfigError("--constraints: expected a decoder, got a model of kind "
                              f"{task.config.kind!r}.")
        task = task.constrained(load_config(Mapping[str, ConstraintConfig], arguments.constraints))
    engine = settings_of(arguments, task)
    if engine is not None and arguments.engine_ranges != "found" and not (calibration or texts):
        raise ConfigError("--engine-ranges: expected --calibrate FILE or --texts FILE beside it, "
                          "got neither. Give texts like those that will be asked.")
    try:
        folder, report = export_task(
            task, arguments.base_dir, name=name, texts=texts, plan=plan,
            calibration=calibration, engine=engine,
            tolerance=tolerance_of(arguments), xla=not arguments.no_xla,
            server=not arguments.no_server, version=arguments.version,
            max_rows=arguments.max_rows, progress=progress)
    except VerificationError as error:
        _print(arguments, error.report, None)
        path = arguments.report or Path("runs") / f"export-{name}.json"
        print(f"tf-infer export: {error} Nothing was exported. {_kept(error.report, path)}",
              file=sys.stderr)
        return 1
    removed = prune(arguments.base_dir, keep=arguments.keep) if arguments.keep else ()
    if arguments.json:
        _print(arguments, report, folder)
        return 0
    print(format_report(report))
    samples = max(path.samples for path in report.paths)
    print(f"\n{folder}: {_size_bytes(folder) / 1e6:.1f} MB, {samples} golden samples, in "
          f"{progress.seconds():.0f} s.")
    if removed:
        print(f"removed the versions {', '.join(map(str, removed))}")
    print(f"next: tf-infer serve --model_name={name} --model_base_path={folder.resolve().parent}")
    return 0


def _kept(report: object, path: Path) -> str:
    """Write the report of an export that was refused; say where it is, or why it is not."""
    from tf_infer.config import dump_whole

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        dump_whole(report, path)
    except OSError as error:
        return f"Its report cannot be written to {path}: {error.strerror}."
    return f"Report: {path}"


def _print(arguments: argparse.Namespace, report: object, folder: Path | None) -> None:
    from tf_infer.config import to_json
    from tf_infer.manifest import Report
    from tf_infer.verify.table import format_report

    assert isinstance(report, Report)
    if arguments.json:
        print(json_text({"passed": report.passed, "path": str(folder) if folder else None,
                         "version": int(folder.name) if folder else None,
                         "size_bytes": _size_bytes(folder) if folder else None,
                         "report": to_json(report)}, indent=2))
    else:
        print(format_report(report))


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
