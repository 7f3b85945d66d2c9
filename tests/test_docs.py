"""The tests that the pages name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_NAME = re.compile(r"(?<![\w/])(?:tests/)?((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?")


def missing(text: str) -> list[str]:
    """Return the files of tests, and the tests of such a file, that a text names in vain."""
    found = []
    for path, test in _NAME.findall(text):
        places = [TESTS / path] if "/" in path else sorted(TESTS.rglob(path)) or [TESTS / path]
        if not any(place.is_file() and (not test or re.search(
                rf"^def {test}\(", place.read_text(encoding="utf-8"), re.M)) for place in places):
            found.append(f"{path}::{test}" if test else path)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_tests_that_there_are(page: Path) -> None:
    assert not missing(page.read_text(encoding="utf-8"))


def test_what_is_not_there_is_found() -> None:
    name = "test_a_page_names_tests_that_there_are"
    assert missing(f"`tests/test_docs.py`, `server/test_slots.py`, test_docs.py::{name}") == []
    assert missing("`server/test_docs.py`, tests/test_docs.py::test_other, test_nobody.py") == [
        "server/test_docs.py", "test_docs.py::test_other", "test_nobody.py"]
