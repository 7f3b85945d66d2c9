"""The bytes of tokens, as a file; needs no TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tf_infer.errors import ExportError
from tf_infer.token_bytes import TokenBytes, read

TABLE = TokenBytes(
    tokens=(b"", b" ", b" a", b"\xe4", b"b\n"), first=(b"", b"", b"a", b"\xe4", b"b\n"),
    vanishing=frozenset({0, 1}))


def test_only_the_first_id_that_shows_takes_its_first_form() -> None:
    assert TABLE.join([0, 1, 2, 2, 1]) == b"a a "
    assert TABLE.join([2, 4], at_start=False) == b" ab\n"
    assert TABLE.join([-1, 99, 2]) == b"a"
    assert TABLE.at_start([0, 1, -1, 99]) and not TABLE.at_start([0, 3])


@pytest.mark.parametrize("table", [TABLE, TokenBytes(
    tokens=TABLE.tokens, first=TABLE.tokens, vanishing=frozenset())])
def test_what_is_written_is_read(table: TokenBytes, tmp_path: Path) -> None:
    table.write(tmp_path / "tokens.json")
    assert read(tmp_path / "tokens.json") == table


@pytest.mark.parametrize("data", ["", "[]", '{"tokens": ["中"], "first": null, "vanishing": []}',
                                  '{"tokens": ["a"], "first": [], "vanishing": []}',
                                  '{"tokens": [1], "first": null, "vanishing": []}'])
def test_other_files_are_refused(data: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(data, encoding="utf-8")
    with pytest.raises(ExportError, match=r"tokens.json: expected the bytes of every token"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"tokens.json: cannot be read: No such file"):
        read(tmp_path / "tokens.json")


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    TABLE.write(tmp_path / "tokens.json")
    data = json.loads((tmp_path / "tokens.json").read_text(encoding="utf-8"))
    assert data["tokens"][3] == "\xe4" and data["vanishing"] == [0, 1]
