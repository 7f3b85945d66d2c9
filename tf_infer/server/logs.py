"""Logs of the server: one line an event, as text or JSON, written by a thread of their own.

    event("state", model="m", version=3, state="AVAILABLE")
    -> 2026-01-01 12:00:00,000 INFO state model=m version=3 state=AVAILABLE
    -> {"ts": "2026-01-01T12:00:00.000Z", "level": "INFO", "event": "state", "model": "m", ...}

What a caller sent is never a field: a name is logged only once it is known to be one of ours, and a
request's id only when it is made of hexadecimal digits and dashes. Nobody who logs waits for the
disk or for whoever reads the lines: what cannot be written is counted, and the count is told when
writing works again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from typing import Any

from tf_infer.errors import InvalidRequest

FORMATS = ("text", "json")
MAX_WAITING_LINES = 10_000
FLUSH_S = 1.0
LOGGER = "tf_infer.server"
_REQUEST_ID = re.compile(r"[0-9A-Fa-f-]{4,64}")

log = logging.getLogger(LOGGER)


def event(name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Log one event; fields that are None are left out."""
    if log.isEnabledFor(level):
        known = {key: value for key, value in fields.items() if value is not None}
        log.log(level, "%s", _Line(name, known), extra={"event": name, "fields": known})


def request_id(text: str | None) -> str | None:
    """Return a request's id as it may be logged; None for one that could hold a text."""
    return text if text and _REQUEST_ID.fullmatch(text) else None


class _Line:
    """An event as words, written only where somebody reads it."""

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self._name, self._fields = name, fields

    def __str__(self) -> str:
        return " ".join([self._name, *(f"{key}={_word(value)}"
                                       for key, value in self._fields.items())])


class TextFormatter(logging.Formatter):
    """`<time> <level> <event> key=value ...`; never more than one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        text = f"{self.formatTime(record)} {record.levelname} {record.getMessage()}"
        return " ".join([*text.splitlines(), *(f"{key}={_word(value)}"
                                               for key, value in _fault(record).items())])


class JsonFormatter(logging.Formatter):
    """One JSON object: ts, level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = getattr(record, "fields", None)
        if fields is None:  # logged otherwise
            fields = {"message": record.getMessage()}
        return json.dumps({"ts": f"{seconds}.{int(record.msecs):03d}Z", "level": record.levelname,
                           "event": getattr(record, "event", "log"), **fields, **_fault(record)},
                          default=str)


def _fault(record: logging.LogRecord) -> dict[str, str]:
    """Return what a record tells of an exception: its type and place, never its text."""
    error = record.exc_info[1] if record.exc_info else None
    return {} if error is None else {"error": type(error).__name__, "at": place(error)}


def place(error: BaseException) -> str:
    """Return where an exception came from, the innermost call first."""
    frames = reversed(traceback.extract_tb(error.__traceback__)[-3:])
    return " < ".join(f"{frame.name}:{frame.lineno}" for frame in frames)


def _word(value: Any) -> str:
    """Return a value as it stands after `key=`: quoted where it would not read as one word."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if re.fullmatch(r"[\w.:/,+@-]+", text) else json.dumps(text)


class Writer(logging.Handler):
    """Writes lines to a file descriptor, in a thread that alone waits for it.

    Args:
        fd: where to; stays open.
        most: lines that may wait; more are lost, and counted.
    """

    def __init__(self, fd: int, *, most: int = MAX_WAITING_LINES) -> None:
        super().__init__()
        self._fd, self._most = fd, most
        self._lines: deque[str] = deque()
        self._lost, self._torn, self._busy, self._ended = 0, False, False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tf-infer-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line; never waits, never raises."""
        try:
            line = self.format(record)
        except Exception:
            line = None
        with self._changed:
            if line is None or self._ended or len(self._lines) >= self._most:
                self._lost += 1
            else:
                self._lines.append(line)
                self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines or self._ended)
                if not self._lines:
                    return
                line, lost, self._busy = self._lines.popleft(), self._lost, True
            if lost and self._write(self._loss(lost)):
                with self._changed:
                    self._lost -= lost
            if not self._write(line):
                with self._changed:
                    self._lost += 1

    def _loss(self, lost: int) -> str:
        name, fields = "log_lines_lost", {"count": lost}
        record = logging.LogRecord(LOGGER, logging.WARNING, "", 0, "%s", (_Line(name, fields),),
                                   None)
        record.__dict__.update(event=name, fields=fields)
        return self.format(record)

    def _write(self, line: str) -> bool:
        """Write one line; return whether all of it went out. After a torn line, on a new one."""
        data = (("\n" if self._torn else "") + line + "\n").encode("utf-8", "replace")
        left = data
        try:
            while left:
                left = left[os.write(self._fd, left):]
        except OSError:
            self._torn = self._torn or len(left) < len(data)
            return False
        self._torn = False
        return True

    def flush(self) -> None:
        """Wait until all is written, a bounded time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines and not self._busy, FLUSH_S)

    def close(self) -> None:
        """Write what is left, and end the thread; what comes now is lost."""
        self.flush()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        super().close()


def configure(format: str = "text", *, verbose: bool = False, fd: int = 2) -> Writer:
    """Let the server's logs go to a file descriptor.

    Args:
        format: one of `FORMATS`.
        verbose: every call too (never its data).
        fd: standard error unless told.

    Raises:
        InvalidRequest: another format.
    """
    if format not in FORMATS:
        raise InvalidRequest(f"--log_format: expected one of {', '.join(FORMATS)}, got {format!r}.")
    writer = Writer(fd)
    writer.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logger = logging.getLogger("tf_infer")
    logger.addHandler(writer)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    return writer


def say(text: str) -> None:
    """Print to standard output, if that can be written; a full disk stops nobody."""
    try:
        print(text, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  no later flush fails
