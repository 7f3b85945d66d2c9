"""Forms of a model in a cache folder: each is made once, by a command, and never stands half made.

benchmarks/decoders.py and benchmarks/classifiers.py say which forms there are.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.models import CACHE, ROOT

Exports = Mapping[str, Callable[[Path, Path], None]]  # name -> (made of, made)


def made(target: Path, command: Callable[[Path], list[str]]) -> Path:
    """Return `target`, which a command makes when it is missing.

    Args:
        target: a file or folder.
        command: where to write -> what to run.

    Raises:
        RuntimeError: the command failed; what it said is in the message.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as staged:
        fresh = Path(staged) / "made"
        words = command(fresh)
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT,
                              env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)[:300]}:\n{(done.stderr or done.stdout)[-3000:]}")
        fresh.rename(target)
    return target


def required(peers: Path | None, name: str) -> Path:
    """Return the whole path of the peers' environments, or refuse to make a form without them."""
    if peers is None:
        raise RuntimeError(f"{name}: needs --peers to be made")
    return peers.resolve()


def own_command(module: str, name: str, shape: str, source: Path, target: Path) -> list[str]:
    """Return the command that exports a form of our own, as `run` understands it."""
    return [sys.executable, "-m", module, "--export", name, "--shape", shape,
            "--from", str(source), "--to", str(target)]


def save_version(task: Any, base_dir: Path, name: str, atol: float = 1e-4) -> Path:
    """Write a version that a server can load; what `tf-infer export` proves is not proven here.

    What is checked is only that the SavedModel answers one text as the graph does.

    Args:
        task: in any form.
        base_dir: of the model.
        name: of the model.
        atol: how far its answers may be from the graph's.
    """
    from tf_infer.equality import Tolerance
    from tf_infer.export.saved_model import save
    from tf_infer.verify import golden, parity
    from tf_infer.verify.predictors import GraphPredictor, SavedModelPredictor
    from tf_infer.wire.examples import to_example

    signatures = task.signatures()
    graph = GraphPredictor(signatures)
    samples = parity.fill(graph, golden.make_requests(
        [one.spec for one in signatures.values()], [(b"Once upon a time",)], encode=graph,
        example=lambda features: bytes(to_example(features).SerializeToString())))
    return save(
        task, base_dir, name=name, golden=samples, check=lambda version: parity.verify(
            {"saved_model": lambda: SavedModelPredictor(version)}, samples, Tolerance(atol=atol)))


def add_arguments(parser: argparse.ArgumentParser, shapes: Sequence[str], exports: Exports,
                  usual: Sequence[str]) -> None:
    """Add what `run` reads."""
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--shape", nargs="+", choices=shapes, default=usual)
    parser.add_argument("--export", choices=sorted(exports), help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace, exports: Exports,
        forms: Callable[[str, Any], Iterable[Path]]) -> None:
    """Export one form, or make all forms of the shapes and print where they are."""
    if arguments.export:
        exports[arguments.export](arguments.source, arguments.to)
        return
    for shape in arguments.shape:
        for path in forms(shape, arguments):
            print(path, flush=True)
