"""Read the model config file anew every few seconds and apply it: statements CF23 to CF25, FL33.

The file is the whole truth each time, changed or not, so a config that came over gRPC is undone by
the next look. A file that is gone, does not parse, or breaks a rule is logged and passed over.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from tf_infer.errors import TfInferError
from tf_infer.server.config import read_config_file
from tf_infer.server.logs import event
from tf_infer.server.versions import Versions


class ConfigFileWatch:
    """A thread that applies the file to `versions`.

    Args:
        path: text ModelServerConfig.
        every_s: > 0; also how long one look waits for new models, so that a base path that does
            not exist cannot keep a repaired file from being seen.
        versions: what it is applied to.
    """

    def __init__(self, path: str | Path, every_s: float, versions: Versions) -> None:
        self._path, self._every_s, self._versions = path, every_s, versions
        self._stopping = threading.Event()
        self._fault = ""
        self._thread = threading.Thread(target=self._watch, name="tf-infer-config", daemon=True)

    def start(self) -> None:
        """Begin; the first look is `every_s` from now, as the server starts with the file."""
        self._thread.start()

    def stop(self) -> None:
        """End; `Versions.cancel` ends a look that waits."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)

    def _watch(self) -> None:
        while not self._stopping.wait(self._every_s):
            self.look()

    def look(self) -> None:
        """Read the file and apply it."""
        fault = ""
        try:
            models = read_config_file(self._path, served=self._versions.names())
            self._versions.configure(models, timeout_s=self._every_s)
        except TimeoutError:
            pass  # they go on loading
        except TfInferError as error:
            fault = str(error)
        if fault and fault != self._fault and not self._stopping.is_set():  # said once
            event("model_config_file", logging.ERROR, applied=False, error=fault)
        self._fault = fault
