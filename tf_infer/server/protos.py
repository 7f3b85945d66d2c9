"""Text files of protocol buffers, as TensorFlow Serving's flags name them (FL25)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from tf_infer.errors import InvalidRequest


def read_text_proto(path: str | Path, message: Any, *, secret: bool = False) -> Any:
    """Fill `message` from a text file.

    Args:
        path: of the file.
        message: empty; returned.
        secret: never quote the file.

    Raises:
        InvalidRequest: the file is missing or does not parse; where, stands on stderr, too, in the
            words of the protocol buffers that TensorFlow Serving is linked with.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        text_format.Parse(text, message)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}.") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        reason = _reason(error, secret)
        print(f"Error parsing text-format tensorflow.serving.{message.DESCRIPTOR.name}: {reason}",
              file=sys.stderr, flush=True)
        raise InvalidRequest(f"Invalid protobuf file: '{path}'. {reason}") from error
    return message


def _reason(error: Exception, secret: bool) -> str:
    if not secret:
        return str(error)
    if not isinstance(error, text_format.ParseError) or error.GetLine() is None:
        return "It is no text of a protocol buffer."
    return f"line {error.GetLine()}, column {error.GetColumn()}"
