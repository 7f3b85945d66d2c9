"""What a search was measured on: CPU, packages, and which libraries of engines can be imported."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from importlib import metadata
from pathlib import Path

from tf_infer.optimize.plan import cpu_flags
from tf_infer.server import cpus
from tf_infer.tuning.candidates import ENGINES
from tf_infer.version import __version__

PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert", "onnxruntime")


def machine() -> dict[str, str]:
    """Return what a measurement depends on, name -> what is there."""
    flags = " ".join(sorted(cpu_flags() or ()))
    found = {"cpu": cpu_name(), "cpus": str(cpus.usable()), "system": platform.system(),
             "cpu flags": hashlib.sha256(flags.encode()).hexdigest()[:12],
             "python": platform.python_version(), "tf-infer": __version__}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's name as Linux has it, else the architecture."""
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.machine()


def installed() -> frozenset[str]:
    """Return which of the engines' packages are there."""
    return frozenset(package for package, _, _ in ENGINES.values()
                     if importlib.util.find_spec(package) is not None)
