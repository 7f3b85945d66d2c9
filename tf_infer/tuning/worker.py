"""A process of a search: builds a candidate, or opens one, answers and times calls, as it is told.

A line of JSON on standard input asks, a line on standard output answers; what else the process
writes goes to standard error. It ends with its parent, whatever that was killed by.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tf_infer import config
from tf_infer.errors import TfInferError, VerificationError
from tf_infer.tuning import judge, measure
from tf_infer.tuning.build import BuildOrder

WATCH_S = 0.5


class Worker:
    """What a process knows between two questions.

    Args:
        open_version: `measure.open_version`, or a fake.
    """

    def __init__(self, open_version: Callable[..., measure.Opened] = measure.open_version) -> None:
        self._open = open_version
        self._opened: measure.Opened | None = None
        self._rows: list[list[str]] = []

    def build(self, builder: str, order: Any) -> dict[str, Any]:
        """Build a candidate by the function that `builder` names, "module:function"."""
        module, _, name = builder.partition(":")
        read: BuildOrder = config.from_json(BuildOrder, order, where="order")
        version = getattr(importlib.import_module(module), name)(read)
        return {"version": str(version)}

    def open(self, path: str, rows: list[list[str]], new_tokens: int) -> dict[str, Any]:
        """Load a version; it is asked about these texts from now on."""
        self._opened, self._rows = self._open(Path(path), new_tokens=new_tokens), rows
        return {"resident_bytes": resident_bytes()}

    def answer(self, most: int, into: str) -> dict[str, Any]:
        """Write what the version answers to the first texts."""
        assert self._opened is not None
        judge.save(self._opened.answers(self._rows[:most]), Path(into))
        return {}

    def time(self, batch: int, start: int, calls: int) -> dict[str, Any]:
        """Call so often, about so many texts each; return the seconds of a text (a token)."""
        assert self._opened is not None
        return {"seconds": timed(self._opened, self._rows, batch=batch, start=start, calls=calls)}

    def close(self) -> None:
        """Free the version."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def timed(opened: measure.Opened, rows: Sequence[measure.Row], *, batch: int, start: int,
          calls: int) -> list[float]:
    """Return the seconds of each call over what it gave; call `i` has the texts behind call i - 1.
    """
    found = []
    for call in range(start, start + calls):
        asked = [rows[(call * batch + place) % len(rows)] for place in range(batch)]
        began_s = time.perf_counter()
        given = opened.ask(asked)
        found.append((time.perf_counter() - began_s) / given)
    return found


def resident_bytes() -> int:
    """Return the memory that this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def serve(worker: Worker, lines: Iterable[str], channel: TextIO) -> None:
    """Answer every line until there is none."""
    for line in lines:
        channel.write(json.dumps(_answered(worker, json.loads(line))) + "\n")
        channel.flush()
    worker.close()


def _answered(worker: Worker, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Do what a line asks for; a failure is an answer, in our words and never a text's."""
    try:
        found: dict[str, Any] = getattr(worker, asked["do"])(*asked["with"])
        return found
    except VerificationError as error:
        traceback.print_exc()
        return {"failed": str(error), "report": config.to_json(error.report)}
    except TfInferError as error:
        traceback.print_exc()
        return {"failed": str(error)}
    except MemoryError:
        return {"failed": "it needs more memory than there is"}
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__} (what it says is in its log)"}


def end_with_parent(parent: int) -> None:
    """End this process as soon as its parent has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """Serve standard input; what libraries print goes to standard error."""
    end_with_parent(int(sys.argv[1]))
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(Worker(), sys.stdin, channel)


if __name__ == "__main__":
    main()
