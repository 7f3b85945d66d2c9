"""JSON that commands print: other readers than Python's take it. Needs no TensorFlow."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import tf_infer.cli
from tf_infer.cli.json_text import json_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


def no_number(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def with_null(value: Any) -> Any:
    """Return what Python's own JSON holds, NaN and the infinities as None."""
    return json.loads(json.dumps(value), parse_constant=lambda word: None)


@given(VALUES)
def test_it_is_Pythons_JSON_but_for_null_where_a_number_is_none(value: Any) -> None:
    assert json.loads(json_text(value), parse_constant=no_number) == with_null(value)


def test_tuples_are_lists_and_a_line_can_be_read_by_people() -> None:
    assert json_text({"ü": (1.5, float("inf"))}, ensure_ascii=False) == '{"ü": [1.5, null]}'
    assert json_text([float("nan")], indent=1) == "[\n null\n]"


def test_no_command_writes_JSON_in_another_way() -> None:
    """But for the lines in which `tf-infer predict` shows people any output, NaN as NaN."""
    found = Counter({path.name: path.read_text(encoding="utf-8").count("json.dump")
                     for path in Path(tf_infer.cli.__path__[0]).glob("*.py")})
    assert +found == {"json_text.py": 2, "predict.py": 1}
