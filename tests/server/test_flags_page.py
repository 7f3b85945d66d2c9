"""docs/flags.md is the table of the flags: none missing, none invented, defaults as they are."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.server.test_flags import DEFAULTS
from tf_infer.cli import backend
from tf_infer.prepared import surroundings
from tf_infer.server import cpus, flags

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flags.md"
KINDS = {"works": ("as there", "more", "differs", "refused"), "inert": ("no effect",),
         "ours": ("ours",), "later": ("not built",)}


class Row(NamedTuple):
    flag: str
    there: str
    here: str
    changes: str
    kind: str


def rows() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            row = Row(cells[0].strip("`"), *cells[1:])
            assert row.flag not in found, f"{row.flag} stands there twice"
            found[row.flag] = row
    return found


def shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def told(flag: str, value: object) -> str:
    """Return a default as the page writes it; what depends on the machine, by its rule."""
    if flag in ("rest_api_num_threads", "num_tflite_pools"):
        factor = 4 if flag.startswith("rest") else 1
        assert value == factor * cpus.usable()
        return "4 x CPUs" if factor == 4 else "CPUs"
    return shown(value)


def test_every_flag_has_a_row_and_every_row_a_flag() -> None:
    assert set(rows()) == {flag.name for flag in flags.FLAGS}


def test_the_defaults_here_are_the_programs() -> None:
    page = rows()
    assert {flag.name: page[flag.name].here for flag in flags.FLAGS} == {
        flag.name: told(flag.name, flag.default) for flag in flags.FLAGS}


def test_the_defaults_there_are_TensorFlow_Servings() -> None:
    page = rows()
    for name, (_, default) in DEFAULTS.items():
        assert page[name].there == told(name, default), name


def test_the_last_column_says_what_the_program_does() -> None:
    for flag in flags.FLAGS:
        row = rows()[flag.name]
        assert row.kind.startswith(KINDS[flag.status]), flag.name
        assert (row.there == "–") is (flag.status == "ours"), flag.name
        assert row.changes, flag.name


def test_the_flags_that_README_names_are_flags() -> None:
    text = (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    serving = text.split("\n## Serving\n")[1].split("\n## ")[0]
    named = set(re.findall(r"--(\w+)", serving))
    assert len(named) > 10
    assert named <= {flag.name for flag in flags.FLAGS}


def test_the_environment_that_the_program_looks_at_stands_there(
        monkeypatch: pytest.MonkeyPatch) -> None:
    told = set(re.findall(r"^- `([A-Z_]+)", PAGE.read_text(encoding="utf-8"), re.M))
    asked: set[str] = set()

    class Watched(dict[str, str]):
        def __contains__(self, name: object) -> bool:
            asked.add(str(name))
            return True

        def get(self, name: str, default: Any = None) -> Any:
            asked.add(name)
            return default

    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", Watched())
        backend.load_tensorflow()
        surroundings("2.21.0", (), gpus=0)
    assert asked == {"TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"}
    # TensorFlow's and oneDNN's own.
    assert told == asked | {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "ONEDNN_MAX_CPU_ISA"}
