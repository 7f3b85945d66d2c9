"""`tf-infer export --guesses`: a server tells the same text with and without guessing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.test_export_plan import GRID, NETWORK
from tf_infer.cli.main import main
from tf_infer.client.client import Client
from tf_infer.config import CausalLMConfig, GenerationDefaults, PackingConfig
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.tasks import build

CONFIG = CausalLMConfig(
    grid=GRID, capacity=8, network=NETWORK, defaults=GenerationDefaults(max_new_tokens=8),
    packing=PackingConfig(max_tokens=16, end=False, truncation="left"))
PROMPTS = ["ababab", "", "中文 🙂"]


def test_a_draft_alone_is_asked_for_its_number_of_guesses(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build.save(build.build(replace(CONFIG, capacity=2, defaults=GenerationDefaults(
        max_new_tokens=2)), seed=1), tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--base-dir", str(tmp_path / "m"),
                 "--draft", str(tmp_path / "model")]) != 0
    assert "--draft: expected --guesses N beside it" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.slow  # an export with its proofs, and a server
@pytest.mark.timeout(900)
@pytest.mark.parametrize("draft", [True, False])
def test_the_text_is_the_same_with_and_without_guessing(tmp_path: Path, draft: bool) -> None:
    build.save(build.build(CONFIG, seed=3), tmp_path / "model")
    small = replace(CONFIG, network=replace(NETWORK, layers=1, width=16))
    build.save(build.build(small, seed=4), tmp_path / "small")
    base = tmp_path / "writer"
    extra = ["--draft", str(tmp_path / "small")] if draft else []
    assert main(["export", str(tmp_path / "model"), "--base-dir", str(base), "--no-xla",
                 "--no-server", "--max-rows", "1", "--guesses", "3", *extra]) == 0
    server = Server(ServerConfig(models=(ModelConfig(name="writer", base_path=str(base)),),
                                 port=0, poll_s=0.0, socket_path=str(tmp_path / "socket")))
    server.start()
    try:
        with Client(f"unix:{tmp_path / 'socket'}", timeout_s=120) as client:
            for given in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}):
                told = client.generate("writer", PROMPTS, **given)
                found = client.generate("writer", PROMPTS, **given, speculative=True)
                assert [one.ids for one in found] == [one.ids for one in told]
                assert [one.text for one in found] == [one.text for one in told]
                assert all(one.rounds and one.accepted <= one.proposed for one in found)
                assert all(one.rounds == 0 for one in told)
    finally:
        server.stop(0.0)
