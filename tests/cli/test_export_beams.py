"""`tf-infer export --beams`: the best continuations, through the SavedModel and a server."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.cli.test_export_plan import GRID, NETWORK
from tests.oracles import decoding as oracle
from tf_infer.cli.main import main
from tf_infer.client.aio import AsyncClient
from tf_infer.client.client import Client
from tf_infer.client.results import Generation
from tf_infer.config import CausalLMConfig, GenerationDefaults, PackingConfig
from tf_infer.errors import ConfigError, InvalidRequest
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig
from tf_infer.tasks import build
from tf_infer.tasks.causal_lm import CausalLM

BEAMS, GROUPS, DIVERSITY, LENGTH, ATOL = 4, 2, 0.7, 2, 1e-4
# A sixth of the ids end a text: some hypotheses end before the limit.
CONFIG = CausalLMConfig(
    grid=GRID, capacity=LENGTH, network=NETWORK, end_ids=(2, *range(3, 259, 6)),
    defaults=GenerationDefaults(max_new_tokens=LENGTH),
    packing=PackingConfig(max_tokens=16, end=False, truncation="left"))
PROMPTS = ["ab", "", "中文 🙂"]


@pytest.fixture(scope="module")
def task() -> CausalLM:
    built = build.build(CONFIG, seed=3)
    assert isinstance(built, CausalLM)
    return built


@pytest.fixture(scope="module")
def model(task: CausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.save(task, tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize(("flags", "message"), [
    (["--beam-groups", "2"], "--beam-groups, --beam-diversity: expected --beams N beside them"),
    (["--beam-groups", "0"], "--beam-groups, --beam-diversity: expected --beams N beside them"),
    (["--beam-diversity", "0"], "--beam-groups, --beam-diversity: expected --beams N beside them"),
    (["--beams", "-1"], "CausalLMConfig.beams: expected >= 0, got -1"),
    (["--beams", "4", "--beam-groups", "3"], "beam_groups: expected a divisor of beams = 4"),
    (["--beams", "4", "--beam-diversity", "-1"], "beam_diversity: expected a number >= 0"),
])
def test_beams_that_cannot_be_stop_the_export(
        model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str],
        message: str) -> None:
    assert main(["export", str(model), "--base-dir", str(tmp_path / "m"), *flags]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def tree_of(task: CausalLM, prompt: str) -> np.ndarray:
    """Logits after every history of up to one token: [1 + V, V], each read from its beginning."""
    packed = task.signatures()["encode"].function(text=tf.constant([prompt]))
    start = packed["ids"].numpy()[0, :int(packed["mask"].numpy().sum())].tolist()
    held = [start, *([*start, token] for token in range(task.codec.vocab_size))]
    width = len(start) + 1
    ids = np.array([row + [0] * (width - len(row)) for row in held], np.int32)
    mask = np.arange(width) < np.array([len(row) for row in held])[:, None]
    found = np.asarray(task.network(ids, mask, training=False))
    return found[np.arange(len(held)), mask.sum(axis=1) - 1]


def same(found: list[Generation], expected: list[oracle.Path]) -> None:
    assert [one.ids for one in found] == [path.ids for path in expected]
    assert [one.finish_reason for one in found] == [
        "stop" if path.finished else "length" for path in expected]
    np.testing.assert_allclose([one.score for one in found], [path.score for path in expected],
                               atol=ATOL)


@pytest.mark.slow  # an export with its proofs, and a server
@pytest.mark.timeout(900)
@pytest.mark.parametrize("groups", [1, GROUPS])
def test_a_server_finds_what_the_search_by_lists_finds(
        task: CausalLM, model: Path, tmp_path: Path, groups: int) -> None:
    base = tmp_path / "writer"
    extra = ["--beam-groups", str(groups), "--beam-diversity", str(DIVERSITY)] if groups > 1 else []
    assert main(["export", str(model), "--base-dir", str(base), "--no-xla",
                 "--no-server", "--max-rows", "1", "--beams", str(BEAMS), *extra]) == 0
    trees = [tree_of(task, prompt) for prompt in PROMPTS]
    penalties = [0.0, 1.0, 2.0]
    expected = [oracle.beam(tree, limit=LENGTH, end_ids=CONFIG.end_ids, beams=BEAMS, groups=groups,
                            length_penalty=penalty, diversity=DIVERSITY if groups > 1 else 0.0)
                for tree, penalty in zip(trees, penalties)]
    server = Server(ServerConfig(models=(ModelConfig(name="writer", base_path=str(base)),),
                                 port=0, poll_s=0.0, warmup=False, golden_replay=False,
                                 socket_path=str(tmp_path / "socket")))
    server.start()
    try:
        address = f"unix:{tmp_path / 'socket'}"
        with Client(address, timeout_s=120) as client:
            found = client.beam_search("writer", PROMPTS, length_penalty=penalties)
            assert [len(one) for one in found] == [BEAMS] * len(PROMPTS)
            for row, paths in zip(found, expected):
                same(row, paths[:BEAMS])
            assert asyncio.run(searched(address, penalties)) == found
            for row, prompt in enumerate(PROMPTS):  # alone as in company
                assert client.beam_search("writer", [prompt], length_penalty=penalties[row]
                                          ) == [found[row]]
            forced = client.beam_search("writer", ["ab"], options={"forced_prefix": "ab"})[0]
            assert [one.text for one in forced] == ["ab"] * groups  # in each group
            with pytest.raises(InvalidRequest, match="length_penalty: expected -10"):
                client.beam_search("writer", ["ab"], length_penalty=float("nan"))
            with pytest.raises(ConfigError, match=r"got \['temperature'\]"):
                client.beam_search("writer", ["ab"], options={"temperature": 1.0})
    finally:
        server.stop(0.0)


async def searched(address: str, penalties: list[float]) -> list[list[Generation]]:
    async with AsyncClient(address, timeout_s=120) as client:
        return await client.beam_search("writer", PROMPTS, length_penalty=penalties)


def test_a_search_keeps_the_rest_of_a_task(task: CausalLM) -> None:
    made = task.searching(BEAMS, GROUPS, DIVERSITY)
    assert made.config == replace(CONFIG, beams=BEAMS, beam_groups=GROUPS, beam_diversity=DIVERSITY)
    assert made.network is task.network and "beam" in made.signatures()
    assert "beam" not in made.searching(0).signatures()
