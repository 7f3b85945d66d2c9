"""Greedy search and the loop: against enumeration, with limits for each row, on every path."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, on_all_paths
from tests.fakes.steps import TreeModel, random_trees
from tests.oracles import decoding as oracle
from tf_infer.decoding import greedy, loop
from tf_infer.decoding.contracts import Hypotheses, Limits

SCORE_ATOL = 1e-5  # sums of at most 6 float32 log-probabilities
VOCAB, DEPTH, PAD = 4, 5, 0


@lru_cache(maxsize=None)
def searcher(end_ids: tuple[int, ...], capacity: int) -> Callable[..., Hypotheses]:
    def function(trees: tf.Tensor, allowed: tf.Tensor) -> Hypotheses:
        model = TreeModel(trees)
        return greedy.search(model.step, model.start(), Limits(capacity, allowed, end_ids, PAD))

    return function


def search(run: Runner, trees: np.ndarray, limits: list[int], *, end_ids: tuple[int, ...] = (3,),
           capacity: int = DEPTH) -> Hypotheses:
    return run(searcher(end_ids, capacity), tf.constant(trees), tf.constant(limits, tf.int32))


def expect(found: Hypotheses, trees: np.ndarray, limits: list[int], end_ids: tuple[int, ...]
           ) -> None:
    for row, (tree, limit) in enumerate(zip(trees, limits)):
        path = oracle.greedy(tree, limit=limit, end_ids=end_ids)
        length = int(found.lengths[row, 0])
        ids = found.ids[row, 0].numpy()
        assert tuple(ids[:length]) == path.ids, f"row {row}"
        assert (ids[length:] == PAD).all()
        assert bool(found.finished[row, 0]) == path.finished
        assert float(found.scores[row, 0]) == pytest.approx(path.score, abs=SCORE_ATOL)


@on_all_paths
@pytest.mark.parametrize("end_ids", [(3,), (1, 2), ()], ids=["one end", "two ends", "no end"])
def test_greedy_is_the_argmax_path_of_the_enumeration(
        run: Runner, end_ids: tuple[int, ...]) -> None:
    trees = random_trees(40, VOCAB, DEPTH, seed=1)
    limits = [row % (DEPTH + 1) for row in range(40)]
    expect(search(run, trees, limits, end_ids=end_ids), trees, limits, end_ids)


@on_all_paths
def test_an_end_id_as_first_token_gives_an_empty_row(run: Runner) -> None:
    trees = random_trees(4, VOCAB, DEPTH, seed=2)
    trees[1, 0] = [0, 0, 0, 9]
    found = search(run, trees, [5, 5, 5, 0])
    assert int(found.lengths[1, 0]) == 0 and bool(found.finished[1, 0])
    assert (found.ids[1, 0].numpy() == PAD).all()
    expect(found, trees, [5, 5, 5, 0], (3,))


@on_all_paths
def test_a_limit_of_zero_gives_an_empty_row_with_score_zero(run: Runner) -> None:
    found = search(run, random_trees(4, VOCAB, DEPTH, seed=3), [0] * 4)
    assert found.lengths.numpy().tolist() == [[0]] * 4
    assert found.scores.numpy().tolist() == [[0.0]] * 4
    assert not found.finished.numpy().any()


@on_all_paths
def test_rows_that_end_together_stop_the_loop_at_once(run: Runner) -> None:
    trees = np.zeros((4, *random_trees(1, VOCAB, DEPTH, seed=0).shape[1:]), np.float32)
    trees[:, :, 3] = 1.0
    found = search(run, trees, [5] * 4)
    assert found.finished.numpy().all() and not found.lengths.numpy().any()


@on_all_paths
def test_a_full_buffer_ends_a_row_whose_limit_is_larger(run: Runner) -> None:
    trees = random_trees(3, VOCAB, DEPTH, seed=4)
    found = search(run, trees, [99, 99, 2], end_ids=(), capacity=3)
    expect(found, trees, [3, 3, 2], ())


@on_all_paths
def test_no_rows_give_no_rows(run: Runner) -> None:
    found = search(run, random_trees(0, VOCAB, DEPTH, seed=0), [])
    assert found.ids.shape == (0, 1, DEPTH) and found.scores.shape == (0, 1)


@on_all_paths
def test_a_row_alone_is_the_row_in_a_crowd(run: Runner) -> None:
    trees = random_trees(40, VOCAB, DEPTH, seed=5)
    limits = [5, 0, 3, 1, 5, 5, 2, 4, 5, 0] * 4
    crowd = search(run, trees, limits)
    for row in range(0, 40, 3):
        alone = search(eager, trees[row:row + 1], limits[row:row + 1])
        for one, many in zip(alone, crowd):
            np.testing.assert_allclose(one[0], many[row], atol=SCORE_ATOL)


def test_the_last_token_of_a_row_is_never_read() -> None:
    trees = random_trees(5, VOCAB, DEPTH, seed=6)
    limits = Limits(DEPTH, tf.constant([5, 1, 0, 3, 4]), (), PAD)
    model = TreeModel(trees)
    progress, cache = loop.run(model.step, model.start(), limits, greedy.choose)
    assert cache["reads"].numpy().tolist() == [4, 0, 0, 2, 3]
    assert progress.lengths.numpy().tolist() == [5, 1, 0, 3, 4]


def test_equal_logits_choose_the_lower_id() -> None:
    trees = np.zeros_like(random_trees(1, VOCAB, DEPTH, seed=0))
    trees[:, :, 1:] = 1.0
    assert search(eager, trees, [3]).ids[0, 0].numpy().tolist() == [1, 1, 1, PAD, PAD]


def test_broken_logits_are_survived() -> None:
    trees = random_trees(2, VOCAB, DEPTH, seed=0)
    trees[0] = np.nan
    trees[1, 0] = [-np.inf, np.nan, np.inf, np.inf]
    found = search(eager, trees, [2, 1], end_ids=())
    assert found.ids[0, 0, :2].numpy().tolist() == [0, 0]
    assert int(found.ids[1, 0, 0]) == 2
    np.testing.assert_allclose(found.scores[:, 0], [-2 * np.log(4), -np.log(2)], atol=1e-5)


def test_a_host_loop_over_advance_gives_what_the_graph_gives() -> None:
    trees = random_trees(6, VOCAB, DEPTH, seed=7)
    limits = Limits(DEPTH, tf.constant([5, 4, 3, 2, 1, 0]), (3,), PAD)
    model = TreeModel(trees)
    wanted = greedy.search(model.step, model.start(), limits)
    logits, cache = model.start()
    progress = loop.advance(loop.begin(limits), logits, limits, greedy.choose)
    while progress.live.numpy().any():
        logits, cache = model.step(progress.tokens, progress.live, cache)
        progress = loop.advance(progress, logits, limits, greedy.choose)
    for host, inside in zip(loop.hypotheses(progress), wanted):
        assert np.array_equal(host, inside)
