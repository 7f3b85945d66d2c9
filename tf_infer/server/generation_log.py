"""What metrics and log are told of a generation: numbers, and names that are ours."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from tf_infer.errors import Code
from tf_infer.server import logs
from tf_infer.server.metrics import GRPC, REST, Metrics
from tf_infer.server.streams import Stream

log = logging.getLogger("tf_infer.server")

OUR_FAULT = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS})


@dataclass(slots=True)
class Record:
    """What metrics and log want to know of a generation.

    Attributes:
        api: what was asked: "Generate", "completions", "chat".
        protocol: GRPC or REST.
        started_s: when, on the clock of `time.monotonic`.
        size: of the request in bytes.
        model, version: that were named, and that answered.
        new_tokens, first_s: tokens that came, and when the first of them did.
        request_id: as the caller gave it.
    """

    api: str
    protocol: str
    started_s: float
    size: int = 0
    model: str = ""
    version: int | None = None
    new_tokens: int = 0
    first_s: float | None = None
    request_id: str | None = None

    def heard(self, stream: Stream) -> None:
        """Take what a stream tells of itself."""
        self.version = stream.answering.version
        self.new_tokens += stream.new_tokens
        self.first_s = self.first_s or stream.first_s


def finish(metrics: Metrics, record: Record, code: Code) -> None:
    """Tell metrics and log of a generation that has ended."""
    seconds = time.monotonic() - record.started_s
    metrics.request(record.model, record.api, record.protocol, code, seconds,
                    version=record.version, signature="generate")
    level = logging.WARNING if code in OUR_FAULT else logging.DEBUG
    if log.isEnabledFor(level):
        known = metrics.knows(record.model)
        first = None if record.first_s is None else record.first_s - record.started_s
        logs.event("request", level, method=record.api if record.protocol == GRPC
                   else f"{REST} {record.api}", code=code.name, ms=round(seconds * 1000, 3),
                   first_ms=None if first is None else round(first * 1000, 3),
                   model=record.model if known else None, version=record.version,
                   tokens=record.new_tokens, bytes=record.size,
                   request_id=logs.request_id(record.request_id))
