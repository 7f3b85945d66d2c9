"""Which provider of ONNX Runtime computes, with which options; engines kept by GPU and release."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tf_infer.engines import gpus, onnx_runtime
from tf_infer.engines.gpus import Gpu
from tf_infer.engines.onnx_recorded import Once
from tf_infer.engines.onnx_runtime import Provider, Shapes
from tf_infer.errors import BackendMissing

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")
CPU_ONLY = ["AzureExecutionProvider", "CPUExecutionProvider"]
CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
ALL = ["TensorrtExecutionProvider", *CUDA]


@pytest.mark.parametrize(("wanted", "available", "found", "chosen"), [
    (None, ALL, [H100], ("tensorrt", "cuda", "cpu")), (None, CUDA, [H100], ("cuda", "cpu")),
    (None, ALL, [], ("cpu",)), (None, CPU_ONLY, [H100], ("cpu",)), ("cpu", ALL, [H100], ("cpu",)),
    ("cuda", ALL, [H100], ("cuda",)), ("tensorrt", ALL, [H100], ("tensorrt",))])
def test_the_fastest_that_is_there_goes_first_and_what_is_asked_for_alone(
        wanted: Provider | None, available: list[str], found: list[Gpu],
        chosen: tuple[Provider, ...]) -> None:
    assert onnx_runtime.choose(wanted, available, found) == chosen


def test_what_only_a_gpu_computes_does_not_end_at_the_cpu() -> None:
    assert onnx_runtime.choose(None, ALL, [H100], on_cpu=False) == ("tensorrt", "cuda")


@pytest.mark.parametrize(("wanted", "lacking", "computes"), [
    (None, [], "tensorrt"), (None, ["tensorrt"], "cuda"), (None, ["tensorrt", "cuda"], "cpu"),
    ("cuda", [], "cuda")])
def test_a_provider_whose_libraries_are_not_there_is_passed_over(
        wanted: Provider | None, lacking: list[str], computes: str) -> None:
    told: list[str] = []
    found = onnx_runtime.first_that_loads(
        onnx_runtime.choose(wanted, ALL, [H100]), loader(lacking),
        passed_over=lambda error: told.append(str(error)))
    assert found == computes
    assert told == [f"{name}: install it" for name in lacking]


@pytest.mark.parametrize(("wanted", "on_cpu", "named"), [
    ("tensorrt", True, "tensorrt"), ("cuda", True, "cuda"), (None, False, "cuda")])
def test_what_was_asked_for_is_missing_where_it_cannot_be_loaded(
        wanted: Provider | None, on_cpu: bool, named: str) -> None:
    with pytest.raises(BackendMissing, match=f"{named}: install it"):
        onnx_runtime.first_that_loads(
            onnx_runtime.choose(wanted, ALL, [H100], on_cpu=on_cpu), loader(["tensorrt", "cuda"]),
            passed_over=lambda error: None)


def loader(lacking: list[str]) -> Callable[[Provider], str]:
    def load(provider: Provider) -> str:
        if provider in lacking:
            raise BackendMissing(f"{provider}: install it")
        return provider

    return load


@pytest.mark.parametrize(("wanted", "available", "found", "message"), [
    ("tensorrt", CPU_ONLY, [H100],
     "with TensorrtExecutionProvider, got .*pip install 'onnxruntime-gpu.* the package tensorrt"),
    ("cuda", CPU_ONLY, [], r"with CUDAExecutionProvider, .*pip install 'onnxruntime-gpu\[cuda"),
    ("cuda", ALL, [], "expected a GPU of NVIDIA and its driver for cuda, got none"),
    ("tensorrt", ALL, [], "driver for tensorrt, got none"),
    (None, CPU_ONLY, [], r"pip install 'onnxruntime-gpu\[cuda,cudnn\]'"),
    (None, ALL, [], "got none. Ask for cpu, or serve where there is one")])
def test_what_is_missing_is_named_with_its_install(
        wanted: Provider | None, available: list[str], found: list[Gpu], message: str) -> None:
    with pytest.raises(BackendMissing, match=message):
        onnx_runtime.choose(wanted, available, found, on_cpu=False)


def test_tensorrt_is_told_the_shapes_of_every_input_and_falls_back_operation_by_operation() -> None:
    shapes = Shapes((1, 16), (8, 64), (32, 128))
    told = onnx_runtime.options("tensorrt", shapes, ("ids", "mask"), Path("/engines"))
    assert [name for name, _ in told] == ALL
    assert told[0][1] == {
        "trt_profile_min_shapes": "ids:1x16,mask:1x16",
        "trt_profile_opt_shapes": "ids:8x64,mask:8x64",
        "trt_profile_max_shapes": "ids:32x128,mask:32x128",
        "trt_engine_cache_enable": "True", "trt_engine_cache_path": "/engines",
        "trt_timing_cache_enable": "True", "trt_timing_cache_path": "/engines"}
    assert onnx_runtime.options("cuda", shapes, ("ids",), None) == [
        ("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})]
    assert onnx_runtime.options("cuda", shapes, ("ids",), None, recorded=True)[0] == (
        "CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})
    assert onnx_runtime.options("cpu", shapes, ("ids",), None) == [("CPUExecutionProvider", {})]


def test_an_engine_is_kept_for_one_gpu_one_set_of_releases_and_one_file() -> None:
    root, versions = Path("/cache"), {"tensorrt": "10.9", "onnxruntime": "1.32.0"}
    kept = onnx_runtime.engine_cache(root, H100, versions, "ab" * 32)
    assert kept == root / "NVIDIA_H100_80GB_HBM3-9.0" / "onnxruntime_1.32.0-tensorrt_10.9" / (
        "ab" * 16)
    others = {onnx_runtime.engine_cache(root, *other) for other in (
        (Gpu("NVIDIA A100", "8.0"), versions, "ab" * 32), (H100, versions, "cd" * 32),
        (H100, {**versions, "tensorrt": "11.4"}, "ab" * 32),
        (H100, {**versions, "onnxruntime": "1.33"}, "ab" * 32), (H100, versions, "ab" * 32))}
    assert len(others) == 5
    hostile = onnx_runtime.engine_cache(root, Gpu("../../etc", "9.0"), versions, "ab")
    assert hostile.resolve().is_relative_to(root)


def test_engines_are_kept_in_the_users_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert onnx_runtime.cache_root() == Path("/somewhere/tf_infer/tensorrt")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert onnx_runtime.cache_root() == Path.home() / ".cache" / "tf_infer" / "tensorrt"


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendMissing, match=r"pip install 'tf-infer\[onnx\]'"):
        onnx_runtime.library()


def test_without_tensorrt_its_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_runtime, "_TENSORRT", ("libnowhere.so.1",))
    monkeypatch.setattr(onnx_runtime, "_TENSORRT_PACKAGES", ("no-such-package",))
    with pytest.raises(BackendMissing, match="expected TensorRT's library libnvinfer, got none"):
        onnx_runtime.tensorrt_version()


def test_the_libraries_of_the_package_tensorrt_are_loaded_from_where_it_put_them(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_libs", raising=False)
    onnx_runtime.load_tensorrt()  # none is fine: the system may have its own
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs" / "__init__.py").write_text("loaded = True\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    onnx_runtime.load_tensorrt()
    assert sys.modules["tensorrt_libs"].loaded
    monkeypatch.delitem(sys.modules, "tensorrt_libs")


def test_without_a_driver_there_is_no_gpu() -> None:
    assert gpus.found("libnowhere.so.1") == ()
    assert not gpus.used("libnowhere.so.1")


class Driver:
    """A libcuda of two GPUs, of which some are in use."""

    def __init__(self, used: tuple[int, ...], state: int = 0) -> None:
        self.used_ones, self.state = used, state

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDevicePrimaryCtxGetState(self, device: Any, flags: Any, active: Any) -> int:
        active._obj.value = int(device.value in self.used_ones)
        return self.state


@pytest.mark.parametrize(("driver", "used"), [
    (Driver(()), False), (Driver((1,)), True), (Driver((), state=3), True)])
def test_a_gpu_that_something_else_in_the_process_uses_is_seen(
        driver: Driver, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda library: driver)
    assert gpus.used() is used


def test_all_threads_are_told_what_the_first_one_found() -> None:
    asked = []

    def ask() -> bool:
        asked.append(True)
        time.sleep(0.02)  # lets the others come
        return len(asked) == 1

    once = Once(ask)
    with ThreadPoolExecutor(4) as pool:
        said = [one.result() for one in [pool.submit(once) for _ in range(4)]]
    assert said == [True] * 4 and len(asked) == 1
