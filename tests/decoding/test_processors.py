"""Penalties, biases, bans, minimum length, forced prefix: against plain loops, on every path."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tests.decoding.paths import Runner, on_all_paths
from tf_infer.decoding import processors
from tf_infer.decoding.processors import BANNED, History, Penalties

ATOL = 1e-5  # float32 logits below 10
N, V, T, L = 12, 9, 5, 6
RNG = np.random.default_rng(7)
LOGITS = RNG.normal(size=(N, V)).astype(np.float32) * 3
PROMPT = RNG.integers(0, V, (N, T)).astype(np.int32)
IDS = RNG.integers(0, V, (N, L)).astype(np.int32)
PROMPT_LENGTHS = RNG.integers(0, T + 1, N).astype(np.int32)
LENGTHS = RNG.integers(0, L + 1, N).astype(np.int32)
REPETITION = np.where(np.arange(N) % 3 == 0, 1.0, 1.7).astype(np.float32)
PRESENCE = np.where(np.arange(N) % 2 == 0, 0.0, 0.8).astype(np.float32)
FREQUENCY = np.where(np.arange(N) % 4 < 2, 0.0, -0.3).astype(np.float32)


def penalized(row: int) -> np.ndarray:
    """Token by token, as the papers say it."""
    said = IDS[row, :LENGTHS[row]].tolist()
    seen = {*said, *PROMPT[row, :PROMPT_LENGTHS[row]].tolist()}
    out = []
    for token, logit in enumerate(LOGITS[row].tolist()):
        if token in seen:
            logit = logit / REPETITION[row] if logit > 0 else logit * REPETITION[row]
        count = said.count(token)
        out.append(logit - PRESENCE[row] * (count > 0) - FREQUENCY[row] * count)
    return np.float32(out)


def joined() -> np.ndarray:
    """Prompt and output without a gap; what stands behind them counts for nothing."""
    rows = [[*PROMPT[row, :PROMPT_LENGTHS[row]], *IDS[row, :LENGTHS[row]],
             *PROMPT[row, PROMPT_LENGTHS[row]:], *IDS[row, LENGTHS[row]:]] for row in range(N)]
    return np.array(rows, np.int32)


HELD = (joined(), PROMPT_LENGTHS, PROMPT_LENGTHS + LENGTHS)


def run_penalize(logits: tf.Tensor, ids: tf.Tensor, prompt_lengths: tf.Tensor,
                 lengths: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
    return processors.penalize(logits, Penalties(*rest), History(ids, prompt_lengths, lengths))


@on_all_paths
def test_penalties_are_those_of_the_papers_row_by_row(run: Runner) -> None:
    given = [tf.constant(array) for array in (LOGITS, *HELD, REPETITION, PRESENCE,
                                              FREQUENCY)]
    found = run(run_penalize, *given).numpy()
    for row in range(N):
        np.testing.assert_allclose(found[row], penalized(row), atol=ATOL, err_msg=f"row {row}")
    alone = run(run_penalize, *(tensor[3:4] for tensor in given)).numpy()
    np.testing.assert_array_equal(alone[0], found[3])


def test_penalties_that_are_off_change_no_bit() -> None:
    ones, zeros = tf.ones([N]), tf.zeros([N])
    given = [tf.constant(array) for array in (LOGITS, *HELD)]
    np.testing.assert_array_equal(run_penalize(*given, ones, zeros, zeros), LOGITS)
    # A batch that was padded has zeros where nobody asks.
    np.testing.assert_array_equal(run_penalize(*given, zeros, zeros, zeros), LOGITS)


@on_all_paths
def test_a_bias_is_added_where_it_counts(run: Runner) -> None:
    ids = np.int32([[1, 1, 2], [0, 3, 4], [-1, V, 5]])
    values = np.float32([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    counts = np.int32([3, 1, 3])
    expected = LOGITS[:3].copy()
    expected[0, 1] += 3
    expected[0, 2] += 3
    expected[1, 0] += 4
    expected[2, 5] += 9
    found = run(processors.add_bias, *map(tf.constant, (LOGITS[:3], ids, values, counts)))
    np.testing.assert_allclose(found, expected, atol=ATOL)


def ends_two(logits: tf.Tensor, produced: tf.Tensor, at_least: tf.Tensor) -> tf.Tensor:
    return processors.forbid_ends(logits, (2, 5), produced, at_least)


@on_all_paths
def test_no_row_ends_before_its_minimum(run: Runner) -> None:
    produced, least = np.int32([0, 2, 3, 4]), np.int32([0, 3, 3, 9])
    found = run(ends_two, *map(tf.constant, (LOGITS[:4], produced, least))).numpy()
    for row in range(4):
        banned = found[row] == np.float32(BANNED)
        assert np.flatnonzero(banned).tolist() == ([2, 5] if produced[row] < least[row] else [])
        np.testing.assert_array_equal(found[row][~banned], LOGITS[row][~banned])
    assert processors.forbid_ends(LOGITS, (), produced, least) is LOGITS


@on_all_paths
def test_a_forced_prefix_leaves_one_choice_until_it_is_said(run: Runner) -> None:
    prefix, lengths = np.int32([[4, 7], [1, 0], [3, 3]]), np.int32([2, 1, 0])
    for produced in range(3):
        found = run(processors.force, *map(tf.constant, (
            LOGITS[:3], prefix, lengths, np.full(3, produced, np.int32)))).numpy()
        for row in range(3):
            if produced < lengths[row]:
                assert np.flatnonzero(found[row] != np.float32(BANNED)).tolist() == [
                    prefix[row, produced]]
            else:
                np.testing.assert_array_equal(found[row], LOGITS[row])


def test_a_forced_token_is_the_only_one_even_where_it_was_banned() -> None:
    banned = processors.forbid(tf.constant(LOGITS[:1]), tf.range(V) != 3)
    found = processors.force(banned, tf.constant([[5]]), tf.constant([1]), tf.constant([0])).numpy()
    assert np.flatnonzero(found[0] > BANNED / 2).tolist() == [5]


def run_ban(logits: tf.Tensor, banned: tf.Tensor, *held: tf.Tensor) -> tf.Tensor:
    return processors.ban(logits, banned, History(*held))


@on_all_paths
def test_the_last_token_of_a_banned_sequence_is_forbidden_behind_the_others(run: Runner) -> None:
    banned = np.full((N, 4, 3), -1, np.int32)
    banned[:, 0, :1] = 0
    # Behind the last token; where nothing was produced that is the prompt's, which does not count.
    last = [joined()[row, max(PROMPT_LENGTHS[row] + LENGTHS[row] - 1, 0)] for row in range(N)]
    banned[:, 1, 0], banned[:, 1, 1] = last, 4
    banned[:, 2] = np.concatenate([IDS[:, :2], np.full((N, 1), 7)], axis=1)
    banned[:, 3, :1] = V + 5  # no token of this vocabulary
    found = run(run_ban, *map(tf.constant, (LOGITS, banned, *HELD))).numpy()
    kinds = set()
    for row in range(N):
        said = IDS[row, :LENGTHS[row]].tolist()
        wanted = {0}
        if said[-1:] == [banned[row, 1, 0]]:
            wanted.add(4)
        if said[-2:] == IDS[row, :2].tolist():
            wanted.add(7)
        kinds.add(frozenset(wanted))
        assert set(np.flatnonzero(found[row] == np.float32(BANNED))) == wanted, f"row {row}"
    assert len(kinds) >= 3 and 0 in LENGTHS[PROMPT_LENGTHS > 0]
    alone = run(run_ban, *(tf.constant(array[5:6]) for array in (LOGITS, banned, *HELD))).numpy()
    np.testing.assert_array_equal(alone[0], found[5])


def test_rows_have_ends_of_their_own_and_none_before_the_minimum() -> None:
    stop_ids = tf.constant([[1, -1], [6, 0], [-1, -1]])
    found = processors.forbid_ends(tf.constant(LOGITS[:3]), (2,), tf.constant([0, 0, 0]),
                                   tf.constant([1, 1, 0]), stop_ids).numpy()
    banned = [np.flatnonzero(row == np.float32(BANNED)).tolist() for row in found]
    assert banned == [[1, 2], [0, 2, 6], []]


def test_without_any_prefix_nothing_is_forced() -> None:
    found = processors.force(LOGITS, tf.zeros([N, 0], tf.int32), tf.zeros([N], tf.int32),
                             tf.zeros([N], tf.int32))
    np.testing.assert_array_equal(found, LOGITS)
