"""docs/tf_serving_ids.md: every statement about TensorFlow Serving, and the test that holds it.

    python -m tests.test_ids        # writes the last column anew, from the tests as they are

A test names the statements that it holds in its name, its parametrize ids or a comment in it:
`test_CF17_...`, `id="CF17-again"`, `# CF17`; `CF06_to_CF10` names all five.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "tf_serving_ids.md"
STATEMENTS = {"FL": 46, "CF": 31, "VR": 21, "MS": 20, "GE": 13, "PR": 30, "CL": 14, "RG": 7,
              "EX": 7, "MI": 14, "MD": 8, "RS": 25, "RP": 38, "RC": 11, "RM": 7, "BA": 26,
              "WU": 17, "MO": 15, "TL": 9, "LI": 14}
_GROUPS = "|".join(STATEMENTS)
_RANGE = re.compile(rf"(?<![a-z])({_GROUPS})(\d\d)[_ ]to[_ ](?:{_GROUPS})(\d\d)(?!\d)", re.I)
_ID = re.compile(rf"(?<![a-z])({_GROUPS})(\d\d)(?!\d)", re.I)
_ROW = re.compile(r"^\| ([A-Z]{2}\d\d) \| (.+) \| ([^|]+) \| ([^|]*) \|$")


class Row(NamedTuple):
    """One statement: what it says, what becomes of it here, and the test that holds it."""

    id: str
    meaning: str
    status: str
    held_by: str


class Test(NamedTuple):
    """A test, and the ids that its name and its source name."""

    __test__ = False

    place: str
    in_name: frozenset[str]
    in_source: frozenset[str]


def rows() -> list[Row]:
    return [Row(*found.groups()) for line in PAGE.read_text(encoding="utf-8").splitlines()
            if (found := _ROW.match(line))]


def ids_in(text: str) -> frozenset[str]:
    """Return the ids that a text names, in upper case."""
    text = text.replace("_", " ")
    found = {f"{group.upper()}{number}" for group, number in _ID.findall(text)}
    for group, first, last in _RANGE.findall(text):
        found |= {f"{group.upper()}{number:02}" for number in range(int(first), int(last) + 1)}
    return frozenset(found)


def all_tests() -> Iterator[Test]:
    for path in sorted(TESTS.rglob("test_*.py")):
        if path == Path(__file__).resolve():
            continue
        text = path.read_text(encoding="utf-8")
        if not ids_in(text):
            continue
        lines, tree = text.splitlines(), ast.parse(text)
        constants = {target.id: node for node in tree.body
                     if isinstance(node, (ast.Assign, ast.AnnAssign))
                     for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                     if isinstance(target, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                    node.name.startswith("test_")):
                used = {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                parts = [node, *(constants[name] for name in sorted(used & set(constants)))]
                source = "\n".join(line for part in parts for line in lines[_first(part):
                                                                            part.end_lineno])
                yield Test(f"{path.relative_to(TESTS).as_posix()}::{node.name}", ids_in(node.name),
                           ids_in(source))


def _first(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min(part.lineno for part in (node, *decorators)) - 1


def holder(statement: str, tests: list[Test]) -> str:
    """Return the test that names a statement most clearly, empty when none does."""
    own = [test for test in tests if "preflight" not in test.place]  # that is about another server
    for named in ([test for test in own if statement in test.in_name],
                  [test for test in own if statement in test.in_source]):
        if named:
            return min(named, key=lambda test: (len(test.in_name | test.in_source), test.place)
                       ).place
    return ""


TABLE = {row.id: row for row in rows()}


def test_the_table_has_every_statement_once_and_in_order() -> None:
    expected = [f"{group}{number:02}" for group, count in STATEMENTS.items()
                for number in range(1, count + 1)]
    assert [row.id for row in rows()] == expected


def test_every_statement_is_held_by_the_test_that_the_table_names() -> None:
    tests = {test.place: test for test in all_tests()}
    missing = [row.id for row in rows() if row.held_by.strip("`") not in tests]
    assert not missing, f"write a test for {missing}, then: python -m tests.test_ids"
    wrong = [f"{row.id} by {row.held_by}" for row in rows()
             if row.id not in tests[row.held_by.strip("`")].in_name
             | tests[row.held_by.strip("`")].in_source]
    assert not wrong, f"these no longer name the statement: {wrong}; python -m tests.test_ids"


def test_what_is_not_done_says_why() -> None:
    for row in rows():
        assert row.status == "done" or re.match(r"(done|not imitated|not offered)[:,] .{10,}",
                                                row.status), row


@pytest.mark.parametrize(("text", "expected"), [
    ("test_CF06_to_CF08_policies", {"CF06", "CF07", "CF08"}),
    ("test_wu14_wu15_the_warm_up", {"WU14", "WU15"}),
    ('id="MI07-predict"', {"MI07"}), ("# CF13, CF20", {"CF13", "CF20"}),
    ("NOTFL01 FL011 utf08", set()),
])
def test_how_ids_are_written(text: str, expected: set[str]) -> None:
    assert ids_in(text) == expected


def main() -> None:
    tests = list(all_tests())
    lines = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        found = _ROW.match(line)
        if found:
            place = holder(found[1], tests)
            line = f"| {found[1]} | {found[2]} | {found[3]} | {f'`{place}`' if place else ''} |"
        lines.append(line)
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    left = [row.id for row in rows() if not row.held_by]
    print(f"{len(rows()) - len(left)} statements are held by tests, {len(left)} by none: {left}")


if __name__ == "__main__":
    sys.exit(main())
