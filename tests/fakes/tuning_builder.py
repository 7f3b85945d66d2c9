"""A builder of candidates that builds nothing: what it does depends on the name of the model."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from tf_infer.errors import ConfigError, VerificationError
from tf_infer.manifest import Report
from tf_infer.tuning.build import BuildOrder

REPORT = Report(reference="eager", paths=())


def build(order: BuildOrder) -> Path:
    """Return a folder that is none, raise, or die."""
    tempfile.mkdtemp()  # as a server for a comparison does
    print("printed while it was built", flush=True)
    if order.model == "sleeps":
        time.sleep(120)
    if order.model == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if order.model == "differs":
        raise VerificationError("logits differ.", report=REPORT)
    if order.model != "good":
        raise ConfigError(f"model: expected a good one, got {order.model!r}.")
    return Path(order.base_dir) / "1"
