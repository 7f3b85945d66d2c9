"""A trained decoder, stories260K: from its checkpoint to its golden story, over the network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tf_infer.client.client import Client
from tf_infer.server.app import Server
from tf_infer.server.config import ModelConfig, ServerConfig

SHARED = Path(os.environ.get(
    "TF_INFER_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))
FOLDER = SHARED / "weights" / "stories260K"
BEGINNING = "Once upon a time, there was a little girl"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs weights/stories260K in the shared folder (TF_INFER_SHARED)")]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """Return ids and text of llama2.c's own test, 200 tokens, greedy."""
    read: dict[str, Any] = json.loads((FOLDER / "golden_greedy.json").read_text())
    return read


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the exported model."""
    from tf_infer.cli.proof import make_golden
    from tf_infer.config import GenerationDefaults, ShapeGrid
    from tf_infer.equality import Tolerance
    from tf_infer.export.saved_model import save
    from tf_infer.tasks.build import from_checkpoint
    from tf_infer.verify.parity import verify
    from tf_infer.verify.predictors import SessionPredictor

    files = tmp_path_factory.mktemp("tokenizer")
    shutil.copyfile(FOLDER / "tok512_rebuilt.model", files / "tokenizer.model")
    (files / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}))
    # Few tokens by default: golden samples are told op by op, which takes long.
    task = from_checkpoint(
        FOLDER, {"capacity": 200, "defaults": GenerationDefaults(max_new_tokens=4),
                 "grid": ShapeGrid(rows=(1, 8), tokens=(16, 64))},
        tokenizer_dir=files, max_tokens=64)
    base = tmp_path_factory.mktemp("models") / "stories"
    made = make_golden(task, [BEGINNING.encode()], max_rows=1)
    save(task, base, name="stories", golden=made, check=lambda folder: verify(
        {"session": lambda: SessionPredictor(folder)}, made[:1], Tolerance()))
    return base


@pytest.fixture(scope="module")
def client(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Serve the model in this process."""
    socket_path = str(tmp_path_factory.mktemp("socket") / "grpc")
    config = ServerConfig(models=(ModelConfig(name="stories", base_path=str(exported)),), port=0,
                          socket_path=socket_path, warmup=False, golden_replay=False)
    with Server(config), Client(f"unix:{socket_path}", timeout_s=300) as asking:
        yield asking


def test_it_tells_its_golden_story_over_grpc(client: Client, golden: dict[str, Any]) -> None:
    whole, rest = client.generate("stories", ["", BEGINNING], max_new_tokens=[200, 60])
    assert list(whole.ids) == golden["greedy_ids"][1:]
    assert whole.text == golden["greedy_text"]
    assert whole.finish_reason == "length"
    assert golden["greedy_text"].startswith(BEGINNING + rest.text)
    assert len(rest.ids) == 60


def test_the_slot_engine_streams_its_golden_story(client: Client, golden: dict[str, Any]) -> None:
    with client.stream("stories", "", max_new_tokens=200) as stream:
        pieces = list(stream)
    assert [token.id for piece in pieces for token in piece.tokens] == golden["greedy_ids"][1:]
    assert "".join(piece.text for piece in pieces) == stream.text == golden["greedy_text"]
    assert sum(bool(piece.text) for piece in pieces) > 20, "it came all at once"
    assert (stream.finish_reason, stream.usage.new_tokens) == ("length", 200)


def test_stories_told_at_once_are_the_stories_told_alone(client: Client, golden: dict[str, Any]
                                                         ) -> None:
    """Eight join and leave one running batch: the golden one among drawn ones of other lengths."""
    asked = [("", {"max_new_tokens": 200})] + [
        (BEGINNING, {"max_new_tokens": 20 * row, "temperature": 0.9, "seed": row})
        for row in range(1, 8)]

    def told(prompt: str, options: dict[str, Any]) -> str:
        with client.stream("stories", prompt, **options) as stream:
            for _ in stream:
                pass
        return stream.text

    alone = [told(*one) for one in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda one: told(*one), asked))
    assert together == alone
    assert together[0] == golden["greedy_text"]
    assert len(set(together)) == len(asked)
    # What is drawn in the graph, eight rows in one batch, is what the slots draw.
    batch = client.generate("stories", [prompt for prompt, _ in asked], **{
        name: [options.get(name, 0) for _, options in asked]
        for name in ("max_new_tokens", "temperature", "seed")})
    assert [answer.text for answer in batch] == alone
