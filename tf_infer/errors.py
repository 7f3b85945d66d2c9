"""Every exception of tf_infer, and the one table exception <-> gRPC code <-> HTTP status.

    TfInferError
    ├── ServingError              an answer of a server; carries the gRPC code and the server's text
    │   ├── InvalidRequest        (also ValueError)
    │   ├── Unauthenticated
    │   ├── Forbidden
    │   ├── ModelNotFound
    │   ├── Overloaded
    │   ├── DeadlineExceeded      (also TimeoutError)
    │   ├── Cancelled
    │   ├── ServerUnavailable     (also ConnectionError)
    │   ├── NotOffered
    │   └── ServerFailure
    ├── ConfigError               (also ValueError) a setting, a configuration file, an argument
    ├── ShapeError                (also ValueError) a tensor of the wrong rank, size or dtype
    ├── CheckpointError           a checkpoint that cannot be read as what it claims to be
    ├── DataError                 (also ValueError) training or evaluation data that cannot be read
    ├── VerificationError         two paths disagree; carries the Report
    ├── ExportError               a version directory that cannot be written or read
    └── BackendMissing            (also ImportError) an optional package; names the extra to install

Standard library only. Source of the HTTP column: TensorFlow Serving's REST status table
(http_rest_api_util.cc), statement RS14 of its observed behaviour.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple


class Code(IntEnum):
    """The 17 canonical gRPC status codes (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TfInferError(Exception):
    """Base of everything that tf_infer raises on purpose."""


class ServingError(TfInferError):
    """A failure reported by a server, or by the way to it.

    Attributes:
        code: the gRPC status code; `DEFAULT_CODES[type(self)]` when built without one.
        details: the server's own text, never the caller's data.
    """

    def __init__(self, details: str, *, code: Code | None = None) -> None:
        self.code = code if code is not None else default_code(type(self))
        self.details = details
        super().__init__(f"{self.code.name}: {details}")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), code=self.code), (self.details,), self.__dict__


class InvalidRequest(ServingError, ValueError):
    """The request itself is wrong; sending it again cannot help."""


class Unauthenticated(ServingError):
    """No credentials, or ones that the server does not accept."""


class Forbidden(ServingError):
    """The credentials are good, but not for this call."""


class ModelNotFound(ServingError):
    """The server does not serve this model, version or label."""


class Overloaded(ServingError):
    """The server refuses work for now; retried with back-off."""


class DeadlineExceeded(ServingError, TimeoutError):
    """The time given for the call is over."""


class Cancelled(ServingError):
    """The caller gave the call up."""


class ServerUnavailable(ServingError, ConnectionError):
    """Nobody answers at this address, or the server is going away; retried with back-off."""


class NotOffered(ServingError):
    """The server does not know this method."""


class ServerFailure(ServingError):
    """The server failed while it worked on the request."""


class ConfigError(TfInferError, ValueError):
    """A setting that breaks a rule; the message names the field, the rule and what to do."""


class ShapeError(TfInferError, ValueError):
    """A tensor of the wrong rank, size or dtype; the message names both shapes."""


class CheckpointError(TfInferError):
    """A checkpoint that cannot be read as what it claims to be."""


class DataError(TfInferError, ValueError):
    """Training or evaluation data that cannot be read; names file and line, never the text."""


class VerificationError(TfInferError):
    """Two paths that should agree do not.

    Attributes:
        report: the `tf_infer.manifest.Report` that says where and by how much.
    """

    def __init__(self, message: str, *, report: Any) -> None:
        self.report = report
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), report=self.report), self.args, self.__dict__


class ExportError(TfInferError):
    """A version directory that cannot be written, or that is not what its manifest says."""


class BackendMissing(TfInferError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class Row(NamedTuple):
    """A code on each side, and whether a call that ended with it may be repeated."""

    code: Code
    http_status: int
    exception: type[ServingError] | None
    retryable: bool


TABLE: tuple[Row, ...] = (
    Row(Code.OK, 200, None, False),
    Row(Code.CANCELLED, 499, Cancelled, False),
    Row(Code.UNKNOWN, 500, ServerFailure, False),
    Row(Code.INVALID_ARGUMENT, 400, InvalidRequest, False),
    Row(Code.DEADLINE_EXCEEDED, 504, DeadlineExceeded, False),
    Row(Code.NOT_FOUND, 404, ModelNotFound, False),
    Row(Code.ALREADY_EXISTS, 409, ServerFailure, False),
    Row(Code.PERMISSION_DENIED, 403, Forbidden, False),
    Row(Code.RESOURCE_EXHAUSTED, 429, Overloaded, True),
    Row(Code.FAILED_PRECONDITION, 400, InvalidRequest, False),
    Row(Code.ABORTED, 409, ServerFailure, False),
    Row(Code.OUT_OF_RANGE, 400, InvalidRequest, False),
    Row(Code.UNIMPLEMENTED, 501, NotOffered, False),
    Row(Code.INTERNAL, 500, ServerFailure, False),
    Row(Code.UNAVAILABLE, 503, ServerUnavailable, True),
    Row(Code.DATA_LOSS, 500, ServerFailure, False),
    Row(Code.UNAUTHENTICATED, 401, Unauthenticated, False),
)

_BY_CODE = {row.code: row for row in TABLE}

# The code that an exception stands for when it is raised without one: its own row, or the
# row a reader would name first where several codes share one exception.
_DEFAULT_CODES: dict[type[ServingError], Code] = {
    ServerFailure: Code.INTERNAL,
    InvalidRequest: Code.INVALID_ARGUMENT,
}


def default_code(exception: type[ServingError]) -> Code:
    """Return the gRPC code that `exception` stands for when none is given."""
    if exception in _DEFAULT_CODES:
        return _DEFAULT_CODES[exception]
    return next((row.code for row in TABLE if row.exception is exception), Code.UNKNOWN)


def exception_for(code: Code | int, details: str) -> ServingError:
    """Return (not raise) the exception of a gRPC status code.

    Args:
        code: 1 to 16; any other number counts as UNKNOWN, as gRPC demands of unknown codes.
        details: the server's text.
    """
    try:
        row = _BY_CODE[Code(code)]
    except ValueError:
        row = _BY_CODE[Code.UNKNOWN]
    if row.exception is None:
        raise ConfigError("exception_for: expected a code other than OK, got OK.")
    return row.exception(details, code=row.code)


# A check in a graph of ours that failed (`tasks.grid.require`), as TensorFlow words it; the names
# of nodes and functions stand before and behind it.
_CHECK = re.compile(r"assertion failed: \[(?P<rule>.*?)\.?\] \[First such row:\] \[(?P<row>\d+)\]"
                    r"(?: \[got:\] \[(?P<got>[^\]]*)\])?", re.DOTALL)


def plain(details: str) -> str:
    """Return what a failed check of one of our exports says, without TensorFlow's names of nodes.

    Any other text, also of checks in somebody else's graph, stays as it is.
    """
    found = _CHECK.search(details)
    if found is None:
        return details
    got = "" if found["got"] is None else f", got {found['got']}"
    return f"{found['rule']}{got} (row {found['row']})."


def http_status(code: Code) -> int:
    """Return the HTTP status that stands for a gRPC code."""
    return _BY_CODE[code].http_status


def is_retryable(code: Code) -> bool:
    """Return whether a call that ended with `code` may safely be sent again."""
    return _BY_CODE[code].retryable
