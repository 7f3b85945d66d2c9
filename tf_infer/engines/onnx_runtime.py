"""ONNX Runtime: which of its providers computes a model, with which options; and a session.

TensorRT builds an engine for one GPU and one release of itself, which takes minutes: engines are
kept in a folder for each (`engine_cache`), where the next start finds them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

from tf_infer.engines import gpus
from tf_infer.engines.gpus import Gpu
from tf_infer.errors import BackendMissing, ExportError

T = TypeVar("T")
Provider: TypeAlias = Literal["cpu", "cuda", "tensorrt"]
PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
PROVIDERS: Mapping[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider", "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider"}
ON_GPU: tuple[Provider, ...] = ("tensorrt", "cuda")  # the faster one first
INSTALL = "Run pip install 'tf-infer[onnx]'."
INSTALL_GPU: Mapping[Provider, str] = {
    "cuda": "Run pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'.",
    "tensorrt": "Run pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]' "
                "and the package tensorrt of the CUDA and the major release that it was linked "
                "with: of ONNX Runtime 1.31 'tensorrt-cu13<11'."}
_TENSORRT_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_TENSORRT = ("libnvinfer.so.11", "libnvinfer.so.10", "libnvinfer.so")
_RECORDS = "enable_cuda_graph"
_ERRORS_ONLY = 3  # of the severities of its log


class Shapes(NamedTuple):
    """(rows, tokens) that TensorRT makes an engine for: smallest, most common, largest."""

    smallest: tuple[int, int]
    common: tuple[int, int]
    largest: tuple[int, int]


def library() -> Any:
    """Return the module onnxruntime.

    Raises:
        BackendMissing: it is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendMissing(f"engine onnx: expected the package {PACKAGE} (with a GPU "
                             f"{GPU_PACKAGE}), got {error}. {INSTALL}") from error
    return onnxruntime


def choose(wanted: Provider | None, available: Sequence[str], found: Sequence[Gpu], *,
           on_cpu: bool = True) -> tuple[Provider, ...]:
    """Decide which providers may compute, the fastest first.

    A library that was built with a provider may lack that provider's own libraries, which shows
    when it is loaded (`first_that_loads`).

    Args:
        wanted: this one alone; None takes TensorRT and CUDA where the library has them and there is
            a GPU, and behind them the CPU.
        available: providers that the installed library was built with.
        found: GPUs of the machine.
        on_cpu: None may end at the CPU.

    Raises:
        BackendMissing: there is no GPU, or the library has not what was asked for.
    """
    if wanted == "cpu":
        return ("cpu",)
    if wanted is None:
        on_gpu = tuple(one for one in ON_GPU if found and PROVIDERS[one] in available)
        if on_gpu or on_cpu:
            return (*on_gpu, "cpu") if on_cpu else on_gpu
        wanted = "cuda"
    if PROVIDERS[wanted] not in available:
        raise BackendMissing(f"engine onnx: expected an ONNX Runtime with {PROVIDERS[wanted]}, got "
                             f"one with {list(available)}. {INSTALL_GPU[wanted]}")
    if not found:
        raise BackendMissing(f"engine onnx: expected a GPU of NVIDIA and its driver for "
                             f"{wanted}, got none. Ask for cpu, or serve where there is one.")
    return (wanted,)


def first_that_loads(providers: Sequence[Provider], load: Callable[[Provider], T], *,
                     passed_over: Callable[[BackendMissing], None]) -> T:
    """Return what the first provider that can be loaded gives.

    Args:
        providers: at least one, as `choose` says.
        load: raises BackendMissing where a provider lacks a library.
        passed_over: is told what those before it lacked, with the install.

    Raises:
        BackendMissing: none can be loaded; that of the last one.
    """
    for one in providers[:-1]:
        try:
            return load(one)
        except BackendMissing as error:
            passed_over(error)
    return load(providers[-1])


def options(provider: Provider, shapes: Shapes, inputs: Sequence[str], cache: Path | None, *,
            recorded: bool = False) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session, the first one first, with their options.

    Args:
        provider: that computes; behind it stand those that compute what it cannot.
        shapes: that the inputs may have.
        inputs: names, each [rows, tokens].
        cache: folder of TensorRT's engines; None keeps none.
        recorded: CUDA makes a graph of every call.

    The precision is that of the file, number by number: no option lets TensorRT take a smaller one.
    """
    def profile(shape: tuple[int, int]) -> str:
        return ",".join(f"{name}:{shape[0]}x{shape[1]}" for name in inputs)

    tensorrt = {"trt_profile_min_shapes": profile(shapes.smallest),
                "trt_profile_opt_shapes": profile(shapes.common),
                "trt_profile_max_shapes": profile(shapes.largest)}
    if cache is not None:
        tensorrt |= {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(cache),
                     "trt_timing_cache_enable": "True", "trt_timing_cache_path": str(cache)}
    # TF32 would keep 10 bits of a float32's mantissa.
    row = {"tensorrt": tensorrt, "cuda": {"use_tf32": "0"}, "cpu": {}}
    if provider == "cuda" and recorded:
        row["cuda"][_RECORDS] = "1"
    places = list(PROVIDERS)
    return [(PROVIDERS[one], row[one]) for one in places[places.index(provider):]]


def records(session: Any) -> bool:
    """Whether a session makes CUDA graphs of its calls (onnx_recorded.py)."""
    found = session.get_provider_options().get(PROVIDERS["cuda"], {})
    return str(found.get(_RECORDS, "0")) == "1"


def engine_cache(root: Path, gpu: Gpu, versions: Mapping[str, str], sha256: str) -> Path:
    """Return the folder of the engines of one file, on one kind of GPU, of one set of releases.

    Args:
        root: of all engines.
        gpu: that runs them.
        versions: of all that builds them, by name.
        sha256: of the model file.
    """
    releases = "-".join(f"{name}_{version}" for name, version in sorted(versions.items()))
    words = (f"{gpu.name}-{gpu.capability}", releases, sha256[:32])
    return root.joinpath(*(re.sub(r"[^A-Za-z0-9._-]+", "_", word) for word in words))


def cache_root() -> Path:
    """Return where engines are kept: the user's own cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tf_infer" / "tensorrt"


def tensorrt_version() -> str:
    """Return the release of TensorRT that will be loaded.

    Raises:
        BackendMissing: there is none.
    """
    for name in _TENSORRT_PACKAGES:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for name in _TENSORRT:
        try:
            return str(ctypes.CDLL(name).getInferLibVersion())
        except OSError:
            continue
    raise BackendMissing("engine onnx: expected TensorRT's library libnvinfer, got none. "
                         f"{INSTALL_GPU['tensorrt']}")


def load_tensorrt() -> None:
    """Load the libraries that the package tensorrt brings, from where no linker looks for them."""
    with contextlib.suppress(ImportError):  # then the system's own, or none
        import tensorrt_libs  # noqa: F401


def open_session(path: Path, provider: Provider, shapes: Shapes, inputs: Sequence[str], *,
                 sha256: str, threads: int, cache: Path | None = None,
                 recorded: bool = False) -> Any:
    """Open a model file.

    Args:
        path: of the file.
        provider: that computes, one of those of `choose`.
        shapes: that inputs may have.
        inputs: names, each [rows, tokens].
        sha256: of the file.
        threads: that compute one call, on the CPU.
        cache: root of TensorRT's engines; None takes `cache_root`.
        recorded: on CUDA its calls are recorded (onnx_recorded.py), where that can be.

    Raises:
        BackendMissing: the provider's own libraries cannot be loaded.
        ExportError: no model that this ONNX Runtime can run.
    """
    runtime = library()
    folder = None
    if provider == "tensorrt":
        versions = {"tensorrt": tensorrt_version(), "onnxruntime": runtime.__version__}
        folder = _made(cache, gpus.found()[0], versions, sha256)
    if provider != "cpu":
        runtime.preload_dlls()
    if provider == "tensorrt":
        load_tensorrt()
    given = runtime.SessionOptions()
    given.intra_op_num_threads, given.inter_op_num_threads = threads, 1
    given.log_severity_level = _ERRORS_ONLY

    def opened(recorded: bool) -> Any:
        return runtime.InferenceSession(str(path), given, providers=options(
            provider, shapes, inputs, folder, recorded=recorded))

    try:
        session = _recording(opened) if recorded and provider == "cuda" else opened(False)
    except Exception as error:  # its exceptions have no base of their own
        raise ExportError(
            f"{path}: expected a model that ONNX Runtime {runtime.__version__} runs, got "
            f"{type(error).__name__}: {error}. Export the version again.") from error
    # It goes on without a provider whose libraries it cannot load.
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise BackendMissing(f"engine onnx: expected {PROVIDERS[provider]} to load its libraries, "
                             f"got a session of {session.get_providers()}. {INSTALL_GPU[provider]}")
    session.disable_fallback()  # to another provider, whose answers nobody has proven
    return session


def _recording(opened: Callable[[bool], Any]) -> Any:
    """Open a session that records its calls; one that does not where CUDA lacks an operation."""
    with contextlib.suppress(Exception):
        session = opened(True)
        if records(session) or session.get_providers()[0] != PROVIDERS["cuda"]:
            return session
    return opened(False)


def _made(cache: Path | None, gpu: Gpu, versions: Mapping[str, str], sha256: str) -> Path | None:
    """Make the folder of TensorRT's engines; None where nothing can be kept."""
    try:
        folder = engine_cache(cache or cache_root(), gpu, versions, sha256)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that may be written
        return None
    return folder
