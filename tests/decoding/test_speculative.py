"""Speculative decoding: the same tokens as without it, in fewer rounds, on every path."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, graph, xla
from tests.fakes.steps import WideTreeModel, random_trees
from tf_infer.decoding import greedy, loop, sampling, speculative
from tf_infer.decoding.contracts import Limits, SamplingOptions
from tf_infer.decoding.loop import Progress

VOCAB, DEPTH, PAD, END = 3, 5, 0, 2
ROWS = 24
ALLOWED = tf.constant([row % (DEPTH + 1) for row in range(ROWS)], tf.int32)
SEEDS = tf.range(ROWS, dtype=tf.int64) * 7919
SCORE_ATOL = 1e-5  # sums of at most 5 float32 log-probabilities


def options(seeds: tf.Tensor, temperature: float) -> SamplingOptions:
    ones = tf.ones_like(seeds, tf.float32)
    return SamplingOptions(ones * temperature, tf.zeros_like(seeds, tf.int32), ones, seeds)


def chooser(seeds: tf.Tensor, temperature: float) -> loop.Choose:
    if temperature == 0.0:
        return greedy.choose  # traced in no time
    return lambda logits, produced: sampling.choose(logits, options(seeds, temperature), produced)


@lru_cache(maxsize=None)
def plain(temperature: float) -> Callable[..., Any]:
    def function(trees: tf.Tensor, allowed: tf.Tensor, seeds: tf.Tensor) -> Any:
        model = WideTreeModel(trees)
        return loop.decode(model.step, model.start(), Limits(DEPTH, allowed, (END,), PAD),
                           chooser(seeds, temperature))

    return function


@lru_cache(maxsize=None)
def drafted(temperature: float, width: int) -> Callable[..., Any]:
    def function(trees: tf.Tensor, drafts: tf.Tensor, allowed: tf.Tensor, seeds: tf.Tensor) -> Any:
        model, draft = WideTreeModel(trees), WideTreeModel(drafts)
        choose = chooser(seeds, temperature)
        proposer = speculative.from_draft(draft.step, draft.drop, draft.start().cache, choose,
                                          width=width)
        return speculative.decode(
            speculative.Target(model.extend, model.drop), model.start(),
            Limits(DEPTH, allowed, (END,), PAD), choose, proposer)

    return function


def same(found: Any, expected: Any) -> None:
    for name in ("ids", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(found.scores, expected.scores, atol=SCORE_ATOL)


@pytest.mark.parametrize(("run", "temperature", "width"), [
    (eager, 1.0, 2), (graph, 0.0, 2), (xla, 0.0, 2),
    *(pytest.param(run, 1.0, 3, marks=pytest.mark.slow) for run in (graph, xla))])
def test_a_draft_model_changes_no_token(run: Runner, temperature: float, width: int) -> None:
    deep = DEPTH + width + 1  # a draft may guess beyond the end
    trees = random_trees(ROWS, VOCAB, deep, seed=1)
    drafts = trees + np.random.default_rng(2).normal(size=trees.shape).astype(np.float32)
    given = (tf.constant(trees), ALLOWED, SEEDS)
    expected = run(plain(temperature), *given)
    found, guessing = run(drafted(temperature, width), given[0], tf.constant(drafts), *given[1:])
    same(found, expected)
    accepted, proposed = guessing.accepted.numpy().sum(), guessing.proposed.numpy().sum()
    assert 0 < accepted < proposed


def test_a_draft_that_is_the_model_is_always_right_and_saves_rounds() -> None:
    trees = random_trees(ROWS, VOCAB, DEPTH + 4, seed=3)
    trees[:, :, END] -= 30.0  # so that no row ends early
    tree, allowed = tf.constant(trees), tf.fill([ROWS], DEPTH)
    found, guessing = drafted(1.0, 2)(tree, tree, allowed, SEEDS)
    same(found, plain(1.0)(tree, allowed, SEEDS))
    np.testing.assert_array_equal(guessing.accepted, guessing.proposed)
    assert guessing.rounds.numpy().tolist() == [2] * ROWS  # 1 + 3 + 1 tokens


def test_a_draft_that_is_always_wrong_costs_rounds_and_no_token() -> None:
    trees = random_trees(ROWS, VOCAB, DEPTH + 4, seed=4)
    trees[:, :, END] -= 30.0
    tree, allowed = tf.constant(trees), tf.fill([ROWS], DEPTH)
    found, guessing = drafted(0.0, 2)(tree, -tree, allowed, SEEDS)
    same(found, plain(0.0)(tree, allowed, SEEDS))
    assert guessing.accepted.numpy().sum() == 0
    assert guessing.rounds.numpy().tolist() == [DEPTH - 1] * ROWS


class Counting:
    """A model that says 1, 2, 3, ... from the last token on: what it says can be looked up."""

    def extend(self, ids: tf.Tensor, counts: tf.Tensor, cache: tf.Tensor) -> tuple[Any, Any]:
        return tf.one_hot((ids + 1) % 10, 10) * 20.0, cache + counts

    def drop(self, cache: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        return cache - positions


def looked_up(prompt: list[list[int]], lengths: list[int], width: int) -> Any:
    model = Counting()
    last = tf.constant([row[length - 1] for row, length in zip(prompt, lengths)])
    start = speculative.Start(tf.one_hot((last + 1) % 10, 10) * 20.0, tf.constant(lengths))
    return speculative.decode(
        speculative.Target(model.extend, model.drop), start,
        Limits(8, tf.fill([len(prompt)], 8), (), PAD), greedy.choose,
        speculative.from_prompt(tf.constant(prompt), tf.constant(lengths), width=width))


def test_prompt_look_up_finds_what_stood_before() -> None:
    # The first row holds the whole answer, the second none of it, padding counts for neither.
    prompt = [[1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1], [4, 4, 4, 4, 4, 9, 9, 9, 9, 9, 9]]
    found, guessing = looked_up(prompt, [11, 2], width=3)
    assert found.ids[0, 0].numpy().tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert found.ids[1, 0].numpy().tolist() == [5, 6, 7, 8, 9, 0, 1, 2]
    assert guessing.rounds.numpy().tolist() == [2, 7]
    assert guessing.accepted.numpy().tolist() == [6 - 1, 0]


@pytest.mark.parametrize(("text", "guess"), [
    ([5, 6, 7, 1, 6, 7], [1, 6]),        # 6 7 stood before 1 6
    ([8, 7, 2, 9, 7, 3, 7], [3, 7]),     # the latest 7 stood before 3
    ([1, 2, 3], []),                     # 3 is new
    ([4], []),
])
def test_the_latest_longest_run_counts(text: list[int], guess: list[int]) -> None:
    proposer = speculative.from_prompt(tf.constant([text]), tf.constant([len(text)]), width=2)
    progress = Progress(tf.constant([text[-1]]), tf.constant([True]), tf.zeros([1, 4], tf.int32),
                        tf.constant([0]), tf.zeros([1]), tf.constant([False]))
    ids, counts, _ = proposer.propose(progress, ())
    assert ids[0, :int(counts[0])].numpy().tolist() == guess


def test_a_row_alone_is_a_row_in_a_crowd() -> None:
    trees = random_trees(ROWS, VOCAB, DEPTH + 3, seed=5)
    drafts = trees + np.random.default_rng(6).normal(size=trees.shape).astype(np.float32)
    crowd, _ = drafted(1.0, 2)(tf.constant(trees), tf.constant(drafts), ALLOWED, SEEDS)
    for row in (5, 11, 16):
        one = slice(row, row + 1)
        alone, _ = eager(drafted(1.0, 2), tf.constant(trees[one]), tf.constant(drafts[one]),
                         ALLOWED[one], SEEDS[one])
        np.testing.assert_array_equal(alone.ids[0], crowd.ids[row])
