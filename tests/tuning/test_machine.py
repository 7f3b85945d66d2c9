"""What a machine has for engines: the presence of a GPU is scripted; none of it is used."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tf_infer.engines import gpus
from tf_infer.engines.gpus import Gpu
from tf_infer.tuning.candidates import sensible
from tf_infer.tuning.machine import float16_lacks, machine

H100 = Gpu("NVIDIA H100 80GB HBM3", "9.0")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives this machine GPUs, and ONNX Runtime its providers."""
    def give(found: tuple[Gpu, ...], *providers: str) -> None:
        monkeypatch.setattr(gpus, "found", lambda: found)
        monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(
            get_available_providers=lambda: [*providers, "CPUExecutionProvider"]))
    return give


def left_out() -> dict[str, str]:
    return sensible("classifier", flags=None, installed={"ai_edge_litert", "onnxruntime"},
                    float16_lacks=float16_lacks())[1]


def test_with_a_gpu_that_onnx_runtime_can_use_float16_is_tried_and_the_gpu_is_named(
        scripted: Any) -> None:
    scripted((H100,), "CUDAExecutionProvider")
    assert float16_lacks() == "" and "onnx float16" not in left_out()
    assert machine()["gpu"] == H100.name


def test_without_a_gpu_float16_is_left_out_and_no_install_is_asked_for(scripted: Any) -> None:
    scripted((), "CUDAExecutionProvider")
    assert left_out()["onnx float16"] == "for GPUs, and this machine has none"
    assert "gpu" not in machine()


def test_a_gpu_that_onnx_runtime_cannot_use_is_told_with_the_install(scripted: Any) -> None:
    scripted((H100,))
    assert "pip install 'onnxruntime-gpu[cuda,cudnn]'" in left_out()["onnx float16"]
