"""Hostile texts: there is one of each kind, always the same, and more can be handed in."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from tf_infer.errors import DataError
from tf_infer.verify.hostile import hostile_texts, made_up_text

SHARED = Path(os.environ.get("TF_INFER_SHARED",
                             Path(__file__).resolve().parents[3] / "shared"))
NAUGHTY = SHARED / "data" / "naughty_strings" / "blns.json"


def well_formed(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def test_every_kind_of_hostility_is_there_and_always_the_same() -> None:
    texts = hostile_texts()
    assert texts == hostile_texts()
    assert len(set(texts)) == len(texts) >= 60
    joined = b"".join(texts)
    characters = "".join(text.decode() for text in texts if well_formed(text))
    assert b"" in texts and b"\x00" in texts
    assert max(map(len, texts)) >= 10_000
    assert sum(not well_formed(text) for text in texts) >= 12
    assert set(range(128, 256)) <= set(joined)
    kinds = {unicodedata.category(character) for character in characters}
    assert {"Cc", "Cf", "Cn", "Co", "Mn", "Zl", "Zp", "Zs", "Nd", "So", "Lt", "Lo"} <= kinds
    assert {"R", "AL", "RLO", "LRI"} <= set(map(unicodedata.bidirectional, characters))


def test_more_come_from_an_array_or_one_a_line(tmp_path: Path) -> None:
    array, lines = tmp_path / "more.json", tmp_path / "more.txt"
    array.write_text(json.dumps(["\u0000a", "", "\ud800"]))
    lines.write_bytes(b"one\r\n\n\xff")
    shipped = hostile_texts()
    assert hostile_texts(array) == (*shipped, b"\x00a", b"", b"\xed\xa0\x80")
    assert hostile_texts(lines) == (*shipped, b"one", b"", b"\xff")


@pytest.mark.parametrize("content", ["{}", "[1]", "not JSON"])
def test_another_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "more.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"more\.json: expected a JSON array of strings"):
        hostile_texts(path)
    with pytest.raises(DataError, match="cannot be read"):
        hostile_texts(tmp_path / "none.json")


@pytest.mark.skipif(not NAUGHTY.is_file(), reason=f"needs {NAUGHTY.name} in TF_INFER_SHARED")
def test_the_big_list_of_naughty_strings_is_read_as_it_is() -> None:
    assert len(hostile_texts(NAUGHTY)) == len(hostile_texts()) + len(
        json.loads(NAUGHTY.read_bytes()))


def test_made_up_texts_follow_from_their_seed() -> None:
    assert made_up_text(seed=1) == made_up_text(seed=1) != made_up_text(seed=2)
    assert len(made_up_text(seed=1, words=7).split(" ")) == 7
