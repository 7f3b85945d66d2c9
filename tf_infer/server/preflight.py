"""What would keep a version directory from running on a release of tensorflow_model_server

Reads the files, runs nothing, needs no TensorFlow. The graph and its signatures are looked at in
`preflight_graph.py`; statements of TensorFlow Serving's observed behaviour are named by their ids.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format

from tf_infer.errors import ConfigError, InvalidRequest, ServingError
from tf_infer.manifest import EXTRA_FOLDER, WARMUP_FILE
from tf_infer.server import op_lists, preflight_graph, warmup
from tf_infer.server.decide import versions_in
from tf_infer.server.findings import LOAD, Finding, Verdict
from tf_infer.server.op_lists import Release
from tf_infer.server.reach import Program
from tf_infer.wire import dtypes, methods
from tf_infer.wire import serving_pb2 as pb

GRAPH_FILE, TEXT_FILE, SPLIT_FILE = "saved_model.pb", "saved_model.pbtxt", "saved_model.cpb"
TFLITE_FILE = "model.tflite"
LEVELS = ("stop", "flag", "batching", "note")
VARIABLE_OPS = frozenset({"VarHandleOp", "VariableV2", "Variable"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How the server is going to be run.

    Attributes:
        tags: of the meta graph, `--saved_model_tags`.
        batching: `--enable_batching`.
        warmup: `--enable_model_warmup`.
    """

    tags: frozenset[str] = frozenset({"serve"})
    batching: bool = False
    warmup: bool = True


def find_version(path: Path) -> Path:
    """Return the version directory: `path` itself, or the highest version below it.

    Raises:
        ConfigError: there is none.
    """
    if _is_version(path):
        return path
    try:
        versions = versions_in(os.listdir(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be listed: {error.strerror}.") from error
    if not versions:
        raise ConfigError(f"{path}: expected {GRAPH_FILE} or folders named by version numbers, "
                          "got neither.")
    return path / versions[max(versions)]


def _is_version(path: Path) -> bool:
    return any((path / name).is_file()
               for name in (GRAPH_FILE, TEXT_FILE, SPLIT_FILE, TFLITE_FILE))


def examine(path: Path, release: Release, settings: Settings) -> Verdict:
    """Return what is found about one version directory.

    Raises:
        ConfigError: its saved_model.pb cannot be read.
    """
    found = [*_name(path), *_tflite(path)]
    if not _is_version(path):
        found.append(Finding(level="stop", where=LOAD, what="no SavedModel in it; it is taken as a "
                             "version for its name, and fails to load (VR03)",
                             fix="Export again, or remove it."))
    elif any((path / name).is_file() for name in (GRAPH_FILE, TEXT_FILE, SPLIT_FILE)):
        saved = read(path)
        graph = choose(saved, settings.tags)
        if graph is None:
            found.append(_no_graph(saved, settings.tags))
        else:
            program = Program(graph.graph_def, op_lists.new_defaults())
            found += preflight_graph.findings(graph, program, release)
            found += _files(path, graph, program)
            if settings.warmup:
                found += _warmup(path, graph.signature_def)
    return Verdict(tuple(sorted(found, key=lambda one: LEVELS.index(one.level))),
                   batching=settings.batching)


# ---------------------------------------------------------------------------- saved_model.pb


def read(path: Path) -> pb.SavedModel:
    """Read saved_model.pb of a version directory, or saved_model.pbtxt.

    Raises:
        ConfigError: it cannot be read.
    """
    file = path / (GRAPH_FILE if (path / GRAPH_FILE).is_file() else TEXT_FILE)
    if not file.is_file():
        raise ConfigError(f"{path / SPLIT_FILE}: a graph in several parts cannot be read here. "
                          f"Export a graph below 2 GB, which goes into {GRAPH_FILE}.")
    try:
        if file.name == TEXT_FILE:
            saved = pb.SavedModel()
            text_format.Parse(file.read_text(encoding="utf-8"), saved, allow_unknown_field=True)
        else:
            saved = methods.parse(pb.SavedModel, file.read_bytes(), where=str(file))
        return saved
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from error
    except InvalidRequest as error:
        raise ConfigError(f"{error.details} Is the file whole?") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: expected a SavedModel as text. Is the file whole?") from error


def choose(saved: pb.SavedModel, tags: frozenset[str]) -> pb.MetaGraphDef | None:
    """Return the meta graph with exactly these tags, as the server does; None for none."""
    for graph in saved.meta_graphs:
        if frozenset(graph.meta_info_def.tags) == tags:
            return graph
    return None


def _no_graph(saved: pb.SavedModel, tags: frozenset[str]) -> Finding:
    there = [",".join(graph.meta_info_def.tags) for graph in saved.meta_graphs]
    shown = " and ".join(f"[{one}]" for one in there) or "none"
    fix = f"Give the server --saved_model_tags={there[0]}" if there and there[0] else "Export again"
    return Finding(level="stop", where=LOAD, fix=f"{fix}, or export with the tag serve.",
                   what=f"no meta graph with the tags [{','.join(sorted(tags))}], but {shown}")


# ---------------------------------------------------------------------------- files


def _name(path: Path) -> Iterator[Finding]:
    name = path.resolve().name
    if not versions_in([name]):
        yield Finding(level="stop", where=LOAD, what=f"the folder's name {name!r} is no version "
                      "number, so the server does not see it (VR02)",
                      fix="Name the folder by a number, below a folder named like the model.")


def _tflite(path: Path) -> Iterator[Finding]:
    if not (path / TFLITE_FILE).is_file():
        return
    if any((path / name).is_file() for name in (GRAPH_FILE, TEXT_FILE, SPLIT_FILE)):
        yield Finding(level="note", where=TFLITE_FILE,
                      what="not run, unless --prefer_tflite_model (experimental)")
    else:
        yield Finding(level="flag", where=TFLITE_FILE, flag="--prefer_tflite_model=true",
                      what="the only model here; it was not looked into")


def _files(path: Path, graph: pb.MetaGraphDef, program: Program) -> Iterator[Finding]:
    """Yield what the graph names and the folder does not have."""
    for asset in graph.asset_file_def:
        if not (path / "assets" / asset.filename).is_file():
            yield Finding(level="stop", where=LOAD, what=f"assets/{asset.filename} is missing",
                          fix="Copy the folder again.")
    folder = path / "variables"
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    shards = [found for name in names
              if (found := re.fullmatch(r"variables\.data-(\d+)-of-(\d+)", name))]
    has_variables = any(use.op in VARIABLE_OPS for use in program.all_uses())
    if "variables.index" not in names:
        if has_variables:
            yield Finding(level="stop", where=LOAD, fix="Copy the folder again.",
                          what="variables/variables.index is missing: it loads, but its variables "
                               "have no values")
    elif len(shards) < max((int(one[2]) for one in shards), default=1):
        yield Finding(level="stop", where=LOAD, what="a part of variables/ is missing",
                      fix="Copy the folder again.")


def _warmup(path: Path, signatures: Mapping[str, pb.SignatureDef]) -> Iterator[Finding]:
    """Yield why the warm-up file would make the load fail (WU07 to WU12)."""
    file = path / EXTRA_FOLDER / WARMUP_FILE
    if not file.is_file():
        return
    fault = ""
    try:
        for number, record in enumerate(warmup.read_log(file), start=1):
            fault = _record_fault(signatures, record)
            if fault:
                fault = f"record {number}: {fault}"
                break
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    except ServingError as error:
        fault = f"{error.code.name}: {error.details}"
    if fault:
        yield Finding(level="stop", where=WARMUP_FILE, what=fault,
                      fix="Export again, or give the server --enable_model_warmup=false.")


def _record_fault(signatures: Mapping[str, pb.SignatureDef], record: pb.PredictionLog) -> str:
    """Return why a record cannot run; empty when nothing is seen that speaks against it."""
    try:
        plan = warmup.plan_record(signatures, record)
    except ServingError as error:
        return f"{error.code.name}: {error.details}"
    if plan is not None and record.WhichOneof("log_type") == "predict_log":
        declared = signatures[plan.runs[0].signature].inputs
        for name, given in record.predict_log.request.inputs.items():
            if given.dtype != declared[name].dtype:
                return (f"INVALID_ARGUMENT: input {name!r} is {dtypes.label(given.dtype)}, the "
                        f"signature takes {dtypes.label(declared[name].dtype)}")
    return ""
