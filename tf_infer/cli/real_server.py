"""A version directory behind the real tensorflow_model_server, for as long as it is compared."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_infer.errors import BackendMissing

if TYPE_CHECKING:
    from tf_infer.server.launcher import Child
    from tf_infer.verify.predictors import Outputs

READY_S = 600.0


def missing() -> str:
    """Return why the real server cannot be asked; empty where it can."""
    from tf_infer.server import launcher

    try:
        launcher.find("")
    except BackendMissing:
        return f"no {launcher.BINARY} on PATH"
    return ""


class RealServer:
    """tensorflow_model_server in a process of its own, asked over gRPC.

    Args:
        version_dir: the version that it serves, alone.
        model: its name there.

    Raises:
        BackendMissing: there is no such program on PATH.
        InvalidRequest: it would not run this version; says why.
        ServerUnavailable: it ended before it was ready.
    """

    def __init__(self, version_dir: Path, model: str) -> None:
        from tf_infer.verify.predictors import GrpcPredictor

        self._stack = contextlib.ExitStack()
        try:
            child, address = self._start(version_dir, model)
            self._wait(child, address, model)
            self._grpc = GrpcPredictor(address, model)
            self._stack.callback(self._grpc.close)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, version_dir: Path, model: str) -> tuple[Child, str]:
        from tf_infer.cli.proof import alone
        from tf_infer.server import flags, launcher

        binary = launcher.find("")
        scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tf-infer-")))
        words = ["--port=0", f"--model_name={model}",
                 f"--model_base_path={alone(version_dir, scratch)}"]
        values = flags.parse(words).values
        models = flags.models_of(values)
        examined = launcher.examine(list(launcher.versions(models)), values, binary.release)
        launcher.refuse(binary, examined.problems)
        launch = launcher.plan(words, values, models, binary=binary, folder=scratch, grids=(),
                               socket=scratch / "s", compiled=examined.compiled)
        for name, text in launch.files.items():
            (scratch / name).write_text(text, encoding="utf-8")
        child = launcher.Child(launch.command, out=io.BytesIO(), err=io.BytesIO())
        self._stack.callback(child.stop)
        return child, launch.address

    def _wait(self, child: Child, address: str, model: str) -> None:
        from tf_infer.cli.model_server import wait_ready
        from tf_infer.client.client import Client
        from tf_infer.wire.messages import ModelRef

        with Client(address, timeout_s=None) as client:
            wait_ready(client, child, ModelRef(model), end_s=time.monotonic() + READY_S)

    def __call__(self, signature: str, inputs: Any) -> Outputs:
        """Return the outputs of `signature` by name."""
        return self._grpc(signature, inputs)

    def close(self) -> None:
        """End the server."""
        self._stack.close()
