"""The slot engine over an exported decoder: every answer is what `generate` gives for it."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.server.slotkit import Heard, until
from tests.tasks import small
from tf_infer import token_bytes
from tf_infer.config import (
    CausalLMConfig,
    ChoicesConfig,
    GenerationDefaults,
    PackingConfig,
    ShapeGrid,
)
from tf_infer.engines.contracts import Part
from tf_infer.errors import InvalidRequest
from tf_infer.export import saved_model
from tf_infer.manifest import ModelManifest, engine_folder
from tf_infer.networks.contracts import Cache
from tf_infer.optimize import litert
from tf_infer.server import slot_engines
from tf_infer.server.config import DecodeConfig
from tf_infer.server.forms import EngineForm, Form
from tf_infer.server.generation import Constraint, GenerationRequest
from tf_infer.server.saved_form import SavedForm
from tf_infer.server.servable import SavedModelServable
from tf_infer.server.slot_engine import EngineLimits, SlotEngine, Watch
from tf_infer.server.slot_engines import LITERT
from tf_infer.tasks.base import Signature
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.slow  # a decoder with all its options takes half a minute to write

SCORE_ATOL = 2e-3  # up to 24 summed float32 log-probabilities, by two routes through the network
SERVED = ("generate", "encode", "decode", "steps", "choose")
CONFIG = CausalLMConfig(
    network=dataclasses.replace(small.NETWORK, max_positions=56), grid=ShapeGrid(
        rows=(1, 4), tokens=(8, 32)), capacity=24, end_ids=(2, *range(250, 259)),
    packing=PackingConfig(max_tokens=32, end=False, truncation="left"),
    defaults=GenerationDefaults(max_new_tokens=24),
    constraints={"numbers": ChoicesConfig(choices=("one", "two", "three"))})


class Served(CausalLM):
    """A decoder with the signatures that matter here: each takes seconds to write."""

    def signatures(self) -> Mapping[str, Signature]:
        return {name: one for name, one in super().signatures().items() if name in SERVED}


@pytest.fixture(scope="module")
def task() -> Served:
    built = build(CONFIG, seed=7)
    return Served(built.config, built.codec, built.network)


@pytest.fixture(scope="module")
def version(task: Served, tmp_path_factory: pytest.TempPathFactory) -> SavedModelServable:
    folder = tmp_path_factory.mktemp("decoder") / "1"
    saved_model.write_saved_model(task, folder)
    servable = SavedModelServable(folder)
    servable.manifest = saved_model._describe(task, name="writer", version=1, plan={})
    return servable


@contextmanager
def engine_over(version: SavedModelServable, task: Served, *, form: Form | None = None,
                table: bool = True, watch: Watch | None = None, **limits: int,
                ) -> Iterator[SlotEngine]:
    manifest = version.manifest
    assert manifest is not None
    tokens = task.codec.token_bytes() if table else None
    assert tokens is None or isinstance(tokens, token_bytes.TokenBytes)
    made = SlotEngine(version, manifest, lambda: form or SavedForm(version, manifest, 4),
                      EngineLimits(**{"slots": 4, "chunk": 8, **limits}),
                      tokens=tokens, watch=watch)
    try:
        yield made
    finally:
        made.close()


def requests(manifest: ModelManifest, count: int, seed: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Draw requests of all kinds, the same for a seed."""
    draw = random.Random(seed)
    there = {spec.name for spec in manifest.signature("generate").inputs}
    found = []
    for _ in range(count):
        prompt = "".join(draw.choice("ab é中") for _ in range(draw.randrange(16))).encode()
        options: dict[str, Any] = {"max_new_tokens": draw.randrange(25)}
        if draw.random() < 0.7:
            options.update(temperature=draw.choice([0.7, 1.5]), seed=draw.randrange(-2**63, 2**63),
                           top_k=draw.choice([0, 5, 300]), top_p=draw.choice([0.8, 1.0]))
        more = {"min_new_tokens": min(draw.randrange(8), options["max_new_tokens"]),
                "draw": draw.randrange(3),
                "repetition_penalty": draw.choice([1.0, 1.3]), "min_p": draw.choice([0.0, 0.05]),
                "frequency_penalty": draw.choice([0.0, 0.7]), "logit_bias": "70:3.5\x1f71:-2.0",
                "banned": "q\x1fzz", "stop": draw.choice(["a", "é\x1f@", "x1"]),
                "stop_ids": "9\x1f12", "forced_prefix": "So "}
        if options["max_new_tokens"] < 3:
            del more["forced_prefix"]
        asks = draw.random()
        if asks < 0.15:  # what a constraint is asked for beside the others is its own tests'
            more = {"constraint": "numbers", draw.choice(["stop", "stop_ids"]): "r"}
            if "stop_ids" in more:
                more["stop_ids"] = "104"  # "e", with which two of them end
        elif asks < 0.3:
            more = {"choices": "abc\x1fde\x1fé", "stop_ids": "101"}
        options.update({name: value for name, value in more.items()
                        if name in there and draw.random() < (0.35 if asks >= 0.3 else 0.8)})
        found.append((prompt, options))
    return found


def generated(version: SavedModelServable, prompt: bytes, options: Mapping[str, Any],
              ) -> dict[str, Any]:
    """Ask the signature `generate` for one prompt alone."""
    assert version.manifest is not None
    inputs: dict[str, np.ndarray] = {"prompt": np.asarray([prompt], object)}
    for spec in version.manifest.signature("generate").inputs[1:]:
        value = options.get(spec.name, spec.default)
        if spec.dtype == "string":
            inputs[spec.name] = np.asarray([value.encode() if isinstance(value, str) else value],
                                           object)
        else:
            inputs[spec.name] = np.asarray([value], spec.dtype)
    names = ("text", "ids", "length", "score", "finish_reason", "token_logprobs", "top_ids")
    out = version.run("generate", inputs, outputs=names, timeout_s=None)
    return {name: out[name][0] for name in names}


def holds(heard: Heard, wanted: Mapping[str, Any]) -> None:
    answer = heard.answer()
    assert answer.ids == tuple(wanted["ids"][:wanted["length"]])
    assert answer.text == wanted["text"]
    assert answer.reason == wanted["finish_reason"].decode()
    assert answer.score == pytest.approx(wanted["score"], abs=SCORE_ATOL)


def asked(engine: SlotEngine, prompt: bytes, options: Mapping[str, Any], **more: Any) -> Heard:
    heard = Heard()
    heard.ticket = engine.submit(GenerationRequest(prompt=prompt, options=options, **more), heard)
    return heard


class NetworkEngine:
    """A StepEngine over the task's own network, so that `choose` meets the logits of `generate`."""

    def __init__(self, task: Served, slots: int) -> None:
        self._network, self.slots, self.guesses = task.network, slots, 0
        self.positions, self.chunk, self.vocab_size = 56, 8, task.codec.vocab_size
        _, cache = task.network.prefill(tf.zeros([slots, 1], tf.int32), tf.ones([slots], tf.int32),
                                        capacity=self.positions)
        self._layers = cache.layers

    def read(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        return self._extend(np.tile(ids, (self.slots, 1)), {slot: len(ids)}, {slot: start})[slot]

    def read_many(self, parts: Sequence[Part]) -> np.ndarray:
        return np.stack([self.read(*part) for part in parts])

    def step(self, tokens: np.ndarray, lengths: np.ndarray, active: Sequence[int]) -> np.ndarray:
        return self._extend(tokens[:, None], dict.fromkeys(active, 1),
                            {slot: int(lengths[slot]) for slot in active})

    def _extend(self, ids: np.ndarray, counts: Mapping[int, int], lengths: Mapping[int, int],
                ) -> np.ndarray:
        many, held = ([given.get(slot, 0) for slot in range(self.slots)]
                      for given in (counts, lengths))
        logits, cache = self._network.extend(tf.constant(ids), tf.constant(many),
                                             Cache(self._layers, tf.constant(held)))
        self._layers = cache.layers
        found: np.ndarray = logits[:, -1].numpy()
        return found

    def extend(self, slot: int, ids: np.ndarray, start: int) -> np.ndarray:
        raise AssertionError("it reads nothing in one go")

    def save(self, slot: int, length: int) -> np.ndarray:
        return np.stack([tensor[slot, :, :length].numpy() for layer in self._layers
                         for tensor in layer])

    def restore(self, slot: int, saved: np.ndarray) -> None:
        flat = [tensor.numpy() for layer in self._layers for tensor in layer]
        for tensor, held in zip(flat, saved):
            tensor[slot, :, :held.shape[1]] = held
        tensors = [tf.constant(tensor) for tensor in flat]
        self._layers = tuple(zip(tensors[::2], tensors[1::2]))

    def close(self) -> None:
        self._layers = ()


class Guessed(Watch):
    accepted = 0

    def guessed(self, proposed: int, accepted: int) -> None:
        assert 0 <= accepted <= proposed
        self.accepted += accepted


def test_what_comes_through_an_engine_and_choose_is_what_generate_gives(
        version: SavedModelServable, task: Served) -> None:
    manifest = version.manifest
    assert manifest is not None
    drawn = requests(manifest, 20, seed=4)
    with engine_over(version, task, form=EngineForm(NetworkEngine(task, 4), version, manifest),
                     prefix_bytes=2**20) as engine:
        heard = [asked(engine, prompt, options, top_logprobs=2) for prompt, options in drawn]
        for one, (prompt, options) in zip(heard, drawn):
            wanted = generated(version, prompt, {**options, "logprobs": 2})
            holds(one, wanted)
            for place, token in enumerate(one.tokens()):
                assert token.logprob == pytest.approx(wanted["token_logprobs"][place], abs=1e-3)
                assert [number for number, _, _ in token.top] == list(wanted["top_ids"][place][:2])


def test_what_comes_through_a_LiteRT_engine_is_what_generate_gives(
        version: SavedModelServable, task: Served, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    manifest = version.manifest
    assert manifest is not None
    folder = engine_folder(tmp_path, LITERT)
    litert.write(task.network, folder, litert.EngineSettings(
        precision="float32", rows=(1, 2, 4), chunks=(4, 16)), positions=56)
    form = slot_engines._form(DecodeConfig(slots=3), version, manifest, tmp_path)
    assert isinstance(form, EngineForm) and (form.slots, form.chunk) == (3, 16)
    drawn = requests(manifest, 30, seed=5)
    with engine_over(version, task, form=form, prefix_bytes=2**20, chunk=16) as engine:
        heard = [asked(engine, prompt, options) for prompt, options in drawn]
        for one, (prompt, options) in zip(heard, drawn):
            holds(one, generated(version, prompt, options))
        assert engine.prefix_bytes > 0 and engine.slots == 3


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_guesses_change_no_bit_of_what_a_LiteRT_engine_answers(
        version: SavedModelServable, task: Served, tmp_path: Path, precision: Any) -> None:
    pytest.importorskip("ai_edge_litert")
    manifest = version.manifest
    assert manifest is not None
    litert.write(task.network, engine_folder(tmp_path, LITERT), litert.EngineSettings(
        precision=precision, cache=precision, rows=(1, 2, 4), chunks=(4, 16)), positions=56)
    drawn = requests(manifest, 40, seed=6)
    drawn = [(prompt + 2 * prompt, options) for prompt, options in drawn]
    told = []
    for guesses in (0, 3):
        form = slot_engines._form(DecodeConfig(guesses=guesses), version, manifest, tmp_path)
        watch = Guessed()
        with engine_over(version, task, form=form, chunk=16, watch=watch) as engine:
            heard = [asked(engine, prompt, options, top_logprobs=2).wait()
                     for prompt, options in drawn]
            told.append([(one.answer(), [(token.id, token.piece, token.logprob, token.top)
                                         for token in one.tokens()]) for one in heard])
        assert (watch.accepted > 20) is (guesses > 0)
    assert told[0] == told[1]


@pytest.mark.parametrize("engine_form", [True, False], ids=["engine", "saved"])
@pytest.mark.parametrize("kind", ["regex", "choices"])
def test_a_constraint_is_kept_by_an_untrained_model(
        version: SavedModelServable, task: Served, kind: str, engine_form: bool) -> None:
    if kind == "regex":
        pytest.importorskip("outlines_core")
    value = {"regex": "[ab]{2,5}c", "choices": "one\x1ftwo\x1fé"}[kind]
    manifest = version.manifest
    assert manifest is not None
    form = EngineForm(NetworkEngine(task, 4), version, manifest) if engine_form else None
    with engine_over(version, task, form=form) as engine:
        heard = [asked(engine, b"a", {"temperature": 1.5, "seed": seed},
                       constraint=Constraint(kind=kind, value=value)) for seed in range(8)]
        texts = [one.answer().text.decode() for one in heard]
    if kind == "regex":
        assert all(re.fullmatch(value, text) for text in texts)
    else:
        assert set(texts) <= set(value.split("\x1f"))
    assert len(set(texts)) > 1


@pytest.mark.parametrize("table", [True, False], ids=["table", "decoded"])
def test_what_comes_through_the_saved_model_is_what_generate_gives(
        version: SavedModelServable, task: Served, table: bool) -> None:
    assert version.manifest is not None
    drawn = [(prompt, options) for prompt, options in requests(version.manifest, 24, seed=3)
             if table or "choices" not in options]  # which are kept by the bytes of the tokens
    with engine_over(version, task, table=table, prefix_bytes=2**20) as engine:
        heard = [asked(engine, prompt, options) for prompt, options in drawn]
        for one, (prompt, options) in zip(heard, drawn):
            holds(one, generated(version, prompt, options))
        until(lambda: engine.counts() == (0, 0))
        assert engine.prefix_bytes > 0
    assert {one.pieces[-1].finish_reason for one in heard} >= {"stop", "length"}


@pytest.mark.parametrize("engine_form", [True, False], ids=["engine", "saved"])
def test_why_a_constrained_text_ends_is_what_generate_says(
        version: SavedModelServable, task: Served, engine_form: bool) -> None:
    manifest = version.manifest
    assert manifest is not None
    form = EngineForm(NetworkEngine(task, 4), version, manifest) if engine_form else None
    drawn = [{how: value, "seed": seed, "temperature": 1.0, **more}
             for how, value in (("constraint", "numbers"), ("choices", "one\x1fon\x1fé"))
             for more in ({}, {"stop_ids": "104"}, {"stop": "e"}, {"max_new_tokens": 2},
                          {"max_new_tokens": 0}) for seed in range(3)]
    with engine_over(version, task, form=form) as engine:
        heard = [asked(engine, b"ab", options) for options in drawn]
        for one, options in zip(heard, drawn):
            holds(one, generated(version, b"ab", options))
    assert {one.pieces[-1].finish_reason for one in heard} == {"stop", "length", "incomplete"}


def test_a_rule_of_the_graph_ends_that_request_alone(
        version: SavedModelServable, task: Served) -> None:
    with engine_over(version, task) as engine:
        heard = [asked(engine, b"a", {"top_p": value, "max_new_tokens": 3})
                 for value in (1.0, 0.0, 0.5)]
        assert "top_p: expected 0 < top_p <= 1" in heard[1].failure().details
        assert isinstance(heard[1].failure(), InvalidRequest)
        for place in (0, 2):
            assert len(heard[place].answer().ids) <= 3


def test_a_prefix_longer_than_the_limit_is_refused_as_generate_refuses_it(
        version: SavedModelServable, task: Served) -> None:
    message = "forced_prefix: expected at most max_new_tokens"
    long = {"forced_prefix": "So far", "max_new_tokens": 5}
    with engine_over(version, task) as engine:
        with pytest.raises(InvalidRequest, match=message):
            asked(engine, b"a", long)
        with pytest.raises(InvalidRequest, match=message):
            generated(version, b"a", long)
        fits = {**long, "max_new_tokens": 6}
        holds(asked(engine, b"a", fits), generated(version, b"a", fits))
