"""What the commands with a model inside stand on: asked for clearly, and loaded without its noise.

TensorFlow 2.21 writes notes on oneDNN, CUDA drivers and its own logger to standard error while it
is imported, whatever TF_CPP_MIN_LOG_LEVEL says: so they are caught then, and only then.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tf_infer.errors import BackendMissing

# commands that import TensorFlow, and the extra that brings what they need
NEEDS: dict[str, str] = {"quickstart": "server", "build": "models", "train": "models",
                         "prune": "models", "calibrate": "models", "verify": "models",
                         "export": "models", "optimize": "models", "serve": "server"}

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
# "I0000 00:00:1795552336.676501   29004 port.cc:153] oneDNN custom operations are on.", and what a
# machine without a GPU is told when devices are looked for
_NOISE = re.compile(rb"WARNING: All log messages before absl::InitializeLog\(\)|"
                    rb"[IW]\d{4} [\d:.]+ |E\d{4} .* failed call to cuInit")


def require_models(command: str, *, python: tuple[int, int] = sys.version_info[:2]) -> None:
    """Raise BackendMissing, naming the fix, when `command` needs TensorFlow and it is not there.

    Args:
        command: name of the command.
        python: version of the interpreter.
    """
    extra = NEEDS.get(command)
    if extra is None:
        return
    if python < (3, 11):
        raise BackendMissing(
            f"python: expected 3.11 to 3.13 for {command!r} (keras-hub needs 3.11), got "
            f"{python[0]}.{python[1]}. Use a newer Python; the client runs on 3.10 as well.")
    missing = [name for name in ("tensorflow", "tensorflow_text", "keras_hub")
               if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendMissing(f"{command!r} needs {', '.join(missing)}, not installed here. "
                             f"Run: pip install 'tf_infer[{extra}]'")


def load_tensorflow() -> None:
    """Import TensorFlow with its notes left out, unless the user has set TF_CPP_MIN_LOG_LEVEL."""
    if LOG_LEVEL in os.environ:
        return
    os.environ[LOG_LEVEL] = "2"  # of what follows, and of processes that we start
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if "tensorflow" not in sys.modules:
        with _without_notes():
            importlib.import_module("tensorflow").config.list_physical_devices()


def collect_seldom() -> None:
    """Let a process that traces graphs look for garbage less often.

    A traced graph is a hundred thousand objects that stay; Python looks after every 700. A server
    is left as it is: each look would take longer, and somebody wait for it.
    """
    gc.set_threshold(20_000, 10, 10)


@contextmanager
def _without_notes() -> Iterator[None]:
    """Hold back what native code writes to standard error; pass on all but notes at the end."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            kept = b"".join(line for line in held if not _NOISE.match(line))
            if kept:
                os.write(2, kept)
