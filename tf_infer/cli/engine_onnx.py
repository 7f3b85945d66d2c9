"""What `--engine onnx` is: the ONNX engine of a classifier, written, and opened to be proven.

It is proven on the CPU, whatever serves it: a GPU's engine is built from the same file, which must
be right first. Stages do not import each other; here they are put in a row.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_infer.engines.contracts import EncoderEngine
    from tf_infer.manifest import EncoderEngineManifest, EngineKind
    from tf_infer.optimize.onnx import OnnxSettings
    from tf_infer.tasks.base import Task


class OnnxKind:
    """An `EncoderKind` (cli/engine.py)."""

    kind: EngineKind = "onnx"

    def settings(self, precision: str, ranges: str = "found") -> OnnxSettings:
        """Return settings; they check what they are given."""
        from tf_infer.optimize.onnx import OnnxSettings

        return OnnxSettings(precision=precision, ranges=ranges)  # type: ignore[arg-type]

    def library(self) -> str:
        """Return what computes it."""
        from tf_infer.engines import onnx_runtime
        from tf_infer.optimize.onnx import require_packages

        require_packages("onnx")
        runtime = onnx_runtime.library()
        return f"onnxruntime {runtime.__version__}, onnx {importlib.metadata.version('onnx')}"

    def lacking(self, settings: Any) -> str:
        """Return what this machine lacks to serve it; "" for nothing."""
        from tf_infer.engines.onnx import providers_of
        from tf_infer.errors import BackendMissing

        try:
            providers_of(settings.precision, fixed_ranges=settings.ranges != "found")
        except BackendMissing as error:
            return str(error)
        return ""

    def write(self, task: Task, folder: Path, settings: Any, texts: Sequence[bytes],
              progress: Callable[[str], None]) -> EncoderEngineManifest:
        """Write model and description into a folder, which is made."""
        from tf_infer.optimize.onnx import write
        from tf_infer.optimize.texts import in_batches

        batches = [] if settings.ranges == "found" else [
            {name: tensor.numpy() for name, tensor in batch.items()}
            for batch in in_batches(task, texts)]
        return write(task.network, folder, settings, grid=task.config.grid, batches=batches,
                     progress=progress)

    def open(self, folder: Path) -> EncoderEngine:
        """Load what was written, to be proven."""
        from tf_infer.engines import onnx

        return onnx.load(folder, provider="cpu")
