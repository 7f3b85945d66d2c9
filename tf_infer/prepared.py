"""The prepared graph of a version: what TensorFlow's optimiser makes of it, once, at export.

`<version>/assets.extra/prepared/`: `prepared.json` (Prepared), and beside it a serialized
MetaGraphDef with the signatures of `saved_model.pb`. Whoever cannot use it runs that, as
tensorflow_model_server always does.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tf_infer import config as configs
from tf_infer.manifest import EXTRA_FOLDER, MANIFEST_FORMAT

PREPARED_FOLDER = "prepared"
PREPARED_FILE = "prepared.json"
# Of the many features of a CPU those by which TensorFlow chooses how to compute.
FEATURES = ("avx", "amx", "fma", "asimd", "sve", "bf16", "i8mm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What a prepared graph is.

    Attributes:
        format: version of this file's form.
        file: name of the graph beside it.
        made_of: sha256 of the `saved_model.pb` whose signatures it has.
        made_for: what TensorFlow's optimiser looks at beside the graph, as `surroundings`.
    """

    format: int = MANIFEST_FORMAT
    file: str = "graph.pb"
    made_of: str
    made_for: Mapping[str, str]

    def __post_init__(self) -> None:
        configs.check(self.format == MANIFEST_FORMAT, "Prepared.format", f"{MANIFEST_FORMAT}",
                      self.format, "Export the model again.")
        configs.check(self.file not in ("", "..") and Path(self.file).name == self.file,
                      "Prepared.file", "the name of a file beside it", self.file,
                      "Export the model again.")


def surroundings(tensorflow: str, flags: Collection[str], *, gpus: int) -> dict[str, str]:
    """Return what decides, beside the graph, what TensorFlow's optimiser makes of it.

    Args:
        tensorflow: its version.
        flags: of the CPU, as `cpu_flags` gives them.
        gpus: how many TensorFlow sees.
    """
    return {"tensorflow": tensorflow, "architecture": platform.machine(),
            "cpu": " ".join(sorted(one for one in flags if one.startswith(FEATURES))),
            "gpus": str(gpus), "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "")}


def prepared_folder(version_dir: Path) -> Path:
    """Return where the prepared graph of a version lies, whether there is one or not."""
    return Path(version_dir) / EXTRA_FOLDER / PREPARED_FOLDER


def read_prepared(version_dir: Path) -> Prepared | None:
    """Read what the prepared graph of a version is; None where it has no folder for one.

    Raises:
        ConfigError: it cannot be read; the message names the file.
    """
    folder = prepared_folder(version_dir)
    if not folder.is_dir():
        return None
    found: Prepared = configs.load(Prepared, folder / PREPARED_FILE)
    return found


def unfit(prepared: Prepared, files: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Return why a prepared graph cannot be used; empty when it can.

    Args:
        prepared: of the version.
        files: of the version's manifest; nobody answers for what lies beside them.
        here: `surroundings` of the server.
    """
    if not all(f"{EXTRA_FOLDER}/{PREPARED_FOLDER}/{name}" in files
               for name in (PREPARED_FILE, prepared.file)):
        return "the manifest does not name its files"
    if prepared.made_of != files.get("saved_model.pb"):
        return "saved_model.pb is another one"
    other = [name for name in here if prepared.made_for.get(name) != here[name]]
    return f"made for another {', '.join(other)}" if other else ""


def source_of(reference: str) -> str:
    """Return the node that an input of a node names: "name", "name:1" or "^name"."""
    return reference.lstrip("^").partition(":")[0]
