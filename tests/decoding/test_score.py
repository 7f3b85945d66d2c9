"""Log-probabilities of given tokens, against float64."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.decoding.paths import Runner, on_all_paths
from tests.oracles.decoding import log_softmax
from tf_infer.decoding.score import sequence_scores, token_log_probs


@on_all_paths
def test_counted_ids_sum_to_the_oracles_score(run: Runner) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(7, 9, 30)).astype(np.float32) * 4
    ids = generator.integers(0, 30, (7, 9)).astype(np.int32)
    counted = generator.random((7, 9)) < 0.5
    found = run(sequence_scores, tf.constant(logits), tf.constant(ids), tf.constant(counted))
    exact = log_softmax(logits)
    for row in range(7):
        wanted = sum(exact[row, t - 1, ids[row, t]] for t in range(1, 9) if counted[row, t])
        np.testing.assert_allclose(found[row], wanted, atol=1e-4)


def test_place_zero_is_never_counted_and_an_empty_count_scores_zero() -> None:
    logits, ids = tf.random.stateless_normal([2, 4, 5], [1, 2]), tf.ones([2, 4], tf.int32)
    nothing = sequence_scores(logits, ids, tf.zeros([2, 4], tf.bool))
    first = sequence_scores(logits, ids, tf.constant([[True, False, False, False]] * 2))
    assert nothing.numpy().tolist() == first.numpy().tolist() == [0.0, 0.0]


def test_infinite_logits_keep_finite_scores() -> None:
    inf, nan = float("inf"), float("nan")
    logits = tf.constant([[inf, 0.0, inf, nan], [nan, nan, nan, nan], [-inf, 2.0, -inf, -inf]])
    found = token_log_probs(logits, tf.constant([0, 3, 1])).numpy()
    np.testing.assert_allclose(found, [-np.log(2), -np.log(4), 0.0], atol=1e-6)
