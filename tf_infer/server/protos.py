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
        InvalidRequest: the file is missing or does not parse.
    """
    return parse_text_proto(read_text(path), message, path, secret=secret)


def read_text(path: str | Path) -> str:
    """Return the text of a file.

    Raises:
        InvalidRequest: it cannot be read, or is no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"Invalid protobuf file: '{path}'. It is no UTF-8.") from error


def parse_text_proto(text: str, message: Any, path: str | Path, *, secret: bool = False,
                     **options: Any) -> Any:
    """Fill `message` from a text.

    Args:
        text: to parse.
        message: empty; returned.
        path: where the text comes from.
        secret: never quote the text.
        options: of `text_format.Parse`.

    Raises:
        InvalidRequest: it does not parse; where, stands on stderr, too, in the words of the
            protocol buffers that TensorFlow Serving is linked with.
    """
    try:
        text_format.Parse(text, message, **options)
    except text_format.ParseError as error:
        reason = f"line {error.GetLine()}, column {error.GetColumn()}" if secret else str(error)
        print(f"Error parsing text-format tensorflow.serving.{message.DESCRIPTOR.name}: {reason}",
              file=sys.stderr, flush=True)
        raise InvalidRequest(f"Invalid protobuf file: '{path}'. {reason}") from error
    return message
