"""Text files of protocol buffers, as TensorFlow Serving's flags name them (FL25)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format

from tf_infer.errors import InvalidRequest


def read_text_proto(path: str | Path, message: Any) -> Any:
    """Fill `message` from a text file.

    Raises:
        InvalidRequest: the file is missing or does not parse.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        text_format.Parse(text, message)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read: {error.strerror}.") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"Invalid protobuf file: '{path}'. {error}") from error
    return message
