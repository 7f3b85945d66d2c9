from __future__ import annotations

from pathlib import Path

import pytest

from tf_infer.errors import CheckpointError
from tf_infer.text import vocabulary


def test_lines_may_end_in_carriage_return_and_hold_odd_separators(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("a\r\nb\u2028c\r\n\r\n\x85\n".encode())
    assert vocabulary.read(path) == ["a", "b\u2028c", "", "\x85"]
    path.write_bytes(b"\xff\n")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        vocabulary.read(path)
