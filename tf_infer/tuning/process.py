"""The processes of a search, seen from the search: start one, ask it, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tf_infer import config
from tf_infer.tuning.build import BuildOrder

LOG_FILE = "log.txt"
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}


class WorkerFailed(Exception):
    """A candidate cannot be built, opened or asked.

    Attributes:
        reason: in one sentence.
        report: of verification, as JSON has it; None where it was not that.
    """

    def __init__(self, reason: str, report: Any = None) -> None:
        super().__init__(reason)
        self.reason, self.report = reason, report


class Hired(Protocol):
    """One process for one candidate. Each method raises WorkerFailed; none follows that."""

    def build(self, order: BuildOrder) -> Path:
        """Prove and export the candidate; return the version directory."""

    def open(self, version: Path) -> int:
        """Load a version and warm it up; return the bytes that the process holds then."""

    def answer(self, into: Path) -> None:
        """Write what it answers (`judge.Answers`)."""

    def time(self, batch: int, start: int, calls: int) -> list[float]:
        """Return the seconds of each call over the texts, or new tokens, that it gave."""

    def close(self) -> None:
        """End the process, whatever it does."""


class Process:
    """A `Hired` that runs `worker.py`.

    Args:
        folder: of the candidate; what the process writes goes to `log.txt` there.
        builder: "module:function" that builds a BuildOrder and returns the version directory.
        rows: texts to be asked about.
        answered: of them, how many are answered for the metric.
        new_tokens: that a decoder is asked for.
    """

    def __init__(self, folder: Path, *, builder: str, rows: Sequence[Sequence[str]],
                 answered: int, new_tokens: int) -> None:
        self._folder, self._builder, self._rows = folder, builder, rows
        self._answered, self._new_tokens = answered, new_tokens
        # What it makes for itself, which it cannot remove when it is ended. Not in its own folder:
        # names of sockets are short.
        self._scratch = tempfile.TemporaryDirectory(prefix="tf-infer-",
                                                    ignore_cleanup_errors=True)
        with open(folder / LOG_FILE, "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tf_infer.tuning.worker", str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                encoding="utf-8", start_new_session=True,
                env={**QUIET, **os.environ, "TMPDIR": self._scratch.name})

    def build(self, order: BuildOrder) -> Path:
        """See `Hired.build`."""
        return Path(self._ask("build", self._builder, config.to_json(order))["version"])

    def open(self, version: Path) -> int:
        """See `Hired.open`."""
        found = self._ask("open", str(version), [list(row) for row in self._rows],
                          self._new_tokens)
        return int(found["resident_bytes"])

    def answer(self, into: Path) -> None:
        """See `Hired.answer`."""
        self._ask("answer", self._answered, str(into))

    def time(self, batch: int, start: int, calls: int) -> list[float]:
        """See `Hired.time`."""
        found: list[float] = self._ask("time", batch, start, calls)["seconds"]
        return found

    def _ask(self, do: str, *given: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, "with": given}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise WorkerFailed(f"its process ended with {_ended(self._process.wait())} (log: "
                               f"{self._folder / LOG_FILE})")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            raise WorkerFailed(found["failed"], found.get("report"))
        return found

    def close(self) -> None:
        """See `Hired.close`."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._scratch.cleanup()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _ended(status: int) -> str:
    """Say how a process ended."""
    if status >= 0:
        return f"exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"{name}, as the system does when memory runs out" if name == "SIGKILL" else name
