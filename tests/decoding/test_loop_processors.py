"""Processors in every loop: heard of each choice, row by row, and without a say in the scores."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.decoding.paths import Runner, eager, graph, on_all_paths
from tests.fakes.steps import TreeModel, WideTreeModel, random_trees
from tests.oracles import decoding as oracle
from tf_infer.decoding import beam, greedy, loop, speculative
from tf_infer.decoding.contracts import Hypotheses, Limits, Processor
from tf_infer.decoding.processors import BANNED

SCORE_ATOL = 1e-5  # sums of at most 5 float32 log-probabilities
VOCAB, DEPTH, PAD, END = 3, 4, 0, 2
ROWS = 24
TREES = random_trees(ROWS, VOCAB, DEPTH, seed=1)
ALLOWED = [row % (DEPTH + 1) for row in range(ROWS)]


def at_most_twice(rows: tf.Tensor) -> Processor:
    """No token more than two times: the state is how often each was chosen, [N, V]."""

    def change(logits: tf.Tensor, produced: tf.Tensor, said: tf.Tensor) -> tf.Tensor:
        return tf.where(said >= 2, BANNED, logits)

    def accept(said: tf.Tensor, tokens: tf.Tensor, live: tf.Tensor) -> tf.Tensor:
        return said + tf.where(live[:, None], tf.one_hot(tokens, VOCAB, dtype=tf.int32), 0)

    return Processor(tf.zeros([rows, VOCAB], tf.int32), change, accept)


def no_end_before(rows: tf.Tensor, least: int) -> Processor:
    """No state: looks at the number of tokens alone."""

    def change(logits: tf.Tensor, produced: tf.Tensor, state: tuple[()]) -> tf.Tensor:
        ends = tf.range(VOCAB) == END
        return tf.where(ends & (produced < least)[:, None], BANNED, logits)

    return Processor((), change, lambda state, tokens, live: state)


def both(rows: tf.Tensor) -> tuple[Processor, Processor]:
    return at_most_twice(rows), no_end_before(rows, 2)


def fits(ids: tuple[int, ...], finished: bool) -> bool:
    """What `both` allow."""
    return max(map(ids.count, ids), default=0) <= 2 and not (finished and len(ids) < 2)


def greedy_path(tree: np.ndarray, limit: int) -> oracle.Path:
    """The best allowed token at every place, worked out one by one."""
    ids: tuple[int, ...] = ()
    score = 0.0
    while len(ids) < limit:
        log_probs = oracle.log_softmax(tree[oracle.node(ids, VOCAB)])
        token = max((t for t in range(VOCAB) if fits(*((ids, True) if t == END
                                                       else ((*ids, t), False)))),
                    key=lambda t: log_probs[t])
        score += float(log_probs[token])
        if token == END:
            return oracle.Path(ids, score, True)
        ids = (*ids, token)
    return oracle.Path(ids, score, False)


def searched(trees: tf.Tensor, allowed: tf.Tensor) -> Hypotheses:
    model = TreeModel(trees)
    return greedy.search(model.step, model.start(), Limits(DEPTH, allowed, (END,), PAD),
                         both(tf.shape(trees)[0]))


@on_all_paths
def test_greedy_takes_the_best_of_what_processors_leave(run: Runner) -> None:
    found = run(searched, tf.constant(TREES), tf.constant(ALLOWED))
    for row in range(ROWS):
        path = greedy_path(TREES[row], ALLOWED[row])
        length = int(found.lengths[row, 0])
        assert tuple(found.ids[row, 0, :length].numpy()) == path.ids, f"row {row}"
        assert bool(found.finished[row, 0]) == path.finished
        assert float(found.scores[row, 0]) == pytest.approx(path.score, abs=SCORE_ATOL)


def test_a_host_loop_over_advance_gives_what_the_graph_gives() -> None:
    limits = Limits(DEPTH, tf.constant(ALLOWED), (END,), PAD)
    wanted = graph(searched, tf.constant(TREES), tf.constant(ALLOWED))
    model, processors = TreeModel(TREES), both(ROWS)
    logits, cache = model.start()
    progress = loop.advance(loop.begin(limits, processors), logits, limits, greedy.choose,
                            processors)
    while progress.live.numpy().any():
        logits, cache = model.step(progress.tokens, progress.live, cache)
        progress = loop.advance(progress, logits, limits, greedy.choose, processors)
    for host, inside in zip(loop.hypotheses(progress), wanted):
        np.testing.assert_allclose(host, inside, atol=SCORE_ATOL)


def drafted(trees: tf.Tensor, drafts: tf.Tensor, allowed: tf.Tensor) -> Any:
    model, draft = WideTreeModel(trees), WideTreeModel(drafts)
    proposer = speculative.from_draft(draft.step, draft.drop, draft.start().cache, greedy.choose,
                                      width=2)
    return speculative.decode(
        speculative.Target(model.extend, model.drop), model.start(),
        Limits(DEPTH, allowed, (END,), PAD), greedy.choose, proposer, both(tf.shape(trees)[0]))


@pytest.mark.parametrize("run", [eager, graph], ids=["eager", "graph"])
def test_guesses_are_held_to_processors_too(run: Runner) -> None:
    trees = random_trees(ROWS, VOCAB, DEPTH + 3, seed=3)
    drafts = trees + np.random.default_rng(2).normal(size=trees.shape).astype(np.float32)
    found, guessing = run(drafted, tf.constant(trees), tf.constant(drafts), tf.constant(ALLOWED))
    wanted = eager(searched, tf.constant(trees), tf.constant(ALLOWED))
    for name in ("ids", "lengths", "finished"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(found.scores, wanted.scores, atol=SCORE_ATOL)
    assert 0 < guessing.accepted.numpy().sum() < guessing.proposed.numpy().sum()


@lru_cache(maxsize=None)
def beams_of(beams: int) -> Callable[..., Hypotheses]:
    def function(trees: tf.Tensor, allowed: tf.Tensor) -> Hypotheses:
        model, rows = TreeModel(trees), tf.shape(trees)[0]
        zeros = tf.zeros([rows])
        return beam.search(model.step, model.start(), Limits(DEPTH, allowed, (END,), PAD),
                           beam.BeamOptions(zeros, zeros), beams=beams, processors=both(rows))

    return function


@pytest.mark.parametrize("run", [eager, graph], ids=["eager", "graph"])
def test_a_beam_that_holds_everything_finds_the_best_that_processors_allow(run: Runner) -> None:
    found = run(beams_of(VOCAB**DEPTH), tf.constant(TREES), tf.constant(ALLOWED))
    for row in range(0, ROWS, 2):
        every = oracle.best_paths(TREES[row], limit=ALLOWED[row], end_ids=(END,), count=VOCAB**5,
                                  length_penalty=0.0)
        wanted = [path for path in every if fits(path.ids, path.finished)][:VOCAB**DEPTH]
        scores = found.scores[row].numpy()
        got = [(tuple(found.ids[row, k, :found.lengths[row, k]].numpy()),
                bool(found.finished[row, k])) for k in np.flatnonzero(np.isfinite(scores))]
        assert got == [(path.ids, path.finished) for path in wanted], f"row {row}"
        np.testing.assert_allclose(scores[:len(got)], [path.score for path in wanted],
                                   atol=SCORE_ATOL)


def test_narrow_beams_hear_of_their_own_past_alone() -> None:
    found = beams_of(2)(tf.constant(TREES), tf.constant(ALLOWED))
    for row in range(ROWS):
        for k in np.flatnonzero(np.isfinite(found.scores[row].numpy())):
            assert fits(tuple(found.ids[row, k, :found.lengths[row, k]].numpy()),
                        bool(found.finished[row, k])), f"row {row}"
