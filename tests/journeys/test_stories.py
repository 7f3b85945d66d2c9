"""A trained decoder, stories260K: from its checkpoint to its golden story, in every form, served.

A form is what a version was exported as, and how it is asked: whole batches of `generate` by
Predict, or the slot engine by streams. Those in float32 give the golden 200 tokens. One that rounds
weights may leave them where the network's own lead over the next likeliest token is below what its
precision may be off by. Run with -s for the table in docs/continuous.md.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest

from tf_infer import config as configs
from tf_infer.client.client import Client
from tf_infer.config import GenerationDefaults, ShapeGrid
from tf_infer.errors import ConfigError
from tf_infer.manifest import ENGINE_FILE, StepEngineManifest, engine_folder
from tf_infer.server.app import Server
from tf_infer.server.config import DecodeConfig, ModelConfig, ServerConfig

SHARED = Path(os.environ.get(
    "TF_INFER_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))
FOLDER = SHARED / "weights" / "stories260K"
BEGINNING = "Once upon a time, there was a little girl"
TOKENS = 200
GUESSES = 3  # of the network as it is

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800), pytest.mark.skipif(
    not FOLDER.is_dir(), reason="needs weights/stories260K in the shared folder (TF_INFER_SHARED)")]


class Form(NamedTuple):
    """How a version was exported, and how it is asked.

    Attributes:
        plan: precision of the plan; "" for the network as it is.
        runs: what makes the tokens of `stream`, the SavedModel or the engine.
        way: `generate` through Predict, whole batches; `stream`, the slot engine.
    """

    plan: str
    runs: Literal["saved_model", "litert"]
    way: Literal["generate", "stream"]

    @property
    def precision(self) -> str:
        return ENGINES[self.plan] if self.runs == "litert" else self.plan or "float32"


ENGINES = {"": "float32", "int8": "int8"}  # plan -> precision of the engine that goes with it
# The network's largest lead, nats, at any place where a form's best token is another one, as
# docs/optimisation.md has it from 20,000 places; the bound of the export is looser.
LEADS = {"float32": 0.0, "bfloat16": 0.4, "int8": 0.7}
FORMS = [Form(plan, runs, way) for plan in ("", "int8", "bfloat16", "float32")  # type: ignore[arg-type]
         for runs, way in (("saved_model", "generate"), ("saved_model", "stream"),
                           ("litert", "stream")) if runs == "saved_model" or plan in ENGINES]


class Golden(NamedTuple):
    """llama2.c's own test, greedy, and how sure float32 is of it.

    Attributes:
        ids: [TOKENS] of the story.
        text: of it.
        margins: [TOKENS], nats from the story's id to the next likeliest at its place.
    """

    ids: list[int]
    text: str
    margins: np.ndarray


@pytest.fixture(scope="module")
def network() -> Any:
    from tf_infer.networks import build, checkpoints

    checkpoint = checkpoints.read(FOLDER)
    made = build.decoder(checkpoint.network, vocab_size=checkpoint.vocab_size)
    checkpoint.assign(made)
    return made


@pytest.fixture(scope="module")
def golden(network: Any) -> Golden:
    told = json.loads((FOLDER / "golden_greedy.json").read_text())
    ids = np.array([told["greedy_ids"]], np.int32)
    logits = np.asarray(network(ids, np.ones(ids.shape, bool)))[0, :TOKENS]  # [TOKENS, V]
    best = np.sort(logits, axis=-1)
    assert logits.argmax(axis=-1).tolist() == told["greedy_ids"][1:]
    return Golden(told["greedy_ids"][1:], told["greedy_text"], best[:, -1] - best[:, -2])


class Stories:
    """Exports and servers of the model, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bases = folder, dict[str, Path]()
        self._servers, self._clients = list[Server](), dict[tuple[str, str], Client]()

    def base(self, plan: str) -> Path:
        """Return the folder of the model, exported with a plan and perhaps an engine."""
        if plan not in self._bases:
            self._bases[plan] = self._exported(plan)
        return self._bases[plan]

    def _exported(self, plan: str) -> Path:
        """Write a version, loaded once by the loader that servers do not take."""
        from tf_infer.cli.engine import write_engine
        from tf_infer.equality import Tolerance
        from tf_infer.export.saved_model import save
        from tf_infer.optimize.apply import apply
        from tf_infer.optimize.litert import EngineSettings
        from tf_infer.optimize.plan import PATHS_ATOL, read_plan, require_native
        from tf_infer.processor import cpu_flags
        from tf_infer.tasks.build import from_checkpoint
        from tf_infer.verify import golden, parity
        from tf_infer.verify.predictors import GraphPredictor, SavedModelPredictor
        from tf_infer.wire.examples import to_example

        if plan:
            try:
                require_native(read_plan(plan), cpu_flags())
            except ConfigError as error:
                pytest.skip(str(error))
        if plan in ENGINES:
            pytest.importorskip("ai_edge_litert", reason="needs the extra `server`")
        files = self._folder / "tokenizer"
        files.mkdir(exist_ok=True)
        shutil.copyfile(FOLDER / "tok512_rebuilt.model", files / "tokenizer.model")
        (files / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}))
        reference = from_checkpoint(
            FOLDER, {"capacity": TOKENS, "defaults": GenerationDefaults(max_new_tokens=4),
                     "grid": ShapeGrid(rows=(1, 8), tokens=(64,)),
                     **({} if plan else {"guesses": GUESSES})},
            tokenizer_dir=files, max_tokens=64)
        task = apply(reference, read_plan(plan)) if plan else reference
        graph = GraphPredictor(task.signatures())
        samples = parity.fill(graph, golden.make_requests(
            [one.spec for one in task.signatures().values()], [(BEGINNING.encode(),)],
            encode=graph, example=lambda features: bytes(to_example(features).SerializeToString())))
        atol = {str(name): atol for name, atol in PATHS_ATOL.items()}.get(plan, 1e-4)
        settings: Any = {"precision": ENGINES.get(plan), "rows": (1, 8), "chunks": (16, 64)}

        def extras(extra: Path) -> None:
            if plan in ENGINES:
                write_engine(reference, extra, EngineSettings(**settings), [BEGINNING.encode()],
                             lambda line: None)

        return save(task, self._folder / f"stories-{plan}", name="stories", golden=samples,
                    extras=extras, check=lambda version: parity.verify(
                        {"saved_model": lambda: SavedModelPredictor(version)}, samples,
                        Tolerance(atol=atol))).parent

    def client(self, form: Form) -> Client:
        """Return a client of a server in which a form answers."""
        place = form.plan, form.runs
        if place not in self._clients:
            base = self.base(form.plan)
            socket_path = f"{self._folder}/{form.plan}-{form.runs}.socket"
            server = Server(ServerConfig(
                models=(ModelConfig(name="stories", base_path=str(base)),), port=0,
                socket_path=socket_path, warmup=False, golden_replay=False,
                decode=DecodeConfig(engine=form.runs)))
            server.start()
            self._servers.append(server)
            self._clients[place] = Client(f"unix:{socket_path}", timeout_s=300)
        return self._clients[place]

    def tolerance(self, form: Form) -> float:
        """Return how far, nats, the export let a log-probability of a form be from the network's.
        """
        from tf_infer.optimize.plan import ATOL

        if form.runs == "litert":
            folder = engine_folder(self.base(form.plan) / "1", "litert")
            return configs.load(StepEngineManifest, folder / ENGINE_FILE).atol
        return {str(name): atol for name, atol in ATOL.items()}[form.precision]

    def close(self) -> None:
        """Stop all."""
        for client in self._clients.values():
            client.close()
        for server in self._servers:
            server.stop(0.0)


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    made = Stories(tmp_path_factory.mktemp("stories"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def client(stories: Stories) -> Client:
    """Return a client of the network as it is, served from its SavedModel."""
    return stories.client(Form("", "saved_model", "stream"))


def told(client: Client, prompt: str, **options: Any) -> tuple[str, list[int]]:
    """Return text and ids of a streamed answer."""
    with client.stream("stories", prompt, **options) as stream:
        ids = [token.id for piece in stream for token in piece.tokens]
    return stream.text, ids


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form).lstrip("-"))
def test_it_tells_its_golden_story_as_far_as_a_form_is_sure_of_it(
        stories: Stories, golden: Golden, form: Form) -> None:
    client, tolerance = stories.client(form), stories.tolerance(form)
    name = f"{form.plan or 'as it is'}, {form.runs} by {form.way}"
    if form.way == "generate":
        answer = client.generate("stories", [""], max_new_tokens=TOKENS)[0]
        text, ids = answer.text, list(answer.ids)
    else:
        text, ids = told(client, "", max_new_tokens=TOKENS)
    assert len(ids) == TOKENS
    left = next((place for place in range(TOKENS) if ids[place] != golden.ids[place]), None)
    if left is None:
        print(f"{name}: the golden story, {TOKENS} tokens")
        assert text == golden.text
        return
    margin = float(golden.margins[left])
    print(f"{name}: leaves at token {left}, margin {margin:.4f} nats, tolerance {tolerance:.4f}")
    assert margin < min(tolerance, LEADS[form.precision])


def test_a_batch_tells_the_golden_story_beside_another_prompt(
        client: Client, golden: Golden) -> None:
    whole, rest = client.generate("stories", ["", BEGINNING], max_new_tokens=[TOKENS, 60])
    assert list(whole.ids) == golden.ids
    assert (whole.text, whole.finish_reason) == (golden.text, "length")
    assert golden.text.startswith(BEGINNING + rest.text)
    assert len(rest.ids) == 60


def test_guesses_tell_the_golden_story_beside_another_prompt(client: Client, golden: Golden
                                                             ) -> None:
    whole, rest = client.generate("stories", ["", BEGINNING], max_new_tokens=[TOKENS, 60],
                                  speculative=True)
    assert list(whole.ids) == golden.ids
    assert (whole.text, whole.finish_reason) == (golden.text, "length")
    assert golden.text.startswith(BEGINNING + rest.text)
    assert whole.accepted > 0 and whole.rounds + whole.accepted == TOKENS - 1


def test_a_story_is_as_likely_as_the_network_finds_it(
        client: Client, golden: Golden, network: Any) -> None:
    """`score` over gRPC against rows that are read again, in float64."""
    from tests.oracles import continuation as oracle

    rest = golden.text[len(BEGINNING):][:90]
    prompts, continuations = ["", BEGINNING, BEGINNING], [BEGINNING, rest, " xyz"]
    found = client.score("stories", prompts, continuations)
    for one, prompt, continuation in zip(found, prompts, continuations):
        read = client.predict("stories", {"text": [prompt + continuation]}, signature="encode")
        real = read["mask"][0].astype(bool)
        ids, ends = read["ids"][0][real].tolist(), read["ends"][0][real]
        begin = max(1, int((ends <= len(prompt)).sum()))
        wanted = oracle.score(network, ids, begin)
        assert len(one.token_logprobs) == len(ids) - begin
        assert one.score == pytest.approx(wanted, abs=1e-3)
        assert one.perplexity == pytest.approx(np.exp(-wanted / (len(ids) - begin)), rel=1e-3)
    assert found[1].perplexity < found[2].perplexity / 10


def test_the_golden_story_comes_in_pieces(client: Client, golden: Golden) -> None:
    with client.stream("stories", "", max_new_tokens=TOKENS) as stream:
        pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.text == golden.text
    assert sum(bool(piece.text) for piece in pieces) > 20, "it came all at once"
    assert (stream.finish_reason, stream.usage.new_tokens) == ("length", TOKENS)


def test_stories_told_at_once_are_the_stories_told_alone(client: Client, golden: Golden) -> None:
    """Eight join and leave one running batch: the golden one among drawn ones of other lengths."""
    asked: list[tuple[str, dict[str, Any]]] = [("", {"max_new_tokens": TOKENS})] + [
        (BEGINNING, {"max_new_tokens": 20 * row, "temperature": 0.9, "seed": row})
        for row in range(1, 8)]
    alone = [told(client, prompt, **options)[0] for prompt, options in asked]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda one: told(client, one[0], **one[1])[0], asked))
    assert together == alone
    assert together[0] == golden.text
    assert len(set(together)) == len(asked)
    # What is drawn in the graph, eight rows in one batch, is what the slots draw.
    batch = client.generate("stories", [prompt for prompt, _ in asked], **{
        name: [options.get(name, 0) for _, options in asked]
        for name in ("max_new_tokens", "temperature", "seed")})
    assert [answer.text for answer in batch] == alone
