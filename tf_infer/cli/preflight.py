"""`tf-infer preflight`: would a real tensorflow_model_server run this SavedModel, and how?

Needs no TensorFlow.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError

if TYPE_CHECKING:
    from tf_infer.server.findings import Verdict
    from tf_infer.server.op_lists import Release

DEFAULT_SERVER = "2.20.0"
RUNS, DOES_NOT_RUN, USAGE = 0, 1, 2
EPILOG = """examples:
  tf-infer preflight saved_models/intents                  the highest version, server 2.20.0
  tf-infer preflight saved_models/intents/3 --server 2.19.1
  tf-infer preflight /models/anybodys_saved_model/1 --json
  tf-infer preflight saved_models/intents --enable-batching && deploy

Looks at operations and their attributes, XLA, signatures, tags, warm-up records and files; runs
nothing. What it cannot see: whether the answers are the same there (golden samples tell), and
dtypes that an operation takes in one TensorFlow and not in another.

Exit code: 0 when nothing speaks against it, 1 when it would not run, 2 for wrong usage.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("path", type=Path, metavar="DIR",
                        help="a version directory, or the folder above it")
    parser.add_argument("--server", default=DEFAULT_SERVER, metavar="RELEASE",
                        help=f"of tensorflow_model_server: 2.17 to 2.20 (default {DEFAULT_SERVER})")
    parser.add_argument("--saved-model-tags", default="serve", metavar="TAGS",
                        help="the server's --saved_model_tags (default serve)")
    parser.add_argument("--enable-batching", action="store_true",
                        help="the server is going to run with --enable_batching")
    parser.add_argument("--no-model-warmup", action="store_true",
                        help="the server is going to run with --enable_model_warmup=false")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; see EPILOG for the exit code."""
    from tf_infer.server import op_lists, preflight

    settings = preflight.Settings(
        tags=frozenset(tag for tag in arguments.saved_model_tags.split(",") if tag),
        batching=arguments.enable_batching, warmup=not arguments.no_model_warmup)
    try:
        release = op_lists.release(arguments.server)
        path = preflight.find_version(arguments.path)
        verdict = preflight.examine(path, release, settings)
    except ConfigError as error:
        print(f"tf-infer preflight: {error}", file=sys.stderr)
        return USAGE
    print(_as_json(path, release, verdict) if arguments.json
          else "\n".join(lines(path, release, verdict)))
    return DOES_NOT_RUN if verdict.stops else RUNS


def _as_json(path: Path, release: Release, verdict: Verdict) -> str:
    return json_text({
        "path": str(path), "server": {"release": release.name, **release.linked._asdict()},
        "runs": not verdict.stops, "flags": list(verdict.flags),
        "findings": [dataclasses.asdict(one) for one in verdict.findings]})


def lines(path: Path, release: Release, verdict: Verdict) -> list[str]:
    """Return the findings as a table, the verdict last."""
    linked = release.linked
    shown = [f"{path} on tensorflow_model_server {release.name} (TensorFlow {linked.tensorflow}, "
             f"TF-Text {linked.tensorflow_text})"]
    for one in verdict.findings:
        level = "stop" if one in verdict.stops else one.level
        shown.append(f"  {level:<8}  {one.where}: {one.what}")
        if one.fix:
            shown.append(f"  {'':<8}  -> {one.fix}")
        if one.flag:
            shown.append(f"  {'':<8}  -> {one.flag}")
    if verdict.stops:
        return [*shown, f"does not run there: {len(verdict.stops)} reason"
                        f"{'s' if len(verdict.stops) > 1 else ''}"]
    needed = f" with {' '.join(verdict.flags)}" if verdict.flags else ""
    return [*shown, f"runs there{needed}, as far as can be seen"]
