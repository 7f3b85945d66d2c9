"""`tf-infer export --constraints`: a faulty file stops it before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tf_infer import config as configs
from tf_infer.cli.main import main
from tf_infer.config import (
    CausalLMConfig,
    GenerationDefaults,
    PackingConfig,
    RegexConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.tasks.build import load
from tf_infer.tasks.causal_lm import CausalLM

TINY = CausalLMConfig(
    name="writer", capacity=4, defaults=GenerationDefaults(max_new_tokens=4),
    network=SmallTransformerConfig(width=8, layers=1, heads=1, hidden=8, max_positions=36),
    packing=PackingConfig(max_tokens=32, end=False, truncation="left"),
    grid=ShapeGrid(rows=(1,), tokens=(32,)))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    configs.dump(TINY, tmp_path / "task.json")
    assert main(["build", "--config", str(tmp_path / "task.json"),
                 "--output", str(tmp_path / "model")]) == 0
    return tmp_path / "model"


@pytest.mark.parametrize(("data", "message"), [
    ({"x": {"kind": "regex", "pattern": "a(?=b)"}},
     "constraints.x: expected an expression that an automaton can match, got look-around"),
    ({"x": {"kind": "json_schema", "schema": {"type": "text"}}},
     "constraints.x: expected one or some of"),
    ({"x": {"kind": "regexp", "pattern": "a"}}, "Did you mean 'regex'?"),
    ({"": {"kind": "regex", "pattern": "a"}}, "expected names that are not empty"),
    ([], "expected an object")])
def test_a_faulty_file_stops_the_export(model: Path, data: object, message: str,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    path = model.parent / "constraints.json"
    path.write_text(json.dumps(data))
    assert main(["export", str(model), "--base-dir", str(model.parent / "out"),
                 "--constraints", str(path)]) != 0
    assert message in capsys.readouterr().err
    assert not (model.parent / "out").exists()


def test_a_task_takes_other_constraints_and_keeps_its_weights(model: Path) -> None:
    task = load(model)
    assert isinstance(task, CausalLM)
    held = task.constrained({"a": RegexConfig(pattern="a+")})
    assert held.network is task.network and held.row_constraints.names == ("a",)
    assert task.row_constraints.names == ()
