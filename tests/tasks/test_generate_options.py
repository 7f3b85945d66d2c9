"""Options of a row in `generate`, `choose`, `steps` and `beam`: together, alone, and wrong ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.oracles import decoding as oracle
from tests.tasks import small, suite
from tests.tasks.suite import option_rows, texts
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

ATOL = 1e-4  # float32 through one layer by two routes
FIRST = 3    # id of byte 0
PROMPTS = [b"", b"one", b"a longer prompt", "中文".encode(), b"\xff\x00", b"x" * 40, b"ab ab ab",
           b"e", b"Where is my parcel?", b"two", b"seven", b"q"]
CONFIG = small.SHALLOW_DECODER
CAPACITY = CONFIG.capacity


@pytest.fixture(scope="module")
def task(ask: Asks) -> CausalLM:
    return ask.task


class Asks:
    """Asks signatures as graphs, traced once."""

    def __init__(self, paths: suite.Paths) -> None:
        self.paths = paths
        self.task = paths.task
        assert isinstance(self.task, CausalLM)

    def __call__(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return self.paths.ask("graph", signature, inputs)

    def generate(self, prompts: list[bytes], **given: Any) -> dict[str, np.ndarray]:
        """Greedy, as long as possible, but for what is given: one value, or one for each row."""
        chosen = {"max_new_tokens": CAPACITY, "temperature": 0.0, "top_p": 1.0, **given}
        return self("generate", {"prompt": texts(prompts), **option_rows(
            self.task, "generate", len(prompts), chosen)})


@pytest.fixture(scope="module")
def ask() -> Asks:
    return Asks(suite.paths_of("decoder"))  # traced for the tasks' suite anyway


@pytest.fixture(scope="module")
def mixed(task: CausalLM) -> dict[str, np.ndarray]:
    """Rows of every kind, with limits that leave room to see something."""
    inputs = suite.inputs_for(task, "generate", PROMPTS)
    inputs["max_new_tokens"] = np.full(len(PROMPTS), CAPACITY, np.int32)
    inputs["max_new_tokens"][7] = 0
    inputs["min_new_tokens"] = np.array([0, 0, 4, 0, 0, 0, 6, 0, 0, 0, 0, 2], np.int32)
    return inputs


def ids_of(prompt: bytes) -> list[int]:
    return [1, *(byte + FIRST for byte in prompt[-31:])]


def next_logits(task: CausalLM, rows: list[list[int]]) -> np.ndarray:
    """[N, V] by reading everything again."""
    width = 44
    ids = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)[:, :36]
    mask = np.arange(36) < np.array([len(row) for row in rows])[:, None]
    found = np.asarray(task.network(tf.constant(ids), tf.constant(mask), training=False))
    return found[np.arange(len(rows)), mask.sum(axis=1) - 1]


# ---------------------------------------------------------------------------- loops of the host


def host_loop(task: CausalLM, ask: Asks, inputs: Mapping[str, np.ndarray]
              ) -> list[dict[str, Any]]:
    """Generate by `choose` around a network that has no cache; stop strings in plain bytes."""
    count = len(inputs["prompt"])
    prompts = [ids_of(prompt) for prompt in inputs["prompt"]]
    rows: list[dict[str, Any]] = [
        {"ids": [], "logprobs": [], "top": [], "text": b"", "reason": b"length", "score": 0.0}
        for _ in range(count)]
    limits = [min(int(most), 36 - len(prompt))
              for most, prompt in zip(inputs["max_new_tokens"], prompts)]
    live = [row for row in range(count) if limits[row] > 0]
    spec = task.signatures()["choose"].spec
    options = {one.name: inputs[one.name] for one in spec.inputs if one.name in inputs}
    while live:
        held = [prompts[row] + rows[row]["ids"] for row in live]
        logits = next_logits(task, held)
        ids = np.array([row + [7] * (44 - len(row)) for row in held], np.int32)
        out = ask("choose", {
            **suite.take(options, live), "logits": logits, "ids": ids,
            "prompt_length": np.array([len(prompts[row]) for row in live], np.int32),
            "length": np.array([len(row) for row in held], np.int32),
            "allowed": np.zeros([len(live), 0], np.int32), "state": np.zeros(len(live), np.int32)})
        for place, row in enumerate(list(live)):
            one, token = rows[row], int(out["token"][place])
            one["score"] += float(out["logprob"][place])
            if out["is_end"][place]:
                one["reason"] = b"stop"
                live.remove(row)
                continue
            one["ids"].append(token)
            one["logprobs"].append(out["logprob"][place])
            one["top"].append((out["top_ids"][place], out["top_logprobs"][place]))
            one["text"] += bytes([token - FIRST] if FIRST <= token < FIRST + 256 else [])
            stops = [stop for stop in inputs["stop"][row].split(b"\x1f") if stop]
            if ended := [stop for stop in stops if one["text"].endswith(stop)]:
                one["text"] = one["text"][:-max(map(len, ended))]
                one["reason"] = b"stop"
                live.remove(row)
            elif len(one["ids"]) == limits[row]:
                live.remove(row)
    return rows


def test_a_host_loop_over_choose_gives_what_generate_gives(
        task: CausalLM, ask: Asks, mixed: dict[str, np.ndarray]) -> None:
    found, rows = ask("generate", mixed), host_loop(task, ask, mixed)
    for number, row in enumerate(rows):
        length = int(found["length"][number])
        assert found["ids"][number, :length].tolist() == row["ids"], f"row {number}"
        assert found["text"][number] == row["text"], f"row {number}"
        assert found["finish_reason"][number] == row["reason"], f"row {number}"
        assert found["score"][number] == pytest.approx(row["score"], abs=10 * ATOL)
        np.testing.assert_allclose(found["token_logprobs"][number, :length], row["logprobs"],
                                   atol=ATOL)
        for place, (top_ids, top_logprobs) in enumerate(row["top"]):
            assert found["top_ids"][number, place].tolist() == top_ids.tolist()
            np.testing.assert_allclose(found["top_logprobs"][number, place], top_logprobs,
                                       atol=ATOL)
    assert len({len(row["ids"]) for row in rows}) >= 4
    assert {row["reason"] for row in rows} == {b"stop", b"length"}


@pytest.mark.slow  # seconds to trace; the loop over choose above has the same options
def test_steps_with_the_same_options_give_what_generate_gives(
        task: CausalLM, ask: Asks, mixed: dict[str, np.ndarray]) -> None:
    inputs = {**mixed, "stop": texts([b""] * len(PROMPTS))}  # the loop's own affair
    # All rows go in step here: one that ends at the positions would not.
    inputs = suite.take(inputs, [row for row in range(len(PROMPTS)) if row not in (5, 7)])
    wanted, count = ask("generate", inputs), len(inputs["prompt"])
    spec = task.signatures()["steps"].spec
    options = {one.name: inputs[one.name] for one in spec.inputs if one.name in inputs}
    cache = next(one for one in spec.inputs if one.name == "cache")
    state = {"cache": np.zeros([count, *cache.shape[1:]], np.float32),
             "lengths": np.zeros(count, np.int32), "state": np.zeros(count, np.int32)}
    options["allowed"] = np.zeros([count, 0], np.int32)
    held = [ids_of(prompt) for prompt in inputs["prompt"]]
    before, live = [len(row) for row in held], np.ones(count, bool)
    unread = [list(row) for row in held]
    for size in (3, 1, 6):
        width = max(map(len, unread))
        out = ask("steps", {
            **options, **state,
            "ids": np.array([row + [0] * (width - len(row)) for row in unread], np.int32),
            "id_count": np.where(live, [len(row) for row in unread], 0).astype(np.int32),
            "count": np.where(live, size, 0).astype(np.int32),
            "produced": np.array([len(row) for row in held], np.int32) - np.int32(before),
            "history": np.array([row + [9] * (44 - len(row)) for row in held], np.int32),
            "history_length": np.array([len(row) for row in held], np.int32)})
        for row in range(count):
            start, length = len(held[row]) - before[row], int(out["token_count"][row])
            held[row] += out["tokens"][row, :length].tolist()
            for name in ("token_logprobs", "top_logprobs"):
                np.testing.assert_allclose(out[name][row, :length],
                                           wanted[name][row, start:start + length], atol=ATOL)
            unread[row] = held[row][-1:]
        live &= ~out["finished"]
        state = {name: out[name] for name in ("cache", "lengths", "state")}
    for row in range(count):
        length = int(wanted["length"][row])
        assert held[row][before[row]:] == wanted["ids"][row, :length].tolist(), f"row {row}"


def test_what_is_not_allowed_is_never_chosen(task: CausalLM, ask: Asks) -> None:
    size, count = task.codec.vocab_size, 64
    generator = np.random.default_rng(5)
    allowed = np.zeros([count, -(-size // 32)], np.int32)
    wanted = []
    for row in range(count):
        ids = generator.integers(0, size, row % 3 + 1)
        for number in ids:
            allowed[row, number // 32] |= np.array(1 << (number % 32), np.uint32).astype(np.int32)
        wanted.append(set(ids.tolist()))
    inputs = suite.inputs_for(task, "choose", [b""] * count)
    inputs |= {"allowed": allowed, "forced_prefix": texts([b""] * count)}
    out = ask("choose", inputs)
    assert all(int(out["token"][row]) in wanted[row] for row in range(count))
    # A minimum that leaves nothing else gives way.
    inputs = suite.take(inputs, slice(0, 1))
    end = np.zeros_like(inputs["allowed"])
    end[0, 0] = 4
    out = ask("choose", {**inputs, "allowed": end, "min_new_tokens": np.int32([7])})
    assert out["token"].tolist() == [2] and out["is_end"].tolist() == [True]


# ---------------------------------------------------------------------------- one by one


def test_a_text_is_cut_before_its_stop_string(ask: Asks) -> None:
    whole = ask.generate([b"stop"] * 4, temperature=1.0, seed=[1, 2, 3, 4], min_new_tokens=CAPACITY)
    assert (whole["length"] == CAPACITY).all()
    spelled = [bytes(i - FIRST for i in row if FIRST <= i < 259) for row in whole["ids"]]
    wanted = [text[4:6] for text in spelled]
    found = ask.generate([b"stop"] * 4, temperature=1.0, seed=[1, 2, 3, 4],
                         min_new_tokens=CAPACITY, stop=texts([*wanted[:3], b"\x01\x1f\x02\x03"]))
    for row in range(3):
        assert found["text"][row] == spelled[row][:spelled[row].index(wanted[row])]
        assert found["finish_reason"][row] == b"stop"
        end = found["length"][row]
        np.testing.assert_array_equal(found["ids"][row, :end], whole["ids"][row, :end])
        assert not found["ids"][row, end:].any() and not found["token_logprobs"][row, end:].any()
    assert found["text"][3] == whole["text"][3]


def test_a_prefix_is_said_first_even_where_it_is_banned(ask: Asks) -> None:
    prefixes = [b"x\n\x00", b"yes", b"", b" no"]
    found = ask.generate([b"p"] * 4, forced_prefix=texts(prefixes),
                         banned=texts([b"", b"yes\x1fy", b"", b"o"]))
    for row, prefix in enumerate(prefixes):
        assert found["text"][row].startswith(prefix)
        assert found["length"][row] >= len(prefix)
    free = ask.generate([b"p"])
    assert found["ids"][2].tolist() == free["ids"][0].tolist()


def test_banned_words_are_not_said(ask: Asks) -> None:
    seeds = np.arange(40)
    common = {"temperature": 0.3, "seed": seeds, "min_new_tokens": CAPACITY,
              "logit_bias": "68:50\x1f69:50\x1f35:50"}  # "A", "B", " "
    free = ask.generate([b"p"] * 40, **common)
    assert sum(b"AB" in text for text in free["text"]) > 8
    found = ask.generate([b"p"] * 40, banned="AB", **common)
    assert not any(b"AB" in text for text in found["text"])
    assert any(b"BA" in text for text in found["text"])


def test_stop_ids_and_bias_and_minimum_act_on_their_rows_alone(ask: Asks) -> None:
    found = ask.generate([b"p"] * 4, logit_bias=["70:1000", "70:1e3", "", "2:1e3"],
                         stop_ids=["", "70", "", ""], min_new_tokens=[0, 0, 0, 3])
    assert found["ids"][0].tolist() == [70] * CAPACITY
    assert found["finish_reason"][0] == b"length"
    assert found["length"][1] == 0 and found["finish_reason"][1] == b"stop"
    np.testing.assert_array_equal(found["ids"][2], ask.generate([b"p"])["ids"][0])
    assert found["length"][3] == 3 and found["finish_reason"][3] == b"stop"


def test_draws_of_one_seed_differ_and_repeat(ask: Asks) -> None:
    common = {"temperature": 2.0, "seed": 5, "min_new_tokens": CAPACITY}
    found = ask.generate([b"p"] * 4, draw=[0, 1, 2, 1], **common)
    assert len({tuple(ids) for ids in found["ids"]}) == 3
    np.testing.assert_array_equal(found["ids"][1], found["ids"][3])
    np.testing.assert_array_equal(found["ids"][0], ask.generate([b"p"], **common)["ids"][0])


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("option", "value", "rule"), [
    ("min_new_tokens", -1, "min_new_tokens: expected 0 <= min_new_tokens <= 7."),
    ("min_new_tokens", 6, "min_new_tokens: expected at most max_new_tokens."),
    ("max_new_tokens", 8, "max_new_tokens: expected 0 <= max_new_tokens <= 7."),
    ("min_p", 1.5, "min_p: expected 0 <= min_p <= 1."),
    ("min_p", np.nan, "min_p: expected 0 <= min_p <= 1."),
    ("typical_p", 0.0, "typical_p: expected 0 < typical_p <= 1."),
    ("repetition_penalty", 0.0, "repetition_penalty: expected 0 < repetition_penalty <= 100."),
    ("repetition_penalty", np.inf, "repetition_penalty: expected 0 < repetition_penalty <= 100."),
    ("presence_penalty", np.nan, "presence_penalty: expected -100 <= presence_penalty <= 100."),
    ("frequency_penalty", 101, "frequency_penalty: expected -100 <= frequency_penalty <= 100."),
    ("draw", -1, "draw: expected draw >= 0."),
    ("logprobs", 6, "logprobs: expected 0 <= logprobs <= 5."),
    ("stop", "hidden\x1f\x1fx", "stop: expected at most 8 strings of 1 to 64 bytes."),
    ("stop", "h" * 65, "stop: expected at most 8 strings of 1 to 64 bytes."),
    ("stop", "\x1f".join("hiddenabc"), "stop: expected at most 8 strings of 1 to 64 bytes."),
    ("stop_ids", "5\x1fhidden", "stop_ids: expected at most 16 ids from 0 to 258."),
    ("stop_ids", "259", "stop_ids: expected at most 16 ids from 0 to 258."),
    ("stop_ids", "99999999999", "stop_ids: expected at most 16 ids from 0 to 258."),
    ("stop_ids", "-1", "stop_ids: expected at most 16 ids from 0 to 258."),
    ("stop_ids", "5:1", "stop_ids: expected at most 16 ids from 0 to 258."),
    ("banned", "hidden\x1f", "banned: expected at most 16 words that are not empty."),
    ("banned", "h" * 40, "banned: expected words of at most 32 ids."),
    ("logit_bias", "5", "logit_bias: expected at most 256 items id:value with ids from 0 to 258"),
    ("logit_bias", "5:nan", "logit_bias: expected at most 256 items id:value"),
    ("logit_bias", "5:1e39", "logit_bias: expected at most 256 items id:value"),
    ("logit_bias", "259:1", "logit_bias: expected at most 256 items id:value"),
    ("logit_bias", ":", "logit_bias: expected at most 256 items id:value"),
    ("forced_prefix", "hidden", "forced_prefix: expected at most max_new_tokens ids."),
])
def test_a_wrong_option_is_named_with_its_rule_and_row(
        ask: Asks, option: str, value: Any, rule: str) -> None:
    inputs = option_rows(ask.task, "generate", 3, {"max_new_tokens": 5})
    wrong = inputs[option].numpy()
    wrong[1] = value
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ask("generate", {"prompt": texts([b"secret"] * 3), **inputs, option: wrong})
    message = str(caught.value)
    assert rule in message
    assert "First such row:" in message and re.search(r"\b1\b", message.split("row:")[1])
    assert "secret" not in message and "hidden" not in message


def test_limits_at_the_edge_are_taken(ask: Asks) -> None:
    found = ask.generate(
        [b"\xff\xfe"], max_new_tokens=[5], min_new_tokens=5, top_k=1_000_000, temperature=1.0,
        min_p=1.0, repetition_penalty=100.0, presence_penalty=-100.0, logprobs=5,
        stop="\x1f".join("12345678"), stop_ids="\x1f".join(map(str, range(16))),
        banned="\x1f".join("abcdefghijklmnop"), forced_prefix="12345"[:0] + "zzzzz",
        logit_bias="\x1f".join(f"{i}:-1.5e2" for i in range(256)))
    assert found["text"].tolist() == [b"zzzzz"] and found["finish_reason"][0] == b"length"


# ---------------------------------------------------------------------------- beam


@pytest.fixture(scope="module")
def searching() -> Asks:
    return Asks(suite.Paths(build(replace(CONFIG, beams=3), seed=7)))


def tree_of(task: CausalLM, prompt: bytes) -> np.ndarray:
    """Logits after every history of up to one token: [1 + V, V]."""
    held = ids_of(prompt)
    return next_logits(task, [held, *([*held, token] for token in range(task.codec.vocab_size))])


def beams(ask: Asks, prompts: list[bytes], **given: Any) -> dict[str, np.ndarray]:
    return ask("beam", {"prompt": texts(prompts), **option_rows(
        ask.task, "beam", len(prompts), {"max_new_tokens": 2, **given})})


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_is_the_search_by_lists(searching: Asks, penalty: float) -> None:
    prompts = [b"", b"one", "中".encode()]
    found = beams(searching, prompts, length_penalty=penalty)
    for row, prompt in enumerate(prompts):
        paths = oracle.beam(tree_of(searching.task, prompt), limit=2, end_ids=CONFIG.end_ids,
                            beams=3, length_penalty=penalty)[:3]
        for place, path in enumerate(paths):
            length = int(found["length"][row, place])
            assert found["ids"][row, place, :length].tolist() == list(path.ids)
            assert found["score"][row, place] == pytest.approx(path.score, abs=ATOL)
            assert found["finish_reason"][row, place] == (b"stop" if path.finished else b"length")
            assert found["text"][row, place] == bytes(
                i - FIRST for i in path.ids if FIRST <= i < 259)


@pytest.mark.slow
def test_what_may_be_said_holds_in_a_beam_too(searching: Asks) -> None:
    free = beams(searching, [b"a"], max_new_tokens=4)
    word = free["text"][0, 0][:1].decode("latin-1")
    found = beams(searching, [b"a"] * 3, max_new_tokens=4, forced_prefix=["", "xy", ""],
                  banned=[word if ord(word) < 128 else "", "", ""], min_new_tokens=[0, 0, 4])
    assert all(text.startswith(b"xy") for text in found["text"][1])
    assert (found["length"][2] == 4).all()
    if ord(word) < 128:
        assert not any(word.encode() in text for text in found["text"][0])


@pytest.mark.slow
def test_a_limit_of_nothing_gives_one_empty_hypothesis(searching: Asks) -> None:
    found = beams(searching, [b"a"], max_new_tokens=0)
    assert found["finish_reason"].tolist() == [[b"length", b"none", b"none"]]
    assert found["score"][0, 0] == 0.0 and np.isfinite(found["score"]).all()
    with pytest.raises(tf.errors.InvalidArgumentError, match="length_penalty: expected -10"):
        beams(searching, [b"a"], length_penalty=float("nan"))


def test_without_beams_there_is_no_such_signature() -> None:
    assert "beam" not in build(small.SHALLOW_DECODER, seed=7).signatures()
