"""Beam search: against enumeration, for every width, with limits for each row, on every path."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, mostly_without_xla, on_all_paths
from tests.fakes.steps import TreeModel, random_trees
from tests.oracles import decoding as oracle
from tf_infer.decoding import beam, greedy
from tf_infer.decoding.contracts import Hypotheses, Limits, Start

SCORE_ATOL = 1e-5  # sums of at most 6 float32 log-probabilities
VOCAB, DEPTH, PAD = 4, 4, 0
PENALTIES = (0.0, 1.0, 0.6, -0.5)


@lru_cache(maxsize=None)
def searcher(beams: int, groups: int, end_ids: tuple[int, ...], capacity: int = DEPTH,
             ) -> Callable[..., Hypotheses]:
    def function(trees: tf.Tensor, allowed: tf.Tensor, penalty: tf.Tensor, diversity: tf.Tensor,
                 ) -> Hypotheses:
        model = TreeModel(trees)
        return beam.search(model.step, model.start(), Limits(capacity, allowed, end_ids, PAD),
                           beam.BeamOptions(penalty, diversity), beams=beams, groups=groups)

    return function


def search(run: Runner, trees: np.ndarray, limits: list[int], *, beams: int, groups: int = 1,
           end_ids: tuple[int, ...] = (3,), penalty: list[float] | None = None,
           diversity: list[float] | None = None) -> Hypotheses:
    zeros = [0.0] * len(limits)
    return run(searcher(beams, groups, end_ids), tf.constant(trees), tf.constant(limits, tf.int32),
               tf.constant(penalty or zeros), tf.constant(diversity or zeros))


def paths_of(found: Hypotheses, row: int) -> list[oracle.Path]:
    scores = found.scores[row].numpy()
    return [oracle.Path(tuple(found.ids[row, k, :length].numpy().tolist()), float(scores[k]),
                        bool(found.finished[row, k]))
            for k, length in enumerate(found.lengths[row].numpy()) if np.isfinite(scores[k])]


def same(found: list[oracle.Path], expected: list[oracle.Path], where: str) -> None:
    assert [(path.ids, path.finished) for path in found] == [
        (path.ids, path.finished) for path in expected], where
    for one, other in zip(found, expected):
        assert one.score == pytest.approx(other.score, abs=SCORE_ATOL), where


@on_all_paths
@pytest.mark.parametrize("beams", [3, *(pytest.param(n, marks=pytest.mark.slow)
                                        for n in (1, 2, 4, 5, 8, 64))])
def test_every_width_is_the_search_by_lists(run: Runner, beams: int) -> None:
    trees = random_trees(24, VOCAB, DEPTH, seed=1)
    limits = [row % (DEPTH + 1) for row in range(24)]
    penalty = [PENALTIES[row % len(PENALTIES)] for row in range(24)]
    found = search(run, trees, limits, beams=beams, penalty=penalty)
    for row in range(24):
        same(paths_of(found, row), oracle.beam(
            trees[row], limit=limits[row], end_ids=(3,), beams=beams,
            length_penalty=penalty[row])[:beams], f"row {row}")


@mostly_without_xla
@pytest.mark.parametrize("end_ids", [(1, 2), pytest.param((3,), marks=pytest.mark.slow),
                                     pytest.param((), marks=pytest.mark.slow)],
                         ids=["two ends", "one end", "no end"])
def test_a_width_that_holds_everything_finds_the_best_of_all_sequences(
        run: Runner, end_ids: tuple[int, ...]) -> None:
    trees = random_trees(8, VOCAB, DEPTH, seed=2)
    penalty = [PENALTIES[row % len(PENALTIES)] for row in range(8)]
    found = search(run, trees, [DEPTH] * 8, beams=VOCAB**DEPTH, end_ids=end_ids, penalty=penalty)
    for row in range(8):
        best = oracle.best_paths(trees[row], limit=DEPTH, end_ids=end_ids, count=20,
                                 length_penalty=penalty[row])
        same(paths_of(found, row)[:20], best, f"row {row}")


@mostly_without_xla
def test_groups_avoid_the_tokens_of_those_before_them(run: Runner) -> None:
    trees = random_trees(16, VOCAB, DEPTH, seed=3)
    diversity = [[0.0, 0.5, 2.0, 100.0][row % 4] for row in range(16)]
    found = search(run, trees, [DEPTH] * 16, beams=6, groups=3, diversity=diversity)
    for row in range(16):
        expected = oracle.beam(trees[row], limit=DEPTH, end_ids=(3,), beams=6, groups=3,
                               diversity=diversity[row])
        scores = sorted(path.score for path in paths_of(found, row))
        assert scores == pytest.approx(sorted(path.score for path in expected), abs=SCORE_ATOL)


def test_one_beam_without_a_penalty_takes_what_greedy_search_takes() -> None:
    trees = random_trees(12, VOCAB, DEPTH, seed=4)
    trees[:, :, 3] -= 50.0  # an end that greedy search never takes
    found = search(eager, trees, [DEPTH] * 12, beams=1)
    model = TreeModel(trees)
    expected = greedy.search(model.step, model.start(),
                             Limits(DEPTH, tf.fill([12], DEPTH), (3,), PAD))
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=SCORE_ATOL)


@mostly_without_xla
def test_a_row_alone_is_a_row_in_a_crowd(run: Runner) -> None:
    trees = random_trees(9, VOCAB, DEPTH, seed=5)
    limits = [4, 1, 0, 4, 3, 2, 4, 4, 4]
    penalty = [0.0, 1.0, 0.5, -1.0, 2.0, 0.0, 0.7, 0.0, 1.0]
    crowd = search(run, trees, limits, beams=3, penalty=penalty)
    for row in range(9):
        alone = search(run, trees[row:row + 1], limits[row:row + 1], beams=3,
                       penalty=penalty[row:row + 1])
        same(paths_of(alone, 0), paths_of(crowd, row), f"row {row}")


def test_the_search_ends_as_soon_as_nothing_can_become_better() -> None:
    steps = []

    def step(tokens: tf.Tensor, live: tf.Tensor, cache: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        steps.append(int(tf.reduce_sum(tf.cast(live, tf.int32))))
        return tf.tile([[0.0, -40.0, -40.0]], [len(tokens), 1]), cache

    start = Start(tf.constant([[0.0, -1.0, -1.5]]), tf.zeros([1]))
    found = beam.search(step, start, Limits(50, tf.constant([50]), (0,), 0),
                        beam.BeamOptions(tf.zeros([1]), tf.zeros([1])), beams=2)
    assert len(steps) == 1
    assert found.finished.numpy().all()
    assert found.ids[0, :, 0].numpy().tolist() == [0, 1]


def test_infinities_and_nan_end_no_search_and_void_places_say_so() -> None:
    start = Start(tf.constant([[float("nan"), -float("inf"), 2.0]]), tf.zeros([1]))

    def step(tokens: tf.Tensor, live: tf.Tensor, cache: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.fill([len(tokens), 3], float("nan")), cache

    found = beam.search(step, start, Limits(1, tf.constant([1]), (), 9),
                        beam.BeamOptions(tf.zeros([1]), tf.zeros([1])), beams=5)
    assert found.ids[0, 0].numpy().tolist() == [2]
    assert found.lengths.numpy().tolist()[0][3:] == [0, 0]
    assert np.isneginf(found.scores.numpy()[0, 3:]).all()


def test_beams_must_be_a_multiple_of_groups() -> None:
    with pytest.raises(ValueError, match="multiple of groups = 2"):
        search(eager, random_trees(1, VOCAB, DEPTH, seed=1), [1], beams=3, groups=2)
