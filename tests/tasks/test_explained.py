"""The signature `explain` of a decoder: a NumPy oracle, a planted keyword, places, offsets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks import small
from tests.tasks.suite import as_arrays
from tf_infer.config import CausalLMConfig, ShapeGrid, SmallTransformerConfig
from tf_infer.errors import ConfigError
from tf_infer.tasks.build import build
from tf_infer.tasks.causal_lm import CausalLM

NETWORK = SmallTransformerConfig(width=8, layers=1, heads=1, hidden=16, max_positions=40)
CONFIG = CausalLMConfig(network=NETWORK, packing=small.PROMPT, capacity=3, explain=True,
                        grid=ShapeGrid(rows=(400,), tokens=(32,)),
                        defaults=replace(small.DECODER.defaults, max_new_tokens=3))
KEY, ANSWER = b"#", b"!"
IG_ATOL = 2e-3  # float32 gradients at 48 points against float64 differences at 400


@pytest.fixture(scope="module")
def task() -> CausalLM:
    """A decoder with drawn weights, larger than usual so that its answers bend."""
    found = build(CONFIG, seed=5)
    generator = np.random.default_rng(1)
    for variable in found.network.trainable_variables:
        variable.assign(generator.normal(scale=0.5, size=variable.shape))
    return found


@pytest.fixture(scope="module")
def explain(task: CausalLM) -> Callable[..., dict[str, np.ndarray]]:
    return explainer(task)


def explainer(task: CausalLM) -> Callable[..., dict[str, np.ndarray]]:
    found = task.signatures()["explain"]
    signature = tf.function(found.function, autograph=False).get_concrete_function(
        **found.input_specs())  # with free rows: seconds to trace, for any number of them

    def explain(prompts: list[str], continuations: list[str] | None = None,
                place: list[int] | None = None) -> dict[str, np.ndarray]:
        rows = len(prompts)
        return as_arrays(signature(
            prompt=tf.constant(prompts), continuation=tf.constant(continuations or [""] * rows),
            place=tf.constant(place or [0] * rows)))

    return explain


def forward(task: CausalLM, vectors: np.ndarray) -> np.ndarray:
    """NumPy, float64: word vectors of a row [T, D] -> log-probabilities of what follows, [V]."""
    network = task.network
    block = network.stack[0]

    def weights(layer: object) -> tuple[np.ndarray, np.ndarray]:
        first, second = (np.asarray(one, np.float64) for one in layer.weights)
        return first, second

    def norm(layer: object, x: np.ndarray) -> np.ndarray:
        scale, shift = weights(layer)
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5
                                                         ) * scale + shift

    def dense(layer: object, x: np.ndarray) -> np.ndarray:
        kernel, bias = weights(layer)
        return x @ kernel + bias

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1.0 + np.vectorize(_erf)(x / np.sqrt(2.0)))

    width = len(vectors)
    hidden = vectors + np.asarray(network.positions.embeddings, np.float64)[:width]
    query, keys, values = np.split(dense(block.qkv, norm(block.norm, hidden)), 3, axis=-1)
    scores = query @ keys.T / np.sqrt(query.shape[-1])
    scores[np.triu_indices(width, 1)] = -np.inf
    hidden = hidden + dense(block.out, softmax(scores) @ values)
    inner = gelu(dense(block.inner, norm(block.inner_norm, hidden)))
    hidden = hidden + dense(block.outer, inner)
    logits = norm(network.norm, hidden[-1]) @ np.asarray(network.words.embeddings, np.float64).T
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def _erf(x: float) -> float:
    import math

    return math.erf(x)


def test_both_attributions_equal_a_slow_oracle_in_numpy(
        task: CausalLM, explain: Callable[..., dict[str, np.ndarray]]) -> None:
    prompt, continuation, place = "ab c", "xyz", 1
    found = explain([prompt], [continuation], [place])
    ids = found_ids(task, prompt + continuation)
    target = ids.tolist().index(ids[-2])  # y: one before the last
    assert found["id"][0] == ids[target]
    assert found["token"][0] == b"y"
    table = np.asarray(task.network.words.embeddings, np.float64)
    vectors = table[ids[:target]]
    taken = np.flatnonzero(found["ends"][0, :target] > found["starts"][0, :target])
    assert len(taken) == 5  # all but the start id

    def score(some: np.ndarray) -> float:
        return float(forward(task, some)[ids[target]])

    kept = vectors.copy()
    kept[taken] = 0.0
    assert found["score"][0] == pytest.approx(score(vectors), abs=1e-4)
    assert found["baseline"][0] == pytest.approx(score(kept), abs=1e-4)
    steps, small_step = 100, 1e-5
    for token in taken:
        gone = vectors.copy()
        gone[token] = 0.0
        assert found["left_out"][0, token] == pytest.approx(score(vectors) - score(gone), abs=1e-3)
        total = 0.0
        for step in range(steps):
            here = kept + (step + 0.5) / steps * (vectors - kept)
            moved = np.zeros_like(here)
            moved[token] = vectors[token] * small_step
            total += (score(here + moved) - score(here - moved)) / (2 * small_step) / steps
        assert found["attributions"][0, token] == pytest.approx(total, abs=IG_ATOL)
    assert found["completeness_error"][0] < IG_ATOL


def found_ids(task: CausalLM, text: str) -> np.ndarray:
    """Return the ids of a text as a prompt, padding cut off."""
    told = as_arrays(task.signatures()["encode"].function(text=tf.constant([text])))
    return told["ids"][0][told["mask"][0] > 0]


def test_without_a_continuation_the_likeliest_next_token_is_explained(
        task: CausalLM, explain: Callable[..., dict[str, np.ndarray]]) -> None:
    prompts = ["ab", "", "中文 and more"]
    found = explain(prompts)
    answer = as_arrays(task.signatures()["generate"].function(
        **{spec.name: tf.constant([spec.default] * 3, spec.dtype)
           for spec in task.signatures()["generate"].spec.inputs
           if spec.name not in ("prompt", "temperature", "top_p")},
        prompt=tf.constant(prompts), temperature=tf.zeros([3]), top_p=tf.ones([3])))
    produced = answer["length"] > 0
    assert found["id"][produced].tolist() == answer["ids"][produced, 0].tolist()
    for row, prompt in enumerate(prompts):
        inside = (found["mask"][row] > 0) & (found["ends"][row] > found["starts"][row])
        assert inside.sum() == len(prompt.encode())
        assert not found["attributions"][row][~inside].any()
        assert not found["left_out"][row][~inside].any()
    np.testing.assert_allclose(found["attributions"].sum(axis=1),
                               found["score"] - found["baseline"], atol=IG_ATOL)


def test_a_row_alone_is_a_row_in_a_crowd_and_what_follows_the_token_changes_nothing(
        explain: Callable[..., dict[str, np.ndarray]]) -> None:
    crowd = explain(["one", "a much longer prompt"], ["two", "xy"], [1, 0])
    alone = explain(["one"], ["tw and more"], [1])
    for name in ("score", "baseline", "attributions", "left_out"):
        width = np.shape(alone[name])[-1] if alone[name].ndim > 1 else None
        np.testing.assert_allclose(crowd[name][0][:width] if width else crowd[name][0],
                                   alone[name][0], atol=2e-4, err_msg=name)
    assert crowd["token"].tolist() == [b"w", b"x"]


@pytest.mark.parametrize("place", [-1, 3])
def test_a_place_outside_of_the_continuation_is_refused_without_its_text(
        explain: Callable[..., dict[str, np.ndarray]], place: int) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="place: expected one of") as caught:
        explain(["a", "b"], ["secret", "xyz"], [0, place])
    assert "secret" not in str(caught.value)
    assert "First such row:" in str(caught.value)


def planted() -> CausalLM:
    """Return a decoder whose next token is ANSWER wherever KEY stands before it."""
    task = build(CONFIG, seed=3)
    network, width = task.network, NETWORK.width
    block = network.stack[0]
    generator = np.random.default_rng(0)
    table = generator.normal(scale=0.05, size=network.words.embeddings.shape)
    table[:, 2] += 5.0
    key, answer = (found_ids(task, text.decode())[-1] for text in (KEY, ANSWER))
    table[key] = np.eye(width)[0] * 5.0
    table[answer] = np.eye(width)[1] * 5.0
    for variable in network.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    for norm in (block.norm, block.inner_norm, network.norm):
        norm.gamma.assign(np.ones(width))
    network.words.embeddings.assign(table)
    # What is left of a place without its word; else a norm would undo every step of the path.
    network.positions.embeddings.assign(
        np.tile(np.eye(width)[3] * 2.0, [NETWORK.max_positions, 1]))
    kernel = np.zeros([width, 3 * width])
    kernel[0, width] = 2.0            # the key is told by the first number,
    kernel[0, 2 * width + 1] = 6.0    # and brings the second one, which is ANSWER's
    block.qkv.kernel.assign(kernel)
    block.qkv.bias.assign(np.eye(3 * width)[0] * 4.0)  # everyone looks for it
    block.out.kernel.assign(np.eye(width))
    return task


def test_a_planted_keyword_gets_the_top_attribution_both_ways() -> None:
    explain, generator = explainer(planted()), np.random.default_rng(1)
    prompts, places = [], []
    for _ in range(400):
        letters = generator.choice(list("abcdefgh ijkl"), size=generator.integers(3, 28)).tolist()
        places.append(int(generator.integers(len(letters))))
        letters[places[-1]] = KEY.decode()
        prompts.append("".join(letters))
    found = explain(prompts)
    assert set(found["token"].tolist()) == {ANSWER}
    for name in ("attributions", "left_out"):
        best = found[name].argmax(axis=1)
        starts = found["starts"][np.arange(len(prompts)), best]
        assert (starts == places).mean() >= 0.99, name
    # Attention that switches at one point of the path is hard on every rule of integration.
    share = found["completeness_error"] / (found["score"] - found["baseline"])
    assert np.quantile(share, 0.99) < 0.1


def test_packed_weights_have_no_gradient_and_the_setting_says_so() -> None:
    task = build(CONFIG, seed=3)
    task.network.packed = True
    with pytest.raises(ConfigError, match=r"CausalLMConfig\.explain: expected False in a plan"):
        task.signatures()


def test_a_decoder_without_the_setting_has_no_such_signature() -> None:
    assert "explain" not in build(replace(CONFIG, explain=False), seed=1).signatures()
