"""What a search was measured on: CPU, GPU, packages, and what there is for engines to run on."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
from importlib import metadata
from pathlib import Path

from tf_infer.engines import gpus
from tf_infer.engines.onnx import providers_of
from tf_infer.errors import BackendMissing
from tf_infer.processor import cpu_flags
from tf_infer.server import cpus
from tf_infer.tuning.candidates import ENGINES
from tf_infer.version import __version__

PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert", "onnxruntime", "onnxruntime-gpu")


def machine() -> dict[str, str]:
    """Return what a measurement depends on, name -> what is there."""
    flags = " ".join(sorted(cpu_flags() or ()))
    found = {"cpu": cpu_name(), "cpus": str(cpus.usable()), "system": platform.system(),
             "cpu flags": hashlib.sha256(flags.encode()).hexdigest()[:12],
             "python": platform.python_version(), "tf-infer": __version__}
    if there := gpus.found():
        found["gpu"] = there[0].name
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


def float16_lacks() -> str:
    """Return what keeps this machine from float16, which ONNX Runtime computes on GPUs alone.

    Empty for nothing.
    """
    if not gpus.found():
        return "for GPUs, and this machine has none"
    try:
        providers_of("float16", fixed_ranges=False)
    except BackendMissing as error:
        return str(error)
    return ""
