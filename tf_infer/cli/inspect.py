"""`tf-infer inspect`: what a SavedModel on disk, or a model on a server, takes and gives.

Needs no TensorFlow: saved_model.pb is read by our own messages.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.cli import connection
from tf_infer.cli.json_text import json_text
from tf_infer.errors import ConfigError, InvalidRequest, TfInferError

if TYPE_CHECKING:
    from tf_infer.wire.messages import SignatureInfo, TensorInfo

EPILOG = """examples:
  tf-infer inspect saved_models/intents            the highest version, and which others there are
  tf-infer inspect saved_models/intents/3 --json
  tf-infer inspect /models/anybodys_saved_model    any SavedModel, TensorFlow not needed
  tf-infer inspect intents --address localhost:8500
"""

GRAPH_FILE = "saved_model.pb"
SHOWN_OPS = 12


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("model", metavar="PATH|NAME",
                        help="a version directory, the folder above it, or with --address a name")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    connection.configure(parser, address=None)


def run(arguments: argparse.Namespace) -> int:
    """Print what is known; return 1 when our own files beside the model are broken, else 0."""
    if arguments.address is not None:
        with connection.connect(arguments) as client:
            found = client.metadata(connection.reference(arguments))
        data: dict[str, Any] = {"model": found.model.name, "version": found.model.version,
                                "address": arguments.address,
                                "signatures": _signatures(found.signatures.values())}
    else:
        data = _read_folder(*_find_version(Path(arguments.model)))
    if arguments.json:
        print(json_text(data, ensure_ascii=False))
    else:
        print("\n".join(_lines(data)))
    return 1 if data.get("faults") else 0


# ---------------------------------------------------------------------------- reading


def _find_version(path: Path) -> tuple[Path, list[int]]:
    """Return the version directory, and all versions when `path` is the folder above.

    Raises:
        ConfigError: no SavedModel there.
    """
    if (path / GRAPH_FILE).is_file():
        return path, []
    if not path.is_dir():
        raise ConfigError(f"{path}: expected a folder with {GRAPH_FILE} or with version folders, "
                          f"got none. For a model on a server add --address HOST:PORT.")
    versions = {int(child.name): child for child in sorted(path.iterdir())
                if child.name.isascii() and child.name.isdigit()}
    if not versions:
        raise ConfigError(f"{path}: expected {GRAPH_FILE} or folders named by version numbers, "
                          f"got neither.")
    return versions[max(versions)], sorted(versions)


def _read_folder(folder: Path, versions: list[int]) -> dict[str, Any]:
    from tf_infer.wire.messages import read_saved_model

    graph = folder / GRAPH_FILE
    try:
        saved = read_saved_model(graph.read_bytes(), where=str(graph))
    except OSError as error:
        raise ConfigError(f"{graph}: cannot be read: {error.strerror}. Is the version whole?"
                          ) from error
    except InvalidRequest as error:
        raise ConfigError(f"{error.details} Is the file whole?") from error
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    data: dict[str, Any] = {
        "path": str(folder), "versions": versions,
        "size_bytes": sum(path.stat().st_size for path in files), "files": len(files),
        "tags": list(saved.tags), "tensorflow_version": saved.tensorflow_version,
        "signatures": _signatures(saved.signatures.values()), "ops": saved.ops,
        "functions": saved.functions, "assets": list(saved.assets)}
    return data | _our_files(folder)


def _our_files(folder: Path) -> dict[str, Any]:
    """Return what our manifest and report say, empty for a SavedModel of somebody else."""
    from tf_infer import config, manifest

    extra, found, faults = folder / manifest.EXTRA_FOLDER, {}, []
    for key, name, kind in (("manifest", manifest.MANIFEST_FILE, manifest.ModelManifest),
                            ("report", manifest.REPORT_FILE, manifest.Report)):
        if not (extra / name).is_file():
            continue
        try:
            found[key] = config.to_json(config.load(kind, extra / name))
            if key == "report":
                found["report_passed"] = config.load(kind, extra / name).passed
        except TfInferError as error:
            faults.append(str(error))
    return found | ({"faults": faults} if faults else {})


def _signatures(signatures: Iterable[SignatureInfo]) -> dict[str, Any]:
    return {one.name: {"inputs": _tensors(one.inputs), "outputs": _tensors(one.outputs),
                       "method_name": one.method_name}
            for one in signatures if not one.name.startswith("__")}


def _tensors(tensors: Iterable[TensorInfo]) -> dict[str, Any]:
    return {one.name: {"dtype": one.dtype,
                       "shape": None if one.shape is None else list(one.shape)} | (
        {"default": _default(one)} if one.has_default else {}) for one in tensors}


def _default(info: TensorInfo) -> Any:
    """Return a default as nested lists for JSON; None where it cannot be read."""
    import numpy as np

    from tf_infer.manifest import array_to_json

    if info.default is None:
        return None
    flat = info.default.reshape(-1)
    values = np.empty(flat.size, object)
    for place in range(flat.size):
        values[place] = array_to_json(flat[place:place + 1])["values"][0]
    return values.reshape(info.default.shape).tolist()


# ---------------------------------------------------------------------------- writing


def _lines(data: Mapping[str, Any]) -> list[str]:
    if "path" not in data:
        return [f"{data['model']} version {data['version']} at {data['address']}",
                *_signature_lines(data)]
    lines = [f"{data['path']}  {data['size_bytes'] / 1e6:.1f} MB in {data['files']} files, "
             f"TensorFlow {data['tensorflow_version'] or 'unknown'}, "
             f"tags {', '.join(data['tags'])}"]
    if data["versions"]:
        lines.append(f"versions: {', '.join(map(str, data['versions']))}; shown: the highest")
    lines += _signature_lines(data)
    common = sorted(data["ops"].items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{op} {count}" for op, count in common[:SHOWN_OPS])
    more = f", and {len(common) - SHOWN_OPS} others" if len(common) > SHOWN_OPS else ""
    lines.append(f"ops: {sum(data['ops'].values())} nodes in {data['functions']} functions: "
                 f"{shown}{more}")
    if data["assets"]:
        lines.append(f"assets: {', '.join(data['assets'])}")
    return lines + _our_lines(data)


def _signature_lines(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, signature in data["signatures"].items():
        lines.append(f"signature {name}" + (f"  ({signature['method_name']})"
                                            if signature["method_name"] else ""))
        for arrow, side in (("->", "inputs"), ("<-", "outputs")):
            lines += [f"  {arrow} {key}: {one['dtype']} {_shape(one['shape'])}"
                      + (f" = {_shown(one['default'])}" if "default" in one else "")
                      for key, one in signature[side].items()]
    return lines


def _shown(default: Any) -> str:
    return "unknown" if default is None else json_text(default, ensure_ascii=False)


def _shape(shape: list[int | None] | None) -> str:
    if shape is None:
        return "unknown rank"
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _our_lines(data: Mapping[str, Any]) -> list[str]:
    lines = []
    if "manifest" in data:
        made = data["manifest"]
        lines.append(f"made by tf-infer: {made['name']} version {made['version']}, task "
                     f"{made['task']['kind']}, compiled {made['compiled']}, "
                     f"created {made['created'] or 'unknown'}")
        lines.append(f"grid: rows {made['grid']['rows']}, tokens {made['grid']['tokens']}")
    if "report" in data:
        paths = ", ".join(f"{one['path']} ({one['samples']} samples)"
                          for one in data["report"]["paths"] if not one["skipped"])
        lines.append(f"verified: {'passed' if data['report_passed'] else 'FAILED'}: {paths}")
    return lines + [f"fault: {fault}" for fault in data.get("faults", [])]
