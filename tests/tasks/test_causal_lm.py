"""The causal decoder: against recomputation, its limits, its edges, its options, its steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.fakes.codecs import BareCodec, LeadingSpaceCodec, RepairingCodec
from tests.oracles import continuation as oracle
from tests.tasks import small
from tests.tasks.suite import as_arrays, option_rows
from tf_infer.config import BytesConfig, PackingConfig
from tf_infer.decoding.score import place_scores
from tf_infer.tasks import causal_lm, options
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM
from tf_infer.text.contracts import TextCodec

ATOL = 1e-4  # up to 7 summed float32 log-probabilities, by two routes through the network
FIRST = 3    # id of byte 0
MAX_POSITIONS = small.NETWORK.max_positions
PROMPTS = ["", "a", "Where is my parcel?", "\x00", "中文", "x" * 300, "two words", "b"]


@pytest.fixture(scope="module")
def task() -> CausalLM:
    return build(small.DECODER, seed=7)


def generate(task: CausalLM, prompts: list[str] | list[bytes], **given: object
             ) -> dict[str, np.ndarray]:
    return as_arrays(task.signatures()["generate"].function(
        prompt=tf.constant(prompts, tf.string, shape=[len(prompts)]),
        **option_rows(task, "generate", len(prompts), {
            "max_new_tokens": task.config.capacity, "temperature": 0.0, "top_p": 1.0, "seed": 0,
            **given})))


def prompt_ids(prompt: str) -> list[int]:
    return [1, *(byte + FIRST for byte in prompt.encode()[-31:])]


def test_greedy_is_recomputation_without_a_cache(task: CausalLM) -> None:
    limits = [7, 6, 0, 7, 1, 7, 3, 7]
    found = generate(task, PROMPTS, max_new_tokens=limits)
    for row, prompt in enumerate(PROMPTS):
        ids = prompt_ids(prompt)
        limit = min(limits[row], MAX_POSITIONS - len(ids))
        wanted, score, ended = oracle.greedy(task.network, ids, limit=limit,
                                             end_ids=task.config.end_ids)
        length = found["length"][row]
        assert found["ids"][row, :length].tolist() == wanted, f"row {row}"
        assert not found["ids"][row, length:].any()
        assert found["score"][row] == pytest.approx(score, abs=ATOL)
        assert found["finish_reason"][row] == (b"stop" if ended else b"length")
        assert found["text"][row] == bytes(i - FIRST for i in wanted if i >= FIRST)
    assert {b"stop", b"length"} == set(found["finish_reason"])


def test_a_long_prompt_keeps_its_end(task: CausalLM) -> None:
    whole, end = generate(task, ["y" * 500 + "z" * 31]), generate(task, ["z" * 31])
    for name, value in whole.items():
        np.testing.assert_array_equal(value, end[name])


def test_prompt_and_continuation_never_exceed_the_positions() -> None:
    config = dataclasses.replace(small.DECODER, end_ids=(258,))
    found = generate(build(config, seed=7), ["w" * 40, "short"], max_new_tokens=7)
    assert found["length"].tolist() == [MAX_POSITIONS - 32, 7]
    assert found["finish_reason"].tolist() == [b"length", b"length"]


def test_defaults_are_generate_with_the_defaults_in_every_row(task: CausalLM) -> None:
    defaults = {**dataclasses.asdict(task.config.defaults), "stop": "ee\x1f中"}
    config = dataclasses.replace(task.config, defaults=dataclasses.replace(
        task.config.defaults, stop=("ee", "中")))
    task = CausalLM(config, task.codec, task.network)
    found = as_arrays(task.signatures()["serving_default"].function(prompt=tf.constant(PROMPTS)))
    wanted = generate(task, PROMPTS, **defaults)
    for name, value in found.items():
        np.testing.assert_array_equal(wanted[name], value)
    declared = {spec.name: spec.default for spec in task.signatures()["generate"].spec.inputs}
    assert declared == {"prompt": None, **defaults, **options.NEUTRAL}
    assert list(declared)[:6] == ["prompt", "max_new_tokens", "temperature", "top_k", "top_p",
                                  "seed"]


def test_seeds_repeat_and_differ(task: CausalLM) -> None:
    endless = CausalLM(dataclasses.replace(task.config, end_ids=(258,)), task.codec, task.network)
    seeds = np.array([-2**63, -1, 0, 1, 2**63 - 1, 2**32, 1, 0])
    once = generate(endless, ["same"] * 8, temperature=1.5, seed=seeds)
    again = generate(endless, ["same"] * 8, temperature=1.5, seed=seeds[::-1])
    np.testing.assert_array_equal(once["ids"], again["ids"][::-1])
    assert len({tuple(ids) for ids in once["ids"]}) == 6


@pytest.mark.parametrize(("option", "value", "rule"), [
    ("max_new_tokens", -1, "max_new_tokens: expected 0 <= max_new_tokens <= 7."),
    ("max_new_tokens", 8, "max_new_tokens: expected 0 <= max_new_tokens <= 7."),
    ("temperature", -0.1, "temperature: expected a finite number >= 0."),
    ("temperature", np.nan, "temperature: expected a finite number >= 0."),
    ("temperature", np.inf, "temperature: expected a finite number >= 0."),
    ("top_k", -1, "top_k: expected top_k >= 0."),
    ("top_p", 0.0, "top_p: expected 0 < top_p <= 1."),
    ("top_p", 1.01, "top_p: expected 0 < top_p <= 1."),
    ("top_p", np.nan, "top_p: expected 0 < top_p <= 1."),
])
def test_a_wrong_option_is_named_with_its_rule_and_row(
        task: CausalLM, option: str, value: float, rule: str) -> None:
    good = {"max_new_tokens": 1, "temperature": 1.0, "top_k": 1}.get(option, 1.0)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        generate(task, ["secret", "private"], **{option: [good, value]})
    assert rule in str(caught.value)
    assert "First such row:" in str(caught.value) and "1" in str(caught.value)
    assert "secret" not in str(caught.value) and "private" not in str(caught.value)


def test_inputs_of_different_lengths_are_refused_by_name(task: CausalLM) -> None:
    function = task.signatures()["generate"].function
    with pytest.raises(tf.errors.InvalidArgumentError, match="seed: expected as many rows as"):
        function(prompt=tf.constant(["a", "b"]), **{
            **option_rows(task, "generate", 2, {}), "seed": tf.constant([1], tf.int64)})


def test_a_wrong_option_fails_inside_a_graph_too() -> None:
    check = tf.function(lambda values: options.check({"temperature": values}, small.DECODER),
                        input_signature=[tf.TensorSpec([None], tf.float32)], autograph=False)
    check(tf.constant([0.0, 2.0]))
    check(tf.zeros([0]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="temperature: expected a finite"):
        check(tf.constant([1.0, np.nan]))


# ---------------------------------------------------------------------------- edges of text


def with_codec(codec: TextCodec, *, start: bool = True) -> CausalLM:
    config = dataclasses.replace(small.NO_START, packing=PackingConfig(
        max_tokens=32, start=start, end=False, truncation="left"))
    return CausalLM(config, codec, build(config, seed=7).network)


def continuation(task: CausalLM, prompt: bytes, added: bytes) -> bytes:
    rows = [[byte + FIRST for byte in text] for text in (prompt, added)]
    before, after = (tf.constant([ids], tf.int32, shape=[1, len(ids)]) for ids in rows)
    return task.continuation(before, tf.constant([len(prompt)]), after,
                             tf.constant([len(added)])).numpy()[0]


@pytest.mark.parametrize(("prompt", "added", "text"), [
    (b" Once", b" upon", b" upon"), (b"Once", b"", b""), (b"", b" Once", b"Once"),
    (b" ", b" two", b" two"), (b"a", b"b", b"b")])
def test_text_keeps_the_space_that_decoding_alone_would_drop(
        prompt: bytes, added: bytes, text: bytes) -> None:
    assert continuation(with_codec(LeadingSpaceCodec(BytesConfig())), prompt, added) == text


def test_a_character_cut_in_two_by_the_prompt_is_decoded_alone() -> None:
    task = with_codec(RepairingCodec(BytesConfig()))
    assert continuation(task, "é".encode(), b"!") == b"!"
    found = continuation(task, "é".encode()[:1], "é".encode()[1:] + b"!")
    assert found.decode().endswith("!")


@pytest.mark.parametrize(("codec", "first"), [
    (BareCodec(end=True), 2), (BareCodec(end=False), 0)], ids=["end id", "id 0"])
def test_an_empty_prompt_without_a_start_id_is_read_as_one_id(
        codec: TextCodec, first: int) -> None:
    task = with_codec(codec, start=False)
    signature = task.signatures()["encode"]
    encode = tf.function(signature.function).get_concrete_function(**signature.input_specs())
    encoded = as_arrays(encode(text=tf.constant(["", "a"])))
    assert encoded["ids"][:, 0].tolist() == [first, ord("a") + FIRST]
    assert encoded["mask"].sum(axis=1).tolist() == [1, 1]
    wanted, _, _ = oracle.greedy(task.network, [first], limit=5, end_ids=(2,))
    found = generate(task, ["", "a"], max_new_tokens=5)
    assert found["ids"][0, :found["length"][0]].tolist() == wanted


# ---------------------------------------------------------------------------- score


def test_score_is_the_sum_over_the_ids_of_the_continuation(task: CausalLM) -> None:
    prompts = ["", "Once", "中", "a", "x"]
    added = ["start", " upon", "文!", "", "y" * 30]
    found = as_arrays(task.signatures()["score"].function(
        prompt=tf.constant(prompts), continuation=tf.constant(added)))
    assert found["length"].tolist() == [len(text.encode()) for text in added]
    for row in range(5):
        ids = [1, *(byte + FIRST for byte in (prompts[row] + added[row]).encode())]
        wanted = oracle.score(task.network, ids, 1 + len(prompts[row].encode()))
        assert found["score"][row] == pytest.approx(wanted, abs=1e-3 if row == 4 else ATOL)
        length, start = int(found["length"][row]), 1 + len(prompts[row].encode())
        each = [oracle.score(task.network, ids[:start + place + 1], start + place)
                for place in range(min(length, 3))]
        np.testing.assert_allclose(found["token_logprobs"][row, :len(each)], each, atol=ATOL)
        assert not found["token_logprobs"][row, length:].any()
        assert found["perplexity"][row] == pytest.approx(np.exp(-wanted / max(length, 1)), rel=1e-3)


def test_score_of_a_generated_text_is_the_score_it_was_generated_with(task: CausalLM) -> None:
    made = generate(task, PROMPTS[:2], max_new_tokens=1, temperature=1.0, seed=[3, 4])
    assert made["finish_reason"].tolist() == [b"length"] * 2
    scored = as_arrays(task.signatures()["score"].function(
        prompt=tf.constant(PROMPTS[:2]), continuation=tf.constant(made["text"])))
    np.testing.assert_allclose(scored["score"], made["score"], atol=ATOL)


def test_score_cuts_the_prompt_and_refuses_to_cut_the_continuation(task: CausalLM) -> None:
    score = task.signatures()["score"].function
    cut = score(prompt=tf.constant(["p" * 900 + "q" * 26]), continuation=tf.constant(["abcde"]))
    short = score(prompt=tf.constant(["q" * 26]), continuation=tf.constant(["abcde"]))
    np.testing.assert_allclose(cut["score"], short["score"], atol=ATOL)
    with pytest.raises(tf.errors.InvalidArgumentError, match="continuation: expected at most 31"):
        score(prompt=tf.constant(["a", ""]), continuation=tf.constant(["b", "c" * 40]))


def test_score_after_an_empty_prompt_without_a_start_id_counts_every_id() -> None:
    task = with_codec(BareCodec(end=True), start=False)
    found = as_arrays(task.signatures()["score"].function(
        prompt=tf.constant(["", "", "a"]), continuation=tf.constant(["ab", "", "b"])))
    assert found["length"].tolist() == [2, 0, 1]
    a, b = ord("a") + FIRST, ord("b") + FIRST
    wanted = [oracle.score(task.network, [2, a, b], 1), 0.0, oracle.score(task.network, [a, b], 1)]
    np.testing.assert_allclose(found["score"], wanted, atol=ATOL)


# tests/tasks/test_slices.py runs the slices themselves in a graph
@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_logits_of_every_place_are_made_for_a_few_rows_at_a_time(
        monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    task = build(small.SHALLOW_DECODER, seed=7)
    texts = tf.constant(["one", "two", "three", "", "five"])
    score, steps = (task.signatures()[name].function for name in ("score", "steps"))
    given = {**steps_state(task, 5), "ids": tf.reshape(tf.range(70, 85), [5, 3]),
             "id_count": tf.constant([3, 2, 1, 3, 3]), "count": tf.constant([2, 0, 4, 7, 1])}
    wanted = as_arrays(score(prompt=texts, continuation=texts)), as_arrays(steps(**given))
    seen: list[int] = []
    network, scores = task.network, place_scores

    def counted(logits: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        tf.py_function(lambda size: seen.append(int(size)), [tf.size(logits)], [])
        return scores(logits, *others)

    monkeypatch.setattr(causal_lm, "place_scores", counted)
    monkeypatch.setattr(causal_lm, "LOGITS", 2 * 16 * network.vocab_size)
    if graph:
        score, steps = (tf.function(function, autograph=False) for function in (score, steps))
    for found, want in zip((score(prompt=texts, continuation=texts), steps(**given)), wanted):
        assert found.keys() == want.keys()
        for name, value in want.items():
            np.testing.assert_allclose(found[name].numpy(), value, atol=ATOL, err_msg=name)
    assert max(seen) <= 2 * 16 * network.vocab_size and len(seen) >= 3


def test_decode_refuses_a_length_beyond_the_row(task: CausalLM) -> None:
    decode = task.signatures()["decode"].function
    assert decode(ids=tf.constant([[75, 76], [75, 0]]), length=tf.constant([2, 0]))[
        "text"].numpy().tolist() == [b"HI", b""]
    for length in (-1, 3):
        with pytest.raises(tf.errors.InvalidArgumentError, match="length: expected 0 <= length"):
            decode(ids=tf.constant([[75, 76]]), length=tf.constant([length]))


# ---------------------------------------------------------------------------- steps


def steps_state(task: CausalLM, count: int) -> dict[str, tf.Tensor]:
    cache = next(s for s in task.signatures()["steps"].spec.inputs if s.name == "cache")
    return {"cache": tf.zeros([count, *cache.shape[1:]]), "lengths": tf.zeros([count], tf.int32),
            **option_rows(task, "steps", count, {
                "temperature": 0.0, "top_p": 1.0, "seed": np.arange(count)}),
            "produced": tf.zeros([count], tf.int32), "history": tf.zeros([count, 0], tf.int32),
            "history_length": tf.zeros([count], tf.int32),
            "allowed": tf.zeros([count, 0], tf.int32), "state": tf.zeros([count], tf.int32)}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_of_any_size_give_what_generate_gives(task: CausalLM, temperature: float) -> None:
    prompts = ["one", "second prompt", "3"]
    wanted = generate(task, prompts, temperature=temperature, seed=[0, 1, 2])
    steps = task.signatures()["steps"].function
    state = steps_state(task, 3)
    state["temperature"] += temperature
    encoded = task.signatures()["encode"].function(text=tf.constant(prompts))
    ids, id_count = encoded["ids"], tf.reduce_sum(encoded["mask"], axis=1)
    tokens, score, live = [[], [], []], np.zeros(3), np.ones(3, bool)
    for size in (2, 1, 4):
        out = steps(ids=ids, id_count=tf.where(live, id_count, 0),
                    count=tf.where(live, size, 0), **state)
        for row in np.flatnonzero(live):
            tokens[row] += out["tokens"][row, :int(out["token_count"][row])].numpy().tolist()
        score += out["score"].numpy()
        live &= ~out["finished"].numpy()
        ids = tf.constant([[row[-1] if row else 0] for row in tokens])
        id_count = tf.ones([3], tf.int32)
        state.update(cache=out["cache"], lengths=out["lengths"],
                     produced=state["produced"] + out["token_count"])
    for row in range(3):
        assert tokens[row] == wanted["ids"][row, :wanted["length"][row]].tolist(), f"row {row}"
    np.testing.assert_allclose(score, wanted["score"], atol=ATOL)


def test_a_row_without_ids_keeps_its_state(task: CausalLM) -> None:
    steps = task.signatures()["steps"].function
    first = steps(ids=tf.constant([[70, 71], [80, 81]]), id_count=tf.constant([2, 2]),
                  count=tf.constant([0, 0]), **steps_state(task, 2))
    state = {**steps_state(task, 2), "cache": first["cache"], "lengths": first["lengths"]}
    second = steps(ids=tf.constant([[72], [0]]), id_count=tf.constant([1, 0]),
                   count=tf.constant([2, 0]), **state)
    assert second["token_count"].numpy()[1] == 0 and second["lengths"].numpy()[1] == 2
    np.testing.assert_array_equal(second["cache"][1], first["cache"][1])


@pytest.mark.parametrize(("changed", "message"), [
    ({"id_count": [3]}, "id_count: expected 0 <= id_count <= ids in the row."),
    ({"id_count": [0]}, "id_count: expected >= 1 where count is."),
    ({"count": [8]}, "count: expected 0 <= count <= 7."),
    ({"lengths": [33]}, "lengths: expected lengths \\+ id_count \\+ count <= 36."),
    ({"lengths": [-1]}, "lengths: expected"),
    ({"top_p": [0.0]}, "top_p: expected 0 < top_p <= 1."),
])
def test_wrong_steps_are_refused(task: CausalLM, changed: dict, message: str) -> None:
    given = {**steps_state(task, 1), "ids": tf.constant([[70, 71]]), "id_count": tf.constant([2]),
             "count": tf.constant([2])}
    given.update({name: tf.constant(value) for name, value in changed.items()})
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        task.signatures()["steps"].function(**given)
