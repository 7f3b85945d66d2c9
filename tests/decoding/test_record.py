"""Log-probabilities that are told: of the tokens, and of the likeliest others as far as asked."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.decoding.paths import Runner, on_all_paths
from tests.fakes.steps import TreeModel, random_trees
from tests.oracles import decoding as oracle
from tf_infer.decoding import greedy, loop, record
from tf_infer.decoding.contracts import Limits

ATOL = 1e-5  # one float32 log-softmax
VOCAB, DEPTH, PAD, END, MOST, ROWS = 4, 3, 0, 3, 6, 20  # MOST is more than there are tokens
TREES = random_trees(ROWS, VOCAB, DEPTH, seed=6)
WANTED = [row % (MOST + 1) for row in range(ROWS)]


def recorded(trees: tf.Tensor, wanted: tf.Tensor) -> tuple[loop.Progress, record.Record]:
    model = TreeModel(trees)
    progress, _ = loop.run(
        model.step, model.start(), Limits(DEPTH, tf.fill([tf.shape(trees)[0]], DEPTH), (END,), PAD),
        greedy.choose, (), (record.watcher(wanted, DEPTH, MOST),))
    return progress, progress.seen[0]


@on_all_paths
def test_what_is_told_is_the_models_own(run: Runner) -> None:
    progress, told = run(recorded, tf.constant(TREES), tf.constant(WANTED))
    for row in range(ROWS):
        length = int(progress.lengths[row])
        ids = tuple(progress.ids[row, :length].numpy().tolist())
        for place in range(DEPTH):
            found = (told.top_ids[row, place].numpy(), told.top_log_probs[row, place].numpy())
            if place >= length:
                assert float(told.log_probs[row, place]) == 0.0
                assert (found[0] == -1).all() and not found[1].any()
                continue
            log_probs = oracle.log_softmax(TREES[row, oracle.node(ids[:place], VOCAB)])
            np.testing.assert_allclose(told.log_probs[row, place], log_probs[ids[place]], atol=ATOL)
            count = min(WANTED[row], VOCAB)
            order = np.argsort(-log_probs)[:count]
            assert found[0].tolist() == [*order, *[-1] * (MOST - count)], f"row {row}"
            np.testing.assert_allclose(found[1][:count], log_probs[order], atol=ATOL)
            assert not found[1][count:].any()


def test_a_token_has_one_log_probability_wherever_it_is_told() -> None:
    progress, told = recorded(tf.constant(TREES), tf.fill([ROWS], 1))
    first = progress.lengths.numpy() > 0
    np.testing.assert_array_equal(told.log_probs.numpy()[first, 0],
                                  told.top_log_probs.numpy()[first, 0, 0])


def test_broken_logits_have_finite_log_probabilities() -> None:
    ids, log_probs = record.top(tf.constant([[np.nan, -np.inf, np.inf]]), 2, tf.constant([2]))
    assert ids.numpy().tolist() == [[2, 0]] and float(log_probs[0, 0]) == 0.0
    assert np.isfinite(log_probs).all()
