"""Best class: ties, NaN, infinities, on every path."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.decoding.paths import Runner, on_all_paths
from tf_infer.decoding.argmax import above, best

INF, NAN = float("inf"), float("nan")


@on_all_paths
def test_ties_go_to_the_lower_index_and_nan_is_never_best(run: Runner) -> None:
    scores = tf.constant([
        [1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [NAN, 1.0, NAN, 1.0], [NAN, -INF, -5.0, NAN],
        [1.0, INF, INF, 0.0], [-INF, -INF, -INF, -INF], [NAN, NAN, NAN, NAN]])
    assert run(best, scores).numpy().tolist() == [1, 0, 1, 2, 1, 0, 0]


@on_all_paths
def test_many_equal_values_of_a_wide_row_give_the_first(run: Runner) -> None:
    scores = np.random.default_rng(0).integers(0, 5, (64, 1000)).astype(np.float32)
    assert np.array_equal(run(best, tf.constant(scores)), scores.argmax(axis=-1))


def test_a_class_is_given_from_its_own_threshold_on() -> None:
    scores = tf.constant([[0.5, 0.4999, NAN], [0.2, 0.9, 1.0]])
    assert above(scores, (0.5,)).numpy().tolist() == [[True, False, False], [False, True, True]]
    assert above(scores, (0.1, 0.95, 1.0)).numpy().tolist() == [
        [True, False, False], [True, False, True]]
