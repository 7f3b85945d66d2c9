"""Constraints from a file at export to the answers of a server: by name, by choice, per request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tf_infer import config as configs
from tf_infer.cli.main import main
from tf_infer.client.client import Client
from tf_infer.config import (
    CausalLMConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.errors import InvalidRequest

pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")
# an export with its proofs, and a server
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_200)]

TINY = CausalLMConfig(
    name="writer", capacity=40, defaults=GenerationDefaults(max_new_tokens=40), top_logprobs=1,
    network=SmallTransformerConfig(width=16, layers=1, heads=2, hidden=16, max_positions=72),
    packing=PackingConfig(max_tokens=32, end=False, truncation="left"),
    grid=ShapeGrid(rows=(1, 2), tokens=(32,)))
DATE = r"20\d\d-(0[1-9]|1[0-2])"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999},
                                           "ok": {"type": "boolean"}}, "required": ["n", "ok"]}
NAMED: dict[str, Any] = {
    "date": {"kind": "regex", "pattern": DATE}, "order": {"kind": "json_schema", "schema": SCHEMA},
    "mood": {"kind": "choices", "choices": [" glad", " sad"]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    configs.dump(TINY, folder / "task.json")
    assert main(["build", "--config", str(folder / "task.json"),
                 "--output", str(folder / "model")]) == 0
    (folder / "constraints.json").write_text(json.dumps(NAMED))
    assert main(["export", str(folder / "model"), "--base-dir", str(folder / "writer"), "--no-xla",
                 "--no-server", "--max-rows", "1",
                 "--constraints", str(folder / "constraints.json")]) == 0
    return folder / "writer"


@pytest.fixture(scope="module")
def client(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    from tf_infer.server.app import Server
    from tf_infer.server.config import DecodeConfig, ModelConfig, ServerConfig

    path = tmp_path_factory.mktemp("socket") / "grpc"
    server = Server(ServerConfig(
        models=(ModelConfig(name="writer", base_path=str(base)),), port=0, poll_s=0.0,
        socket_path=str(path), decode=DecodeConfig(slots=4)))
    server.start()
    with Client(f"unix:{path}", timeout_s=120) as one:
        yield one
    server.stop(0.0)


def test_names_and_choices_hold_on_the_road_of_tensorflow_serving(client: Client) -> None:
    limits: dict[str, Any] = {"constraint": ["date", "order", "mood", ""],
                              "choices": [[], [], [], ["yes", "yes, please"]]}
    asked: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    found = client.generate("writer", ["a", "", "中", "b"], **asked, **limits)
    assert client.generate("writer", ["a", "", "中", "b"], **asked, options=limits) == found
    assert [one.finish_reason for one in found] == ["stop"] * 4
    assert re.fullmatch(DATE, found[0].text)
    assert set(json.loads(found[1].text)) == {"n", "ok"}
    assert found[2].text in (" glad", " sad") and found[3].text in ("yes", "yes, please")
    (cut,) = client.generate("writer", ["a"], max_new_tokens=3, constraint="date")
    assert cut.finish_reason == "incomplete" and re.fullmatch(r"20\d", cut.text)
    with pytest.raises(InvalidRequest, match="constraint: expected a name, of these: date, order"):
        client.generate("writer", ["a"], options={"constraint": "nothing"})


@pytest.mark.parametrize(("limit", "rule"), [
    ({"regex": r"[a-f]{2,5}(é|🙂)"}, lambda text: re.fullmatch(r"[a-f]{2,5}(é|🙂)", text)),
    ({"json_schema": SCHEMA}, lambda text: set(json.loads(text)) == {"n", "ok"}),
    ({"choices": ["one", "two"]}, lambda text: text in ("one", "two")),
    ({"constraint": "date"}, lambda text: re.fullmatch(DATE, text))])
def test_a_streamed_answer_keeps_its_constraint(client: Client, limit: dict[str, Any],
                                                rule: Any) -> None:
    for seed in range(3):
        with client.stream("writer", "ab", temperature=1.0, seed=seed, **limit) as stream:
            for _ in stream:
                pass
        assert stream.finish_reason == "stop" and rule(stream.text)


def test_what_is_no_constraint_is_an_invalid_request(client: Client) -> None:
    for limit, message in (({"regex": "a("}, "at position 1"),
                           ({"json_schema": {"type": "text"}}, "at #"),
                           ({"regex": "(a|b)*a(a|b){30}"}, "Bound the repetitions")):
        with pytest.raises(InvalidRequest, match=message), \
                client.stream("writer", "ab", **limit) as stream:
            list(stream)


def test_a_faulty_file_of_constraints_stops_the_export(base: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "constraints.json"
    path.write_text(json.dumps({"x": {"kind": "regex", "pattern": "a(?=b)"}}))
    assert main(["export", str(base.parent / "model"), "--base-dir", str(tmp_path / "out"),
                 "--constraints", str(path)]) != 0
    assert "constraints.x: expected an expression" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
