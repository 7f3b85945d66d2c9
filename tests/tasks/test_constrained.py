"""A decoder whose texts must look like something: names of automata, choices, reasons, errors."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tests.tasks.suite import as_arrays, option_rows
from tests.text.test_rows import GOLDEN
from tf_infer import config as configs
from tf_infer.config import (
    CausalLMConfig,
    ChoicesConfig,
    GenerationDefaults,
    JsonSchemaConfig,
    PackingConfig,
    RegexConfig,
    SentencePieceConfig,
    ShapeGrid,
    SmallTransformerConfig,
)
from tf_infer.constraints.automaton import packed
from tf_infer.errors import ConfigError
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

pytestmark = pytest.mark.whole

pytest.importorskip("outlines_core", reason="needs pip install 'tf-infer[constraints]'")

DATE = r"\d{4}-(0[1-9]|1[0-2])"
SCHEMA = {"type": "object", "properties": {
    "ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "n"], "additionalProperties": False}
NAMED = {"date": RegexConfig(pattern=DATE), "json": JsonSchemaConfig(schema=SCHEMA),
         "mood": ChoicesConfig(choices=("glad", "gladly", "非常"))}
CONFIG = CausalLMConfig(
    network=dataclasses.replace(small.NETWORK, layers=1, max_positions=70), packing=small.PROMPT,
    grid=ShapeGrid(rows=(32,), tokens=(8, 32)), capacity=30, constraints=NAMED,
    defaults=GenerationDefaults(max_new_tokens=30), top_logprobs=0)
PROMPTS = ["", "a", "Where is my parcel?", "中文", "x" * 300]
Answer = dict[str, np.ndarray]
Generate = Callable[..., Answer]


def generator(task: CausalLM) -> Generate:
    signature = task.signatures()["generate"]
    graph = tf.function(lambda **inputs: signature.function(**inputs), autograph=False
                        ).get_concrete_function(**signature.input_specs())

    def generate(prompts: list[str], **given: object) -> Answer:
        return as_arrays(graph(prompt=tf.constant(prompts, tf.string, shape=[len(prompts)]),
                               **option_rows(task, "generate", len(prompts), given)))

    return generate


@pytest.fixture(scope="module")
def task() -> CausalLM:
    return build(CONFIG, seed=3)


@pytest.fixture(scope="module")
def generate(task: CausalLM) -> Generate:
    return generator(task)


def fits(name: str, text: str) -> bool:
    if name == "date":
        return bool(re.fullmatch(DATE, text))
    if name == "json":
        value = json.loads(text)
        return set(value) == {"ok", "n"} and type(value["ok"]) is bool and 0 <= value["n"] <= 99
    return text in NAMED["mood"].choices


def test_rows_with_and_without_constraints_stand_side_by_side(generate: Generate) -> None:
    names = ["date", "", "json", "mood", "", ""] * 5
    choices = ["", "", "", "", "yes\x1fyes!\x1f no", ""] * 5
    prompts = (PROMPTS * 6)[:30]
    options = {"temperature": np.tile([0.0, 1.5], 15), "seed": np.arange(30), "top_p": 0.9}
    found = generate(prompts, constraint=names, choices=choices, **options)
    said = set()
    for row, (name, choice) in enumerate(zip(names, choices)):
        text = found["text"][row]
        if name or choice:
            assert found["finish_reason"][row] == b"stop"
            assert fits(name, text.decode()) if name else text.decode() in choice.split("\x1f")
            said.add((name, text))
        else:
            assert found["finish_reason"][row] == b"length"
    assert len(said) > 10
    plain = [row for row in range(30) if not (names[row] or choices[row])]
    alone = generate([prompts[i] for i in plain], temperature=options["temperature"][plain],
                     seed=options["seed"][plain], top_p=0.9)
    assert (alone["text"] == found["text"][plain]).all()
    for row in (0, 2, 3, 4):
        one = generate([prompts[row]], constraint=names[row], choices=choices[row],
                       temperature=options["temperature"][row], seed=row, top_p=0.9)
        assert one["text"][0] == found["text"][row]
        assert one["score"][0] == pytest.approx(found["score"][row], abs=1e-4)


def test_a_limit_before_the_end_is_told_from_one_behind_it(generate: Generate) -> None:
    found = generate(["a"] * 5, constraint=["date"] * 3 + ["", ""], choices=["", "", "", "glad\x1f"
                     "gladly", "glad"], max_new_tokens=[7, 6, 0, 4, 3])
    assert found["finish_reason"].tolist() == [
        b"length", b"incomplete", b"incomplete", b"length", b"incomplete"]
    assert fits("date", found["text"][0].decode()) and found["text"][3] == b"glad"
    assert found["length"].tolist() == [7, 6, 0, 4, 3]


def test_a_constraint_wins_over_everything_else(generate: Generate) -> None:
    found = generate(
        ["a"] * 6, constraint=["date", "date", "date", "mood", "", "date"],
        choices=["", "", "", "", "b\x1fab", ""], min_new_tokens=[30, 0, 0, 9, 0, 0],
        banned=["", "-", "", "", "b", ""],
        logit_bias=["", "", "100:90000\x1f2:-9000", "", "2:90000\x1f101:-9000", ""],
        forced_prefix=["", "", "", "", "", "zz"], top_k=1, repetition_penalty=3.0, min_p=0.5,
        typical_p=0.5, temperature=[0.0, 1.0, 0.01, 1.0, 100.0, 1.0])
    assert set(found["finish_reason"]) == {b"stop"}
    assert all(fits("date", found["text"][row].decode()) for row in (0, 1, 2, 5))
    assert fits("mood", found["text"][3].decode())
    assert found["text"][4] in (b"b", b"ab")


def test_a_text_that_was_cut_is_not_called_whole(generate: Generate) -> None:
    found = generate(["a"] * 4, constraint=["date", "date", "", ""],
                     choices=["", "", "ab", "ab"], stop=["-", "", "b", ""],
                     stop_ids=["", "48", "", "101"])  # "-" and "b"
    assert found["finish_reason"].tolist() == [b"incomplete"] * 4
    assert [len(text) for text in found["text"]] == [4, 4, 1, 1]


@pytest.mark.parametrize(("options", "message"), [
    ({"constraint": ["date", "nonsense"]}, "constraint: expected a name, of these: date, "
     "json, mood.*First such row:.*1"),
    ({"constraint": ["date", ""], "choices": ["x", ""]}, "choices: expected none beside a const"),
    ({"choices": ["x", "a\x1f"]}, "choices: expected UTF-8 texts that are not empty.*row:.*1"),
    ({"choices": ["x", b"\xff"]}, "choices: expected UTF-8 texts that are not empty"),
    ({"choices": "\x1f".join(map(str, range(513)))}, "choices: expected at most 512"),
    ({"choices": "x" * 4_097}, "choices: expected at most 4096 bytes together"),
])
def test_what_cannot_be_is_refused_and_never_quoted(generate: Generate, options: dict[str, Any],
                                                    message: str) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s){message}") as caught:
        generate(["a", "b"], **options)
    assert "nonsense" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 8, 9, 300])
def test_any_number_of_choices(generate: Generate, count: int) -> None:
    choices = [f"{i:x}-" for i in range(count)]
    found = generate(["p"] * 8, choices="\x1f".join(choices), temperature=3.0, seed=np.arange(8))
    assert all(text.decode() in choices for text in found["text"])
    assert set(found["finish_reason"]) == {b"stop"}


def test_a_host_loop_of_choose_keeps_the_constraint(task: CausalLM) -> None:
    signature = task.signatures()["choose"]
    random, size = np.random.default_rng(0), task.codec.vocab_size
    names, rows = ["date", "json", "mood", ""], 4
    ids, lengths = np.full([rows, 40], 1), np.ones(rows, np.int32)
    state, live = np.zeros(rows, np.int32), np.array([True] * 3 + [False])
    options = option_rows(task, "choose", rows, {"constraint": names, "temperature": 1.0})
    for _ in range(30):
        found = as_arrays(signature.function(
            logits=tf.constant(random.normal(size=[rows, size]) * 5, tf.float32),
            ids=tf.constant(ids, tf.int32), prompt_length=tf.ones([rows], tf.int32),
            length=tf.constant(lengths), allowed=tf.zeros([rows, 0], tf.int32),
            state=tf.constant(state), **options))
        live &= ~found["is_end"]
        ids[np.arange(rows), lengths] = np.where(live, found["token"], 0)
        state, lengths = found["state"], lengths + live
    assert not live.any()
    for row, name in enumerate(names[:3]):
        assert fits(name, bytes((ids[row, 1:lengths[row]] - 3).tolist()).decode())


def test_choose_takes_both_a_name_and_allowed_bits(task: CausalLM) -> None:
    size = task.codec.vocab_size
    mask = np.zeros(size, bool)
    mask[[3 + ord("7"), 3 + ord("x")]] = True
    found = as_arrays(task.signatures()["choose"].function(
        logits=tf.zeros([2, size]), ids=tf.ones([2, 1], tf.int32),
        prompt_length=tf.ones([2], tf.int32), length=tf.ones([2], tf.int32),
        allowed=tf.constant(np.stack([packed(mask)] * 2)), state=tf.zeros([2], tf.int32),
        **option_rows(task, "choose", 2, {"constraint": ["date", ""], "temperature": 0.0})))
    assert found["token"].tolist() == [3 + ord("7"), 3 + ord("7")]
    with pytest.raises(tf.errors.InvalidArgumentError, match="state: expected 0, or what the"):
        task.signatures()["choose"].function(
            logits=tf.zeros([1, size]), ids=tf.ones([1, 1], tf.int32),
            prompt_length=tf.ones([1], tf.int32), length=tf.ones([1], tf.int32),
            allowed=tf.zeros([1, 0], tf.int32), state=tf.constant([999]),
            **option_rows(task, "choose", 1, {"constraint": "date"}))


@pytest.mark.slow
def test_steps_produce_what_generate_produces(task: CausalLM, generate: Generate) -> None:
    names = ["date", "json", "mood", ""]
    options = {"temperature": 1.0, "seed": np.arange(4)}
    wanted = generate(["ab"] * 4, constraint=names, **options)
    steps = task.signatures()["steps"]
    specs = {spec.name: spec for spec in steps.spec.inputs}
    prompt = tf.constant([[1, 100, 101]] * 4)
    inputs = {"ids": prompt, "id_count": tf.fill([4], 3), "count": tf.fill([4], 3),
              "cache": tf.zeros([4, *specs["cache"].shape[1:]]), "lengths": tf.zeros([4], tf.int32),
              "produced": tf.zeros([4], tf.int32), "history": prompt,
              "history_length": tf.fill([4], 3), "allowed": tf.zeros([4, 0], tf.int32),
              "state": tf.zeros([4], tf.int32)}
    said: list[list[int]] = [[] for _ in range(4)]
    running = np.ones(4, bool)
    for _ in range(10):
        found = as_arrays(steps.function(
            **inputs, **option_rows(task, "steps", 4, {"constraint": names, **options})))
        for row in np.flatnonzero(running):
            said[row] += found["tokens"][row, :found["token_count"][row]].tolist()
        running &= ~found["finished"]
        last = [[row[-1]] for row in said]
        inputs |= {"ids": tf.constant(last), "id_count": tf.constant(running.astype(np.int32)),
                   "count": tf.constant(3 * running.astype(np.int32)),
                   "produced": tf.constant([len(row) for row in said]),
                   **{name: tf.constant(found[name]) for name in ("cache", "lengths", "state")}}
    for row in range(4):
        assert said[row] == wanted["ids"][row, :wanted["length"][row]].tolist()


def sentencepiece_task(folder: Path, name: str, **settings: Any) -> CausalLM:
    shutil.copy(GOLDEN / "sentencepiece" / f"{name}.model", folder / "tokenizer.model")
    return build(dataclasses.replace(
        CONFIG, codec=SentencePieceConfig(end_id=2), end_ids=(2,), **settings),
        tokenizer_dir=folder, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bpe", "unigram_bytes"])
def test_spaces_of_sentencepiece_are_those_of_the_text(tmp_path: Path, model: str) -> None:
    generate = generator(sentencepiece_task(tmp_path, model, constraints={
        "word": RegexConfig(pattern=r"[ a-z]{1,6}"), "led": RegexConfig(pattern=r" a[ab]{1,4}")}))
    rows = 12
    for prompt in ("a b", ""):
        found = generate([prompt] * rows, constraint="word", temperature=2.0,
                         seed=np.arange(rows))
        assert set(found["finish_reason"]) <= {b"stop"}
        assert all(re.fullmatch(r"[ a-z]{1,6}", text.decode()) for text in found["text"])
        said = generate([prompt] * rows, choices="ab\x1fa b", temperature=2.0,
                        seed=np.arange(rows))
        assert set(said["text"]) <= {b"ab", b"a b"}
    led = generate(["a"] * rows, constraint="led", temperature=2.0, seed=np.arange(rows))
    assert all(re.fullmatch(r" a[ab]{1,4}", text.decode()) for text in led["text"])
    # Behind an empty prompt the space of a first piece is dropped; the byte of a space is not.
    if model == "unigram_bytes":
        assert generate([""], choices=" a")["text"].tolist() == [b" a"]
        return
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected a prompt that shows some"):
        generate([""], constraint="led")
    with pytest.raises(tf.errors.InvalidArgumentError, match="can spell here"):
        generate([""], choices=" a")


def test_a_faulty_constraint_is_found_when_the_task_is_built() -> None:
    for named, message in (
            ({"a": RegexConfig(pattern="(")}, r"constraints.a: expected a regular .* position 0"),
            ({"b": JsonSchemaConfig(schema={"properties": {"x": {"type": "text"}}})},
             r"constraints.b: expected one or some of .* at #/properties/x/type"),
            ({"c": ChoicesConfig(choices=())}, "constraints.c: expected 1 to 10000 choices")):
        with pytest.raises(ConfigError, match=message):
            build(dataclasses.replace(CONFIG, constraints=named))
    with pytest.raises(ConfigError, match="constraints: expected names that are not empty"):
        dataclasses.replace(CONFIG, constraints={"": RegexConfig(pattern="a")})


def test_named_constraints_are_written_and_read(tmp_path: Path) -> None:
    configs.dump(CONFIG, tmp_path / "task.json")
    assert configs.load(configs.TaskConfig, tmp_path / "task.json") == CONFIG


@pytest.mark.slow
def test_every_path_says_the_same(task: CausalLM, generate: Generate) -> None:
    compiled = generator(task.recompiled("xla"))
    options = {"constraint": ["date", "json", "mood", "", ""], "choices": [""] * 4 + ["a\x1fab"],
               "temperature": 1.0, "seed": np.arange(5)}
    wanted, found = generate(PROMPTS, **options), compiled(PROMPTS, **options)
    for name in ("text", "ids", "length", "finish_reason"):
        assert (wanted[name] == found[name]).all()


def test_without_an_end_id_nothing_can_be_asked_for(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, constraints={}, packing=PackingConfig(max_tokens=32, start=False, end=False,
                                                      truncation="left"),
        codec=SentencePieceConfig(end_id=-1, start_id=-1),
        network=SmallTransformerConfig(width=8, layers=1, heads=1, hidden=8, max_positions=70))
    shutil.copy(GOLDEN / "sentencepiece" / "bpe.model", tmp_path / "tokenizer.model")
    task = build(config, tokenizer_dir=tmp_path)
    with pytest.raises(tf.errors.InvalidArgumentError, match="has no id that ends a text"):
        task.preprocess(prompt=tf.constant(["a"]), **option_rows(task, "generate", 1, {
            "choices": "a"}))
